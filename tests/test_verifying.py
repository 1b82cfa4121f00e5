"""Verify: silent where all is well, whatever was done to a store; and every kind of damage is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from arrowrb.cli import app
from arrowrb.engine import segments
from arrowrb.errors import QueryError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.model_pair import Pair
from tests.test_sql import rich_schema, write_rich
from tests.test_tiers import create, fill, settle, small_segments

__all__ = ["small_segments"]  # a fixture


@pytest.mark.filterwarnings("ignore:.*do not go on where.*:UserWarning")
@pytest.mark.parametrize("hot_rows", [None, 1])
@pytest.mark.parametrize("num_lanes", [1, 3, 40])
def test_whatever_was_done_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_lanes: int, hot_rows: int | None
) -> None:
    def shape(*, num_lanes: int, **_: Any) -> SegmentShape:
        return SegmentShape(16 * max(num_lanes, 1), 4)

    monkeypatch.setattr(segments, "shape_segment", shape)
    pair = Pair(tmp_path / "store", 5, num_lanes, Limits(hot_rows=hot_rows))
    rng = np.random.default_rng(num_lanes)
    for number in range(25):
        how = rng.random()
        if how < 0.5:
            pair.extend(int(rng.integers(0, 60)), ids=how < 0.1, contiguous=how < 0.4, how="extend")
        elif how < 0.85:
            pair.record(int(rng.integers(1, 9)))
        elif how < 0.93:
            pair.reopen()
        else:
            pair.fail(1, KeyboardInterrupt)
        for store in (pair.store, pair.reader):
            if number % 4 == 3:
                assert store.verify().problems == ()
    pair.reopen()
    settle(pair.store)
    found = pair.store.verify()
    assert found
    assert found.num_rows == pair.store.info().num_rows
    pair.close()


def test_every_type_is_well_in_both_tiers(tmp_path: Path) -> None:
    with create(tmp_path / "store", rich_schema(), hot_rows=1) as store:
        rng = np.random.default_rng(2)
        for lane in (0, 3, 1, 0, 3) * 8:
            write_rich(store, rng, 45, lane)
        settle(store)
        assert store.info().num_segments["cold"] > 5
        assert store.verify().problems == ()


def test_dropped_segments_are_not_missed(tmp_path: Path) -> None:
    with create(tmp_path / "store", max_rows=500, hot_rows=1) as store, Store.open(store.path) as reader:
        for seed in range(6):
            fill(store, 400, seed)
            for each in (store, reader):
                assert each.verify().problems == ()


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("reward", 5, "reward"),
        ("observation", 7, "observation"),
        ("step", 9000, "not followed by the next step"),
        ("lane", 3, "several lanes"),
        ("kind", 9, "unknown kind"),
        ("ordinal", 3, "ordinals twice"),
        ("episode_id", 4444, "not followed"),
    ],
)
def test_damage_in_the_hot_tier(tmp_path: Path, column: str, value: int, told: str) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 1000)
        store.maintain()
        assert store.verify()
        number = min(store._engine.writer_shard.segments.state.hot)
        place = [each.name for each in store.schema.columns].index(column)
        writable = store.path / "shards/00000/segments" / f"{number:08d}.arrow"
        segment = store._engine.writer_shard.segments.state.hot[number]
        item = segment.columns[place].item_bytes
        with writable.open("r+b") as file:
            file.seek(int(segment.offsets[place]) + 18 * item)
            file.write(np.full(1, value, segment.columns[place].storage).tobytes())
        problems = store.verify().problems
        assert any(told in problem.what for problem in problems), problems
        assert any(f"{column!r} has other bytes" in problem.what for problem in problems), problems


def test_damage_in_the_cold_tier_and_the_command(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with create(path, hot_rows=1) as store:
        fill(store, 1500)
        settle(store)
    result = CliRunner().invoke(app, ["verify", str(path)])
    assert (result.exit_code, "all is well" in result.stdout) == (0, True)
    file = sorted(path.rglob("*.parquet"))[2]
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    result = CliRunner().invoke(app, ["verify", str(path)])
    assert result.exit_code == 1
    assert file.name in result.stdout
    with Store.open(path) as reader:
        found = reader.verify()
        assert not found
        assert {problem.segment for problem in found.problems} - {-1} == {int(file.name[:8])}


@pytest.mark.parametrize("column", ["row_id", "reward", "kind"])
def test_damaged_pages_are_found_by_verify_and_by_sql(tmp_path: Path, column: str) -> None:
    path = tmp_path / "store"
    with create(path, hot_rows=1) as store:
        fill(store, 1500)
        settle(store)
    with Store.open(path) as reader:
        right = reader.sql("SELECT sum(kind) FROM steps").fetchall()
    file = sorted(path.rglob("*.parquet"))[2]
    chunk = next(
        each
        for place in range(pq.read_metadata(file).num_columns)
        if (each := pq.read_metadata(file).row_group(0).column(place)).path_in_schema == column
    )
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 0x55
    file.write_bytes(content)
    with Store.open(path) as reader:
        assert any(problem.segment == int(file.name[:8]) for problem in reader.verify().problems)
        query = f"SELECT sum({column}) FROM {'steps' if column == 'kind' else 'transitions'}"
        if column == "kind":  # which SQL takes from the block table
            assert reader.sql(query).fetchall() == right
            return
        with pytest.raises(QueryError, match=rf"(?i){file.name}.*{column}.*(checksum|crc|corrupt)"):
            reader.sql(query).fetchall()


def test_damaged_tables_of_dropped_segments(tmp_path: Path) -> None:
    with create(tmp_path / "store", max_rows=500) as store:
        fill(store, 3000)
        settle(store)
        assert store.verify()
        names = [file.name for manifest in store._engine.manifests() for file in manifest.evicted.runs]
        (store.path / "shards/00000/segments" / names[0]).write_bytes(b"")
        assert [names[0] in problem.what for problem in store.verify().problems] == [True]
