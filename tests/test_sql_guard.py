"""SQL against people who want to do harm, who mistype, and who press Ctrl-C; and how a query is read."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrowrb.errors import OptionError, QueryError, WaitError
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema

HOSTILE = [
    "COPY transitions TO '{file}'",
    "COPY (SELECT 1) TO '{file}' (FORMAT parquet)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
    "EXPLAIN COPY (SELECT 1) TO '{file}'",
    "EXPLAIN/* x */ANALYZE -- y\n COPY (SELECT 1) TO '{file}'",
    "EXPLAIN /* /* */ */ SELECT 1",
    "WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 1",
    "WITH x AS (DELETE FROM transitions RETURNING *) SELECT 1",
    "WITH x AS (INSERT INTO transitions SELECT * FROM transitions RETURNING *) FROM x",
    "WITH x AS (UPDATE steps SET step = 1 RETURNING *) FROM x",
    "SELECT 1; COPY (SELECT 1) TO '{file}'",
    "SELECT 1; SELECT 2",
    "ATTACH '{file}'",
    "ATTACH '{file}' AS x; CREATE TABLE x.t (i INT)",
    "CREATE TABLE t AS SELECT * FROM transitions",
    "EXPLAIN ANALYZE CREATE TABLE t (i INT)",
    "CREATE OR REPLACE TEMP VIEW transitions AS SELECT 1",
    "DROP VIEW transitions",
    "DELETE FROM transitions",
    "INSERT INTO transitions VALUES (1)",
    "UPDATE transitions SET reward = 0",
    "ALTER TABLE transitions RENAME TO t",
    "TRUNCATE transitions",
    "SET enable_external_access = true",
    "SET threads = 8",
    "RESET lock_configuration",
    "SET VARIABLE a = 1",
    "EXPLAIN ANALYZE SET threads = 1",
    "PRAGMA enable_profiling",
    "PRAGMA database_list",
    "INSTALL httpfs",
    "LOAD '{file}'",
    "CALL pragma_version()",
    "CALL enable_logging(storage = 'file', storage_path = '{file}')",
    "FROM enable_logging(storage = 'file', storage_path = '{file}')",
    "FROM enable_profiling(save_location = '{file}')",
    "EXPORT DATABASE '{file}'",
    "IMPORT DATABASE '{file}'",
    "USE memory",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "CREATE MACRO m(a) AS a",
    "CREATE SECRET s (TYPE s3)",
    "SELECT * FROM '/etc/passwd'",
    'SELECT * FROM "/etc/passwd"',
    "SELECT * FROM 'x.parquet'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM system.main.read_json('{file}')",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "FROM query('COPY (SELECT 1) TO ''{file}''')",
    "FROM query('FROM read_text(''/etc/passwd'')')",
    "FROM query_table('/etc/passwd')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM arrow_scan(NULL, NULL, NULL)",
    "DESCRIBE FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM python_map_function((SELECT 1))",
    "SELECT * FROM which_secret('s3://a', 's3')",
    "SELECT getenv('HOME')",
    "SELECT * FROM numpy_array_of_the_caller",
    "SELECT 1 INTO t",
    "",
    "  -- nothing\n",
    ";",
    "SELEC 1",
    "SELECT 'unfinished",
    "\x00",
    "SELECT '\ud800'",
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_statements_are_refused_and_do_nothing(number: int, hostile: Store, tmp_path: Path) -> None:
    file = tmp_path / "out"
    numpy_array_of_the_caller = np.arange(3)
    before = {path: path.stat().st_mtime_ns for path in hostile.path.rglob("*")}
    with pytest.raises(QueryError, match=r"Write one SELECT|expected"):
        hostile.sql(HOSTILE[number].replace("{file}", str(file))).fetchall()
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in hostile.path.rglob("*")} == before
    assert hostile.sql("SELECT count(*), current_setting('threads') FROM transitions").fetchall() == [
        (5, os.cpu_count() or 1)
    ]
    assert len(numpy_array_of_the_caller) == 3


ENDS_THE_PROCESS = [
    "SELECT count(DISTINCT (observation, action)) FROM transitions",
    "SELECT count(*), (observation, action) AS pair FROM transitions GROUP BY pair",
    "SELECT DISTINCT row(t.observation) FROM transitions t",
    "SELECT DISTINCT (next_observation, 1) FROM transitions",
    "SELECT (observation, 1) FROM steps UNION SELECT (observation, 1) FROM steps",
    "SELECT mode((Observation, reward)) FROM steps",
    "SELECT DISTINCT list_zip([observation], [reward]) FROM steps",
    "SELECT DISTINCT {'a': (observation, 1)} FROM steps",
    "SELECT DISTINCT struct_values({'a': observation}) FROM steps",
    "SELECT DISTINCT (renamed, 1) FROM (SELECT observation AS renamed FROM steps)",
    "SELECT DISTINCT (transitions, 1) FROM transitions",
    "SELECT DISTINCT (t, 1) FROM transitions t",
    "SELECT DISTINCT row(*COLUMNS('obs.*')) FROM steps",
    "SELECT DISTINCT (a, 1) FROM (FROM steps) AS x(a, b, c, d, e, f, g, h, a2)",
    "SELECT DISTINCT ([reward]::FLOAT[1], 1) FROM steps",
    "SELECT DISTINCT (array_value(reward), 1) FROM steps",
    "SELECT DISTINCT unnest(list_transform([observation], x -> (x, 1))) FROM steps",
    "EXPLAIN ANALYZE SELECT DISTINCT (observation, 1) FROM steps",
]


@pytest.mark.parametrize("query", ENDS_THE_PROCESS)
def test_rows_without_names_that_hold_vectors_are_refused(query: str, vectors: Store) -> None:
    """DuckDB would end the process."""
    with pytest.raises(QueryError, match="Name its values"):
        vectors.sql(query).fetchall()


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("SELECT DISTINCT observation, action FROM transitions", 5),
        ("SELECT DISTINCT {'a': observation, 'b': reward} FROM steps", 5),
        ("SELECT DISTINCT (observation::FLOAT[], reward) FROM steps", 5),
        ("SELECT DISTINCT (observation[1], len(observation)) FROM steps", 5),
        ("SELECT DISTINCT (array_distance(observation, next_observation), lane) FROM transitions", 5),
        ("SELECT DISTINCT (observation = next_observation, lane) FROM transitions", 1),
        ("SELECT observation FROM steps WHERE (lane, step) IN (SELECT (lane, max(step)) FROM steps GROUP BY lane)", 1),
        ("SELECT DISTINCT (n, m) FROM (SELECT lane n, step m FROM steps)", 5),
        ("SELECT DISTINCT [observation] FROM steps", 5),
        ("SELECT count(*) FROM transitions GROUP BY (observation, action)", 5),  # two keys, not one row
    ],
)  # fmt: skip
def test_what_looks_like_it_is_answered(query: str, count: int, vectors: Store) -> None:
    assert len(vectors.sql(query).fetchall()) == count


@pytest.fixture(scope="module")
def vectors() -> Any:
    schema = plain_schema()
    with Store.temporary(schema) as store:
        store.extend(plain_batch(5))
        yield store


@pytest.fixture(scope="module")
def hostile() -> Any:
    with Store.temporary(plain_schema()) as store:
        store.extend(plain_batch(5))
        yield store


def test_files_of_the_store_itself_cannot_be_written_through_sql(hostile: Store) -> None:
    file = next(hostile.path.rglob("*.arrow"))
    for query in (f"COPY (SELECT 1) TO '{file}'", f"SELECT * FROM read_blob('{file}')", f"SELECT * FROM '{file}'"):
        with pytest.raises(QueryError):
            hostile.sql(query).fetchall()
    relation = hostile.sql("SELECT 1 AS a").relation
    with pytest.raises(Exception, match="disabled"):
        relation.to_csv(str(file))


READING = [
    "WITH a AS (SELECT row_id FROM transitions) SELECT count(*) FROM a",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT max(n) FROM r",
    "WITH transitions AS (SELECT 1) FROM transitions",
    "VALUES (1), (2)",
    "FROM range(3)",
    "TABLE episodes",
    "DESCRIBE transitions",
    "SUMMARIZE steps",
    "SHOW TABLES",
    "SELECT 1;",
    "SELECT 1; -- done",
    "(SELECT 1) UNION ALL (SELECT 2)",
    "EXPLAIN SELECT * FROM transitions",
    "EXPLAIN ANALYZE SELECT avg(reward) FROM transitions",
    "-- note\nEXPLAIN (FORMAT json) SELECT * FROM episodes",
    "EXPLAIN (ANALYZE) SELECT 1",
    "EXPLAIN /* /* */ SELECT 1 -- */ COPY (SELECT 1) TO 'x'",
    "PIVOT transitions ON action IN (0, 1, 2) USING count(*) GROUP BY lane",
    "FROM query_table('episodes')",
    "SELECT * FROM duckdb_settings()",
    "SELECT table_name FROM information_schema.tables",
    "SELECT unnest(observation) FROM transitions",
    "SELECT * FROM transitions t ASOF JOIN steps s ON t.ordinal >= s.ordinal",
    "SELECT list_transform(observation::FLOAT[], lambda x: x + 1) FROM transitions",
    "SELECT e.ended_by, t.reward FROM temp.episodes e JOIN transitions t USING (episode_id)",
    "SELECT 'COPY x; DROP TABLE y' AS text",
]


@pytest.mark.parametrize("query", READING)
def test_what_only_reads_is_allowed(query: str, hostile: Store) -> None:
    assert hostile.sql(query).arrow().num_rows > 0


def test_show_tables_names_the_views(hostile: Store) -> None:
    names = {row[0] for row in hostile.sql("SHOW TABLES").fetchall()}
    assert {"transitions", "steps", "episodes", "segments"} <= names


@pytest.mark.parametrize(
    ("query", "parameters", "words"),
    [
        ("SELECT nothing FROM transitions", None, "nothing"),
        ("SELECT * FROM transition", None, "transition"),
        ("SELECT ?", None, "parameter"),
        ("SELECT ?", [1, 2], "parameter"),
        ("SELECT $a", {"b": 1}, "parameter"),
        ("SELECT ?", [object()], "object"),
        (3, None, "type int"),
        (b"SELECT 1", None, "type bytes"),
        (None, None, "NoneType"),
        ("PIVOT transitions ON action USING count(*)", None, "IN"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, None, ""),
    ],
)
def test_wrong_queries_fail_at_the_call(query: Any, parameters: Any, words: str, hostile: Store) -> None:
    with pytest.raises(QueryError, match=f"(?i){words}"):
        hostile.sql(query, parameters)


def test_an_error_in_a_row_is_ours_too(hostile: Store) -> None:
    query = hostile.sql("SELECT CAST('x' || action AS INTEGER) FROM transitions")
    for _ in range(2):
        with pytest.raises(QueryError, match="Conversion"):
            query.df()


def test_parameters(hostile: Store) -> None:
    ids = hostile.sql("SELECT row_id FROM transitions ORDER BY 1").arrow()["row_id"].to_numpy()
    assert hostile.sql("SELECT row_id FROM transitions WHERE row_id = ?", [ids[2]]).fetchall() == [(ids[2],)]
    assert hostile.sql("SELECT $x + $y", {"x": 1, "y": np.float32(0.5)}).fetchall() == [(1.5,)]
    within = "SELECT count(*) FROM transitions WHERE row_id IN (SELECT unnest(?))"
    assert hostile.sql(within, [ids[:3]]).fetchall() == [(3,)]
    assert hostile.sql("SELECT ?", ("a; DROP TABLE b",)).fetchall() == [("a; DROP TABLE b",)]
    for wrong in ("text", 3):
        with pytest.raises(OptionError, match="parameters"):
            hostile.sql("SELECT ?", wrong)  # type: ignore[arg-type]


def test_threads(hostile: Store) -> None:
    setting = "SELECT current_setting('threads')"
    for count in (1, 3, np.int64(2)):
        assert hostile.sql(setting, threads=count).fetchall() == [(int(count),)]  # type: ignore[arg-type]
    for wrong in (0, -1, 1.5, True, "2", 10**9):
        with pytest.raises(OptionError, match="threads"):
            hostile.sql("SELECT 1", threads=wrong)  # type: ignore[arg-type]


def test_a_query_is_read_in_many_ways_and_gives_the_same_each_time(
    hostile: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    query = hostile.sql("SELECT row_id, random() AS r, NULL AS n FROM transitions")
    assert query.columns == ["row_id", "r", "n"]
    rows = query.fetchall()
    assert len(rows) == 5
    assert query.fetchall() == rows
    assert [query.fetchone() for _ in range(6)] == [*rows, None]
    assert query.df()["r"].tolist() == query.df()["r"].tolist() == [row[1] for row in rows]
    assert query.arrow()["r"].to_pylist() == query.pl()["r"].to_list() == [row[1] for row in rows]
    query.show(max_rows=2)
    assert "row_id" in capsys.readouterr().out
    assert "SELECT row_id" in repr(query)
    assert "<td>NULL</td>" in query._repr_html_()
    assert query.relation.filter("row_id >= 0").columns == query.columns
    assert "<script>" not in hostile.sql("SELECT '<script>' AS \"<script>\"")._repr_html_()
    assert "2" in hostile.sql("SELECT 1 AS a, 2 AS a")._repr_html_()


@pytest.mark.usefixtures("no_garbage")
def test_ctrl_c_stops_a_query(hostile: Store) -> None:
    query = hostile.sql("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        query.arrow()
    timer.join()
    assert time.monotonic() - began < 10
    assert hostile.sql("SELECT count(*) FROM transitions").fetchone() == (5,)


def test_a_query_that_takes_too_long_is_given_up(hostile: Store) -> None:
    endless = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"
    query = hostile.sql(endless, timeout=0.2)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(WaitError, match=r"timeout=0\.2"):
            query.fetchall()
        assert 0.2 <= time.monotonic() - began < 10
    found: list[BaseException] = []

    def elsewhere() -> None:
        try:
            hostile.sql(endless, timeout=0.1).fetchall()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(20)
    assert [type(error) for error in found] == [WaitError]
    assert hostile.sql("SELECT count(*) FROM transitions", timeout=np.float64(100)).fetchone() == (5,)
    for wrong in (0, -1.0, True, "1", math.nan, math.inf):
        with pytest.raises(OptionError, match="timeout"):
            hostile.sql("SELECT 1", timeout=wrong)  # type: ignore[arg-type]


def test_memory_is_limited_and_more_goes_through_a_folder_that_is_removed(tmp_path: Path) -> None:
    script = """
        import sys, tempfile
        from pathlib import Path
        import gymnasium as gym
        import arrowrb
        if __name__ == "__main__":
            tempfile.tempdir = sys.argv[1]
            schema = arrowrb.Schema.from_spaces(gym.spaces.Discrete(3), gym.spaces.Discrete(2))
            with arrowrb.Store.create(Path(sys.argv[1]) / "store", schema) as store:
                ask = lambda text: store.sql(text, threads=2, memory_bytes=150 << 20).fetchall()
                sorted_ = "SELECT i, row_number() OVER (ORDER BY hash(i)) AS place FROM range(12000000) t(i)"
                print(ask(f"SELECT count(*), max(place) FROM ({sorted_})"))
                print("folders:", len(list(Path(sys.argv[1]).glob("arrowrb-sql-*"))))
                try:
                    ask("SELECT list(i) FROM range(100000000) t(i)")
                except arrowrb.QueryError as error:
                    print(error)
    """
    run = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True)
    assert "[(12000000, 12000000)]" in done.stdout
    assert "folders: 1" in done.stdout
    assert "Out of Memory" in done.stdout
    assert "memory_bytes=" in done.stdout
    assert "SET" not in done.stdout
    assert not list(tmp_path.glob("arrowrb-sql-*"))
    with Store.open(tmp_path / "store") as store:
        for wrong in (0, 1000, 1.5, True, "1GB"):
            with pytest.raises(OptionError, match="memory_bytes"):
                store.sql("SELECT 1", memory_bytes=wrong)  # type: ignore[arg-type]


def test_without_a_temporary_folder_queries_run_in_memory(hostile: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any, **__: Any) -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert hostile.sql("SELECT count(*) FROM transitions", memory_bytes=123 << 20).fetchone() == (5,)
