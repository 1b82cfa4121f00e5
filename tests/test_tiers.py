"""Both tiers together: what moves stays the same, what is dropped leaves its episodes, and nothing waits or leaks."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from arrowrb import Schema, files, parquet
from arrowrb.engine import Engine, WriterOptions, create_store, segments, tiering
from arrowrb.errors import ArrowRBError, CorruptError, EmptyError, FullError, RowError, WaitError
from arrowrb.retention import Limits
from arrowrb.samplers import ROW, Reading
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.plain_store import VECTOR, plain_batch, plain_schema
from tests.test_sql import rich_schema, same, write_rich
from tests.test_uniform import check_uniform

BLOCK_ROWS, SEGMENT_ROWS = 16, 64


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(**_: Any) -> SegmentShape:
        return SegmentShape(SEGMENT_ROWS, BLOCK_ROWS)

    monkeypatch.setattr(segments, "shape_segment", shape)


def create(path: Path, schema: Any = None, *, max_rows: int | None = None, **limits: Any) -> Store:
    """A store with limits lower than users may set."""
    create_store(path, plain_schema() if schema is None else schema, max_rows=max_rows)
    return reopen(path, **limits)


def reopen(path: Path, **limits: Any) -> Store:
    return Store(Engine(path, writable=True, options=WriterOptions(None, True, Limits(**limits))))


def settle(store: Store) -> None:
    """Wait for the writer's threads."""
    writer = store._engine.writer_shard
    assert writer is not None
    writer.wait_for_threads()


def tiers_of(store: Store) -> dict[str, int]:
    settle(store)
    counts = {"hot": 0, "cold": 0}
    for manifest in store._engine.manifests():
        for entry in manifest.segments:
            counts[entry.tier] += 1
    return counts


def fill(store: Store, count: int, seed: int = 0) -> np.ndarray:
    """Extend in parts of 50."""
    batch = plain_batch(count, seed)
    parts = [{name: values[first : first + 50] for name, values in batch.items()} for first in range(0, count, 50)]
    return np.concatenate([store.extend(part) for part in parts])


def test_everything_reads_the_same_in_both_tiers(tmp_path: Path) -> None:
    """Every dtype, through tensors and SQL, bit for bit."""
    schema = rich_schema()
    hot, cold = create(tmp_path / "hot", schema), create(tmp_path / "cold", schema, hot_rows=1)
    ids: list[Any] = []
    for store in (hot, cold):
        rng = np.random.default_rng(1)
        ids.append(np.concatenate([write_rich(store, rng, 45, lane)[1] for lane in (0, 3, 1, 0, 3) * 8]))
        store.flush()
    assert tiers_of(hot)["cold"] == 0
    assert tiers_of(cold)["cold"] > 20
    assert (ids[0] == ids[1]).all()
    with Store.open(cold.path, cache_bytes=2000) as reader:
        for store in (cold, reader):
            batches = [each.gather(ids[0], columns=_all_names(schema)) for each in (hot, store)]
            for name in batches[0]:
                left, right = (
                    batch[name].contiguous().view(-1).numpy(force=True)
                    if batch[name].dtype.itemsize != 2
                    else batch[name].contiguous().view(-1).view(np_short()).numpy()
                    for batch in batches
                )
                assert left.tobytes() == right.tobytes(), name
            for view in ("transitions", "steps", "episodes"):
                times = "started_at, ended_at" if view == "episodes" else "time"
                query = f"SELECT * EXCLUDE ({times}) FROM {view} ORDER BY row_id"
                left, right = (each.sql(query).arrow() for each in (hot, store))
                assert left.schema == right.schema
                for name in left.column_names:
                    for one, other in zip(left[name].to_pylist(), right[name].to_pylist(), strict=True):
                        assert _same(one, other), (view, name)
    hot.close()
    cold.close()


def np_short() -> Any:
    import torch

    return torch.int16


def _all_names(schema: Any) -> list[str]:
    names = [column.name for column in schema.columns if column.name != "time"]
    return names + ["next_" + column.name for column in schema.observation_columns]


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float):
        return same(np.array(left), np.array(right))
    if isinstance(left, list):
        return all(_same(one, other) for one, other in zip(left, right, strict=True))
    return bool(left == right)


def test_a_draw_does_not_depend_on_the_tier(tmp_path: Path) -> None:
    with create(tmp_path / "store") as store:
        ids = fill(store, 2000)
        before = [store.sample(100, seed=seed) for seed in range(5)]
        drawn = [batch["row_id"] for batch, _ in zip(store.sampler(batch_size=64, seed=3), range(12), strict=False)]
    with reopen(store.path, hot_rows=1) as store:
        assert tiers_of(store)["cold"] > 15
        for seed, batch in enumerate(before):
            again = store.sample(100, seed=seed)
            assert all((again[name] == batch[name]).all() for name in batch)
        check_uniform(store._engine.snapshot(), ids.tolist(), 0)
        for prefetch in (0, 1, 3, 11):
            sampler = store.sampler(batch_size=64, seed=3, prefetch=prefetch)
            for expected, batch in zip(drawn, sampler, strict=False):
                assert (batch["row_id"] == expected).all()
                whole = store.gather(batch["row_id"])
                assert all((batch[name] == whole[name]).all() for name in whole)


def test_only_the_hot_tier(tmp_path: Path) -> None:
    with create(tmp_path / "store", hot_rows=1) as store:
        ids = fill(store, 2000)
        settle(store)
        entries = [entry for manifest in store._engine.manifests() for entry in manifest.segments]
        hot = {entry.number for entry in entries if entry.tier == "hot"}
        drawn = store.sample(4000, tiers="hot", seed=1)["row_id"].numpy()
        assert set(drawn.tolist()) == {each for each in ids.tolist() if each >> 24 in hot}
        with pytest.raises(ArrowRBError, match='"all" or "hot"'):
            store.sample(3, tiers="warm")
        with Store.open(store.path) as reader:
            assert set(reader.sample(400, tiers="hot")["row_id"].tolist()) <= set(drawn.tolist())
    with create(tmp_path / "empty") as store, pytest.raises(EmptyError):
        store.sample(3, tiers="hot")


def test_cold_files_without_arrowrb(tmp_path: Path) -> None:
    with create(tmp_path / "store", hot_rows=1) as store:
        ids = fill(store, 2000)
        settle(store)
        files = sorted(str(path) for path in store.path.rglob("*.parquet"))
        table = duckdb.sql(f"SELECT * FROM read_parquet({files}) ORDER BY row_id")
        assert [str(kind) for name, kind in zip(table.columns, table.types, strict=True) if name == "observation"] == [
            "FLOAT[]"
        ]
        rows = table.df()
        again = pd.concat([pd.read_parquet(path) for path in files]).sort_values("row_id")
        last = pl.concat([pl.read_parquet(path) for path in files]).sort("row_id").to_pandas()
        for frame in (rows, again, last):
            is_transition = (frame["kind"] == 1).to_numpy()
            assert frame["action"].isna().to_numpy().tolist() == (~is_transition).tolist()
            assert frame["reward"].isna().to_numpy().tolist() == (~is_transition).tolist()
            chosen = frame[is_transition]
            assert chosen["row_id"].tolist() == ids[: len(chosen)].tolist()
            batch = store.gather(chosen["row_id"].to_numpy())
            assert (np.stack(chosen["observation"]) == batch["observation"].numpy()).all()
            assert (chosen["reward"].to_numpy() == batch["reward"].numpy()).all()


def test_cold_files_that_arrow_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of earlier versions: another encoding of the same columns, read by the same code."""
    schema, ids, encodings = rich_schema(), [], []
    stores = [create(tmp_path / name, schema, hot_rows=1) for name in ("now", "then")]
    for store in stores:
        rng = np.random.default_rng(1)
        ids.append(np.concatenate([write_rich(store, rng, 45, lane)[1] for lane in (0, 3, 1, 0, 3) * 4]))
        settle(store)
        footer = pq.read_metadata(next(store.path.rglob("*.parquet"))).row_group(0)
        chunks = [footer.column(place) for place in range(footer.num_columns)]
        encodings.append({chunk.path_in_schema: len(chunk.encodings) for chunk in chunks})
        monkeypatch.setattr(parquet.writing, "lists_of", lambda _: None)
    assert encodings[0].keys() == encodings[1].keys()
    assert (ids[0] == ids[1]).all()
    with Store.open(stores[0].path) as now, Store.open(stores[1].path) as then:
        assert now.verify()
        assert then.verify()
        names = _all_names(schema)
        one, other = (store.gather(ids[0], columns=names) for store in (now, then))
        for name in one:
            left, right = (each[name].contiguous().view(-1).view(torch.uint8) for each in (one, other))
            assert torch.equal(left, right), name
        query = "SELECT * EXCLUDE (time) FROM steps ORDER BY row_id"
        left, right = (store.sql(query).arrow() for store in (now, then))
        assert left.schema == right.schema
        for name in left.column_names:
            pairs = zip(left[name].to_pylist(), right[name].to_pylist(), strict=True)
            assert all(_same(one, other) for one, other in pairs), name
    for store in stores:
        store.close()


def test_filters_and_aggregates_over_both_tiers(tmp_path: Path) -> None:
    with create(tmp_path / "hot") as hot, create(tmp_path / "cold", hot_rows=1) as cold:
        for store in (hot, cold):
            batch = plain_batch(1500, 3)
            batch["reward"][::10] = np.nan
            batch["reward"][1::10] = np.inf
            store.extend(batch)
        assert tiers_of(cold)["cold"] > 10
        for query in (
            "SELECT count(*), count(action), sum(action) FROM steps",
            "SELECT row_id FROM transitions WHERE reward > 0.5 ORDER BY 1",
            "SELECT row_id FROM transitions WHERE reward = 'nan'::DOUBLE OR reward < -1 ORDER BY 1",
            "SELECT row_id, next_observation FROM transitions WHERE step = 3 ORDER BY ordinal LIMIT 7",
            "SELECT lane, action, max(next_observation[2]) FROM transitions GROUP BY ALL ORDER BY ALL",
            "SELECT count(*) FROM transitions WHERE next_observation[1] > observation[1]",
            "SELECT a.row_id FROM transitions a JOIN transitions b ON a.observation = b.next_observation ORDER BY 1",
            "SELECT row_id FROM transitions WHERE terminated AND ordinal BETWEEN 100 AND 900 ORDER BY 1",
            'SELECT episode_id, "return", length, ended_by FROM episodes WHERE NOT isnan("return") ORDER BY 1',
            "SELECT * EXCLUDE (time, next_observation) FROM transitions ORDER BY row_id LIMIT 50",
        ):
            left, right = (store.sql(query).fetchall() for store in (hot, cold))
            assert str(left) == str(right), query
            assert left
        with Store.open(cold.path) as reader:
            tiers = dict(reader.sql("SELECT tier, sum(num_transitions) FROM segments GROUP BY 1").fetchall())
            assert set(tiers) == {"hot", "cold"}
            assert sum(tiers.values()) == 1500


def test_a_relation_outlives_its_query(tmp_path: Path) -> None:
    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 1000)
        settle(store)
        relation = store.sql("SELECT row_id, next_observation FROM transitions ORDER BY 1").relation
        gc.collect()
        assert len(relation.fetchall()) == 1000
        names = "SELECT count(*) FROM duckdb_functions() WHERE function_name LIKE '_next_%'"
        del relation
        gc.collect()
        query = store.sql("SELECT next_observation FROM transitions LIMIT 1")
        assert len(query.fetchall()) == 1
        assert query._cursor.execute(names).fetchall() == [(1,)]  # of this query only


def test_a_stream_outlives_its_query(tmp_path: Path) -> None:
    """What DuckDB streams is still calling for next observations when nobody holds the query any more."""
    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 3000)
        settle(store)
        reader = store.sql("SELECT row_id, next_observation FROM transitions").relation.to_arrow_reader()
        gc.collect()
        assert sum(batch.num_rows for batch in reader) == 3000
        partly = store.sql("SELECT row_id, next_observation FROM transitions").relation.to_arrow_reader()
        partly.read_next_batch()
        gc.collect()
        snapshot = weakref.ref(store._engine.snapshot())
        del reader, partly
        fill(store, 500)
        gc.collect()
        for _ in range(2):
            store.sql("SELECT 1").fetchall()
            store.sample(1)
            gc.collect()
        assert snapshot() is None


# -- retention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hot_rows", [None, 1])
def test_the_oldest_are_dropped(tmp_path: Path, hot_rows: int | None) -> None:
    most = 500
    with create(tmp_path / "store", max_rows=most, hot_rows=hot_rows) as store, Store.open(store.path) as reader:
        batch, ids, kept = plain_batch(3000, 5), [], []
        for first in range(0, 3000, 30):
            ids += store.extend({name: values[first : first + 30] for name, values in batch.items()}).tolist()
            count = len(store)
            kept.append(count)
            assert count <= most
            assert count >= min(len(ids), most - SEGMENT_ROWS)
            found = store.gather(ids[-count:])["reward"].numpy()
            assert (found == batch["reward"][len(ids) - count : len(ids)]).all()
            if count < len(ids):
                with pytest.raises(RowError, match="evicted"):
                    store.gather(ids[-count - 1 : -count])
            assert count <= len(reader) <= len(ids)
        settle(store)
        assert len(reader) == len(store)
        check_uniform(store._engine.snapshot(), ids[-len(store) :], 1)
        info = store.info()
        assert info.num_evicted == 3000 - len(store)
        assert store.sql("SELECT count(*), sum(length), count(DISTINCT episode_id) FROM episodes").fetchall() == [
            (429, 3000, 429)
        ]
        assert reader.sql('SELECT sum("return") FROM episodes').fetchall()[0][0] == pytest.approx(batch["reward"].sum())
        assert len(list(store.path.rglob("*.arrow"))) < 50
    for mode in ("r", "a"):
        with Store.open(store.path, mode=mode) as again:
            assert len(again) == kept[-1]
            assert again.sql("SELECT sum(length) FROM episodes").fetchall() == [(3000,)]


def test_dropping_is_decided_by_counts(tmp_path: Path) -> None:
    """The same calls leave the same rows, whatever the threads do."""
    drawn = []
    for name in "abc":
        with create(tmp_path / name, max_rows=300, hot_rows=1) as store:
            batch, found = plain_batch(1500, 5), []
            for first in range(0, 1500, 25):
                store.extend({key: values[first : first + 25] for key, values in batch.items()})
                found.append(store.sample(8, seed=first)["row_id"].tolist())
                if name == "b":
                    time.sleep(0.002)
                if name == "c" and first % 100 == 0:
                    settle(store)
            drawn.append(found)
    assert drawn[0] == drawn[1] == drawn[2]


def test_what_is_dropped_next_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    real = tiering.demote

    def demote(*arguments: Any, **options: Any) -> Any:
        moved.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(segments, "demote", demote)
    with create(tmp_path / "store", max_rows=600, hot_rows=600) as store:
        fill(store, 5000)
        settle(store)
    assert not moved


def test_snapshots_hold_what_is_moved_and_dropped(tmp_path: Path) -> None:
    with create(tmp_path / "store", max_rows=600, hot_rows=1) as store, Store.open(store.path) as reader:
        ids = fill(store, 500)
        settle(store)
        held = []
        for each in (store, reader):
            snapshot = each._engine.snapshot()
            query = each.sql("SELECT row_id, reward, next_observation FROM transitions ORDER BY row_id")
            held.append((each, snapshot, query, each.gather(ids)))
        fill(store, 3000, seed=1)
        settle(store)
        assert len(reader) <= 600
        for each, snapshot, query, before in held:
            assert each.info().pinned_bytes > 0
            drawn = snapshot.draw_uniform(np.array([1, 2, 3, 4], np.uint64), 300)
            assert set(drawn.row_ids.tolist()) <= set(ids.tolist())
            batch = each._loader(None, "keep", None).load(snapshot, Reading({ROW: snapshot.locate(ids)}))
            assert all((batch[name] == before[name]).all() for name in before)
            rows = query.fetchall()
            assert [row[0] for row in rows] == ids.tolist()
            assert (
                np.array([row[2] for row in rows], np.float32).tobytes() == before["next_observation"].numpy().tobytes()
            )
        del held, snapshot, query
        gc.collect()
        for each in (store, reader):
            each.sample(1)
            gc.collect()
            assert each.info().pinned_bytes == 0


def test_nothing_leaks(tmp_path: Path) -> None:
    """Descriptors, mappings and the number of files stay the same over many commits, segments and looks."""

    def usage() -> tuple[int, int, int]:
        gc.collect()
        mapped = sum(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())
        return len(os.listdir("/proc/self/fd")), mapped, sum(1 for _ in tmp_path.rglob("*"))

    with create(tmp_path / "store", max_rows=800, hot_rows=1) as store, Store.open(store.path) as reader:
        marks = []
        for round_ in range(6):
            fill(store, 2500, seed=round_)
            for each in (store, reader):
                each.sample(50)
                each.sql("SELECT max(next_observation[1]) FROM transitions").fetchall()
            settle(store)
            reader.sample(1)
            marks.append(usage())
        descriptors, mapped, files = zip(*marks[1:], strict=True)
        assert max(descriptors) - min(descriptors) <= 2
        # A round makes and drops some forty segments with three files each; how far the threads are differs a little.
        assert max(mapped) <= min(mapped) + 30
        assert max(files) <= min(files) + 30


# -- when it goes wrong ----------------------------------------------------------------------------------------------


def test_the_hot_tier_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing waits for a slow disk instead of going beyond; reading does not wait."""
    real = tiering.demote

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return real(*arguments, **options)

    monkeypatch.setattr(segments, "demote", slow)
    limit = 10 * SEGMENT_ROWS
    with create(tmp_path / "store", hot_rows=limit) as store:
        batch = plain_batch(4000, 2)
        waits = []
        for first in range(0, 4000, 20):
            began = time.perf_counter()
            store.extend({name: values[first : first + 20] for name, values in batch.items()})
            waits.append(time.perf_counter() - began)
            assert store.info().allocated_rows <= limit
        assert max(waits) > 0.01  # it did wait
        assert len(store) == 4000


def test_a_wait_for_the_hot_tier_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arrowrb.engine import shard_writer

    stuck = threading.Event()
    real = tiering.demote

    def demote(*arguments: Any, **options: Any) -> Any:
        stuck.wait(30)
        return real(*arguments, **options)

    monkeypatch.setattr(segments, "demote", demote)
    monkeypatch.setattr(shard_writer, "PREPARE_TIMEOUT_SECONDS", 0.2)
    with create(tmp_path / "store", hot_rows=1) as store:
        with pytest.raises(WaitError, match="room in the hot tier"):
            fill(store, 4000)
        assert store.sample(10)["reward"].shape == (10,)
        count = len(store)
        stuck.set()
        settle(store)
        monkeypatch.setattr(shard_writer, "PREPARE_TIMEOUT_SECONDS", 60.0)
        fill(store, 1000)
        assert len(store) == count + 1000


def test_a_flush_while_segments_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that is to be synced is sealed, moved and unlinked by the threads before its file is opened."""
    with create(tmp_path / "store") as store:
        writer = store._engine.writer_shard
        assert writer is not None
        with monkeypatch.context() as idle:
            idle.setattr(writer, "_work", lambda at_once=False: None)
            fill(store, 300)
            store.flush()
            settle(store)
            number = next(entry.number for entry in writer.manifest.segments if not entry.sealed)
        real, late = files.sync_file, []

        def sync(path: Path) -> None:
            if not late:
                late.append(path)
                writer._work()
                writer.segments.demote([number])
            real(path)

        monkeypatch.setattr(files, "sync_file", sync)
        store.flush()
        assert not late[0].exists()
        assert tiers_of(store)["cold"] == 1
        assert fill(store, 50).size == 50
        store.flush()


def test_a_full_disk_while_moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = tiering.cold_writing.write, [True]

    def write(*arguments: Any, **options: Any) -> Any:
        if full:
            raise FullError(28, "No room left", "x")
        return real(*arguments, **options)

    monkeypatch.setattr(tiering.cold_writing, "write", write)
    with create(tmp_path / "store", hot_rows=1) as store:
        stored = 0
        for seed in range(60):
            with contextlib.suppress(FullError):
                store.extend(plain_batch(50, seed))
                stored += 50
            assert len(store) == stored
        full.clear()
        for seed in range(40):
            with contextlib.suppress(FullError):  # told once more of the last try
                store.extend(plain_batch(50, seed))
                stored += 50
        assert len(store) == stored
        assert tiers_of(store)["cold"] > 5
    with Store.open(store.path) as reader:
        assert len(reader) == stored


def test_a_bad_write_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back differs: the segment stays where it is, and somebody is told."""
    real = tiering.cold_writing._batch

    def flipped(schema: Any, fields: Any, hot: Any, base: int, positions: Any) -> Any:
        batch = real(schema, fields, hot, base, positions)
        names = batch.schema.names
        twisted = batch.column(names.index("ordinal")).take(np.arange(len(positions))[::-1])
        return batch.set_column(names.index("ordinal"), batch.schema.field("ordinal"), twisted)

    monkeypatch.setattr(tiering.cold_writing, "_batch", flipped)
    with create(tmp_path / "store", hot_rows=1) as store:
        with pytest.raises(CorruptError, match="not read back"):
            fill(store, 2000)
        assert tiers_of(store)["cold"] == 0
        assert not list(store.path.rglob("*.parquet"))
        monkeypatch.setattr(tiering.cold_writing, "_batch", real)


@pytest.mark.parametrize("what", ["value", "missing", "all missing"])
def test_a_bad_write_of_vectors_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A number that differs in one bit; a list that is not there, though it should be."""
    real = parquet.writing.encode

    def flipped(lists: Any, values: Any, valid: Any) -> Any:
        values = values.copy()
        if what == "value":
            values[-1, 0] ^= 1
        elif lists.level == 2:
            valid = np.ones(len(values), bool) if valid is None else valid.copy()
            valid[np.flatnonzero(valid)[-1 if what == "missing" else 0 :]] = False
        return real(lists, values, valid)

    monkeypatch.setattr(parquet.writing, "encode", flipped)
    schema = Schema.from_spaces(VECTOR, VECTOR)
    with create(tmp_path / "store", schema, hot_rows=1) as store:
        batch = plain_batch(1000, 1)
        batch["action"] = batch["observation"][:, ::-1].copy()
        parts = [{name: values[first : first + 50] for name, values in batch.items()} for first in range(0, 1000, 50)]
        with pytest.raises(CorruptError, match="not read back"):
            [store.extend(part) for part in parts]
        assert tiers_of(store)["cold"] == 0
        monkeypatch.setattr(parquet.writing, "encode", real)


def test_damaged_cold_files(tmp_path: Path) -> None:
    with create(tmp_path / "store", hot_rows=1) as store:
        ids = fill(store, 1500)
        assert tiers_of(store)["cold"] > 4
    with create(tmp_path / "other", hot_rows=1) as store:
        fill(store, 1500)
        settle(store)

    def damaged(change: Any) -> Path:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "store", copy)
        change(copy / "shards/00000/segments")
        return copy

    def other(folder: Path) -> None:
        shutil.copy(tmp_path / "other/shards/00000/segments/00000002.parquet", folder / "00000002.parquet")

    def flip(folder: Path) -> None:
        content = bytearray((folder / "00000002.parquet").read_bytes())
        content[len(content) // 3] ^= 4
        (folder / "00000002.parquet").write_bytes(content)

    changes = {
        "gone": lambda folder: (folder / "00000002.parquet").unlink(),
        "truncated": lambda folder: os.truncate(folder / "00000002.parquet", 1000),
        "of another store": other,
        "no blocks": lambda folder: (folder / "00000002.blocks.arrow").unlink(),
        "cut blocks": lambda folder: os.truncate(folder / "00000002.blocks.arrow", 64),
    }
    for name, change in changes.items():
        copy = damaged(change)
        for mode in ("r", "a"):
            with pytest.raises(ArrowRBError, match=r"0000000\d|files that the manifest lists"):
                Store.open(copy, mode=mode)
        assert len(list((copy / "shards/00000/segments").glob("*.parquet"))) > 3, name
    with Store.open(damaged(flip)) as reader, pytest.raises(CorruptError, match="00000002"):
        reader.gather(ids)


def test_a_small_block_table_takes_no_mapping(tmp_path: Path) -> None:
    """A process may have 65,530 mappings; a cold segment takes one, its file's, where its tables are small."""

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(f"{tmp_path}/store")

    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 1500)
        counts = tiers_of(store)
        before = mappings()
        assert counts["cold"] > 15
        assert before <= counts["cold"] + counts["hot"] + 4  # the visible record, orders, the count of shards (twice)
