"""What a query sees while the store is written, from threads, from another process, and after reopening."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from arrowrb.errors import ClosedError
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema


def test_a_query_is_of_the_snapshot_at_the_call() -> None:
    store = Store.temporary(plain_schema())
    ids = store.extend(plain_batch(10))
    lazy = store.sql("SELECT row_id FROM transitions ORDER BY ordinal")
    views = {view: store.sql(f"SELECT count(*) FROM {view}") for view in ("steps", "episodes", "segments")}
    held = store.sql("SELECT sum(reward) FROM transitions")
    total = held.fetchall()
    for seed in range(30):
        store.extend(plain_batch(500, seed))
    assert store.sql("SELECT count(*) FROM transitions").fetchone() == (15010,)
    assert lazy.arrow()["row_id"].to_pylist() == ids.tolist()
    store.close()
    assert not store.path.exists()
    assert lazy.relation.fetchall() == [(each,) for each in ids.tolist()]
    assert {view: query.fetchone() for view, query in views.items()} == {
        "steps": (11,),
        "episodes": (2,),
        "segments": (1,),
    }
    assert held.fetchall() == total
    with pytest.raises(ClosedError):
        store.sql("SELECT 1")


def test_queries_from_threads_while_the_store_is_written() -> None:
    with Store.temporary(plain_schema()) as store:
        failures: list[str] = []
        stop = threading.Event()

        def ask(number: int) -> None:
            last = 0
            shared = store.sql("SELECT count(*) FROM episodes")
            while not stop.is_set():
                rows = store.sql(
                    "SELECT count(*), count(DISTINCT row_id), max(ordinal), sum(reward) FROM transitions",
                    threads=1 + number % 2,
                ).fetchall()
                count, distinct, _, total = rows[0]
                if count != distinct or count % 250 or count < last or (count and total != count):
                    failures.append(f"{rows} after {last}")
                last = count
                shared.fetchall()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for seed in range(60):
            store.extend(plain_batch(250, seed, reward=np.ones(250)))
        stop.set()
        for thread in threads:
            thread.join(60)
        assert failures == []
        one = store.sql("SELECT reward FROM transitions")
        results: list[int] = []
        readers = [threading.Thread(target=lambda: results.append(len(one.df()))) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert results == [15000] * 4


READER = """
import sys
from arrowrb.store import Store
assert not {"torch", "numba", "duckdb", "gymnasium"} & set(sys.modules), "imported too early"
with Store.open(sys.argv[1], mode="r") as store:
    for line in sys.stdin:
        count = store.sql("SELECT count(*), count(DISTINCT row_id), sum(reward) FROM transitions").fetchall()[0]
        tails = store.sql("SELECT count(*) FROM steps WHERE kind = 2").fetchall()[0]
        episodes = store.sql('SELECT count(*), sum(length) FROM episodes').fetchall()[0]
        num_rows = store.sql('SELECT sum(num_transitions) FROM segments').fetchall()[0]
        print(*count, *tails, *episodes, *num_rows, flush=True)
assert not {"torch", "numba", "gymnasium"} & set(sys.modules), "SQL needs none of these"
"""


def test_another_process_follows_a_live_writer(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", plain_schema(), sync_interval=None) as store:
        command = [sys.executable, "-c", READER, str(store.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            for round_number in range(1, 6):
                store.extend(plain_batch(2100, round_number, reward=np.ones(2100)))
                print(file=reader.stdin, flush=True)
                count = 2100 * round_number
                expected = [count, count, float(count), count // 7, count // 7, count, count]
                assert [float(each) for each in reader.stdout.readline().split()] == expected
            reader.stdin.close()
            assert reader.wait(60) == 0


def test_a_reopened_store_answers_as_before(tmp_path: Path) -> None:
    query = "SELECT * FROM steps ORDER BY ordinal"
    with Store.create(tmp_path / "store", plain_schema(), sync_interval=None) as store:
        for seed in range(6):
            store.extend(plain_batch(1000, seed))
        before = store.sql(query).arrow()
        episodes = store.sql("FROM episodes ORDER BY episode_id").arrow()
    with Store.open(tmp_path / "store") as store:
        after = store.sql(query).arrow()
        assert after.slice(0, before.num_rows).equals(before)
        ended = "FROM episodes WHERE ended_by <> 'cut' ORDER BY episode_id"
        kept = store.sql(ended).arrow()
        assert kept.num_rows >= episodes.num_rows - 6
        assert store.sql("SELECT count(*) FROM episodes WHERE ended_by = 'running'").fetchone() == (0,)
