"""Repairs: every kind of file is damaged in turn; what was intact stays, what was not is set aside and told."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import arrowrb
from arrowrb import commits, files
from arrowrb.cli import app
from arrowrb.engine import repairing
from arrowrb.errors import CorruptError, LockedError, StoreNotFoundError
from arrowrb.rows import POSITION_BITS
from tests.plain_store import plain_batch, plain_schema
from tests.test_checkpoints import shown
from tests.test_damage import DAMAGES, PAIRS, SHARD, Places, _copy, flip, whole
from tests.test_tiers import create, fill, reopen, settle, small_segments

__all__ = ["small_segments", "whole"]  # fixtures


def lost_segments(places: Places, kind: str) -> dict[int, int]:
    """Which segments' rows cannot be kept, and how many transitions they hold (-1: it does not say)."""
    field = kind.partition(",")[0]
    if field == "hot":
        return {places.sealed.number: places.sealed.num_transitions}
    if field == "cold":
        return {places.cold.number: places.cold.num_transitions}
    return {places.open.number: -1} if field == "open" else {}


def transitions(store: arrowrb.Store) -> dict[int, str]:
    return {row[0]: repr(row) for row in store.sql("SELECT * FROM transitions").fetchall()}


def check_repaired(places: Places, kinds: tuple[str, ...], before: dict[int, str]) -> None:
    lost = {number: count for kind in kinds for number, count in lost_segments(places, kind).items()}
    done = arrowrb.repair(places.store)
    assert done.after, done.after.problems
    assert done.problems
    assert {each.segment: -1 if each.num_transitions is None else each.num_transitions for each in done.lost} == lost
    with arrowrb.Store.open(places.store) as store:
        rows = transitions(store)
        assert rows.items() <= before.items()
        assert {row_id >> POSITION_BITS for row_id in before if row_id not in rows} <= set(lost)
        assert len(rows) == len(store) == len(before) - done.num_transitions_lost
        for number in lost:
            assert not any(row_id >> POSITION_BITS == number for row_id in rows)
        store.sample(32)
        episodes = store.sql("SELECT count(*) FROM episodes").fetchall()[0][0]
        assert episodes > 0
    if done.aside is not None:
        report = json.loads((done.aside / "report.json").read_text())
        assert [each["segment"] for each in report["lost"]] == [each.segment for each in done.lost]
    again = arrowrb.repair(places.store)
    assert (again.problems, again.lost, again.aside) == ((), (), None)
    with reopen(places.store, hot_rows=1) as store:
        ids = store.extend(plain_batch(200))
        assert not set(ids.tolist()) & set(before)
        settle(store)
        now = transitions(store)  # some were dropped by now
        assert all(now[row_id] == row for row_id, row in rows.items() if row_id in now)
        assert store.verify()


@pytest.fixture
def before(whole: Path) -> dict[int, str]:
    with arrowrb.Store.open(whole) as store:
        return transitions(store)


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_intact_is_kept(whole: Path, tmp_path: Path, before: dict[int, str], kind: str) -> None:
    places = _copy(whole, tmp_path)
    name = DAMAGES[kind](places)
    damaged = (places.folder / name).read_bytes() if (places.folder / name).is_file() else None
    check_repaired(places, (kind,), before)
    if damaged is not None:  # nothing is deleted
        kept = [path.read_bytes() for path in (places.store / "damaged").rglob("*") if path.is_file()]
        assert damaged in kept


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_two_damages(whole: Path, tmp_path: Path, before: dict[int, str], pair: tuple[str, str]) -> None:
    places = _copy(whole, tmp_path)
    for kind in reversed(pair):
        DAMAGES[kind](places)
    done = arrowrb.repair(places.store)
    assert done.after, done.after.problems
    with arrowrb.Store.open(places.store) as store:
        rows = transitions(store)
        assert rows.items() <= before.items()
        expected = {number for kind in pair for number in lost_segments(places, kind)}
        tables = (
            {places.cold.number} if any("table" in kind and "manifest" in " ".join(pair) for kind in pair) else set()
        )
        assert {row_id >> POSITION_BITS for row_id in before if row_id not in rows} <= expected | tables


def test_a_repair_that_is_broken_off_goes_on(
    whole: Path, tmp_path: Path, before: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each file that it moves or writes."""
    kinds = ("cold, a page", "block table of hot", "visible record, missing", "seeds, a bit")
    for stop in range(1, 40):
        places = _copy(whole, tmp_path / str(stop))
        for kind in kinds:
            DAMAGES[kind](places)
        count = 0

        def counted(real: object, stop: int = stop) -> object:
            def call(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == stop:
                    raise KeyboardInterrupt
                return real(*arguments, **options)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patch:
            for module, name in ((os, "rename"), (os, "link"), (files, "publish"), (commits, "create_file")):
                patch.setattr(module, name, counted(getattr(module, name)))
            try:
                arrowrb.repair(places.store)
            except KeyboardInterrupt:
                pass
            else:
                assert stop > 8
                break
        done = arrowrb.repair(places.store)
        assert done.after, (stop, done.after.problems)
        with arrowrb.Store.open(places.store) as store:
            rows = transitions(store)
            assert rows.items() <= before.items()
            assert {row_id >> POSITION_BITS for row_id in before if row_id not in rows} <= {places.cold.number}
    else:
        pytest.fail("it never ended")


def test_damaged_checkpoints_are_set_aside(tmp_path: Path) -> None:
    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 500)
        store.checkpoint("good", state=1)
        store.checkpoint("bad", state=2, keep=True)
    flip(store.path / "checkpoints/bad.safetensors", 300)
    found = arrowrb.verify(store.path)
    assert [problem.file for problem in found.problems] == ["checkpoints/bad.safetensors"]
    with pytest.raises(CorruptError, match=r"bad\.safetensors"):
        arrowrb.Store.open(store.path, mode="a")
    assert arrowrb.repair(store.path).after
    with arrowrb.Store.open(store.path, mode="a") as again:
        assert [each.name for each in again.checkpoints()] == ["good"]
        assert again.restore() == (None, 1)


MADE_ANEW = [
    *("coordinator", "coordinator.json", "keeping", "keeping.json", "dropping-00000", "dropping-00000.json", "count"),
    *("lock", "maker.json", "00000/lock", "00000/writer.json", "00000/orders", "00000/reserve"),
]


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "folder") for name in MADE_ANEW), ("count", "pipe"), ("coordinator", "link")]
)
def test_what_is_no_file_where_writers_make_one_is_set_aside(
    whole: Path, tmp_path: Path, before: dict[int, str], name: str, how: str
) -> None:
    places = _copy(whole, tmp_path)
    path = places.store / "shards" / name
    path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
        (path / "of somebody").write_text("kept")
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(places.store / "store.json")
    found = arrowrb.verify(places.store)
    assert [(each.file, each.shard) for each in found.problems] == [(f"shards/{name}", -1)]
    done = arrowrb.repair(places.store)
    assert done.after, done.after.problems
    assert done.aside is not None
    assert os.path.lexists(done.aside / "shards" / name)
    with arrowrb.Store.open(places.store, mode="a") as store:
        assert transitions(store) == before
        store.checkpoint("after")
        arrowrb.Store.open(places.store, mode="a", shard="another").close()


def test_nothing_is_done_to_a_whole_store(whole: Path, tmp_path: Path) -> None:
    places = _copy(whole, tmp_path)
    listing = sorted((path, path.stat().st_mtime_ns) for path in places.store.rglob("*"))
    done = arrowrb.repair(places.store)
    assert done.after
    assert done.aside is None
    assert sorted((path, path.stat().st_mtime_ns) for path in places.store.rglob("*")) == listing


def test_what_cannot_be_repaired(whole: Path, tmp_path: Path) -> None:
    places = _copy(whole, tmp_path)
    DAMAGES["store.json, damaged"](places)
    (places.store / "shards/store.json").unlink()
    with pytest.raises(CorruptError, match="cannot be repaired"):
        arrowrb.repair(places.store)
    with pytest.raises(StoreNotFoundError):
        arrowrb.repair(tmp_path / "none")
    with arrowrb.Store.create(tmp_path / "live", plain_schema()) as store:
        store.extend(plain_batch(10))
        (store.path / SHARD / "seeds").unlink()
        with pytest.raises(LockedError):
            arrowrb.repair(store.path)


def test_the_command(whole: Path, tmp_path: Path) -> None:
    places = _copy(whole, tmp_path)
    run = CliRunner().invoke
    assert "nothing was done" in run(app, ["repair", str(places.store)]).output
    DAMAGES["cold, a page"](places)
    shutil.copytree(places.store, tmp_path / "second")
    told = run(app, ["repair", str(places.store)])
    assert told.exit_code == 0, told.output
    assert f"{places.cold.num_transitions} transitions lost" in told.output
    assert "All is well now" in told.output
    listed = json.loads(run(app, ["repair", str(tmp_path / "second"), "--format", "json"]).stdout)
    assert [each["segment"] for each in listed] == [places.cold.number]
    assert repairing.Lost(**listed[0]).file == places.cold.name


def test_episodes_of_what_was_lost_are_known(whole: Path, tmp_path: Path) -> None:
    places = _copy(whole, tmp_path)
    query = "SELECT episode_id, lane, length, seed FROM episodes WHERE ended_by <> 'running'"
    with arrowrb.Store.open(places.store) as store:
        expected = set(store.sql(query).fetchall())
    DAMAGES["cold, missing"](places)
    arrowrb.repair(places.store)
    with arrowrb.Store.open(places.store) as store:
        assert set(store.sql(query).fetchall()) == expected
        assert shown(store)["steps"]


@pytest.mark.parametrize("at", range(4, 2000, 133))
def test_a_lost_manifest_and_a_damaged_table(whole: Path, tmp_path: Path, at: int) -> None:
    """Tables that cannot be read, of which nothing tells the checksum any more, are not the end of a repair."""
    places = _copy(whole, tmp_path)
    flip(places.store / SHARD / "manifest.json", 500)
    for table in sorted(places.folder.glob("*.runs.arrow")):
        flip(table, at % table.stat().st_size, 0xFF)
        flip(table, table.stat().st_size - 20 - at % 100, 0xFF)  # in its footer
    done = arrowrb.repair(places.store)
    assert done.after, done.after.problems
    with arrowrb.Store.open(places.store) as store:
        store.sql("SELECT * FROM episodes").fetchall()
        assert len(store) == len(transitions(store))
