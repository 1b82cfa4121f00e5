"""What DuckDB is given of cold segments: conditions of all sorts, held against hot rows; scans that are cut off."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from arrowrb.sql import cold_rows
from arrowrb.sql.conditions import Term, terms_of
from arrowrb.sql.relations import tables_of
from arrowrb.store import Store
from arrowrb.tiers import chunks
from tests.plain_store import plain_batch
from tests.test_sql import rich_schema, write_rich
from tests.test_tiers import create, fill, settle, small_segments, tiers_of

__all__ = ["small_segments"]  # a fixture

CONDITIONS = (
    "step > 3",
    "step >= 3 AND step < 5",
    "terminated",
    "NOT terminated AND lane = 0 AND action <> 1",
    "action IN (0, 2)",
    "action = 0 OR step = 2",
    "ordinal BETWEEN 300 AND 310",
    "row_id % 5 = 1",
    "reward > 0.5",
    "reward IS NULL",
    "reward IS NOT NULL AND step > 1",
    "ordinal = 300",
    "ordinal > 100000",
    "observation[1] > 0.5 AND step = 1",
    "action + 1 = 2",
    "step > 1.5",
    "time > 0",
    "policy_version IN (SELECT 0)",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same rows, hot and cold."""
    path = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        small_segments.__wrapped__(patch)  # type: ignore[attr-defined]
        with create(path / "hot") as hot, create(path / "cold", hot_rows=1) as cold:
            for store in (hot, cold):
                store.extend(plain_batch(1500, 3))
            settle(cold)
            assert tiers_of(cold)["cold"] > 10
            yield hot, cold


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("threads", [1, 3])
def test_conditions(pair: tuple[Store, Store], condition: str, threads: int) -> None:
    for view in ("transitions", "steps"):
        for columns in ("count(*)", "* EXCLUDE (time)", "row_id", "step, reward"):
            order = "" if columns == "count(*)" else "ORDER BY row_id"
            query = f"SELECT {columns} FROM {view} WHERE {condition} {order}"
            hot, cold = (store.sql(query, threads=threads).fetchall() for store in pair)
            assert str(hot) == str(cold), query
    for kind in (1, 2, 4):
        query = f"SELECT count(*), sum(step) FROM steps WHERE kind = {kind} AND ({condition})"
        hot, cold = (store.sql(query, threads=threads).fetchall() for store in pair)
        assert hot == cold


def test_conditions_on_columns_of_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_segments.__wrapped__(monkeypatch)  # type: ignore[attr-defined]
    schema = rich_schema()
    with create(tmp_path / "hot", schema) as hot, create(tmp_path / "cold", schema, hot_rows=1) as cold:
        for store in (hot, cold):
            rng = np.random.default_rng(1)
            for _ in range(5):
                write_rich(store, rng, 300, 0)
        settle(cold)
        assert tiers_of(cold)["cold"] > 3
        for view in ("transitions", "steps"):
            kinds = hot.sql(f"SELECT column_name, column_type FROM (DESCRIBE {view})").fetchall()
            for name, kind in kinds:
                quoted = '"' + name.replace('"', '""') + '"'
                median = hot.sql(f"SELECT {quoted} FROM {view} WHERE {quoted} IS NOT NULL ORDER BY ordinal").fetchall()
                value = median[len(median) // 2][0]
                for comparison in (">", "<=", "=", "<>") if view == "transitions" else (">",):
                    if kind.startswith(("BLOB",)) or "[" in kind or name in ("time", "episode_id"):
                        continue
                    query = f"SELECT count(*), sum(ordinal) FROM {view} WHERE {quoted} {comparison} ? AND step >= 0"
                    left, right = (store.sql(query, [value]).fetchall() for store in (hot, cold))
                    assert left == right, (query, value)
                query = f"SELECT count({quoted}), count(*) FROM {view} WHERE {quoted} IS NULL"
                left, right = (store.sql(query).fetchall() for store in (hot, cold))
                assert left == right, query


def test_terms_are_what_the_condition_is() -> None:
    kinds = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32"]
    table = pa.table({kind: pa.array([1, 2, 3], kind) for kind in kinds})
    seen: list[Any] = []

    class Dataset(ds.Dataset):  # type: ignore[misc]
        def __init__(self) -> None: ...

        schema = property(lambda self: table.schema)  # type: ignore[assignment]

        def scanner(self, columns: Any = None, filter: Any = None) -> Any:  # noqa: A002
            seen.append(filter)
            return ds.dataset(table).scanner(columns=columns, filter=filter)

    connection = duckdb.connect()
    connection.register("rows", Dataset())
    for kind in kinds[:7]:
        connection.sql(f"SELECT count(*) FROM rows WHERE {kind} > 1 AND {kind} <> 3").fetchall()
        assert set(terms_of(seen[-1], table.schema) or ()) == {Term(kind, ">", 1), Term(kind, "!=", 3)}
    for condition in ("uint64 > 1", "int8 = 1 OR int8 = 3", "int8 IN (1, 3)", "int64 IS NULL"):
        connection.sql(f"SELECT count(*) FROM rows WHERE {condition}").fetchall()
        assert terms_of(seen[-1], table.schema) is None
    either = (ds.field("int8") > pa.scalar(1, pa.int8())) | (ds.field("int8") < pa.scalar(0, pa.int8()))
    both = (ds.field("int8") > pa.scalar(1, pa.int8())) & (ds.field("int8") < pa.scalar(0, pa.int8()))
    assert terms_of(either, table.schema) is None
    assert terms_of(~both, table.schema) is None
    assert terms_of(both, table.schema) == (Term("int8", ">", 1), Term("int8", "<", 0))
    assert terms_of(ds.field("other") > 1, table.schema) is None
    assert terms_of(ds.field("int8") > 1, table.schema) is None  # of int64: Arrow would compare another type


@pytest.mark.parametrize("comparison", ["==", "!=", "<", "<=", ">", ">="])
def test_no_group_with_a_fitting_value_is_passed_over(comparison: str) -> None:
    for least in range(4):
        for most in range(least, 4):
            for number in range(-1, 5):
                term = Term("step", comparison, number)
                expected = term.holds(np.arange(least, most + 1)).any()
                assert term.possible(np.array([least]), np.array([most])).tolist() == [expected]


def test_row_groups_are_passed_over(pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, tuple[str, ...]]] = []
    real = chunks.Chunks.read

    def count(self: chunks.Chunks, groups: Any, names: Any) -> Any:
        read.append((len(groups), tuple(names)))
        return real(self, groups, names)

    monkeypatch.setattr(chunks.Chunks, "read", count)
    _, cold = pair
    for condition in ("ordinal = 300", "ordinal IN (300, 301)"):
        read.clear()
        cold.sql(f"SELECT observation FROM transitions WHERE {condition}").fetchall()
        assert 1 <= sum(groups for groups, names in read) <= 4, condition
    read.clear()
    assert cold.sql("SELECT count(*) FROM steps WHERE kind = 1").fetchall() == [(1500,)]
    assert {names for _, names in read} == {("row_id",)}
    cold.sql("SELECT observation FROM transitions WHERE step > 1 AND step < 1").fetchall()
    assert all("observation" not in names for _, names in read)


def test_pages_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_segments.__wrapped__(monkeypatch)  # type: ignore[attr-defined]
    checked: list[bool] = []
    real = pq.ParquetFile.__init__

    def opened(self: Any, *arguments: Any, page_checksum_verification: bool = False, **options: Any) -> None:
        checked.append(page_checksum_verification)
        real(self, *arguments, page_checksum_verification=page_checksum_verification, **options)

    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 1500)
        settle(store)
        monkeypatch.setattr(pq.ParquetFile, "__init__", opened)
        query = "SELECT sum(step) FROM transitions"
        for expected in ({True}, {False}, set()):
            checked.clear()
            store.sql(query, threads=1).fetchall()
            assert set(checked) == expected
        store.sql("SELECT sum(action) FROM transitions", threads=1).fetchall()
        assert set(checked) == {True}


@pytest.mark.parametrize("part_bytes", [1, 3000, 1 << 22])
def test_parts_of_every_size(pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    monkeypatch.setattr(cold_rows, "_PART_BYTES", part_bytes)
    query = "SELECT * EXCLUDE (time) FROM steps ORDER BY row_id"
    for threads in (1, 2, 7):
        hot, cold = (store.sql(query, threads=threads).fetchall() for store in pair)
        assert str(hot) == str(cold)


def test_streams_that_nobody_reads_to_the_end(pair: tuple[Store, Store]) -> None:
    """Dropped while parts are read ahead and another thread holds the GIL: nothing waits for ever, no thread stays."""
    _, cold = pair
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    busy = threading.Thread(target=spin)
    busy.start()
    for turn in range(12):
        reader = cold.sql("SELECT * FROM transitions", threads=1 + turn % 3).relation.to_arrow_reader(64)
        reader.read_next_batch()
        if turn % 2:
            reader.close()
        del reader
    stop.set()
    busy.join()
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("arrowrb-sql"):
            thread.join(10)
            assert not thread.is_alive()


def test_streams_that_several_threads_drop(pair: tuple[Store, Store]) -> None:
    """Each takes out the functions of its own only: those of another may be called just then."""
    _, cold = pair
    turns: list[int] = []

    def drop() -> None:
        for turn in range(40):
            reader = cold.sql("SELECT * FROM transitions", threads=1 + turn % 3).relation.to_arrow_reader(64)
            reader.read_next_batch()
            del reader
            turns.append(turn)

    threads = [threading.Thread(target=drop, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(turns) == 120


def test_queries_of_several_threads(pair: tuple[Store, Store]) -> None:
    hot, cold = pair
    query = (
        "SELECT count(*), sum(reward), sum(observation[1]), max(next_observation[2]) FROM transitions WHERE step > 1"
    )
    expected = np.array(hot.sql(query).fetchall())
    found: list[Any] = []

    def ask(number: int) -> None:
        for _ in range(10):
            found.extend(cold.sql(query, threads=1 + number % 2).fetchall())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    np.testing.assert_allclose(np.array(found), np.repeat(expected, 40, axis=0))


def test_segments_are_let_go_with_the_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_segments.__wrapped__(monkeypatch)  # type: ignore[attr-defined]
    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 1500)
        settle(store)
        query = store.sql("SELECT sum(action), max(reward), count(*) FROM transitions WHERE step > 1")
        expected = query.fetchall()
        later = store.sql("SELECT sum(action), max(reward), count(*) FROM transitions WHERE step > 1")
        segments = tables_of(store._engine.snapshot().layout).cold
        addresses = {segment.mapping.address for segment in segments}
        assert len(addresses) > 4
        del segments
    for file in tmp_path.rglob("*.parquet"):
        file.unlink()
    assert later.fetchall() == later.relation.fetchall() == expected
    del query, later, store
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
