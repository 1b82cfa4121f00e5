"""Limits hold for the whole store, over shards that several processes write, one of which may die at any time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arrowrb
from arrowrb.engine import Engine, WriterOptions, create_store, visits
from arrowrb.engine.coordinator import Survey
from arrowrb.engine.creating import read_store_file
from arrowrb.errors import LockedError
from arrowrb.retention import Limits
from arrowrb.rows import POSITION_BITS, SHARD_SHIFT
from arrowrb.sharing import SHARE_BEYOND
from arrowrb.store import Store
from tests.test_shards import SCHEMA, Actor

MAX_ROWS = 4000
PATIENCE_SECONDS = 60.0


def open_shard(path: Path, name: str = "main", **limits: Any) -> Store:
    """A writer that does not sync, so that tests take less time."""
    return Store(Engine(path, writable=True, options=WriterOptions(None, False, Limits(**limits)), shard=name))


def until(what: Callable[[], bool]) -> None:
    """Wait for something that another thread or process does."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < patience
        time.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_store(tmp_path / "store", SCHEMA, max_rows=MAX_ROWS, durable=False)
    return tmp_path / "store"


def look(path: Path, **limits: Any) -> Survey:
    """What the files of all shards tell."""
    file = read_store_file(path)
    return Survey(path, file, Limits(max_rows=file.max_rows, max_bytes=file.max_bytes, **limits))


def settle(path: Path) -> None:
    """Wait until nothing is due any more."""

    def is_settled() -> bool:
        survey = look(path)
        return not survey.plan() and not survey.is_over()

    until(is_settled)


class World:
    """The model: who wrote what when. Time is a count over all shards."""

    def __init__(self, *names: str) -> None:
        self.actors = {name: Actor(number) for number, name in enumerate(names)}
        self.arrived: dict[str, list[int]] = {name: [] for name in names}
        self.count = 0

    def extend(self, store: Store, name: str, rows: int) -> None:
        self.actors[name].extend(store, rows)
        self.arrived[name] += range(self.count, self.count + rows)
        self.count += rows

    def check(self, store: Store) -> dict[str, int]:
        """What is there is the newest part of each shard, whole segments of it, and right; returns how much."""
        found = dict(store.sql("SELECT row_id, observation FROM transitions").fetchall())
        assert len(found) == len(store)
        counts, newest_gone, older = {}, -1, {}
        for name, actor in self.actors.items():
            there = [row_id for row_id in actor.row_ids if row_id in found]
            counts[name] = len(there)
            gone = len(actor.row_ids) - len(there)
            assert actor.row_ids[gone:] == there
            assert not {row_id >> POSITION_BITS for row_id in actor.row_ids[:gone]} & {
                row_id >> POSITION_BITS for row_id in there
            }
            seen = zip(there, actor.observed[gone:], strict=True)
            assert all(found[row_id] == (actor.number, count) for row_id, count in seen)
            if gone:
                newest_gone = max(newest_gone, self.arrived[name][gone - 1])
            older[name] = (gone, there)
        assert sum(counts.values()) == len(found)
        info = store.info()
        assert info.num_evicted == sum(len(actor.row_ids) for actor in self.actors.values()) - len(found)
        assert store.sql("SELECT count(*), sum(length) FROM episodes").fetchall() == [
            (
                sum(actor.steps.count(0) for actor in self.actors.values()),
                sum(len(actor.steps) for actor in self.actors.values()),
            )
        ]
        for name, (gone, there) in older.items():
            # Older than what has gone are only rows of the oldest segment, and of those that are not sealed.
            arrived = zip(there, self.arrived[name][gone:], strict=True)
            stayed = {row_id >> POSITION_BITS for row_id, when in arrived if when < newest_gone}
            assert len(stayed) <= 2, (name, counts)
        return counts

    def cut(self, name: str) -> None:
        self.actors[name].cut()


def test_random_operations(path: Path) -> None:
    """Writers come, write at their own pace and go; a reader sees what the model says, and never too much."""
    rng = np.random.default_rng(0)
    names = ["main", "a", "b", "c"]
    world, stores = World(*names), {}
    pace = {name: float(part) for name, part in zip(names, [0.5, 2.0, 1.0, 0.2], strict=True)}
    most = 0
    with Store.open(path) as reader:
        for step in range(500):
            name = names[int(rng.integers(4))]
            if name not in stores:
                stores[name] = open_shard(path, name)
            elif rng.random() < 0.05:
                stores.pop(name).close()
                world.cut(name)
                continue
            world.extend(stores[name], name, 1 + int(rng.integers(40) * pace[name]))
            most = max(most, len(reader))
            settle(path)
            assert len(reader) <= MAX_ROWS
            if step % 8 == 7:
                world.check(reader)
        assert world.count > 2 * MAX_ROWS
        assert most <= MAX_ROWS + MAX_ROWS // SHARE_BEYOND, most
        for store in stores.values():
            store.close()
        assert arrowrb.verify(path)


@pytest.mark.parametrize("stops", [False, True])
def test_the_bound_holds_however_fast_rows_come(path: Path, stops: bool) -> None:
    """Nobody waits for the coordinator here, which may even be gone: then each shard drops its own oldest."""
    world, names = World("main", "a", "b"), ("main", "a", "b")
    rng = np.random.default_rng(1)
    with contextlib.ExitStack() as stack:
        stores = {name: stack.enter_context(open_shard(path, name)) for name in names}
        writers: list[Any] = [store._engine.writer_shard for store in stores.values()]
        until(lambda: all(writer._eviction._told is not None for writer in writers))
        for step in range(400):
            name = names[int(rng.integers(3))]
            world.extend(stores[name], name, int(rng.integers(1, 60)))
            count = sum(writer.look().num_transitions for writer in writers)
            # Rows of segments that are still written cannot go.
            assert count <= MAX_ROWS + MAX_ROWS // SHARE_BEYOND + len(names) * MAX_ROWS // 48
            if stops and step == 150:
                for store in stores.values():
                    rounds: Any = store._engine._rounds
                    rounds._stopping.set()
        assert world.count > 2 * MAX_ROWS
        assert count > MAX_ROWS * 3 // 4
        for writer in writers:
            writer.wait_for_threads()
        until(lambda: len(stores["main"]) == sum(writer.look().num_transitions for writer in writers))


def test_a_fast_and_a_slow_shard_age_alike(path: Path) -> None:
    world = World("main", "fast", "slow")
    with open_shard(path) as main, open_shard(path, "fast") as fast, open_shard(path, "slow") as slow:
        for step in range(400):
            world.extend(fast, "fast", 40)
            world.extend(slow, "slow", 4)
            settle(path)
            if step % 20 == 19:
                counts = world.check(main)
        assert len(main) <= MAX_ROWS
        assert counts["fast"] + counts["slow"] > MAX_ROWS * 7 // 8
        assert counts["slow"] < MAX_ROWS // 6


def test_rows_of_an_abandoned_shard_age_out(path: Path) -> None:
    """That of a writer that closed, with episodes that ran, and one of segments that nobody sealed."""
    world = World("main", "gone")
    with open_shard(path, "gone") as gone:
        world.extend(gone, "gone", 1500)
    world.cut("gone")
    with open_shard(path) as main, Store.open(path) as reader:
        opened = look(path).watched[1].manifest.times_opened
        for _ in range(60):
            world.extend(main, "main", 100)
            settle(path)
            world.check(reader)
        until(lambda: world.check(reader)["gone"] == 0)
        assert look(path).watched[1].manifest.times_opened == opened  # seeds go on as if nobody had been there
        with open_shard(path, "gone") as again:
            world.extend(again, "gone", 100)
            settle(path)
            assert world.check(reader)["gone"] == 100
    assert arrowrb.verify(path)


def test_a_writer_waits_for_a_visit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_shard(path, "a") as store:
        Actor(1).extend(store, 100)
    inside, leave = threading.Event(), threading.Event()

    class Slow(visits.ShardWriter):
        def close(self) -> None:
            inside.set()
            assert leave.wait(PATIENCE_SECONDS)
            super().close()

    with monkeypatch.context() as patch:
        patch.setattr(visits, "ShardWriter", Slow)
        file, options = read_store_file(path), WriterOptions(None, False, Limits())
        arguments = (look(path).watched[1].paths, file.schema, file.store_id, options, lambda: 2)
        visitor = threading.Thread(target=visits.visit, args=arguments)
        visitor.start()
        assert inside.wait(PATIENCE_SECONDS)
        opened: list[Store] = []
        writer = threading.Thread(target=lambda: opened.append(open_shard(path, "a")))
        writer.start()
        time.sleep(0.1)
        assert not opened
        leave.set()
        writer.join()
        visitor.join()
    assert len(opened) == 1
    with pytest.raises(LockedError):
        open_shard(path, "a")
    opened[0].close()
    assert not list((path / "shards").glob("visit-*"))


def test_the_hot_tier_is_bounded_over_all_shards(tmp_path: Path) -> None:
    path = tmp_path / "store"
    create_store(path, SCHEMA, durable=False)
    world, names = World("main", "a", "b"), ("main", "a", "b")
    limit = 6000
    with contextlib.ExitStack() as stack:
        stores = {name: stack.enter_context(open_shard(path, name, hot_rows=limit)) for name in names}
        for _ in range(60):
            for name, rows in zip(names, (10, 300, 30), strict=True):
                world.extend(stores[name], name, rows)
        until(lambda: not look(path, hot_rows=limit).plan())
        info = stores["main"].info()
        assert info.allocated_rows <= limit
        assert info.num_transitions == world.count
        world.check(stores["a"])
    with open_shard(path, hot_rows=1000) as main:  # what the others left is moved, too
        until(lambda: main.info().allocated_rows <= 1000)
        world.check(main)
    assert arrowrb.verify(path)


def test_checkpoints_keep_rows_of_all_shards(path: Path) -> None:
    """Also of shards whose writers know nothing of it, at the moment when segments are dropped."""
    world = World("main", "a", "b")
    with open_shard(path) as main, open_shard(path, "a") as a, open_shard(path, "b") as b:
        stores = {"main": main, "a": a, "b": b}

        def write(rows: int) -> None:
            for name, store in stores.items():
                world.extend(store, name, rows)

        for _ in range(30):
            write(60)
        kept = {}
        for number in range(5):
            write(60)
            (a if number % 2 else main).checkpoint(f"point-{number}", keep=True)
            with Store.open(path, at=f"point-{number}") as past:
                kept[number] = (
                    set(past.gather_ids())
                    if hasattr(past, "gather_ids")
                    else {row_id for (row_id,) in past.sql("SELECT row_id FROM transitions").fetchall()}
                )
            assert kept[number]
            for other in range(number):
                main.remove_checkpoint(f"point-{other}") if other == number - 1 else None
            for _ in range(25):
                write(60)
            with Store.open(path) as reader:
                there = {row_id for (row_id,) in reader.sql("SELECT row_id FROM transitions").fetchall()}
            assert kept[number] <= there
        b.remove_checkpoint("point-4")
        settle(path)
        assert len(main) <= MAX_ROWS
    assert arrowrb.verify(path)


def test_bytes_are_bounded_over_all_shards(tmp_path: Path) -> None:
    path, limit = tmp_path / "store", 1 << 20
    create_store(path, SCHEMA, max_bytes=limit, durable=False)
    world = World("main", "a")
    with open_shard(path) as main, open_shard(path, "a") as other:
        for step in range(400):
            world.extend(main, "main", 30)
            world.extend(other, "a", 30)
            for store in (main, other):
                store._engine.writer_shard.wait_for_threads()  # type: ignore[union-attr]  # room that is made ahead
            settle(path)
            if step % 40 == 39:
                world.check(main)
        files = [entry for manifest in main._engine.manifests() for entry in manifest.segments]
        assert limit * 7 // 8 < sum(entry.bytes for entry in files) <= limit + limit // SHARE_BEYOND
        assert main.info().num_evicted > 0


def test_samplers_go_on_when_rows_go_in_other_shards(path: Path) -> None:
    world = World("main", "a")
    with open_shard(path) as main, open_shard(path, "a") as other:
        for _ in range(20):
            world.extend(other, "a", 100)
        strategies: list[Any] = [
            arrowrb.Uniform(),
            arrowrb.Prioritized(),
            arrowrb.Shuffled(),
            arrowrb.Sequences(4, strict=False),
            arrowrb.Where("reward >= 0"),
        ]
        samplers = [main.sampler(strategy, batch_size=64, seed=0) for strategy in strategies]
        held: list[Any] = []
        for step in range(60):
            world.extend(other, "a", 150)
            for sampler in samplers:
                batch = sampler.sample()
                assert (batch["next_observation"] - batch["observation"] == np.array([0, 1])).reshape(-1).all() or (
                    "mask" in batch
                )
            held.append(samplers[1].sample()["row_id"])
            samplers[1].update(held[max(0, step - 30)], np.full(64, 2.0))
        settle(path)
        world.check(main)
        live = {row_id for (row_id,) in main.sql("SELECT row_id FROM transitions").fetchall()}
        for sampler in samplers[:3]:
            assert set(sampler.sample()["row_id"].tolist()) <= live
        assert samplers[1].info().num_ignored > 0


def test_maintain_is_for_all_shards(path: Path) -> None:
    world = World("main", "a")
    with open_shard(path, "a") as store:
        for _ in range(50):
            world.extend(store, "a", 100)
    world.cut("a")
    with Store.open(path) as reader, open_shard(path) as main:
        settle(path)
        rounds: Any = main._engine._rounds  # which are stopped: nothing happens but what is asked for
        rounds._stopping.set()
        for thread in rounds._threads:
            thread.join()
        rounds._coordinator.look()
        rounds.shard.obey(look_around=False)
        due: list[Any] = []
        while not due:
            world.extend(main, "main", 50)
            assert world.count < 3 * MAX_ROWS
            due = main.maintain(dry_run=True)
        assert {(action.kind, action.shard) for action in due} == {("evict", 1)}
        assert reader.maintain(dry_run=True) == due
        before = len(reader)
        done = main.maintain()
        assert [(action.shard, action.segment) for action in done][: len(due)] == [
            (action.shard, action.segment) for action in due
        ]
        assert len(reader) == before - sum(action.num_transitions for action in done)
        assert len(reader) <= MAX_ROWS
        assert main.maintain(dry_run=True) == []
        world.check(reader)


# -- processes -------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from tests.test_shards import Actor
from tests.test_retention_of_shards import open_shard
path, name, number, rows, pause = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
actor = Actor(number)
with open_shard(path, name) as store:
    print("ready", flush=True)
    while True:
        actor.extend(store, rows)
        time.sleep(pause)
"""


def start(path: Path, name: str, number: int, *, rows: int, pause: float = 0.02) -> subprocess.Popen[str]:
    arguments = [str(path), name, str(number), str(rows), str(pause)]
    process = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@contextlib.contextmanager
def running(*processes: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def coordinator(path: Path) -> int | None:
    from arrowrb import files

    holder = files.read_holder(path / "shards" / "coordinator.json")
    return holder.pid if holder is not None and files.is_alive(holder.pid) else None


def watch(path: Path, seconds: float) -> int:
    """The most transitions that a reader sees meanwhile."""
    most, stop = 0, time.monotonic() + seconds
    with Store.open(path) as reader:
        while time.monotonic() < stop:
            most = max(most, len(reader))
            time.sleep(0.005)
    return most


def test_the_coordinator_is_killed(path: Path) -> None:
    """The bound holds meanwhile, and another one takes over: what the dead one wrote ages out, too."""
    first = start(path, "main", 1, rows=20)
    with running(first):
        others = [start(path, "a", 2, rows=40), start(path, "b", 3, rows=4)]
        with running(*others), Store.open(path) as reader:
            assert coordinator(path) == first.pid
            until(lambda: reader.info().num_evicted > 500)
            assert watch(path, 1.0) <= MAX_ROWS + MAX_ROWS // 8
            kill(first)
            assert watch(path, 2.0) <= MAX_ROWS + MAX_ROWS // 8
            until(lambda: coordinator(path) in [each.pid for each in others])
            until(lambda: not reader.sql("SELECT 1 FROM transitions WHERE reward = 1 LIMIT 1").fetchall())
            assert watch(path, 1.0) <= MAX_ROWS + MAX_ROWS // 8
            counts = dict(reader.sql("SELECT reward, count(*) FROM transitions GROUP BY 1").fetchall())
            assert counts[2.0] > 4 * counts[3.0]
    with open_shard(path) as main:
        settle(path)
        assert len(main) <= MAX_ROWS
    assert arrowrb.verify(path)


def test_a_writer_is_killed(path: Path) -> None:
    world = World("main")
    with open_shard(path) as main:
        for _ in range(3):
            victim, before = start(path, "a", 1, rows=30, pause=0.005), main.info().num_rows
            with running(victim):
                until(lambda before=before: main.info().num_rows > before + 500 or main.info().num_evicted > 500)
            world.extend(main, "main", 500)
        count = main.sql("SELECT count(*) FROM transitions WHERE reward = 1").fetchall()[0][0]
        assert count > 0
        while main.sql("SELECT 1 FROM transitions WHERE reward = 1 LIMIT 1").fetchall():
            world.extend(main, "main", 200)
            settle(path)
            assert len(main) <= MAX_ROWS
            assert world.count < 5 * MAX_ROWS
        rows = main.sql("SELECT row_id >> ?, count(*) FROM transitions GROUP BY 1", [SHARD_SHIFT]).fetchall()
        assert [shard for shard, _ in rows] == [0]
    assert arrowrb.verify(path)


def test_episodes_of_a_writer_that_died_are_cut(path: Path) -> None:
    """Once nobody has come in its place for a while, whatever the limits."""
    victim = start(path, "a", 1, rows=30, pause=0.005)
    running_ones = "SELECT count(*) FROM episodes WHERE ended_by = 'running'"
    with running(victim), open_shard(path, max_rows=10**6) as main:
        until(lambda: main.info().num_rows > 300 and main.sql(running_ones).fetchall() != [(0,)])
        kill(victim)
        count, ids = len(main), "SELECT sum(row_id), sum(reward) FROM transitions"
        before = main.sql(ids).fetchall()
        until(lambda: main.sql(running_ones).fetchall() == [(0,)])
        assert (len(main), main.sql(ids).fetchall()) == (count, before)
    assert arrowrb.verify(path)


def test_checkpoints_keep_rows_of_other_processes(path: Path) -> None:
    """Taken while another process drops segments as fast as it can."""
    writer = start(path, "a", 1, rows=60, pause=0.002)
    with running(writer), open_shard(path) as main:
        until(lambda: main.info().num_evicted > 500)
        for number in range(8):
            main.checkpoint(f"point-{number}", keep=True)
            with Store.open(path, at=f"point-{number}") as past:
                kept = {row_id for (row_id,) in past.sql("SELECT row_id FROM transitions").fetchall()}
            assert len(kept) > MAX_ROWS // 2
            before = main.info().num_rows + main.info().num_evicted
            until(lambda before=before: main.info().num_rows + main.info().num_evicted > before + 1500)
            assert kept <= {row_id for (row_id,) in main.sql("SELECT row_id FROM transitions").fetchall()}
            main.remove_checkpoint(f"point-{number}")
            until(lambda: len(main) <= MAX_ROWS + MAX_ROWS // 8)
    assert arrowrb.verify(path)


def test_kills_at_any_moment(path: Path) -> None:
    """Of writers, one of which coordinates and visits what the other ones left."""
    rng = np.random.default_rng(2)
    for number in range(3):
        processes = [start(path, name, at, rows=50, pause=0.0) for at, name in enumerate(["main", f"gone-{number}"])]
        with running(*processes):
            time.sleep(float(rng.uniform(0.3, 0.8)))
            kill(processes[1])
            time.sleep(float(rng.uniform(0.05, 0.4)))
        assert arrowrb.verify(path)
    with open_shard(path) as main:
        settle(path)
        assert MAX_ROWS // 2 < len(main) <= MAX_ROWS
        held = main.info()
        assert held.num_transitions == main.sql("SELECT count(*) FROM transitions").fetchall()[0][0]
        ever = main.sql("SELECT sum(length) FROM episodes").fetchall()[0][0]
        assert held.num_transitions + held.num_evicted == ever
    assert arrowrb.verify(path)
