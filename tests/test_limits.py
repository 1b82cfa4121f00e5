"""Limits of a store that was opened with others before."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arrowrb.cli import app
from arrowrb.engine import shard_writer
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema


def _hot_rows(store: Store) -> int:
    return sum(
        entry.rows for manifest in store._engine.manifests() for entry in manifest.segments if entry.tier == "hot"
    )


def _open_segments(store: Store) -> list[int]:
    return [entry.number for manifest in store._engine.manifests() for entry in manifest.segments if entry.is_open]


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """A store of 150,000 rows, made without a limit, so that most of it is in one segment which is open."""
    with Store.create(tmp_path / "store", plain_schema(), sync_interval=None) as store:
        for seed in range(15):
            store.extend(plain_batch(10_000, seed))
        assert _hot_rows(store) > 150_000
    return tmp_path / "store"


def test_a_smaller_hot_tier_for_a_large_open_segment(grown: Path) -> None:
    with Store.open(grown, mode="a", hot_rows=20_000) as store:
        store.maintain()
        assert _hot_rows(store) <= 20_000
        before = store.sql("SELECT count(*), sum(reward) FROM transitions").fetchall()
        for seed in range(5):
            store.extend(plain_batch(10_000, seed))
        store.maintain()
        assert _hot_rows(store) <= 20_000
        assert len(store) == 200_000
        assert before[0][0] == 150_000
        assert store.sql("SELECT count(DISTINCT row_id) FROM transitions").fetchall() == [(200_000,)]
        assert store.verify()
        assert store._engine.writer_shard is not None
        store._engine.writer_shard.wait_for_threads()
        going_on = _open_segments(store)
    with Store.open(grown, mode="a", hot_rows=20_000) as store:  # what was made under this limit is gone on with
        assert _open_segments(store) == going_on


def test_the_command(grown: Path) -> None:
    result = CliRunner().invoke(app, ["maintain", str(grown), "--hot-rows", "20000"])
    assert result.exit_code == 0, result.output
    with Store.open(grown, mode="r") as store:
        assert _hot_rows(store) <= 20_000


def test_an_empty_large_segment_goes(grown: Path) -> None:
    with Store.open(grown, mode="a", hot_rows=20_000) as store:
        store.maintain()
    with Store.open(grown, mode="a", hot_rows=20_000) as store:
        assert all(entry.num_transitions for m in store._engine.manifests() for entry in m.segments if entry.sealed)
        assert store.verify()
    files = {path.name for path in grown.rglob("*.arrow")}
    with Store.open(grown, mode="r") as store:
        listed = {name for manifest in store._engine.manifests() for name in manifest.files}
    assert files <= listed


def test_the_last_look_decides_whether_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads look whether the hot tier is full; what is kept is what the second saw."""
    entered, second_done = threading.Event(), threading.Event()

    def slow(*_: object) -> bool:
        if not entered.is_set():
            entered.set()
            second_done.wait(0.5)
            return True
        return False

    with Store.create(tmp_path / "store", plain_schema(), sync_interval=None) as store:
        shard = store._engine.writer_shard
        assert shard is not None
        monkeypatch.setattr(shard_writer, "is_tight", slow)
        first = threading.Thread(target=shard._review)
        first.start()
        assert entered.wait(30)
        shard._review()
        second_done.set()
        first.join()
        assert not shard._tight
