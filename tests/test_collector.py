"""The collector against what environments really did, logged beneath the vector layer."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from arrowrb.collector import Collector
from arrowrb.errors import ClosedError, EnvironmentFault, OptionError, SchemaError
from arrowrb.loader import to_torch
from arrowrb.schema import Extra, Schema
from arrowrb.store import Store
from tests.counting import Counting
from tests.ledger import LedgerStore, by_lane, check_lane, rows_of
from tests.worlds import INFO, FileMaker, Logged, Maker, World, episodes_of, read_log

MODES = ["NextStep", "SameStep", "Disabled"]


def schema_of(*, nested: bool = False, info: bool = True, **options: Any) -> Schema:
    declared = {**INFO, "legal": Extra("int8", (4,), "observation")} if info else None
    return Schema.from_env(World(nested=nested), info=declared, **options)


def take(collector: Collector, count: int) -> list[pa.RecordBatch]:
    return list(itertools.islice(collector, count))


def rows(collector: Collector, batches: list[pa.RecordBatch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in rows_of(collector.schema, batch)]


def check(collector: Collector, found: list[dict[str, Any]], logs: list[Any], limit: int | None = None) -> None:
    lanes = by_lane(found)
    for lane, log in enumerate(logs):
        # At most one transition of a vector step waits for the next batch.
        check_lane(collector.schema, lanes.get(lane, []), episodes_of(log, limit), most_missing=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("info", [False, True])
@pytest.mark.parametrize(("frames", "num_envs"), [(37, 5), (2, 5), (64, 4)])
def test_vector_lanes_are_recorded_as_they_happened(
    mode: str, nested: bool, info: bool, frames: int, num_envs: int
) -> None:
    maker = Maker(nested=nested)
    store = LedgerStore(schema_of(nested=nested, info=info))
    collector = Collector(maker, num_envs=num_envs, frames_per_batch=frames, store=store, seed=1, autoreset_mode=mode)
    batches = take(collector, 12)
    assert [batch.num_rows for batch in batches] == [frames] * 12
    assert collector.num_frames == 12 * frames == len(store._engine.rows)
    found = rows(collector, batches)
    check(collector, found, maker.logs)
    assert store._engine.commits == 12
    for batch in batches:
        keys = list(
            zip(batch["lane"].to_pylist(), batch["episode_id"].to_pylist(), batch["step"].to_pylist(), strict=True)
        )
        assert keys == sorted(keys, key=lambda key: (key[0], keys.index(key)))
        assert np.all(np.diff(batch["lane"].to_numpy()) >= 0)
    # The store holds the same rows, under the ids that the batches name.
    for row in found:
        stored = store._engine.rows[row["row_id"]]
        assert all(stored[key] == row[key] for key in ("lane", "episode_id", "step", "time", "policy_version"))
        for part in ("observation", "next_observation", "outcome"):
            assert all(a.tobytes() == b.tobytes() for a, b in zip(stored[part], row[part], strict=True))
    running = set(store._engine.running)
    collector.close()
    assert len(store._engine.cuts) == len(running)
    assert not store._engine.running
    assert not store._engine.claimed


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("info", [False, True])
@pytest.mark.parametrize("limit", [None, 4])
def test_a_single_environment_is_recorded_as_it_happened(nested: bool, info: bool, limit: int | None) -> None:
    maker = Maker(nested=nested)
    collector = Collector(
        maker,
        frames_per_batch=23,
        schema=schema_of(nested=nested, info=info),
        seed=5,
        max_frames_per_episode=limit,
    )
    batches = take(collector, 9)
    assert [batch.num_rows for batch in batches] == [23] * 9
    assert "row_id" not in batches[0].schema.names
    check(collector, rows(collector, batches), maker.logs, limit)
    assert len(maker.logs) == 1
    collector.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_time_limit_truncates_and_resets_that_lane_only(mode: str) -> None:
    maker = Maker(end=0.04)
    store = LedgerStore(schema_of())
    with Collector(
        maker, num_envs=3, frames_per_batch=50, store=store, autoreset_mode=mode, max_frames_per_episode=5
    ) as collector:
        found = rows(collector, take(collector, 6))
        check(collector, found, maker.logs, 5)
    assert max(row["step"] for row in found) == 4
    assert any(row["step"] == 4 and row["outcome"][1] for row in found)


def test_a_time_limit_is_refused_where_no_lane_can_be_reset_alone() -> None:
    with pytest.raises(OptionError, match="max_frames_per_episode"):
        Collector("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point", max_frames_per_episode=9)


class Deaf(SyncVectorEnv):
    """Ignores the mask of a reset."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)


def test_an_environment_that_ignores_the_mask_is_found_out() -> None:
    envs = Deaf([World] * 3, autoreset_mode=AutoresetMode.DISABLED)
    store = LedgerStore(schema_of(info=False))
    collector = Collector(envs, store=store, seed=0)
    with pytest.raises(EnvironmentFault, match="reset_mask"):
        take(collector, 3)
    assert not store._engine.running


def test_an_environment_given_stays_open_and_one_made_is_closed() -> None:
    closed = []

    class Closes(World):
        def close(self) -> None:
            closed.append(True)

    with Collector(Closes()) as collector:
        next(collector)
    assert not closed
    with Collector(Closes) as collector:
        next(collector)
    assert closed


@pytest.mark.parametrize("copies", [True, False])
def test_a_given_sync_environment(copies: bool) -> None:
    for mode in AutoresetMode:
        maker = Maker(reuse=not copies)
        envs = SyncVectorEnv([maker] * 3, autoreset_mode=mode, copy=copies)
        collector = Collector(envs, frames_per_batch=40, schema=schema_of(info=False))
        if not copies and mode is AutoresetMode.SAME_STEP:
            # SyncVectorEnv has let the final observation be overwritten; nobody can know it any more.
            with pytest.raises(EnvironmentFault, match="overwritten"):
                take(collector, 5)
            continue
        check(collector, rows(collector, take(collector, 5)), maker.logs)


def test_merged_info_that_may_have_lost_values_is_refused() -> None:
    envs = SyncVectorEnv([World] * 3)
    with pytest.raises(EnvironmentFault, match="score"):
        take(Collector(envs, schema=schema_of()), 20)


@pytest.mark.parametrize(("mode", "shared"), [("NextStep", True), ("SameStep", True), ("Disabled", False)])
def test_async_workers(tmp_path: Path, mode: str, shared: bool) -> None:
    maker = FileMaker(str(tmp_path), {"nested": True, "reuse": True})
    with Collector(
        maker,
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"shared_memory": shared},
        autoreset_mode=mode,
        frames_per_batch=31,
        schema=schema_of(nested=True),
        seed=3,
    ) as collector:
        found = rows(collector, take(collector, 3))
        assert collector.env.unwrapped.context == "spawn"
    logs = [read_log(path) for path in tmp_path.iterdir()]
    lanes = by_lane(found)
    for lane in range(2):
        seed = int(np.random.SeedSequence(3, spawn_key=(0, 0, lane)).generate_state(1)[0])
        log = next(log for log in logs if log[0][1] == seed)
        check_lane(collector.schema, lanes[lane], episodes_of(log), most_missing=1)


def test_async_without_shared_memory_owes_an_autoreset_after_a_reset(tmp_path: Path) -> None:
    maker = FileMaker(str(tmp_path), {"end": 0.6})
    envs = AsyncVectorEnv([maker] * 2, shared_memory=False, context="spawn")
    envs.reset(seed=0)
    ended = np.zeros(2, np.bool_)
    while not ended.any():  # now the next step resets a lane, whatever reset is called before
        _, _, terminated, truncated, _ = envs.step(np.zeros(2, np.int64))
        ended = terminated | truncated
    collector = Collector(envs, frames_per_batch=30, schema=schema_of(info=False))
    batches = take(collector, 2)
    collector.close()
    # And again, after a collector that left a lane so.
    second = Collector(envs, frames_per_batch=30, schema=schema_of(info=False))
    more = take(second, 2)
    second.close()
    envs.close()
    logs = [read_log(path) for path in tmp_path.iterdir()]
    real = {step[2].tobytes() for log in logs for step in log}
    pairs = set()
    for log in logs:
        for episode in episodes_of(log):
            for before, after in itertools.pairwise(episode.observations):
                pairs.add((before.tobytes(), after.tobytes()))
    for row in rows(collector, batches) + rows(second, more):
        pair = row["observation"][0].tobytes(), row["next_observation"][0].tobytes()
        assert pair[0] in real
        assert pair in pairs


def test_the_vector_entry_point_of_cartpole() -> None:
    kept: list[Any] = []

    class Kept(gymnasium.vector.VectorWrapper):
        def reset(self, **options: Any) -> Any:
            result = self.env.reset(**options)
            kept.append(("reset", result[0].copy()))
            return result

        def step(self, actions: Any) -> Any:
            result = self.env.step(actions)
            kept.append((actions.copy(), *(np.copy(part) for part in result[:4])))
            return result

    envs = Kept(gymnasium.make_vec("CartPole-v1", num_envs=6, vectorization_mode="vector_entry_point"))
    collector = Collector(envs, frames_per_batch=100, seed=0)
    lanes = by_lane(rows(collector, take(collector, 20)))
    for lane in range(6):
        log, over = [("reset", None, kept[0][1][lane], {})], False
        for actions, observations, rewards, terminated, truncated in kept[1:]:
            if over:
                log.append(("reset", None, observations[lane], {}))
                over = False
                continue
            over = bool(terminated[lane] or truncated[lane])
            flags = terminated[lane], truncated[lane]
            log.append(("step", actions[lane], observations[lane], rewards[lane], *flags, {}))
        check_lane(collector.schema, lanes[lane], episodes_of(log), most_missing=1)


def test_total_frames_drops_the_surplus_and_cuts() -> None:
    maker = Maker(end=0.02)
    store = LedgerStore(schema_of(info=False))
    collector = Collector(maker, num_envs=4, frames_per_batch=30, total_frames=70, store=store)
    sizes = [batch.num_rows for batch in collector]
    assert sizes == [30, 30, 10]
    assert len(store._engine.rows) == collector.num_frames == 70
    assert not store._engine.running
    assert store._engine.cuts
    assert list(collector) == []
    assert list(Collector(World, total_frames=0)) == []
    collector.close()
    with pytest.raises(ClosedError):
        next(collector)


def test_steps_per_batch_counts_vector_steps() -> None:
    maker = Maker()
    store = LedgerStore(schema_of())
    collector = Collector(maker, num_envs=4, steps_per_batch=16, total_frames=150, store=store)
    batches = list(collector)
    assert sum(batch.num_rows for batch in batches) == 150
    assert all(batch.num_rows < 64 for batch in batches)
    check(collector, rows(collector, batches), [log[: len(log)] for log in maker.logs])
    single = Collector(World, steps_per_batch=11)
    assert [batch.num_rows for batch in take(single, 3)] == [11] * 3


def test_iterating_again_goes_on() -> None:
    maker = Maker()
    collector = Collector(maker, num_envs=3, frames_per_batch=10, schema=schema_of(info=False))
    batches = []
    for batch in collector:
        batches.append(batch)
        break
    collector.policy_version = 7
    for batch in collector:
        batches.append(batch)
        if len(batches) == 4:
            break
    check(collector, rows(collector, batches), maker.logs)
    versions = [row["policy_version"] for row in rows(collector, batches)]
    # The surplus of the first batch's last vector step was decided under version 0.
    assert set(versions[:10]) == {0}
    assert versions[10:].count(0) <= 2
    assert versions[-1] == 7


@pytest.mark.parametrize("version", [2**31, 2**63, -1, 1.5, True])
def test_versions_that_rows_cannot_hold_are_refused(version: Any) -> None:
    with Collector(World, lambda observation: 0) as collector:
        with pytest.raises(OptionError, match=r"^policy_version is .* expected an integer from 0 to 2147483647\.$"):
            collector.policy_version = version
        with pytest.raises(OptionError, match=r"^version is .* expected an integer from 1 to 2147483647\.$"):
            collector.update_policy(version=version)
        assert collector.policy_version == 0
        assert collector.update_policy(version=2**31 - 1) == collector.policy_version == 2**31 - 1
        with pytest.raises(OptionError, match="version is 2147483648"):
            collector.update_policy()


class Interrupting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Raises in the middle of a run."""

    left = 10**9

    def step(self, action: Any) -> Any:
        Interrupting.left -= 1
        if Interrupting.left == 0:
            raise KeyboardInterrupt
        return self.env.step(action)

    def reset(self, **options: Any) -> Any:
        Interrupting.left -= 1
        if Interrupting.left == 0:
            raise KeyboardInterrupt
        return self.env.reset(**options)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("info", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_keeps_what_is_whole(num_envs: int, nested: bool, info: bool, mode: str) -> None:
    if num_envs == 1 and mode != "Disabled":
        return
    for when in range(1, 60, 7):
        maker = Maker(nested=nested)
        store = LedgerStore(schema_of(nested=nested, info=info))
        Interrupting.left = when
        collector = Collector(
            maker,
            num_envs=num_envs,
            wrappers=[Interrupting],
            frames_per_batch=20,
            store=store,
            autoreset_mode=None if num_envs == 1 else mode,
        )
        with pytest.raises(KeyboardInterrupt):
            take(collector, 10)
        engine = store._engine
        assert not engine.running
        assert collector.num_frames == len(engine.rows)
        lanes = by_lane(engine.rows)
        for lane, log in enumerate(maker.logs):
            # Of the vector step that was interrupted, some lanes have stepped already.
            check_lane(store.schema, lanes.get(lane, []), episodes_of(log), most_missing=1)
            assert len(lanes.get(lane, [])) >= (when - 2 * num_envs) // (4 * num_envs)
        before = len(engine.rows)
        for log in maker.logs:
            log.clear()
        assert next(collector).num_rows == 20  # and it goes on, from a reset
        assert len(engine.rows) == before + 20
        lanes = by_lane(engine.rows[before:])
        for lane, log in enumerate(maker.logs):
            check_lane(store.schema, lanes.get(lane, []), episodes_of(log), most_missing=1)
        collector.close()


@pytest.mark.parametrize(("num_envs", "info"), [(1, False), (3, True), (3, False)])
@pytest.mark.usefixtures("no_garbage")
def test_signals_wherever_they_fall(num_envs: int, info: bool) -> None:
    rng = np.random.default_rng(num_envs)
    maker = Maker()
    store = LedgerStore(schema_of(info=info))
    collector = Collector(maker, num_envs=num_envs, frames_per_batch=7, store=store)
    batches = [next(collector)]
    interrupts, timers = 0, []  # kept, since a Ctrl-C is lost in what Python runs when a thread is forgotten
    for _ in range(40):
        timer = threading.Timer(rng.exponential(0.004), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timers.append(timer)
            timer.start()
            # Decoded later: pyarrow's imports at first use swallow an interrupt.
            batches.extend(itertools.islice(collector, 10**5))
        except KeyboardInterrupt:
            interrupts += 1
        timer.join()
    assert interrupts == 40
    collector.close()
    engine = store._engine
    assert not engine.running
    assert collector.num_frames == len(engine.rows)
    # Nothing is stored twice, and each episode is the beginning of one that happened.
    real = {episode.observations[0].tobytes(): episode for log in maker.logs for episode in episodes_of(log)}
    episodes: dict[int, list[dict[str, Any]]] = {}
    for row in engine.rows:
        episodes.setdefault(row["episode_id"], []).append(row)
    firsts = [stored[0]["observation"][0].tobytes() for stored in episodes.values()]
    assert len(set(firsts)) == len(firsts)
    for first, stored in zip(firsts, episodes.values(), strict=True):
        check_lane(store.schema, stored, [real[first]], most_missing=10**9)
    for row in rows(collector, batches):
        assert engine.rows[row["row_id"]]["time"] == row["time"]


@pytest.mark.parametrize("policy", [None, lambda observation: observation[:, :1]])
def test_stop_iteration_does_not_look_like_the_end(policy: Any) -> None:
    """What an iterator beneath an environment raises when it has come to its end."""

    class Replayed(Counting):
        left = iter(range(25))

        def step(self, action: Any) -> Any:
            next(self.left)
            return super().step(action)

    schema = Schema.from_spaces(Counting.observation_space, Counting.action_space)
    with (
        Store.temporary(schema) as store,
        Collector(Replayed, policy, frames_per_batch=20, total_frames=60, store=store) as collector,
    ):
        assert next(collector).num_rows == 20
        with pytest.raises(EnvironmentFault, match="StopIteration") as caught:
            next(collector)
        assert isinstance(caught.value.__cause__, StopIteration)
        assert collector.num_frames == len(store) == 25


def test_a_commit_that_fails_is_raised_and_leaves_order() -> None:
    maker = Maker()
    store = LedgerStore(schema_of(info=False))
    collector = Collector(maker, num_envs=2, frames_per_batch=10, store=store)
    next(collector)
    store._engine.fail = OSError("full")
    with pytest.raises(OSError, match="full"):
        next(collector)
    assert len(store._engine.rows) == 10
    assert not store._engine.running
    assert next(collector).num_rows == 10


def test_seeds() -> None:
    def seed(*key: int) -> int:
        return int(np.random.SeedSequence(9, spawn_key=key).generate_state(1)[0])

    maker = Maker()
    store = LedgerStore(schema_of(info=False), times_opened=4, shard=1)
    store._engine.claim_lanes(2)
    collector = Collector(maker, num_envs=3, store=store, seed=9)
    next(collector)
    assert collector.lanes == range(2, 5)
    expected = {lane: seed(4, 1, lane) for lane in (2, 3, 4)}
    assert store._engine.seeds == expected
    assert [log[0][1] for log in maker.logs] == list(expected.values())
    assert all(entry[1] is None for log in maker.logs for entry in log[1:] if entry[0] == "reset")
    for _ in range(2):
        single = Maker()
        next(Collector(single, seed=9))
        assert single.logs[0][0][1] == seed(0, 0, 0)


def test_a_second_collector_does_not_record_the_same_episodes() -> None:
    with Store.temporary(Schema.from_env(World())) as store:
        for _ in range(3):
            with Collector(World, num_envs=2, store=store, seed=0, frames_per_batch=40) as collector:
                next(collector)
        seeds = [seed for (seed,) in store.sql("SELECT seed FROM episodes WHERE seed IS NOT NULL").fetchall()]
        assert len(seeds) == len(set(seeds)) == 6
        lanes = store.sql("SELECT list(action ORDER BY ordinal)[:50] FROM transitions GROUP BY lane").fetchall()
        assert len({tuple(actions) for (actions,) in lanes}) == len(lanes) == 2


def test_the_same_seed_gives_the_same_batches_whatever_their_size() -> None:
    def collect(**options: Any) -> list[Any]:
        with Collector(World, num_envs=2, schema=schema_of(), seed=3, total_frames=240, **options) as collector:
            found = by_lane(rows(collector, list(collector)))
        return [[part.tobytes() for part in row["outcome"]] for lane in (0, 1) for row in found[lane][:100]]

    assert collect(frames_per_batch=240) == collect(frames_per_batch=60) == collect(steps_per_batch=7)


class Unsaid(SyncVectorEnv):
    """Does not say its mode."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        del self.metadata["autoreset_mode"]


def test_the_autoreset_mode_must_be_known() -> None:
    maker = Maker()
    with pytest.raises(EnvironmentFault, match="autoreset mode"):
        Collector(Unsaid([maker] * 2))
    collector = Collector(Unsaid([maker] * 2), autoreset_mode=AutoresetMode.NEXT_STEP, frames_per_batch=30)
    check(collector, rows(collector, take(collector, 3)), maker.logs[-2:])
    with pytest.raises(OptionError, match="NextStep"):
        Collector(SyncVectorEnv([maker]), autoreset_mode="same_step")
    # A wrong claim is found out at the first end.
    with pytest.raises(EnvironmentFault, match="final_obs"):
        take(Collector(Unsaid([maker] * 2), autoreset_mode="SameStep"), 3)


@pytest.mark.parametrize(
    "options",
    [
        {"frames_per_batch": 0},
        {"frames_per_batch": 2.5},
        {"frames_per_batch": 5, "steps_per_batch": 5},
        {"steps_per_batch": -1},
        {"total_frames": -2},
        {"num_envs": 0},
        {"init_random_frames": -1},
        {"max_frames_per_episode": 0},
        {"vectorization_mode": "threads"},
        {"seed": -1},
        {"seed": "x"},
        {"frame_stack": {"observation": 2}},
        {"policy": 5},
        {"store": 5},
        {"vector_kwargs": {"copy": False}},
        {"env": "NoSuchEnvironment-v0"},
        {"env": 5},
        {"autoreset_mode": "sometimes", "num_envs": 2},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Collector(**{"env": World, **options})


def test_options_that_do_not_fit() -> None:
    with pytest.raises(OptionError, match="wrappers"):
        Collector(World(), wrappers=[lambda env: env])
    with pytest.raises(OptionError, match="num_envs"):
        Collector(SyncVectorEnv([World] * 2), num_envs=3)
    with pytest.raises(OptionError, match="autoreset_mode"):
        Collector(World(), autoreset_mode="NextStep")
    with pytest.raises(SchemaError, match="observation"):
        Collector(World, schema=schema_of(nested=True))
    with pytest.raises(OptionError, match="vector_entry_point"):
        Collector(World, num_envs=2, vectorization_mode="vector_entry_point")
    with pytest.raises(EnvironmentFault, match="factory"):
        Collector(lambda: 5)
    with pytest.raises(SchemaError, match="log_prob"):
        Collector(World, schema=schema_of(info=False, extras={"log_prob": "float32"}))


def test_rewards_and_observations_keep_their_dtype_or_the_recorded_cast() -> None:
    schema = Schema.from_env(World(nested=True), float64="float32")
    batch = next(Collector(World, env_kwargs={"nested": True}, schema=schema, num_envs=2))
    assert batch.schema.field("reward").type == pa.float32()
    assert batch.schema.field("observation.a\\.b.0").type.value_type == pa.float32()

    class Narrow(World):
        def _observe(self) -> Any:
            return super()._observe().astype(np.float64)

    with pytest.raises(ValueError, match="float64"):
        next(Collector(Narrow))
    # Gymnasium's vector environment casts what its lanes return to their space.
    maker = Maker(nested=False)
    batch = next(Collector(maker, wrappers=[Widening], num_envs=2, seed=1, frames_per_batch=40))
    check(Collector(World), rows_of(Schema.from_env(World()), batch), maker.logs)


class Widening(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Returns float64, though its space says float32."""

    def observation(self, observation: Any) -> Any:
        return np.asarray(observation, np.float64)


def test_infos_are_null_where_missing() -> None:
    log: list[Any] = []
    batch = next(Collector(Logged(World(), log), schema=schema_of(), frames_per_batch=50))
    scores = [entry[6].get("score") for entry in log if entry[0] == "step"]
    assert batch["score"].to_pylist() == scores
    assert None in scores
    assert batch["score"].null_count == scores.count(None)
    assert "score.valid" not in batch.schema.names
    assert batch["next_legal"].to_pylist() == [entry[6]["legal"].tolist() for entry in log if entry[0] == "step"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "uint8", "bool"])
@pytest.mark.parametrize("float64", ["keep", "float32"])
def test_one_array_of_any_dtype_with_random_actions(dtype: str, float64: str) -> None:
    """The short loop takes observations byte by byte; whatever the dtype, it is what a recorder takes from them."""

    class One(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(0, 1, (2, 3), np.dtype(dtype).type)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.seen = [self._draw()]
            episodes.append(self.seen)
            return self.seen[0], {}

        def _draw(self) -> Any:
            return (self.np_random.random((2, 3)) * 2).astype(dtype)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.seen.append(self._draw())
            return self.seen[-1], 1.0, bool(self.np_random.random() < 0.2), False, {}

    episodes: list[list[Any]] = []
    env = One()
    schema = Schema.from_env(env, float64=float64)
    stored = schema.column("observation").storage
    with Collector(env, frames_per_batch=30, total_frames=90, schema=schema, seed=3) as collector:
        batches = [to_torch(batch) for batch in collector]
    for name, first in (("observation", 0), ("next_observation", 1)):
        found = np.concatenate([np.asarray(batch[name]) for batch in batches])
        flat = [each[first : len(each) - 1 + first] for each in episodes]
        expected = np.array([value for each in flat for value in each])[:90].astype(stored)
        assert found.view(stored).tobytes() == expected.tobytes()


def test_async_in_a_script_without_a_guard(tmp_path: Path) -> None:
    """Gymnasium's processes run the script again; what that means is told."""
    script = tmp_path / "script.py"
    script.write_text(
        "import arrowrb\narrowrb.Collector('CartPole-v1', num_envs=2, total_frames=10, vectorization_mode='async')\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert 'keep what it does under `if __name__ == "__main__":`' in ended.stderr
