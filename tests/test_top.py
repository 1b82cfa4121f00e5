"""Seeing a run: numbers beside a model in plain Python, and `arrowrb top` beside real writers."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

import arrowrb
from arrowrb import Collector, Monitor, Schema, Store
from arrowrb.cli.top import draw
from arrowrb.errors import ClosedError, StoreNotFoundError
from arrowrb.monitor import RunInfo, ShardInfo, Spread, episodes
from arrowrb.monitor.sampled import count_sampled
from tests.test_cli import COMMAND, fail, run

SCHEMA = Schema.from_spaces(gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(3))


class Clock:
    """Seconds, as a test says them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Writes episodes on some lanes of a shard, and knows how they went."""

    store: Store
    rng: np.random.Generator
    number: int
    num_lanes: int = 3
    ended: list[tuple[float, int]] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.begun = 0
        self.lanes = [self._begin() for _ in range(self.num_lanes)]

    def _begin(self) -> list[Any]:
        self.begun += 1
        return [self.number * 1_000_000 + self.begun, []]

    def extend(self, rows: int) -> None:
        """One commit of rows on random lanes."""
        batch: dict[str, list[Any]] = {name: [] for name in ("lane", "episode_id", "step", "reward", "terminated")}
        for _ in range(rows):
            lane = int(self.rng.integers(self.num_lanes))
            episode, rewards = self.lanes[lane]
            done = bool(self.rng.random() < 0.05)
            values = (lane, episode, len(rewards), float(self.rng.integers(-5, 6)), done)
            for name, value in zip(batch, values, strict=True):
                batch[name].append(value)
            rewards.append(values[3])
            if done:
                self.ended.append((sum(rewards), len(rewards)))
                self.lanes[lane] = self._begin()
            elif self.rng.random() < 0.01:  # abandoned: another one begins
                self.lanes[lane] = self._begin()
        lane = np.array(batch.pop("lane"), np.int32)
        zeros = np.zeros((rows, 1), np.float32)
        given = {"observation": zeros, "next_observation": zeros, "action": np.zeros(rows, np.int64)}
        given |= {"truncated": np.zeros(rows, np.bool_), "reward": np.array(batch.pop("reward"), np.float32)}
        self.store.extend({**given, **{name: np.array(values) for name, values in batch.items()}}, lane=lane)
        self.count += rows


def close_to(spread: Spread | None, values: list[float]) -> bool:
    if spread is None:
        return not values
    return (spread.count, spread.least, spread.most) == (len(values), min(values), max(values)) and math.isclose(
        spread.mean, sum(values) / len(values), abs_tol=1e-9
    )


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Store, Store, Path]]:
    """A store with two shards that are written, ``main`` and ``second``."""
    path = tmp_path / "store"
    with Store.create(path, SCHEMA) as first, Store.open(path, mode="a", shard="second") as second:
        yield first, second, path


def test_numbers_agree_with_a_model(shared: tuple[Store, Store, Path]) -> None:
    """Whenever one looks, from inside a writer and from outside, and with another monitor that begins later."""
    first, second, path = shared
    rng = np.random.default_rng(4)
    worlds = [World(first, rng, 1), World(second, rng, 2)]
    with Store.open(path) as reader:
        monitors = [Monitor(store, window=100_000) for store in (reader, first)]
        for turn in range(40):
            for world in worlds:
                for _ in range(rng.integers(4)):
                    world.extend(int(rng.integers(1, 200)))
            if turn == 20:
                monitors.append(Monitor(reader, window=100_000))
            returns = [value for world in worlds for value, _ in world.ended]
            lengths = [float(length) for world in worlds for _, length in world.ended]
            for monitor in monitors[turn % 2 :]:
                seen = monitor.look()
                assert seen.num_committed == sum(world.count for world in worlds)
                assert [shard.num_committed for shard in seen.shards] == [world.count for world in worlds]
                assert seen.num_finished == len(returns)
                assert close_to(seen.returns, returns)
                assert close_to(seen.lengths, lengths)


def test_only_the_newest_episodes_count(shared: tuple[Store, Store, Path]) -> None:
    world = World(shared[0], np.random.default_rng(2), 1)
    monitor = Monitor(shared[0], window=7)
    for _ in range(20):
        world.extend(50)
        assert close_to(monitor.look().returns, [value for value, _ in world.ended[-7:]])


def test_of_long_episodes_the_length_is_known_at_once(
    shared: tuple[Store, Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look reads the newest rows only: what an episode had before is not known, and so is its return."""
    monkeypatch.setattr(episodes, "_MOST_ROWS", 10)
    monkeypatch.setattr(episodes, "_LEAST_ROWS", 10)
    store = shared[0]

    def step(at: int, end: int) -> None:
        store.add(
            observation=[0.0], action=0, reward=1.0, next_observation=[0.0], terminated=at == end, truncated=False
        )

    for at in range(100):
        step(at, 1000)
    monitor = Monitor(store)
    assert monitor.look().returns is None
    step(100, 100)
    seen = monitor.look()
    assert (seen.num_finished, seen.returns, seen.lengths) == (1, None, Spread(1, 101, 101, 101))
    for at in range(5):
        step(at, 4)
    assert monitor.look().returns == Spread(1, 5.0, 5.0, 5.0)
    for at in range(30):  # more than one look reads
        step(at, 29)
    seen = monitor.look()
    assert (seen.num_finished, seen.returns) == (3, Spread(1, 5.0, 5.0, 5.0))
    assert seen.lengths == Spread(3, (101 + 5 + 30) / 3, 5, 101)


def test_lanes_versions_and_rates(tmp_path: Path) -> None:
    clock, env_id, path = Clock(), "CartPole-v1", tmp_path / "store"
    with (
        Collector(env_id, num_envs=3) as made,
        Store.create(path, Schema.from_env(made.env)) as main,
        Store.open(path, mode="a", shard="other") as other,
        Store.open(path) as reader,
    ):
        monitor = Monitor(reader, clock=clock)
        seen = monitor.look()
        assert (seen.per_second, seen.policy_version, seen.num_committed) == (None, None, 0)
        assert [shard.num_lanes for shard in seen.shards] == [0, 0]
        collectors = [Collector(env_id, num_envs=3, store=store, frames_per_batch=60) for store in (main, other)]
        collectors[1].policy_version = 7
        next(collectors[0])
        next(collectors[1])
        clock.now += 2
        seen = monitor.look()
        assert [shard.per_second for shard in seen.shards] == [30, 30]
        assert [(shard.name, shard.alive) for shard in seen.shards] == [("main", True), ("other", True)]
        assert [shard.policy_version for shard in seen.shards] == [0, 7]
        assert [shard.policy_lag for shard in seen.shards] == [7, 0]
        assert (seen.per_second, seen.policy_version) == (60, 7)
        assert [shard.num_lanes for shard in seen.shards] == [3, 3]
        running = reader.sql("SELECT count(*) FROM episodes WHERE ended_by = 'running'").fetchall()[0][0]
        assert seen.num_running == running
        collectors[0].close()
        for _ in range(9):
            next(collectors[1])
        clock.now += 8
        seen = monitor.look()
        assert seen.shards[0].num_running == 0
        assert [shard.per_second for shard in seen.shards] == [6, 60]
        clock.now += 30
        assert monitor.look().per_second == 0  # the newest look that is ten seconds old counts
        collectors[1].close()
        assert monitor.look().num_running == 0


@pytest.mark.parametrize("limits", [{"hot_rows": 1000}, {"hot_rows": 1000, "max_rows": 3000}])
def test_segments_that_move_and_go(limits: dict[str, int]) -> None:
    with Store.temporary(SCHEMA, **limits) as store, Store.open(store.path) as reader:
        world, monitor = World(store, np.random.default_rng(1), 1), Monitor(reader, window=100_000)
        for _ in range(60):
            world.extend(300)
            seen = monitor.look()
            assert seen.num_committed == world.count
            assert seen.num_transitions + seen.num_evicted == world.count
        told = store.info()
        assert told.num_segments["cold"] > 0
        assert seen.num_evicted > 0 or "max_rows" not in limits
        assert 0 < seen.num_finished <= len(world.ended)
        assert monitor.look().tiers.num_segments.keys() == told.num_segments.keys()


def test_what_samplers_take() -> None:
    clock = Clock()
    with Store.temporary(SCHEMA) as store:
        world = World(store, np.random.default_rng(1), 1)
        world.extend(500)
        monitor = Monitor(store, clock=clock)
        seen = monitor.look()
        assert (seen.num_sampled, seen.sampled_per_second, seen.samplers) == (None, None, ())
        with (
            store.sampler(batch_size=32, name="learner", log=True) as logged,
            store.sampler(arrowrb.Prioritized(), batch_size=8, name="silent"),
        ):
            world.extend(100)
            for _ in range(10):
                next(logged)
            clock.now += 5
            seen = monitor.look()
            learner, silent = seen.samplers
            assert (learner.name, learner.alive, learner.num_batches, learner.batch_size) == ("learner", True, 10, 32)
            assert (silent.name, silent.num_batches, silent.rows_per_second) == ("silent", None, None)
            assert (learner.rows_per_second, seen.sampled_per_second, seen.replay_ratio) == (64, 64, 3.2)
            assert "64 rows/s, replay ratio 3.20" in picture(seen)
        assert monitor.look().samplers[0].pid is None


@pytest.mark.parametrize("strategy", [arrowrb.Uniform(), arrowrb.Prioritized()])
def test_what_a_limiter_counts_of_samplers(strategy: Any) -> None:
    """Of each that has a name, with files of its own or without; one that is made again counts from 0."""
    clock, long_name = Clock(), "learner-" + "x" * 56
    with Store.temporary(SCHEMA, limiter=arrowrb.SampleToInsertRatio(1, tolerance=1e6)) as store:
        World(store, np.random.default_rng(1), 1).extend(500)
        monitor = Monitor(store, clock=clock)
        monitor.look()
        with (
            store.sampler(strategy, batch_size=32, name="learner") as one,
            store.sampler(strategy, batch_size=16, name=long_name) as other,
            store.sampler(batch_size=1) as nameless,
        ):
            for sampler in (one, other, nameless) * 10:
                next(sampler)
            clock.now += 5
            seen = monitor.look()
            assert [(each.alive, each.num_batches, each.num_rows, each.rows_per_second) for each in seen.samplers] == [
                (True, None, 320, 64),
                (True, None, 160, 32),
            ]
            lines = [line.split() for line in picture(seen).splitlines() if line.startswith(" learner")]
            assert [line[-4:] for line in lines] == [["-", "-", "320", "64"], ["-", "-", "160", "32"]]
        monitor.look()
        with store.sampler(strategy, batch_size=4, name="learner") as sampler:
            next(sampler)
            clock.now += 2
            told = monitor.look().samplers[0]
            assert (told.num_rows, told.rows_per_second) == (4, 4 / 7)  # since the first look


def test_a_store_that_counts_samples() -> None:
    counting: Any = SimpleNamespace(limiting=SimpleNamespace(look=lambda: SimpleNamespace(samples=12)))
    silent: Any = SimpleNamespace(limiting=SimpleNamespace(look=lambda: None))
    assert count_sampled(counting) == 12
    assert count_sampled(silent) is None


def test_rewards_that_are_vectors_or_no_numbers() -> None:
    schema = Schema.from_spaces(
        gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(3), reward=("float32", (2,))
    )
    with Store.temporary(schema) as store:
        for reward, done in (([1, 2], False), ([3, 4], True), ([np.nan, 0], True), ([np.inf, 1], True)):
            store.add(
                observation=[0.0], action=0, reward=reward, next_observation=[0.0], terminated=done, truncated=False
            )
        seen = Monitor(store).look()
        assert (seen.num_finished, seen.returns) == (3, Spread(2, math.inf, 10.0, math.inf))
        assert "mean inf" in picture(seen)


# -- stores that go, and writers that die ----------------------------------------------------------------------------


def test_a_store_that_goes(tmp_path: Path) -> None:
    path, other = tmp_path / "store", tmp_path / "other"
    for each in (path, other):
        Store.create(each, SCHEMA).close()
    store = Store.open(path)
    monitor = Monitor(store)
    monitor.look()
    shutil.rmtree(path / "shards")
    shutil.move(path / "store.json", tmp_path / "kept.json")
    with pytest.raises(StoreNotFoundError, match="has gone"):
        monitor.look()
    shutil.rmtree(path)
    other.rename(path)
    with pytest.raises(StoreNotFoundError, match="replaced"):
        monitor.look()
    store.close()
    path.rename(other)
    with Store.open(other) as reader:
        monitor = Monitor(reader)
        reader.close()
        with pytest.raises(ClosedError):
            monitor.look()


def test_a_writer_that_is_killed(tmp_path: Path) -> None:
    """It is told from one that closed its shard, and has no lanes."""
    path = tmp_path / "store"
    Store.create(path, SCHEMA).close()
    program = (
        "import sys, time, arrowrb; s = arrowrb.Store.open(sys.argv[1], mode='a', shard='actor'); "
        "s.add(observation=[0.0], action=0, reward=1.0, next_observation=[0.0], terminated=False, truncated=False); "
        "print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Store.open(path) as reader:
            monitor = Monitor(reader)
            main, actor = monitor.look().shards
            assert (main.pid, actor.pid, actor.alive, actor.num_lanes) == (None, process.pid, True, 1)
            writers = reader.info().writers
            assert [(each.name, each.pid, each.alive) for each in writers] == [
                ("main", None, False),
                ("actor", process.pid, True),
            ]
            assert writers[0].last_write is None
            assert abs(time.time() - (writers[1].last_write or 0)) < 600
            process.kill()
            process.wait()
            actor = monitor.look().shards[1]
            assert (actor.pid, actor.alive, actor.num_lanes, actor.num_running) == (process.pid, False, 0, 0)
            assert "1 died" in picture(monitor.look())
            assert reader.info().writer_pid is None
    code, out, _ = run("info", path)
    assert code == 0
    assert re.search(rf"^ shard 1 +actor: no writer \(process {process.pid} died\), 1 transitions", out, re.MULTILINE)
    assert re.search(r"^ shard 0 +main: no writer, 0 transitions *$", out, re.MULTILINE)
    told = json.loads(run("info", path, "--format", "json")[1])["writers"]
    assert [(each["name"], each["pid"], each["alive"]) for each in told] == [
        ("main", None, False),
        ("actor", process.pid, False),
    ]
    assert "main= actor=" in run("info", path, "--format", "csv")[1]
    Store.open(path, mode="a", shard="actor").close()
    with Store.open(path) as reader:
        assert Monitor(reader).look().shards[1].pid is None


# -- the command -----------------------------------------------------------------------------------------------------


def picture(seen: RunInfo, now: float = 1000.0) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(draw(seen, now))
        return console.export_text()


def test_the_picture(shared: tuple[Store, Store, Path]) -> None:
    monitor = Monitor(shared[0])
    text = picture(monitor.look())
    assert "2 writing" in text
    assert re.search(r"^ out +not counted *$", text, re.MULTILINE)
    assert re.search(r"^ in +- transitions/s *$", text, re.MULTILINE)
    world = World(shared[1], np.random.default_rng(3), 1)
    world.extend(400)
    seen = monitor.look()
    text = picture(seen, (seen.shards[1].last_write or 0) + 150)
    assert f"of the newest {len(world.ended)} episodes" in text
    row = next(line for line in text.splitlines() if line.startswith(" second"))
    assert row.split()[2] == "400"
    assert row.rstrip().endswith("2 min")
    assert isinstance(seen.shards[0], ShardInfo)


def test_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path, SCHEMA).close()
    code, out, err = run("top", path, "--once", "--interval", "0.01")
    assert (code, err) == (0, "")
    assert "nobody writes" in out
    assert "\x1b" not in out
    code, out, err = run("top", path, "--once", "--interval", "0.01", "--format", "json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    found = json.loads(out)
    assert (found["num_committed"], found["per_second"], found["returns"]) == (0, 0, None)
    assert found["shards"][0]["name"] == "main"
    assert "is no store" in fail("top", tmp_path / "missing")
    assert run("top", path, "--interval", "0")[0] == 2


def lines_of(path: Path, *options: str) -> Any:
    return subprocess.Popen(
        [*COMMAND, "top", str(path), "--interval", "0.05", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_follows_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path, SCHEMA) as store, lines_of(path, "--format", "json") as process:
        assert json.loads(process.stdout.readline())["num_committed"] == 0
        World(store, np.random.default_rng(1), 1).extend(100)
        while json.loads(process.stdout.readline())["num_committed"] != 100:
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_it_ends_when_the_store_goes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path, SCHEMA).close()
    with lines_of(path) as process:
        assert str(path) in process.stdout.readline()
        shutil.rmtree(path)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch(r"error: The store [^\n]* has gone: [^\n]*\n", err), err


def test_it_is_in_the_public_face() -> None:
    assert arrowrb.Monitor is Monitor
    assert arrowrb.RunInfo is RunInfo
