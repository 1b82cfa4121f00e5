"""Limits of a store that was opened with others before."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from arrowrb.cli import app
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
