"""The policy protocol."""

from __future__ import annotations

import itertools
from collections import namedtuple
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from arrowrb.collector import Collector, Step
from arrowrb.collector.policies import zero_lanes
from arrowrb.errors import ColumnError, EnvironmentFault, OptionError, SchemaError
from arrowrb.schema import Extra, Schema
from arrowrb.store import Store
from tests.ledger import LedgerStore, by_lane, check_lane, rows_of
from tests.worlds import Maker, World, episodes_of


def take(collector: Collector, count: int) -> list[dict[str, Any]]:
    batches = itertools.islice(collector, count)
    return [row for batch in batches for row in rows_of(collector.schema, batch)]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_plain_callable_acts_on_batches(num_envs: int) -> None:
    maker, seen = Maker(nested=True), []

    def policy(observation: Any) -> Any:
        assert observation["image"].shape == (num_envs, 2, 3)
        assert observation["a.b"][1].shape == (num_envs,)
        seen.append(observation["a.b"][1].copy())
        # Of the observation, so that each lane's action can be told.
        return {"press": observation["a.b"][1] % 3, "move": observation["a.b"][0].clip(-1, 1)}

    collector = Collector(maker, policy, num_envs=num_envs, frames_per_batch=30, total_frames=90)
    found = take(collector, 3)
    for lane, log in enumerate(maker.logs):
        check_lane(collector.schema, by_lane(found)[lane], episodes_of(log), most_missing=90)
    place = {column.name: i for i, column in enumerate(collector.schema.observation_columns)}
    for row in found:
        assert int(row["outcome"][3]) == int(row["observation"][place["observation.a\\.b.1"]]) % 3


def test_extras_go_with_their_transition() -> None:
    schema = Schema.from_env(World(), extras={"value": "float32", "maybe": Extra("float32", (2,), nullable=True)})
    calls = itertools.count()

    def policy(observation: Any) -> Any:
        call = next(calls)
        extras: dict[str, Any] = {"value": observation[:, 0]}
        if call % 2:
            extras["maybe"] = observation[:, :2]
        return np.zeros(len(observation), np.int64), extras

    for num_envs in (1, 2):
        store = LedgerStore(schema)
        found = take(Collector(World, policy, num_envs=num_envs, store=store, frames_per_batch=20), 3)
        names = [column.name for column in schema.transition_columns]
        for row in found:
            observation = row["observation"][0]
            assert row["outcome"][names.index("value")] == observation[0]
            if row["outcome"][names.index("maybe.valid")]:
                assert np.array_equal(row["outcome"][names.index("maybe")], observation[:2])
        assert {int(row["outcome"][names.index("maybe.valid")]) for row in found} == {0, 1}
    with pytest.raises(ColumnError, match="value"):
        next(Collector(World, lambda observation: np.zeros(len(observation), np.int64), schema=schema))
    with pytest.raises(ColumnError, match="wrong"):
        next(Collector(World, lambda observation: (0, {"value": 1.0, "wrong": 2}), schema=schema))
    with pytest.raises(SchemaError, match="init_random_frames"):
        Collector(World, policy, schema=schema, init_random_frames=5)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("num_envs", [1, 3])
def test_extras_of_the_observation_that_a_policy_gives(mode: AutoresetMode, num_envs: int) -> None:
    hint = Extra("float32", (), "observation", nullable=True)
    schema = Schema.from_env(World(), extras={"hint": hint})
    store, versions = LedgerStore(schema), []

    def policy(observation: Any) -> Any:
        versions.append(collector.policy_version)
        return np.zeros(len(observation), np.int64), {"hint": observation[:, 0]}

    options: dict[str, Any] = {} if num_envs == 1 else {"autoreset_mode": mode}
    collector = Collector(World, policy, num_envs=num_envs, store=store, frames_per_batch=7, **options)
    found = []
    for version, batch in enumerate(itertools.islice(collector, 10)):
        found += rows_of(schema, batch)
        collector.policy_version = version + 1
    for row in found:
        for side in ("observation", "next_observation"):
            observation, value, valid = row[side]
            ended = side == "next_observation" and (row["outcome"][0] or row["outcome"][1])
            assert (value == observation[0] and valid) or (ended and not valid and value == 0)
    not_null = Extra("float32", (), "observation")
    with pytest.raises(SchemaError, match="hint"):
        Collector(World, policy, schema=Schema.from_env(World(), extras={"hint": not_null}))


class Memory:
    """Counts the steps of each lane's episode in its state."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.steps: list[Step] = []

    def act(self, step: Step) -> Any:
        lanes = len(step.is_first)
        assert step.is_first.dtype == np.bool_
        count = np.zeros((lanes, 1)) if step.state is None else step.state["deep"][0]
        if self.kind == "torch" and step.state is None:
            count = torch.zeros(lanes, 1)
        assert bool((count[step.is_first.tolist()] == 0).all())
        self.steps.append(step)
        extras = {"count": count[:, 0], "version": np.full(lanes, step.policy_version)}
        if "legal" in step.info:
            assert step.info["_legal"].shape == (lanes,)
        return np.zeros(lanes, np.int64), extras, {"deep": (count + 1, None)}


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("num_envs", [1, 4])
def test_the_state_of_an_actor_is_zeroed_where_episodes_begin(mode: AutoresetMode, kind: str, num_envs: int) -> None:
    extras = {"count": "float64", "version": "int64"}
    schema = Schema.from_env(World(), extras=extras)
    maker, memory = Maker(), Memory(kind)
    options: dict[str, Any] = {} if num_envs == 1 else {"autoreset_mode": mode}
    collector = Collector(maker, memory, num_envs=num_envs, schema=schema, frames_per_batch=25, **options)
    found = take(collector, 2)
    collector.policy_version = 3
    found += take(collector, 2)
    for row in found:
        assert row["outcome"][-2] == row["step"]
        assert row["outcome"][-1] == row["policy_version"]
    assert found[-1]["policy_version"] == 3
    for step in memory.steps:
        assert step.observation.shape == (num_envs, 3)
        legal, valid = step.info["legal"], step.info["_legal"]
        assert legal.shape == (num_envs, 4)
        assert valid.all()


@pytest.mark.parametrize("mode", ["SameStep", "Disabled", "NextStep"])
def test_the_info_an_actor_sees_belongs_to_its_observation(mode: str) -> None:
    maker = Maker()
    seen: list[tuple[bytes, bytes]] = []

    class Reads:
        def act(self, step: Step) -> Any:
            for observation, legal in zip(step.observation, step.info["legal"], strict=True):
                seen.append((observation.tobytes(), legal.tobytes()))
            return np.zeros(3, np.int64), {}, None

    next(Collector(maker, Reads(), num_envs=3, autoreset_mode=mode))
    real = {
        (episode.observations[i].tobytes(), episode.infos[i]["legal"].tobytes())
        for log in maker.logs
        for episode in [*episodes_of(log)]
        for i in range(len(episode.observations))
    }
    # Episodes that have just begun have no steps yet.
    assert len(seen) > 200
    assert sum(pair not in real for pair in seen) <= 3


def test_zero_lanes() -> None:
    pair = namedtuple("pair", "a b")
    state = pair([np.ones((2, 3))], {"t": torch.ones(2, 1), "n": None})
    zeroed = zero_lanes(state, np.array([True, False]))
    assert zeroed.a[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert zeroed.b["t"].tolist() == [[0], [1]]
    assert state.a[0].sum() == 6
    assert zero_lanes(None, np.array([True])) is None
    with pytest.raises(EnvironmentFault, match="lanes"):
        zero_lanes(np.ones((3, 1)), np.array([True, False]))
    with pytest.raises(EnvironmentFault, match="state"):
        zero_lanes("text", np.array([True, False]))


def test_a_torch_module() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 4)

        def forward(self, observation: torch.Tensor) -> Any:
            assert not torch.is_grad_enabled()
            assert observation.dtype == torch.float32
            values = self.layer(observation)
            return values.argmax(1), {"value": values.max(1).values}

    net = Net()
    schema = Schema.from_env(World(), extras={"value": "float32"})
    for num_envs in (1, 3):
        for row in take(Collector(World, net, num_envs=num_envs, schema=schema), 1):
            values = net.layer(torch.from_numpy(row["observation"][0]))
            assert int(row["outcome"][2]) == int(values.argmax())
            assert float(row["outcome"][4]) == pytest.approx(float(values.max().detach()), rel=1e-4, abs=1e-6)
    assert torch.is_grad_enabled()

    class Nested(torch.nn.Module):
        def forward(self, observation: dict[str, Any]) -> Any:
            assert observation["image"].dtype == torch.uint8
            lanes = len(observation["image"])
            return {"move": torch.full((lanes, 2), 0.5), "press": torch.ones(lanes, dtype=torch.int64)}

    assert len(take(Collector(World, Nested(), env_kwargs={"nested": True}, num_envs=2), 1)) == 200


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    "action", [7, -1, [0.5], np.zeros((5, 5), np.int64), "left", {"a": 1}, None, np.array([[0]]), np.zeros(0)]
)
def test_actions_that_do_not_fit_are_refused(num_envs: int, action: Any) -> None:
    store = LedgerStore(Schema.from_env(World()))
    with pytest.raises(ColumnError) as caught:
        next(Collector(World, lambda observation: action, num_envs=num_envs, store=store))
    assert "action" in str(caught.value)
    assert "expected" in str(caught.value)


def test_one_lane_takes_a_bare_action() -> None:
    for action in (3, np.int64(3), np.array(3), np.array([3]), [3], torch.tensor(3), torch.tensor([3]), np.uint8(3)):
        rows = take(Collector(World, lambda observation, action=action: action, frames_per_batch=5), 1)
        assert [int(row["outcome"][2]) for row in rows] == [3] * 5


def test_floats_are_rounded_before_the_environment_sees_them() -> None:
    maker = Maker(nested=True)
    collector = Collector(maker, lambda observation: {"move": np.full((1, 2), 0.1), "press": 1}, frames_per_batch=10)
    check_lane(collector.schema, take(collector, 1), episodes_of(maker.logs[0]))
    assert maker.logs[0][1][1]["move"].dtype == np.float32


def test_random_frames_come_first() -> None:
    actions = [int(row["outcome"][2]) for row in _collect(0)]
    assert set(actions) == {1}
    for num_envs in (1, 2):
        actions = [int(row["outcome"][2]) for row in _collect(30, num_envs=num_envs)]
        assert len(set(actions[:30])) > 1


def _collect(init_random_frames: int, num_envs: int = 1) -> list[dict[str, Any]]:
    def policy(observation: Any) -> Any:
        return np.ones(len(observation), np.int64)

    collector = Collector(
        World, policy, num_envs=num_envs, frames_per_batch=10, init_random_frames=init_random_frames, seed=0
    )
    found = take(collector, 6)
    late = found[init_random_frames + num_envs :]
    assert {int(row["outcome"][2]) for row in late} == {1}
    return found


@pytest.mark.parametrize("mode", ["SameStep", "Disabled", "NextStep"])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("random_frames", [0, 20])
def test_frames_are_stacked_for_the_policy_within_an_episode(mode: str, num_envs: int, random_frames: int) -> None:
    maker = Maker()
    stacks: list[Any] = []

    def policy(observation: Any) -> Any:
        assert observation.shape == (num_envs, 3, 3)
        stacks.extend(observation.copy())
        return np.zeros(num_envs, np.int64)

    options: dict[str, Any] = {} if num_envs == 1 else {"autoreset_mode": mode}
    options["init_random_frames"] = random_frames
    collector = Collector(maker, policy, num_envs=num_envs, frame_stack={"observation": 3}, **options)
    batch = next(collector)
    assert batch.schema.field("observation").type.shape == [3]
    right = {}
    for log in maker.logs:
        for episode in episodes_of(log):
            frames = [episode.observations[0]] * 2 + episode.observations
            for step in range(len(episode.observations)):
                right[frames[step + 2].tobytes()] = b"".join(frame.tobytes() for frame in frames[step : step + 3])
    known = [stack for stack in stacks if stack[-1].tobytes() in right]
    assert len(known) >= len(stacks) - num_envs
    for stack in known:
        assert stack.tobytes() == right[stack[-1].tobytes()]


def test_protocol_errors() -> None:
    class Short:
        def act(self, step: Step) -> Any:
            return 0, {}

    class BadExtras:
        def act(self, step: Step) -> Any:
            return 0, [1], None

    for policy in (Short(), BadExtras()):
        with pytest.raises(EnvironmentFault, match="act"):
            next(Collector(World, policy))
    for stack in ({"image": 3}, {"observation": 0}):
        with pytest.raises(OptionError, match="frame_stack"):
            Collector(World, lambda observation: 0, frame_stack=stack)


class Pairs(World):
    """Its actions are pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Tuple((spaces.Discrete(2), spaces.Dict({"x": spaces.Discrete(3)})))


def test_a_tuple_may_be_an_action() -> None:
    action = (np.array([1]), {"x": np.array([2])})
    assert len(take(Collector(Pairs, lambda observation: action, frames_per_batch=9), 1)) == 9
    assert len(take(Collector(Pairs, lambda observation: (action, {}), frames_per_batch=9), 1)) == 9


class Nested(Pairs):
    """Its actions are pairs of a pair and a dict, which look like an action with extras."""

    def __init__(self) -> None:
        super().__init__()
        pair = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))
        self.action_space = spaces.Tuple((pair, spaces.Dict({"x": spaces.Discrete(3)})))


def test_a_pair_with_a_dict_may_be_an_action() -> None:
    action = ((np.array([1]), np.array([0])), {"x": np.array([2])})
    for result in (action, (action, {}), (action, None)):
        batch = next(iter(Collector(Nested, lambda observation, result=result: result, frames_per_batch=9)))
        assert batch["action.1.x"].to_pylist() == [2] * 9


class Greedy(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes into the action it is given."""

    def step(self, action: Any) -> Any:
        result = self.env.step({key: np.copy(value) for key, value in action.items()})
        action["move"][...] = 9
        return result


def test_an_environment_may_write_into_its_action() -> None:
    for policy in (
        None,
        lambda observation: {"move": np.ones((len(observation["bits"]), 2)), "press": [1] * len(observation["bits"])},
    ):
        env: Any = Greedy(World(nested=True))
        for made in (env, SyncVectorEnv([lambda: Greedy(World(nested=True))] * 2)):
            for row in take(Collector(made, policy), 1):
                assert np.all(np.abs(row["outcome"][2]) <= 1)


@pytest.mark.parametrize("counted", ["frames_per_batch", "steps_per_batch"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_what_a_policy_says_of_observations_is_in_every_row(counted: str, num_envs: int) -> None:
    """However batches are counted: the observation at a batch's end is acted on before the batch is committed."""
    schema = Schema.from_env(World(), extras={"hidden": Extra("float32", owner="observation", nullable=True)})

    def policy(observation: Any) -> Any:
        return np.zeros(len(observation), np.int64), {"hidden": observation[:, 0].astype(np.float32)}

    with Store.temporary(schema) as store:
        made = {"num_envs": num_envs, counted: 3, "total_frames": 60}
        with Collector(World, policy, store=store, seed=1, **made) as collector:
            for _ in collector:
                pass
        table = store.sql(
            "SELECT observation[1] AS o, hidden, next_hidden, terminated, truncated FROM transitions"
        ).df()
    assert (table["hidden"] == table["o"]).all()
    missing = table["next_hidden"].isna() & ~(table["terminated"] | table["truncated"])
    assert missing.sum() <= num_envs  # the newest of each lane, when the collector stopped


@pytest.mark.parametrize(
    "space", [spaces.Dict({"x": spaces.Discrete(3)}), spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32),))]
)
def test_an_action_of_one_part_is_nested_as_its_space(space: Any) -> None:
    class Checking(World):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = space

        def step(self, action: Any) -> Any:
            assert space.contains(action)
            return super().step(action)

    assert next(Collector(Checking, frames_per_batch=20)).num_rows == 20
