"""Several writers of one store, each with a shard of its own: what readers see is one store."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import arrowrb
from arrowrb.engine import shards
from arrowrb.errors import CorruptError, LockedError, OptionError
from arrowrb.rows import SHARD_SHIFT
from arrowrb.store import Store
from tests.chances import chi_square

SCHEMA = arrowrb.Schema.from_spaces(gym.spaces.Box(-np.inf, np.inf, (2,), np.float64), gym.spaces.Discrete(5))


class Actor:
    """One writer's world: observations are (number of the actor, a count)."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0
        self.row_ids: list[int] = []
        self.observed: list[int] = []
        self.steps: list[int] = []
        self.rng = np.random.default_rng(number)
        self.step = 0

    def extend(self, store: Store, rows: int, ends: float = 0.2) -> None:
        terminated = self.rng.random(rows) < ends
        observed, following = np.empty((rows, 2)), np.empty((rows, 2))
        for i in range(rows):
            observed[i] = self.number, self.count
            following[i] = self.number, self.count + 1
            self.observed.append(self.count)
            self.steps.append(self.step)
            self.step = 0 if terminated[i] else self.step + 1
            self.count += 2 if terminated[i] else 1
        batch = {
            "observation": observed,
            "next_observation": following,
            "action": np.zeros(rows, np.int64),
            "reward": np.full(rows, float(self.number)),
            "terminated": terminated,
            "truncated": np.zeros(rows, np.bool_),
        }
        self.row_ids += store.extend(batch).tolist()

    def cut(self) -> None:
        """The store was closed: what ran has ended."""
        if self.step:
            self.step, self.count = 0, self.count + 1


def check(store: Store, actors: list[Actor]) -> None:
    """Everything that was written is there, as one store."""
    total = sum(len(actor.row_ids) for actor in actors)
    assert len(store) == total
    assert store.info().num_transitions == total
    rows = store.sql("SELECT row_id, observation, step, episode_id, reward FROM transitions").fetchall()
    found = {row_id: (tuple(seen), step) for row_id, seen, step, _, _ in rows}
    assert found == {
        row_id: ((actor.number, count), step)
        for actor in actors
        for row_id, count, step in zip(actor.row_ids, actor.observed, actor.steps, strict=True)
    }
    owners: dict[int, set[float]] = {}
    for _, _, _, episode, reward in rows:
        owners.setdefault(episode, set()).add(reward)
    assert all(len(each) == 1 for each in owners.values())  # no id in two shards
    assert len(owners) == sum(actor.steps.count(0) for actor in actors)
    assert store.sql("SELECT count(*), sum(length) FROM episodes").fetchall() == [(len(owners), total)]
    ids = np.array([row_id for actor in actors for row_id in actor.row_ids])
    batch = store.gather(ids)
    assert batch["observation"][:, 1].tolist() == [count for actor in actors for count in actor.observed]
    assert (batch["next_observation"] - batch["observation"] == np.array([0, 1])).all()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store", SCHEMA).close()
    return tmp_path / "store"


def test_writers_side_by_side(path: Path) -> None:
    """Opened in turns, in this process; a reader that was there before sees them come."""
    actors = [Actor(number) for number in range(3)]
    names: list[str | None] = [None, "left", "right"]
    with Store.open(path) as reader:
        for _ in range(3):
            writers = [Store.open(path, mode="a", shard=name, hot_rows=1000) for name in names]
            try:
                for _ in range(15):
                    for actor, writer in zip(actors, writers, strict=True):
                        actor.extend(writer, int(actor.rng.integers(1, 120)))
                    assert len(reader) == len(writers[1]) == sum(len(actor.row_ids) for actor in actors)
                check(writers[2], actors)
            finally:
                for actor, writer in zip(actors, writers, strict=True):
                    writer.close()
                    actor.cut()
            check(reader, actors)
        for number, actor in enumerate(actors):
            assert {row_id >> SHARD_SHIFT for row_id in actor.row_ids} == {number}
    assert not arrowrb.verify(path).problems
    with Store.open(path) as reader:
        assert reader.info().cold_rows > 0
        check(reader, actors)


def test_draws_are_uniform_over_unequal_shards(path: Path) -> None:
    actors = [Actor(number) for number in range(3)]
    for actor, name, rows in zip(actors, [None, "a", "b"], (400, 30, 90), strict=True):
        with Store.open(path, mode="a", shard=name) as writer:
            actor.extend(writer, rows)
    every = [row_id for actor in actors for row_id in actor.row_ids]
    with Store.open(path) as store:
        strategies: list[Any] = [
            arrowrb.Uniform(),
            arrowrb.Prioritized(),
            arrowrb.Where("reward >= 0"),
            arrowrb.Weighted("SELECT row_id, 2.0 AS weight FROM transitions"),
            arrowrb.Sequences(2, strict=False),
            arrowrb.Sequences(1),
        ]
        for strategy in strategies:
            sampler = store.sampler(strategy, batch_size=520, seed=0)
            counts: Counter[int] = Counter()
            for _ in range(60):
                batch = sampler.sample()
                counts.update(batch.get("start_row_id", batch["row_id"]).tolist())
            chi_square(counts, dict.fromkeys(every, counts.total() / len(every)))
        once = [row for batch in store.sampler(arrowrb.Shuffled(epochs=1), batch_size=64) for row in batch["row_id"]]
        assert sorted(map(int, once)) == sorted(every)
        batch, mark = store.since(None)
        assert sorted(batch["row_id"].tolist()) == sorted(every)
        with Store.open(path, mode="a", shard="b") as writer:
            actors[2].cut()
            actors[2].extend(writer, 5)
        batch, mark = store.since(mark)
        assert batch["row_id"].tolist() == actors[2].row_ids[-5:]
        with Store.open(path, mode="a", shard="c") as writer:
            late = Actor(3)
            late.extend(writer, 7)
        batch, _ = store.since(mark)
        assert batch["row_id"].tolist() == late.row_ids
        check(store, [*actors, late])


def test_export_backup_checkpoint_and_repair(path: Path, tmp_path: Path) -> None:
    actors = [Actor(number) for number in range(2)]
    with Store.open(path, mode="a") as main, Store.open(path, mode="a", shard="other") as other:
        for _ in range(4):
            actors[0].extend(main, 40)
            actors[1].extend(other, 25)
        sampler = main.sampler(arrowrb.Prioritized(), batch_size=8, name="learner", log=True, seed=0)
        for _ in range(5):
            batch = sampler.sample()
            sampler.update(batch["row_id"], np.ones(8))
        main.checkpoint("now")
        count = len(main)
        main.backup(tmp_path / "backup")
        actors[1].extend(other, 10)
        assert len(main) == count + 10
    with Store.open(path, at="now") as past:
        assert len(past) == count
    with Store.open(tmp_path / "backup") as copy:
        assert len(copy) == count
    with Store.open(path) as store:
        store.export(tmp_path / "exported")
        rows = store.sql("SELECT sampler, batch, row_id FROM samples ORDER BY batch, place").fetchall()
        assert [row_id for name, number, row_id in rows if number == 5] == batch["row_id"].tolist()
    assert arrowrb.import_parquet(tmp_path / "exported", tmp_path / "imported") is not None
    with Store.open(tmp_path / "imported") as back:
        assert len(back) == count + 10
    for number in range(2):  # a manifest that is lost is no shard that is not there
        manifest = path / "shards" / f"{number:05d}" / "manifest.json"
        manifest.rename(tmp_path / "manifest.json")
        assert any(problem.shard == number for problem in arrowrb.verify(path).problems)
        with pytest.raises(CorruptError):
            Store.open(path)
        assert not arrowrb.repair(path).after.problems
        for actor in actors:
            actor.cut()
        with Store.open(path) as store:
            check(store, actors)
    with Store.open(path, mode="a", shard="shard-1") as other:  # the name is lost with the manifest
        actors[1].extend(other, 10)
        check(other, actors)


def test_locks_and_names(path: Path) -> None:
    with Store.open(path, mode="a") as main, Store.open(path, mode="a", shard="one"):
        with pytest.raises(LockedError, match="already open for writing in shard 1 by this process"):
            Store.open(path, mode="a", shard="one")
        with pytest.raises(LockedError, match="a shard of its own"):
            Store.open(path, mode="a")
        with pytest.raises(LockedError, match="a shard of its own"):
            Store.open(path, mode="a", shard="main")
        assert len(main) == 0
    for wrong in ("", "a/b", ".hidden", 3):
        with pytest.raises(OptionError):
            Store.open(path, mode="a", shard=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="reads all of them"):
        Store.open(path, shard="one")
    assert sorted(each.name for each in (path / "shards").iterdir() if each.is_dir()) == ["00000", "00001"]


def test_a_crash_while_a_shard_is_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it comes, the store is as it was, and the shard is made by the next one."""
    actor = Actor(1)
    for stop in ("create_shard", "rename", "sync_directory"):
        with monkeypatch.context() as patch:

            def fail(*arguments: Any, name: str = stop, **options: Any) -> None:
                if name == "create_shard":
                    arguments[0].segments.mkdir(parents=True)
                raise KeyboardInterrupt

            place: Any = {"create_shard": shards, "rename": shards.os, "sync_directory": shards.files}[stop]
            patch.setattr(place, stop, fail)
            with pytest.raises(KeyboardInterrupt):
                Store.open(path, mode="a", shard="one")
        with Store.open(path) as reader:
            assert len(reader) == len(actor.row_ids)
        assert not arrowrb.verify(path).problems
        with Store.open(path, mode="a", shard="one") as writer:
            actor.extend(writer, 10)
        actor.cut()
        assert not [each for each in (path / "shards").iterdir() if each.name.endswith(".tmp")]
        with Store.open(path) as reader:
            check(reader, [actor])


def test_many_are_made_at_once(path: Path) -> None:
    """By threads of one process, each with a name of its own; two with the same one do not both get it."""
    made: dict[str, Store] = {}
    errors: list[Exception] = []

    def make(name: str) -> None:
        try:
            made[name] = Store.open(path, mode="a", shard=name)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make, args=(f"actor-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    actors = [Actor(number) for number in range(8)]
    for actor, store in zip(actors, made.values(), strict=True):
        actor.extend(store, 20)
    with Store.open(path) as reader:
        assert len({row_id >> SHARD_SHIFT for actor in actors for row_id in actor.row_ids}) == 8
        check(reader, actors)
    for store in made.values():
        store.close()


ACTOR = """
import sys, time
from arrowrb.store import Store
from tests.test_shards import Actor
path, number, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
actor = Actor(number)
with Store.open(path, mode="a", shard=f"actor-{number}") as store:
    print("ready", flush=True)
    while rows < 0 or len(actor.row_ids) < rows:
        actor.extend(store, 50)
        if rows < 0:
            time.sleep(0.001)
"""


def start(path: Path, number: int, rows: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ACTOR, str(path), str(number), str(rows)], stdout=subprocess.PIPE, text=True
    )


def test_processes_side_by_side(path: Path) -> None:
    """A learner draws while actors of their own processes write, one of which is killed."""
    actors = [start(path, 1, 3000), start(path, 2, 3000), start(path, 3, -1)]
    with Store.open(path) as store:
        for actor in actors:
            assert actor.stdout is not None
            assert actor.stdout.readline() == "ready\n"
        sampler = store.sampler(batch_size=64)
        for actor in actors[:2]:
            while actor.poll() is None:
                if len(store):
                    batch = sampler.sample()
                    assert (batch["next_observation"] - batch["observation"] == np.array([0, 1])).all()
            assert actor.returncode == 0
            actor.communicate()
        while not store.sql("SELECT 1 FROM transitions WHERE reward = 3 LIMIT 1").fetchall():
            pass
        actors[2].kill()
        actors[2].communicate()
        counts = dict(store.sql("SELECT reward, count(*) FROM transitions GROUP BY 1").fetchall())
        assert counts.keys() == {1.0, 2.0, 3.0}
        assert counts[1.0] == counts[2.0] == 3000
        killed = int(counts[3.0])
    with Store.open(path, mode="a", shard="actor-3") as store:  # goes on where the killed one was
        actor = Actor(3)
        actor.extend(store, 10)
        assert store.sql("SELECT count(*) FROM transitions WHERE reward = 3").fetchall() == [(killed + 10,)]
    assert not arrowrb.verify(path).problems


def test_shards_of_a_store_without_a_count(path: Path) -> None:
    """Of an earlier version: readers that were there before a writer look at the folder."""
    (path / "shards/count").unlink()
    first, second = Actor(1), Actor(2)
    with Store.open(path) as reader:
        for actor in (first, second):
            with Store.open(path, mode="a", shard=f"actor-{actor.number}") as writer:
                actor.extend(writer, 20)
            actor.cut()
            check(reader, [first, second][: actor.number])
    assert (path / "shards/count").read_bytes() == (3).to_bytes(8, "little")
    (path / "shards/count").write_bytes(b"?")
    with Store.open(path) as reader:
        check(reader, [first, second])
