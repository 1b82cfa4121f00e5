"""Files of each kind that were damaged: flipped bits, cut, extended, swapped pages, zeros.

Of each: whatever is read is right, or an error of ours says why not; what `verify` finds nothing about is read as it
was written; nothing dies, hangs or takes memory without bound.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import arrowrb
from arrowrb import manifest as manifests
from arrowrb.engine import limiter_file, read_samples
from arrowrb.errors import ArrowRBError
from arrowrb.sql.summaries import build_episodes, read_runs
from arrowrb.store import Store
from tests.torture.workloads import Progress, fork, learner, open_writer, read_ids, small_segments, write

_PAGE, _MOST_SECONDS, _MOST_BYTES = 4096, 20, 1 << 30
SHARD = Path("shards/00000")


def mutated_files(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """So many damages of each kind of file; a child opens what is left, so that a death would be seen."""
    small_segments(16, 1, hot=7)
    whole = make(folder / "whole")
    truth = read_all(whole, 2) | read_all(whole, 3) | read_all(whole, 0) | read_all(whole, 1)
    kinds = kinds_of_files(whole)
    counts: Tally[str] = Tally({"kinds of files": len(kinds)} if part == 0 else {})

    def job() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (_memory() + _MOST_BYTES,) * 2)
        for kind, path in kinds.items():
            rng = np.random.default_rng(1000 * part + len(kind))
            content = path.read_bytes()
            for number in range(part, cases, parts):
                damaged = mutate(content, rng)
                with _replaced(path, damaged), _limited(f"{kind}, case {number}"):
                    counts[_look(whole, truth, kind, number // parts)] += 1
                counts["cases"] += 1
        (folder / "counts").write_text(json.dumps(counts))

    assert fork(job) == 0
    return dict(json.loads((folder / "counts").read_text()))


def make(folder: Path) -> Path:
    """A store with open, sealed, cold and dropped segments, seeds and a point; its writer died."""
    folder.mkdir(parents=True)
    store = folder / "store"

    def job() -> None:
        opened = open_writer(store, most_rows=250)
        sampler = learner(opened)
        number = write(opened, Progress(folder / "progress"), 500, 50, sampler=sampler)
        opened.checkpoint("point", tensors={"weight": np.arange(30.0)}, state={"number": number})
        write(opened, Progress(folder / "progress"), 60, 30)
        limiter_file.change(store, opened._engine.file.store_id, arrowrb.SampleToInsertRatio(4), durable=True)
        os._exit(0)

    assert fork(job) == 0
    (store / SHARD / "reserve").unlink()
    return store


def kinds_of_files(store: Path) -> dict[str, Path]:
    """One file of each kind."""
    manifest = manifests.read(store / SHARD / "manifest.json", 0)
    segments = store / SHARD / "segments"
    cold = next(each for each in manifest.segments if each.tier == "cold")
    sealed = next(each for each in manifest.segments if each.tier == "hot" and each.sealed)
    opened = next(each for each in manifest.segments if not each.sealed)
    assert cold.blocks is not None
    assert sealed.runs is not None
    kinds = {
        "store.json": store / "store.json",
        "spare store.json": store / "shards" / "store.json",
        "manifest": store / SHARD / "manifest.json",
        "visible record": store / SHARD / "visible.commit",
        "durable record": store / SHARD / "durable.commit",
        "hot segment": segments / sealed.name,
        "open segment": segments / opened.name,
        "cold segment": segments / cold.name,
        "block table": segments / cold.blocks.name,
        "run table": segments / sealed.runs.name,
        "merged run table": segments / manifest.evicted.runs[0].name,
        "point": next((store / "checkpoints").glob("*.safetensors")),
        "priorities": max((store / "samplers" / "learner").glob("*.priorities")),
        "largest priority": store / "samplers" / "learner" / "largest",
        "limiter": store / "limiter",
        "sample log": store / "samplers" / "learner" / "samples-00000001.arrow",
    }
    assert all(path.is_file() for path in kinds.values())
    return kinds


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Another content."""
    damaged = bytearray(content)
    size = len(content)
    how = rng.random()
    if how < 0.5:
        for at in rng.integers(0, size, int(rng.choice([1, 1, 1, 2, 8]))).tolist():
            damaged[at] ^= 1 << int(rng.integers(8))
    elif how < 0.65:
        del damaged[int(rng.integers(0, size)) :]
    elif how < 0.75:
        damaged += rng.bytes(int(rng.integers(1, 5000)))
    elif how < 0.9:
        step = min(_PAGE, max(1, size // 4))
        one, other = (int(each) * step for each in rng.integers(0, size // step, 2))
        damaged[one : one + step], damaged[other : other + step] = (
            content[other : other + step],
            content[one : one + step],
        )
    else:
        first = int(rng.integers(0, size))
        stop = min(size, first + int(rng.integers(1, _PAGE)))
        damaged[first:stop] = bytes(stop - first) if rng.random() < 0.5 else rng.bytes(stop - first)
    return bytes(damaged)


@contextmanager
def _replaced(path: Path, content: bytes) -> Iterator[None]:
    """Another content, of another inode, since what is mapped must not change."""
    original = path.with_name("original")
    path.rename(original)
    try:
        path.write_bytes(content)
        yield
    finally:
        original.replace(path)


@contextmanager
def _limited(what: str) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError(f"{what}: takes longer than {_MOST_SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_MOST_SECONDS)
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    finally:
        signal.alarm(0)


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def read_all(path: Path, which: int = 0) -> dict[str, Any]:
    """What a reader sees, in one of four ways; always all rows, as they are gathered.

    Rows as SQL shows them, or (``which`` is odd) all else; and each of them as what SQL is given is read.
    """
    with Store.open(path) as store:
        sql = which % 4 < 2
        seen: dict[str, Any] = {}
        if which % 2:
            seen = {"priorities": _priorities(store), "point": [repr(part) for part in store.restore("point")]}
            seen |= _views_by_sql(store) if sql else _views(store)
        elif sql:
            seen["rows"] = store.sql("SELECT * FROM transitions ORDER BY row_id").arrow()
        ids = seen["rows"]["row_id"].to_numpy() if "rows" in seen else np.sort(read_ids(store))
        columns = [column.name for column in store.schema.columns if column.name != "kind"]
        columns += [f"next_{column.name}" for column in store.schema.observation_columns]
        return seen | {name: column.numpy().tobytes() for name, column in store.gather(ids, columns=columns).items()}


def _views_by_sql(store: Store) -> dict[str, Any]:
    return {
        "samples": set(store.sql("SELECT * FROM samples").fetchall()),
        "episodes": store.sql("SELECT * FROM episodes ORDER BY episode_id").arrow(),
    }


def _views(store: Store) -> dict[str, Any]:
    engine = store._engine
    snapshot = engine.snapshot()
    samples = read_samples(store.path, engine.file.store_id)
    episodes = build_episodes(read_runs(snapshot, store.path), engine.read_seeds(snapshot))
    return {
        "samples": set(zip(*(column.to_pylist() for column in samples.columns), strict=True)),
        "the episodes": episodes.sort_by("episode_id"),
    }


def _priorities(store: Store) -> dict[str, bytes]:
    raw = learner(store).state_dict()["stream"]["priorities"]["raw"]
    return {name: values.tobytes() for name, values in raw.items()}


def _look(path: Path, truth: dict[str, Any], kind: str, which: int) -> str:
    """Read and verify a damaged store; says how that ended."""
    found, refused = arrowrb.verify(path), False
    seen: dict[str, Any] = {}
    try:
        seen = read_all(path, which)
    except ArrowRBError:
        refused = True
    if found:
        wrong = [name for name, value in seen.items() if value != truth[name]]
        if kind == "sample log" and wrong == ["samples"] and seen["samples"] < truth["samples"]:
            assert len(truth["samples"] - seen["samples"]) == 8, "verify misses more than the newest batch"
            return "harmless"
        # Of what is still written to there are no checksums.
        live = kind == "open segment" or ("priorit" in kind and wrong == ["priorities"])
        assert live or not wrong, f"verify finds nothing, but {wrong} are others"
        assert not refused or kind == "open segment", "verify finds nothing, but it does not open"
        return "harmless"
    return "refused" if refused else "named by verify"
