"""The recorder in a user's own loop, against what environments really did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from arrowrb.errors import ClosedError, ColumnError, EnvironmentFault, OptionError, SchemaError, UsageError
from arrowrb.recorder import Recorder
from arrowrb.schema import Extra, Schema
from tests.ledger import Ledger, by_lane, check_lane
from tests.worlds import INFO, Maker, World, episodes_of

LEGAL = {"legal": Extra("int8", (4,), "observation")}


def schema_of(*, nested: bool = False, **options: Any) -> Schema:
    # Integers stay away: a vector environment that is given merges them with floats, and loses those.
    info = {name: dtype for name, dtype in INFO.items() if name != "score"}
    return Schema.from_env(World(nested=nested), info={**info, **LEGAL}, **options)


@pytest.mark.parametrize("nested", [False, True])
def test_a_single_loop(nested: bool) -> None:
    maker = Maker(nested=nested)
    env = maker()
    ledger = Ledger(schema_of(nested=nested))
    env.action_space.seed(0)
    with Recorder(ledger, env) as recorder:
        row_ids = []
        for episode in range(8):
            observation, info = env.reset(seed=episode)
            recorder.reset(observation, info, seed=episode)
            ended = False
            while not ended:
                action = env.action_space.sample()
                observation, reward, terminated, truncated, info = env.step(action)
                found = recorder.step(action, observation, reward, terminated, truncated, info, policy_version=episode)
                assert found.dtype == np.int64
                row_ids += found.tolist()
                ended = terminated or truncated
    assert row_ids == list(range(len(ledger.rows)))
    check_lane(ledger.schema, ledger.rows, episodes_of(maker.logs[0]))
    assert [row["policy_version"] for row in ledger.rows] == [row["episode_id"] for row in ledger.rows]
    assert not ledger.claimed


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("explicit", [False, True])
def test_a_vector_loop(nested: bool, mode: AutoresetMode, explicit: bool) -> None:
    maker = Maker(nested=nested, reuse=mode is not AutoresetMode.SAME_STEP)
    envs = SyncVectorEnv([maker] * 4, autoreset_mode=mode, copy=False)
    ledger = Ledger(schema_of(nested=nested))
    recorder = Recorder(ledger, envs, lane=5)
    envs.action_space.seed(0)
    observation, info = envs.reset(seed=3)
    recorder.reset(observation, info, seed=3)
    assert ledger.seeds == {5: 3, 6: 4, 7: 5, 8: 6}
    for _ in range(60):
        action = envs.action_space.sample()
        result = envs.step(action)
        count = len(ledger.rows)
        assert recorder.step(action, *result).tolist() == list(range(count, len(ledger.rows)))
        ended = result[2] | result[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            observation, info = envs.reset(options={"reset_mask": ended.copy()})
            recorder.reset(observation, info, mask=ended if explicit else None)
    lanes = by_lane(ledger.rows)
    assert set(lanes) == {5, 6, 7, 8}
    for lane, log in enumerate(maker.logs):
        check_lane(ledger.schema, lanes[lane + 5], episodes_of(log))
    running = len(ledger.running)
    recorder.close()
    recorder.close()
    assert len(ledger.cuts) == running
    assert not ledger.claimed


def test_resetting_in_the_middle_cuts() -> None:
    maker = Maker(end=0.0)
    envs = SyncVectorEnv([maker] * 2)
    ledger = Ledger(schema_of())
    recorder = Recorder(ledger, envs)
    for _ in range(3):
        recorder.reset(*envs.reset())
        for _ in range(4):
            action = np.array([1, 2])
            recorder.step(action, *envs.step(action))
    for lane, log in enumerate(maker.logs):
        check_lane(ledger.schema, by_lane(ledger.rows)[lane], episodes_of(log))
    assert len(ledger.cuts) == 4


def test_calls_in_the_wrong_order() -> None:
    env = World(end=1.0)
    recorder = Recorder(Ledger(schema_of()), env)
    observation, info = env.reset(seed=0)
    with pytest.raises(UsageError, match="reset"):
        recorder.step(0, observation, 1.0, False, False, info)
    recorder.reset(observation, info)
    recorder.step(0, *env.step(0))
    with pytest.raises(UsageError, match="reset"):
        recorder.step(0, *env.step(0))
    recorder.reset(*env.reset())
    recorder.step(0, *env.step(0))
    recorder.close()
    with pytest.raises(ClosedError):
        recorder.reset(observation, info)
    with pytest.raises(ClosedError):
        recorder.step(0, observation, 1.0, False, False, info)


def test_a_disabled_vector_environment_must_be_reset_after_an_end() -> None:
    envs = SyncVectorEnv([World] * 2, autoreset_mode=AutoresetMode.DISABLED)
    recorder = Recorder(Ledger(schema_of()), envs)
    observation, info = envs.reset(seed=0)
    with pytest.raises(UsageError, match="all lanes"):
        recorder.reset(observation, info, mask=np.array([True, False]))
    recorder.reset(observation, info)
    flags = np.array([True, False])
    recorder.step(np.zeros(2, np.int64), observation, np.zeros(2), flags, ~flags & False, info)
    with pytest.raises(UsageError, match="Lane 0"):
        recorder.step(np.zeros(2, np.int64), observation, np.zeros(2), flags, flags, info)
    with pytest.raises(ColumnError, match="mask"):
        recorder.reset(observation, info, mask=[1, 0])
    changed = observation + 1
    with pytest.raises(EnvironmentFault, match="reset_mask"):
        recorder.reset(changed, info)
    changed[1] = observation[1]
    recorder.reset(changed, info)
    assert len(recorder.step(np.zeros(2, np.int64), observation, np.zeros(2), ~flags, flags, info)) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("action", 1.5),
        ("action", np.array([1])),
        ("observation", np.zeros(4, np.float32)),
        ("observation", np.zeros(3, np.float64)),
        ("observation", "text"),
        ("reward", np.zeros(2)),
        ("reward", None),
        ("terminated", 2),
        ("terminated", np.array([True])),
        ("truncated", "no"),
        ("info", {"legal": np.zeros(3, np.int8)}),
        ("info", {"legal": np.zeros(4, np.int8), "success": 3}),
        ("extras", {"unknown": 1}),
        ("extras", {"legal": np.zeros(4, np.int8)}),
        ("extras", {"log_prob": "x"}),
        ("extras", {}),
        ("extras", None),
        ("policy_version", -1),
        ("policy_version", 2**31),
    ],
)
def test_a_step_that_is_refused_changes_nothing(name: str, value: Any) -> None:
    env = World(end=0.0)
    schema = schema_of(extras={"log_prob": "float32"})
    ledger = Ledger(schema)
    recorder = Recorder(ledger, env)
    recorder.reset(*env.reset(seed=0))
    info = {"legal": np.ones(4, np.int8)}
    good: dict[str, Any] = {
        "action": 1,
        "observation": np.full(3, 2, np.float32),
        "reward": 0.5,
        "terminated": False,
        "truncated": False,
        "info": info,
        "extras": {"log_prob": 0.25},
    }
    with pytest.raises((ColumnError, OptionError)) as caught:
        recorder.step(**{**good, name: value})
    assert "expected" in str(caught.value)
    assert not ledger.rows
    recorder.step(**good)
    recorder.step(**{**good, "observation": np.full(3, 4, np.float32)})
    assert [row["step"] for row in ledger.rows] == [0, 1]
    assert ledger.rows[1]["observation"][0].tolist() == [2, 2, 2]


def test_a_commit_that_fails_changes_nothing() -> None:
    maker = Maker(end=0.3, reuse=False)
    envs = SyncVectorEnv([maker] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    ledger = Ledger(schema_of())
    recorder = Recorder(ledger, envs)
    recorder.reset(*envs.reset(seed=0))
    for _ in range(20):
        action = np.array([0, 1, 2])
        result = envs.step(action)
        ledger.fail = OSError("full")
        with pytest.raises(OSError, match="full"):
            recorder.step(action, *result)
        recorder.step(action, *result)
    for lane, log in enumerate(maker.logs):
        check_lane(ledger.schema, by_lane(ledger.rows)[lane], episodes_of(log))


def test_after_an_interrupt_a_reset_must_come() -> None:
    maker = Maker(end=0.0)
    env = maker()
    ledger = Ledger(schema_of())
    recorder = Recorder(ledger, env)
    recorder.reset(*env.reset(seed=0))
    recorder.step(1, *env.step(1))
    ledger.fail = KeyboardInterrupt()
    result = env.step(1)
    with pytest.raises(KeyboardInterrupt):
        recorder.step(1, *result)
    with pytest.raises(UsageError, match="reset"):
        recorder.step(1, *result)
    recorder.reset(*env.reset())
    recorder.step(2, *env.step(2))
    assert [row["step"] for row in ledger.rows] == [0, 0]
    assert ledger.cuts == [0]


def test_extras_of_both_owners_and_their_masks() -> None:
    extras = {
        "value": Extra("float32", nullable=True),
        "memory": Extra("float32", (2,), "observation"),
        "hint": Extra("int16", (), "observation", nullable=True),
        "half": Extra("bfloat16"),
    }
    schema = Schema.from_env(World(), extras=extras)
    envs = SyncVectorEnv([lambda: World(end=0.0)] * 2)
    ledger = Ledger(schema)
    recorder = Recorder(ledger, envs)
    observation, info = envs.reset(seed=0)
    with pytest.raises(ColumnError, match="memory"):
        recorder.reset(observation, info)
    recorder.reset(observation, info, extras={"memory": np.zeros((2, 2), np.float32), "hint": [1, 2]})
    half = np.array([0x3F80, 0x4000], np.uint16)  # 1 and 2
    given = {
        "memory": np.ones((2, 2), np.float32),
        "value": np.array([1, 2], np.float32),
        "value.valid": [False, True],
        "half": half,
    }
    action = np.zeros(2, np.int64)
    recorder.step(action, *envs.step(action), given)
    first, second = ledger.rows
    names = [column.name for column in schema.transition_columns]
    value, valid, bits = names.index("value"), names.index("value.valid"), names.index("half")
    assert (first["outcome"][value], first["outcome"][valid]) == (0, 0)
    assert (second["outcome"][value], second["outcome"][valid]) == (2, 1)
    assert second["outcome"][bits] == 0x4000
    hint = [column.name for column in schema.observation_columns].index("hint")
    assert [int(first["observation"][hint]), int(first["observation"][hint + 1])] == [1, 1]
    assert int(first["next_observation"][hint + 1]) == 0
    assert second["next_observation"][1].tolist() == [1, 1]
    same_step = SyncVectorEnv([World] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(SchemaError, match="memory"):
        Recorder(ledger, same_step)


def test_actions_are_recorded_as_given_or_refused() -> None:
    env = World(nested=True, end=0.0)
    ledger = Ledger(Schema.from_env(env))
    recorder = Recorder(ledger, env)
    recorder.reset(*env.reset(seed=0))
    wide = {"move": np.full(2, 0.1), "press": 1}  # the environment got float64, which float32 does not hold
    result = env.step({"move": np.zeros(2, np.float32), "press": 1})
    with pytest.raises(ColumnError, match="float64"):
        recorder.step(wide, *result)
    with pytest.raises(ColumnError, match="press"):
        recorder.step({"move": np.zeros(2, np.float32)}, *result)
    recorder.step({"press": 1, "move": np.ones(2, np.float32)}, *result)
    assert ledger.rows[0]["outcome"][2].tolist() == [1, 1]


def test_what_is_no_environment_is_refused() -> None:
    ledger = Ledger(schema_of())
    with pytest.raises(EnvironmentFault, match="Env"):
        Recorder(ledger, object())
    with pytest.raises(SchemaError):
        Recorder(ledger, World(nested=True))
    with pytest.raises(OptionError, match="lane"):
        Recorder(ledger, World(), lane=-1)
    recorder = Recorder(ledger, World())
    recorder.reset(np.zeros(3, np.float32), {"legal": np.zeros(4, np.int8)})
    with pytest.raises(EnvironmentFault, match="info"):
        recorder.step(0, np.zeros(3, np.float32), 0.0, False, False, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**64, [0, -5]])
def test_seeds_out_of_range(seed: Any) -> None:
    envs = SyncVectorEnv([World, World])
    with Recorder(Ledger(Schema.from_env(World())), envs) as recorder:
        observation, info = envs.reset()
        with pytest.raises(ColumnError, match="expected 0 to"):
            recorder.reset(observation, info, seed=seed)
