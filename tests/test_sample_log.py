"""The log of a sampler: what was in each batch, once more, after kills and beside damage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import arrowrb
from arrowrb.engine import Engine, WriterOptions, sample_logs
from arrowrb.errors import ArrowRBError, CorruptError, FullError, LockedError, OptionError, RowError
from arrowrb.retention import Limits
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema
from tests.test_prefetch import SAMPLERS, SCHEMA, append, flat, same

EVERY = {
    **SAMPLERS,
    "where": (arrowrb.Where("reward > 0"), {}),
    "shuffled": (arrowrb.Shuffled(hold=True), {}),
    "burn-in": (arrowrb.Sequences(4, burn_in=3, bootstrap=True, strict=False), {}),
    "prioritized sequences": (arrowrb.PrioritizedSequences(arrowrb.Sequences(3)), {}),
    "episodes": (arrowrb.Episodes(complete=False), {}),
    "to go": (arrowrb.Uniform(), {"return_to_go": 0.9}),
    "blocks": (arrowrb.Uniform(), {"cold": "block"}),
}


def samples_of(store: Store, name: str) -> dict[int, list[tuple[int, float | None]]]:
    """What the view shows: (row id, weight) in order of place, by batch."""
    rows = store.sql(
        "SELECT batch, place, row_id, weight FROM samples WHERE sampler = ? ORDER BY batch, place", [name]
    ).fetchall()
    found: dict[int, list[tuple[int, float | None]]] = {}
    for batch, place, row_id, weight in rows:
        assert place == len(found.setdefault(batch, []))
        found[batch].append((row_id, weight))
    return found


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_once_more(tmp_path: Path, kind: str, prefetch: int) -> None:
    """While episodes go on, and segments move to the cold tier and go."""
    path, rng = tmp_path / "store", np.random.default_rng(0)
    Store.create(path, SCHEMA, max_rows=3000).close()
    limits = Limits(hot_rows=600, max_rows=3000)
    strategy, options = EVERY[kind]
    options = {"batch_size": 16, "seed": 3, "prefetch": prefetch, "name": "learner", **options}
    kept = []
    with Store(Engine(path, writable=True, options=WriterOptions(None, limits=limits))) as store:
        append(store, rng, 700)
        sampler = store.sampler(strategy, log=True, **options)
        for number in range(1, 25):
            batch = sampler.sample()
            assert sampler.num_logged == number
            kept.append({name: value.clone() for name, value in flat(batch).items()})
            append(store, rng, 11)
            if number % 8 == 0:
                store.maintain()
            again = sampler.redraw(max(1, number - 5))
            assert same(again, kept[max(0, number - 6)])
        assert store.info().cold_rows
        log = samples_of(store, "learner")
        assert len(log) == 24
        for number, batch in enumerate(kept, 1):
            ids = batch["start_row_id" if "start_row_id" in batch else "row_id"]
            if ids.ndim == 2:
                ids = ids[:, 0]
            assert [row_id for row_id, _ in log[number]] == ids.tolist()
            weights = batch["weight"].tolist() if "weight" in batch else [None] * ids.shape[0]
            assert [weight for _, weight in log[number]] == weights
    with Store.open(path) as reader:  # another process, as far as it knows, without the name
        other = reader.sampler(strategy, **{**options, "name": None, "prefetch": 0, "seed": 9})
        for number, batch in enumerate(kept, 1):
            assert same(other.redraw(number, name="learner"), batch)
    with Store(Engine(path, writable=True, options=WriterOptions(None, limits=limits))) as store:
        append(store, rng, 3000)
        store.maintain()
        sampler = store.sampler(strategy, log=True, **options)
        with pytest.raises(RowError, match="rows that retention has dropped"):
            sampler.redraw(1)
        sampler.sample()
        assert sampler.num_logged == 25
        assert set(samples_of(store, "learner")) == set(range(1, 26))


def fill(path: Path) -> None:
    with Store.create(path, plain_schema()) as store:
        store.extend(plain_batch(300, 0))


def learner(store: Store, **options: Any) -> arrowrb.Sampler:
    return store.sampler(
        arrowrb.Prioritized(), **{"batch_size": 8, "seed": 0, "name": "learner", "log": True, **options}
    )


def draw(path: Path, count: int = 20, **options: Any) -> dict[int, list[tuple[int, float | None]]]:
    """Log batches; returns what has to be in the log."""
    with Store.open(path) as store:
        sampler = learner(store, **options)
        found = {}
        for _ in range(count):
            batch = sampler.sample()
            found[sampler.num_logged] = list(zip(batch["row_id"].tolist(), batch["weight"].tolist(), strict=True))
            sampler.update(batch["row_id"], np.arange(float(len(batch["row_id"]))))
        return found


def file_of(path: Path, number: int = 1) -> Path:
    return path / "samplers" / "learner" / sample_logs.name_of(number)


CHILD = """
import sys
from pathlib import Path
from arrowrb.store import Store
from tests.test_sample_log import learner
store = Store.open(Path(sys.argv[1]))
sampler = learner(store, prefetch=int(sys.argv[2]))
while True:
    batch = sampler.sample()
    print(sampler.num_logged, *batch["row_id"].tolist(), flush=True)
"""


@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_process_that_is_killed(tmp_path: Path, prefetch: int) -> None:
    path = tmp_path / "store"
    fill(path)
    told: dict[int, list[int]] = {}
    for seconds in (0, 3, 7):
        command = [sys.executable, "-c", CHILD, str(path), str(prefetch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as child:
            assert child.stdout is not None
            for _ in range(50 + seconds):
                number, *row_ids = map(int, child.stdout.readline().split())
                told[number] = row_ids
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                if line.endswith("\n"):
                    number, *row_ids = map(int, line.split())
                    told[number] = row_ids
        assert arrowrb.verify(path)
        with Store.open(path) as store:
            log = {number: [each for each, _ in rows] for number, rows in samples_of(store, "learner").items()}
        assert set(told) <= set(log)
        assert all(log[number] == row_ids for number, row_ids in told.items())
        assert max(log) <= max(told) + 1
        assert sorted(log) == list(range(1, max(log) + 1))
        told = log


def test_a_batch_that_is_not_whole_is_none(tmp_path: Path) -> None:
    """Whichever of its last bytes a process did not come to write; who takes the log next goes on before it."""
    path = tmp_path / "store"
    fill(path)
    expected = draw(path)
    whole = file_of(path).read_bytes()
    for seed in range(30):
        rng = random.Random(seed)
        chunk = sample_logs._Chunk(file_of(path), identity(path), writable=True)
        for _ in range(rng.randrange(1, 9)):
            column = rng.choice(list(chunk.columns.values()))
            column[19 * 8 + rng.randrange(8) : 20 * 8] = 0
        del chunk, column
        missing = file_of(path).read_bytes() != whole
        with Store.open(path) as store:
            assert samples_of(store, "learner") == {n: expected[n] for n in range(1, 21 - missing)}
            assert arrowrb.verify(path)
            sampler = learner(store)
            sampler.sample()
            assert sampler.num_logged == 21 - missing
            assert set(samples_of(store, "learner")) == set(range(1, 22 - missing))
            del sampler
        file_of(path).write_bytes(whole)


def identity(path: Path) -> str:
    with Store.open(path) as store:
        return f"{store._engine.file.store_id}/learner/samples/1"


def test_damage(tmp_path: Path) -> None:
    """Batches that are shown are right; damage before the last of them is found, and set aside."""
    path = tmp_path / "store"
    fill(path)
    expected, rng = draw(path), random.Random(1)
    whole = file_of(path).read_bytes()
    chunk = sample_logs._Chunk(file_of(path), identity(path))
    spans = [int(chunk.mapped.offsets[place]) for place in range(len(chunk.columns))]
    ends = [at + 160 * column.item_bytes for at, column in zip(spans, chunk.fields.columns, strict=True)]
    del chunk
    found = 0
    for number in range(150):
        wrong = bytearray(whole)
        column = rng.randrange(len(spans))
        at = rng.randrange(len(wrong)) if number % 3 == 0 else rng.randrange(spans[column], ends[column])
        kind = rng.choice(["bit", "byte", "cut", "more", "swap"])
        if kind == "bit":
            wrong[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            wrong[at] = rng.randrange(256)
        elif kind == "cut":
            del wrong[at:]
        elif kind == "more":
            wrong += bytes(64)
        else:
            other = rng.randrange(spans[column], ends[column])
            wrong[at : at + 8], wrong[other : other + 8] = wrong[other : other + 8], wrong[at : at + 8]
        file_of(path).write_bytes(wrong)
        told = arrowrb.verify(path)
        with Store.open(path) as store:
            try:
                shown = samples_of(store, "learner")
            except CorruptError:
                assert not told
                found += 1
                continue
        assert all(expected[batch] == rows for batch, rows in shown.items())
        if set(expected) - set(shown) - {20}:
            assert not told
            found += 1
    assert found > 50
    file_of(path).write_bytes(whole[: len(whole) // 2])
    with Store.open(path, mode="a") as store, pytest.raises(CorruptError):
        learner(store)
    assert arrowrb.repair(path).problems
    assert arrowrb.verify(path)
    with Store.open(path, mode="a") as store:
        assert samples_of(store, "learner") == {}
        learner(store).sample()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    draw(path, 1)
    whole = file_of(path).read_bytes()
    file_of(path).write_bytes(whole.replace(b"watermark", b"water\xdfark"))
    assert "none of a log" in str(arrowrb.verify(path).problems[0])
    with Store.open(path) as store, pytest.raises(CorruptError, match="none of a log"):
        samples_of(store, "learner")


def test_damage_to_all_batches_is_told(tmp_path: Path) -> None:
    """Where none is left, they are more than one that was begun."""
    path = tmp_path / "store"
    fill(path)
    draw(path)
    whole = file_of(path).read_bytes()
    for name in ("batch", "batch_size", "row_id", "weight", "check"):
        chunk = sample_logs._Chunk(file_of(path), identity(path), writable=True)
        chunk.columns[name][:160] = np.arange(160, 0, -1)
        del chunk
        with Store.open(path) as store:
            assert samples_of(store, "learner") == {}
        assert "does not agree with its check" in str(arrowrb.verify(path).problems[0])
        file_of(path).write_bytes(whole)


@pytest.mark.parametrize("name", [sample_logs.name_of(1), "largest"])
def test_a_folder_is_let_go_of_where_it_cannot_be_used(tmp_path: Path, name: str) -> None:
    """While somebody still holds the error."""
    path = tmp_path / "store"
    fill(path)
    draw(path, 1)
    damaged = path / "samplers" / "learner" / name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:10])
    with Store.open(path) as store:
        with pytest.raises(CorruptError) as held:
            learner(store)
        damaged.write_bytes(whole)
        assert learner(store).num_logged == 1
        assert held.value is not None


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that finds no room in the log is the next one again."""
    path = tmp_path / "store"
    fill(path)
    monkeypatch.setattr(sample_logs, "_LEAST_ROWS", 16)
    monkeypatch.setattr(sample_logs, "_MOST_ROWS", 16)
    for prefetch in (0, 3):
        with Store.open(path, mode="a") as store:
            plain = store.sampler(batch_size=8, seed=1)
            sampler = store.sampler(batch_size=8, seed=1, prefetch=prefetch, name=f"p{prefetch}", log=True)
            for number in range(12):
                if number in (2, 6):
                    with monkeypatch.context() as patch:
                        patch.setattr(os, "posix_fallocate", _no_room)
                        for _ in range(3):
                            with pytest.raises(FullError):
                                sampler.sample()
                assert same(sampler.sample(), plain.sample())
                assert sampler.num_logged == number + 1
            assert not list((path / "samplers" / f"p{prefetch}").glob(".*"))


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_keeping_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    fill(path)
    monkeypatch.setattr(sample_logs, "_LEAST_ROWS", 32)
    monkeypatch.setattr(sample_logs, "_MOST_ROWS", 32)
    expected = draw(path, 50, log=100)
    assert len(list(file_of(path).parent.glob("samples-*"))) == 5
    with Store.open(path) as store:
        assert samples_of(store, "learner") == {number: expected[number] for number in range(33, 51)}
        with pytest.raises(RowError, match="its newest is 50"):
            learner(store).redraw(32)
    more = draw(path, 1, batch_size=100)  # more than a file has rows
    with Store.open(path) as store:
        assert samples_of(store, "learner")[51] == more[51]
    assert arrowrb.verify(path)


def test_strategies_in_turn(tmp_path: Path) -> None:
    """Of one name: what is logged beside the rows differs, so it goes on in another file."""
    path = tmp_path / "store"
    fill(path)
    draw(path, 3)
    with Store.open(path) as store:
        store.sampler(batch_size=4, name="learner", log=True).sample()
        log = samples_of(store, "learner")
        assert [weight for _, weight in log[4]] == [None] * 4
        assert sorted(log) == [1, 2, 3, 4]
        assert file_of(path, 2).exists()
        with pytest.raises(OptionError, match="Make it with the strategy and options of that one"):
            store.sampler(arrowrb.Episodes(complete=False), batch_size=4).redraw(4, name="learner")
    table = pa.ipc.open_file(pa.memory_map(str(file_of(path)))).read_all()  # as anybody reads it
    assert table.filter(pa.compute.field("batch") > 0).num_rows == 24


def test_mixtures_log_in_their_parts(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    with Store.open(path) as store:
        parts = [(store.sampler(batch_size=8, seed=n, name=f"part{n}", log=True), 0.5) for n in (0, 1)]
        mixture = arrowrb.Mixture(parts, batch_size=8)
        batch = mixture.sample()
        for number in (0, 1):
            ids = batch["row_id"][batch["source"] == number].tolist()
            assert [row_id for row_id, _ in samples_of(store, f"part{number}")[1]] == ids


def test_who_may_log_and_what(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    with Store.open(path, mode="a") as store:
        assert store.sql("SELECT * FROM samples").fetchall() == []
        with pytest.raises(OptionError, match="log is kept under the sampler's name"):
            store.sampler(batch_size=4, log=True)
        for wrong in (0, -1, 0.5, "yes"):
            with pytest.raises(OptionError, match="expected True, False, or how many"):
                store.sampler(batch_size=4, name="a", log=wrong)  # type: ignore[arg-type]
        sampler = learner(store)
        with Store.open(path) as other, pytest.raises(LockedError, match="sampler 'learner'"):
            learner(other)
        with pytest.raises(RowError, match="it has none"):
            sampler.redraw(1)
        sampler.sample()
        for wrong in (0, 2, -1):
            with pytest.raises(RowError, match="its newest is 1"):
                sampler.redraw(wrong)
        with pytest.raises(OptionError, match="has no name"):
            store.sampler(batch_size=4).redraw(1)
        store.checkpoint("point")
        store.backup(tmp_path / "copy")
        with Store.open(path, at="point") as past:
            with pytest.raises(OptionError, match="keeps no log"):
                past.sampler(batch_size=4, name="a", log=True)
            assert len(samples_of(past, "learner")) == 1
    with Store.open(tmp_path / "copy") as copy:
        assert len(samples_of(copy, "learner")) == 1
        assert learner(copy).redraw(1)["row_id"].shape == (8,)
    assert arrowrb.verify(tmp_path / "copy")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_children_do_not_log(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    with Store.open(path) as store:
        sampler = store.sampler(batch_size=8, name="learner", log=True)
        sampler.sample()
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            try:
                sampler.sample()
            except ArrowRBError as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(samples_of(store, "learner")) == 1
