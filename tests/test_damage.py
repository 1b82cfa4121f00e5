"""Every kind of file of a store is damaged in turn: `verify` names it, finds two damages at once, and nothing dies."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import arrowrb
from arrowrb import commits, files, seeds
from arrowrb import manifest as manifests
from arrowrb.cli import app
from arrowrb.errors import ArrowRBError, CorruptError, StoreNotFoundError
from arrowrb.rows import row_id_base
from arrowrb.tiers import hot
from tests.plain_store import VECTOR, plain_schema
from tests.test_tiers import create, fill, settle, small_segments

__all__ = ["small_segments"]  # a fixture

SHARD = Path("shards/00000")
SEGMENTS = SHARD / "segments"


class _Spaces(gymnasium.Env[Any, Any]):
    observation_space = VECTOR
    action_space = gymnasium.spaces.Discrete(3)


def _record(store: arrowrb.Store, episodes: int) -> None:
    """Episodes that were reset with a seed, the last one unfinished."""
    recorder, rng = store.recorder(_Spaces()), np.random.default_rng(0)
    for episode in range(episodes):
        recorder.reset(rng.uniform(-1, 1, 4).astype(np.float32), {}, seed=episode)
        for step in range(5):
            observation = rng.uniform(-1, 1, 4).astype(np.float32)
            recorder.step(1, observation, 0.5, step == 4 and episode < episodes - 1, False, {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with sealed and open segments in the hot tier, cold ones, dropped ones, and seeds; its writer died."""
    path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        small_segments.__wrapped__(patch)  # type: ignore[attr-defined]
        with create(path / "store", max_rows=700, hot_rows=1) as store:
            fill(store, 1500)
            settle(store)
            _record(store, 6)
            store.flush()
            settle(store)
            shutil.copytree(store.path, path / "dead")
        with create(path / "other", max_rows=700, hot_rows=1) as store:
            fill(store, 1500)
            settle(store)
            shutil.copytree(store.path, path / "other dead")
    manifest = manifests.read(path / "dead" / SHARD / "manifest.json", 0)
    states = {(entry.tier, entry.sealed) for entry in manifest.segments}
    assert states == {("hot", True), ("hot", False), ("cold", True)}
    assert manifest.evicted.runs
    assert arrowrb.verify(path / "dead").problems == ()
    return path / "dead"


class Places:
    """Names of files of a store."""

    def __init__(self, store: Path, other: Path) -> None:
        self.store, self.folder, self.other = store, store / SEGMENTS, other / SEGMENTS
        self.manifest = manifests.read(store / SHARD / "manifest.json", 0)
        entries = self.manifest.segments
        self.cold = [entry for entry in entries if entry.tier == "cold"][1]
        self.sealed = next(entry for entry in entries if entry.tier == "hot" and entry.sealed)
        self.open = next(entry for entry in entries if not entry.sealed)


def flip(path: Path, at: int, bits: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def zero(path: Path, first: int, stop: int) -> None:
    content = bytearray(path.read_bytes())
    content[first:stop] = bytes(stop - first)
    path.write_bytes(content)


def _body(places: Places, number: int, name: str, row: int) -> int:
    """Where a row of a column of a hot segment lies in its file."""
    store_id = json.loads((places.store / "store.json").read_text())["id"]
    entry, schema = places.manifest.segment(number), plain_schema()
    path = places.folder / entry.name
    segment = hot.open_segment(path, schema, f"{store_id}/0/{number}", entry.rows, entry.bytes)
    column = [each.name for each in schema.columns].index(name)
    return int(segment.offsets[column]) + row * schema.columns[column].item_bytes


def _page(places: Places, column: str) -> int:
    """Within the last page of a column of the cold segment."""
    group = pq.read_metadata(places.folder / places.cold.name).row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    chunk = next(each for each in chunks if each.path_in_schema.split(".")[0] == column)
    return int(chunk.data_page_offset + chunk.total_compressed_size - 3)


def _segment(field: str, damage: Callable[[Places, Path], object]) -> Callable[[Places], str]:
    def do(places: Places) -> str:
        name = getattr(places, field).name
        damage(places, places.folder / name)
        return str(name)

    return do


def _table(field: str, table: str, damage: Callable[[Path], object]) -> Callable[[Places], str]:
    def do(places: Places) -> str:
        name = getattr(getattr(places, field), table).name
        damage(places.folder / name)
        return str(name)

    return do


def _file(name: str, damage: Callable[[Path], object]) -> Callable[[Places], str]:
    def do(places: Places) -> str:
        damage(places.store / name)
        return Path(name).name

    return do


def _dropped(damage: Callable[[Path], object]) -> Callable[[Places], str]:
    def do(places: Places) -> str:
        name = places.manifest.evicted.runs[0].name
        damage(places.folder / name)
        return name

    return do


def _swap(places: Places, path: Path) -> None:
    """The file of the same segment of another store."""
    found = next(each for each in places.other.iterdir() if each.suffix == path.suffix and each.stem.isdigit())
    shutil.copy(found, path)


def _rename(path: Path) -> None:
    """The name of a column in a row group's footer is no text any more."""
    content = path.read_bytes()
    flip(
        path,
        content.rindex(b"policy_version", 0, content.rindex(b"policy_version", 0, content.rindex(b"ARROW:schema"))),
        0x80,
    )


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


VISIBLE, DURABLE = f"{SHARD}/visible.commit", f"{SHARD}/durable.commit"
DAMAGES: dict[str, Callable[[Places], str]] = {
    "store.json, damaged": _file("store.json", lambda path: cut(path, 100)),
    "manifest, a bit": _file(f"{SHARD}/manifest.json", lambda path: flip(path, 500)),
    "manifest, header": _file(f"{SHARD}/manifest.json", lambda path: flip(path, 1)),
    "manifest, truncated": _file(f"{SHARD}/manifest.json", lambda path: cut(path, 700)),
    "manifest, missing": _file(f"{SHARD}/manifest.json", Path.unlink),
    "visible record, slot 0": _file(VISIBLE, lambda path: flip(path, 20)),
    "visible record, slot 1": _file(VISIBLE, lambda path: flip(path, 512 + 20)),
    "visible record, slot 0 empty": _file(VISIBLE, lambda path: zero(path, 0, 512)),
    "visible record, behind slot 1": _file(VISIBLE, lambda path: flip(path, 1000)),
    "visible record, behind both": _file(VISIBLE, lambda path: flip(path, 3000)),
    "visible record, both slots": _file(VISIBLE, lambda path: zero(path, 0, 1024)),
    "visible record, truncated": _file(VISIBLE, lambda path: cut(path, 600)),
    "visible record, missing": _file(VISIBLE, Path.unlink),
    "durable record, slot 0": _file(DURABLE, lambda path: flip(path, 20)),
    "durable record, slot 1": _file(DURABLE, lambda path: flip(path, 512 + 20)),
    "durable record, slot 1 empty": _file(DURABLE, lambda path: zero(path, 512, 1024)),
    "durable record, empty file": _file(DURABLE, lambda path: cut(path, 0)),
    "durable record, missing": _file(DURABLE, Path.unlink),
    "seeds, a bit": _file(f"{SHARD}/seeds", lambda path: flip(path, 45)),
    "seeds, truncated": _file(f"{SHARD}/seeds", lambda path: cut(path, 3 * seeds.ENTRY_BYTES - 7)),
    "seeds, missing": _file(f"{SHARD}/seeds", Path.unlink),
    "hot, beginning": _segment("sealed", lambda _, path: flip(path, 0)),
    "hot, header": _segment("sealed", lambda _, path: flip(path, 12, 0xFF)),
    "hot, footer": _segment("sealed", lambda _, path: flip(path, path.stat().st_size - 12, 0xFF)),
    "hot, body": _segment("sealed", lambda at, path: flip(path, _body(at, at.sealed.number, "reward", 18))),
    "hot, truncated": _segment("sealed", lambda _, path: cut(path, path.stat().st_size // 2)),
    "hot, empty": _segment("sealed", lambda _, path: cut(path, 0)),
    "hot, missing": _segment("sealed", lambda _, path: path.unlink()),
    "hot, of another store": _segment("sealed", _swap),
    "hot, a folder": _segment("sealed", lambda _, path: _folder(path)),
    "hot, a link": _segment("sealed", lambda _, path: _link(path)),
    "open, header": _segment("open", lambda _, path: flip(path, 12, 0xFF)),
    "open, missing": _segment("open", lambda _, path: path.unlink()),
    "open, truncated": _segment("open", lambda _, path: cut(path, 5000)),
    "cold, footer": _segment("cold", lambda _, path: flip(path, path.stat().st_size - 7)),
    "cold, schema": _segment("cold", lambda _, path: flip(path, path.stat().st_size - 400, 0xFF)),
    "cold, a page": _segment("cold", lambda at, path: flip(path, _page(at, "reward"))),
    "cold, a page of vectors": _segment("cold", lambda at, path: flip(path, _page(at, "observation"))),
    "cold, a page of a system column": _segment("cold", lambda at, path: flip(path, _page(at, "ordinal"))),
    "cold, a page of row ids": _segment("cold", lambda at, path: flip(path, _page(at, "row_id"))),
    "cold, a name in the footer": _segment("cold", lambda _, path: _rename(path)),
    "cold, truncated": _segment("cold", lambda _, path: cut(path, path.stat().st_size // 2)),
    "cold, missing": _segment("cold", lambda _, path: path.unlink()),
    "cold, of another store": _segment("cold", _swap),
    "block table of hot": _table("sealed", "blocks", lambda path: flip(path, 900)),
    "block table of cold": _table("cold", "blocks", lambda path: flip(path, 900)),
    "block table of cold, truncated": _table("cold", "blocks", lambda path: cut(path, 100)),
    "block table of cold, missing": _table("cold", "blocks", Path.unlink),
    "run table of hot": _table("sealed", "runs", lambda path: flip(path, 900)),
    "run table of cold, missing": _table("cold", "runs", Path.unlink),
    "run table of dropped": _dropped(lambda path: flip(path, 300)),
    "run table of dropped, missing": _dropped(Path.unlink),
}


def _copy(whole: Path, folder: Path) -> Places:
    shutil.copytree(whole, folder / "dead")
    return Places(folder / "dead", whole.parent / "other dead")


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named(whole: Path, tmp_path: Path, kind: str) -> None:
    places = _copy(whole, tmp_path)
    name = DAMAGES[kind](places)
    found = arrowrb.verify(places.store)
    assert [problem.file for problem in found.problems] == [name], found.problems
    problem = found.problems[0]
    assert "None" not in problem.what
    if "page" in kind or "body" in kind:
        columns = {
            "cold, a page of vectors": "observation",
            "cold, a page of a system column": "ordinal",
            "cold, a page of row ids": "row_id",
        }
        column = columns.get(kind, "reward")
        assert problem.column == column
        entry = places.cold if kind.startswith("cold") else places.sealed
        assert problem.segment == entry.number
        assert problem.rows is not None
        base = row_id_base(0, entry.number)
        assert base <= problem.rows[0] < problem.rows[1] <= base + entry.rows
    if not kind.startswith(("manifest", "store.json")):
        assert found.num_segments >= len(places.manifest.segments) - 1
    result = CliRunner().invoke(app, ["verify", str(places.store), "--format", "json"])
    assert result.exit_code == 1
    assert [each["file"] for each in json.loads(result.stdout)] == [name]
    told = _use(places.store)
    assert "None" not in told


def _use(path: Path) -> str:
    """Open a damaged store, verify and sample it; returns the error of ours that says why that does not go."""
    try:
        with arrowrb.Store.open(path) as store:
            assert not store.verify()
            store.sample(8, seed=1)
    except ArrowRBError as error:
        return str(error)
    return ""


PAIRS = [
    (one, other)
    for number, (one, other) in enumerate(itertools.combinations(DAMAGES, 2))
    if number % 23 == 0 and one.partition(",")[0] != other.partition(",")[0]
]


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_two_damages_are_two_problems(whole: Path, tmp_path: Path, pair: tuple[str, str]) -> None:
    places = _copy(whole, tmp_path)
    names = [DAMAGES[kind](places) for kind in reversed(pair)]
    problems = arrowrb.verify(places.store).problems
    expected = set(names)
    if any(kind.startswith("manifest") for kind in pair):  # what is in the folder of segments is not known then
        expected &= {"manifest.json", "store.json", "visible.commit", "durable.commit", "seeds"}
    if "store.json, damaged" in pair:  # no rows can be looked at then, tables can
        expected = {name for name in expected if not name.endswith(".parquet") and not name[:-6].isdigit()}
    assert expected
    for name in expected:
        assert any(problem.file == name for problem in problems), (name, problems)


def test_statistics_that_would_hide_rows(whole: Path, tmp_path: Path) -> None:
    """A bit in them would make SQL pass over a row group: the manifest has a checksum of all that is in a footer."""
    places = _copy(whole, tmp_path)
    path = places.folder / places.cold.name
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    found = [at for at in range(footer, len(content) - 8) if content[at : at + 4] == (1).to_bytes(4, "little")]
    assert found  # least kinds among them
    for at in found:
        damaged = bytearray(content)
        damaged[at : at + 4] = (2).to_bytes(4, "little")
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=path.name):
            arrowrb.Store.open(places.store)
        assert [problem.file for problem in arrowrb.verify(places.store).problems] == [path.name]


def test_open_says_which_file_is_missing(whole: Path, tmp_path: Path) -> None:
    places = _copy(whole, tmp_path)
    (places.folder / places.cold.name).unlink()
    with pytest.raises(ArrowRBError, match=places.cold.name):
        arrowrb.Store.open(places.store)


def test_open_says_that_commits_are_lost(whole: Path, tmp_path: Path) -> None:
    """Records that are whole, and older than what the manifest says."""
    places = _copy(whole, tmp_path)
    old = commits.Record(sequence=3, watermark=5, num_transitions=4, boot_id=files.boot_id())
    for name in (VISIBLE, DURABLE):
        commits.create_file(places.store / name, old, sync=False)
    with pytest.raises(ArrowRBError, match="the commit records know of 5 rows"):
        arrowrb.Store.open(places.store)
    assert any("newer commits are lost" in problem.what for problem in arrowrb.verify(places.store).problems)


def test_there_must_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        arrowrb.verify(tmp_path)
    (tmp_path / "shards").mkdir()
    assert arrowrb.verify(tmp_path).problems[0].file == "store.json"


@pytest.mark.parametrize("which", ["sealed", "cold"])
def test_any_byte_of_a_header_or_footer(whole: Path, tmp_path: Path, which: str) -> None:
    """No bit there makes anything but an error of ours; nor does it change what is read without being found."""
    places = _copy(whole, tmp_path)
    entry = getattr(places, which)
    path = places.folder / entry.name
    content = path.read_bytes()
    parts = [(0, 1500), (len(content) - 3000, len(content))] if which == "sealed" else [(0, len(content))]
    rng = np.random.default_rng(3)
    for first, stop in parts:
        for at in rng.integers(max(first, 0), stop, 12).tolist():
            damaged = bytearray(content)
            damaged[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            problems = arrowrb.verify(places.store).problems
            assert all(problem.file == entry.name for problem in problems), (at, problems)
            if not problems:
                with arrowrb.Store.open(places.store) as store:
                    assert store.gather(_ids(places)).keys()
    path.write_bytes(content)
    assert arrowrb.verify(places.store)


def _ids(places: Places) -> list[int]:
    with arrowrb.Store.open(places.store) as store:
        return [int(each[0]) for each in store.sql("SELECT row_id FROM transitions").fetchall()]
