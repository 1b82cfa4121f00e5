"""Goals in hindsight: whose they are, how often each is drawn, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.engine import Engine, WriterOptions, segments
from arrowrb.errors import ColumnError, OptionError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.lanes import draw_lanes
from tests.plain_store import plain_batch, plain_schema

GOAL = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
SCHEMA = arrowrb.Schema.from_spaces(
    gym.spaces.Dict({"observation": GOAL, "achieved_goal": GOAL, "desired_goal": GOAL}), gym.spaces.Discrete(2)
)


def reward(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
    return achieved[:, 1] * 100 - desired[:, 1]


def terminated(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
    return (achieved == desired).all(1)


@pytest.fixture(params=range(2), scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """What is reached at an observation is (number of its episode, its step); lanes, both tiers, rows that are gone.

    All tests of a module read the same one.
    """
    tmp_path = tmp_path_factory.mktemp("goals")
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([2, 8, 32]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    Store.create(tmp_path / "store", SCHEMA, max_rows=1000).close()
    limits = Limits(hot_rows=300, max_rows=1000)
    now, episodes = {0: (0, 0), 1: (1, 0), 2: (2, 0)}, 3
    options = WriterOptions(None, limits=limits)
    with (
        pytest.MonkeyPatch.context() as patch,
        Store(Engine(tmp_path / "store", writable=True, options=options)) as made,
    ):
        patch.setattr(segments, "shape_segment", shape)
        for _ in range(15):
            lanes = draw_lanes(rng, 3, 80)
            rows = []
            for lane in lanes.tolist():
                episode, t = now[lane]
                ended = bool(rng.random() < 0.1)
                rows.append(((episode, t), (episode, t + 1), ended, bool(rng.random() < 0.05)))
                now[lane] = (episode, t + 1)
                if ended or rows[-1][3]:
                    now[lane], episodes = (episodes, 0), episodes + 1
            made.extend(batch(rows), lane=lanes)
        made.maintain()
        yield made


def batch(rows: list[Any]) -> dict[str, Any]:
    def observation(place: int) -> dict[str, np.ndarray]:
        reached = np.array([row[place] for row in rows], np.float32)
        return {"observation": reached * 2, "achieved_goal": reached, "desired_goal": np.full_like(reached, -1)}

    return {
        "observation": observation(0),
        "next_observation": observation(1),
        "action": np.zeros(len(rows), np.int64),
        "reward": np.full(len(rows), -5.0),
        "terminated": np.array([row[2] for row in rows]),
        "truncated": np.array([row[3] for row in rows]),
    }


def surviving(store: Store) -> dict[tuple[int, int], tuple[int, int, int]]:
    """(episode, step) of each transition that is there -> the first and last step of its episode, and its row id."""
    ids = np.array([row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()])
    reached = store.gather(ids)["observation"]["achieved_goal"].numpy().astype(int).tolist()
    steps: dict[int, list[int]] = {}
    for episode, t in reached:
        steps.setdefault(episode, []).append(t)
    return {
        (e, t): (min(steps[e]), max(steps[e]), row_id) for (e, t), row_id in zip(reached, ids.tolist(), strict=True)
    }


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("goals", ["future", "final", "episode"])
def test_goals(store: Store, goals: str, prefetch: int) -> None:
    there = surviving(store)
    by_id = {row_id: key for key, (_, _, row_id) in there.items()}
    plain = {row_id: store.gather([row_id]) for row_id in list(by_id)[:1]}
    strategy = arrowrb.Hindsight(reward, terminated, goals=goals, fraction=0.7)
    sampler = store.sampler(strategy, batch_size=128, seed=1, prefetch=prefetch)
    statistic, freedom, relabelled = 0.0, 0, 0
    offsets: dict[tuple[int, int], Counter[int]] = {}
    for _ in range(400):
        drawn = sampler.sample()
        desired = drawn["observation"]["desired_goal"]
        assert torch.equal(desired, drawn["next_observation"]["desired_goal"])
        reached = drawn["next_observation"]["achieved_goal"]
        relabelled += int(drawn["relabelled"].sum())
        rows = zip(drawn["row_id"].tolist(), drawn["relabelled"].tolist(), desired.int().tolist(), strict=True)
        for i, (row_id, changed, goal) in enumerate(rows):
            key = by_id[row_id]
            assert reached[i].tolist() == [key[0], key[1] + 1]
            if not changed:
                assert goal == [-1, -1]
                assert drawn["reward"][i] == -5
                continue
            assert goal[0] == key[0]
            offsets.setdefault(key, Counter())[goal[1]] += 1
            assert drawn["reward"][i] == (key[1] + 1) * 100 - goal[1]
            assert bool(drawn["terminated"][i]) == (goal[1] == key[1] + 1)
    assert relabelled / (400 * 128) == pytest.approx(0.7, abs=0.02)
    for key, found in offsets.items():
        first, last, _ = there[key]
        allowed = {"future": range(key[1] + 1, last + 2), "final": range(last + 1, last + 2)}.get(
            goals, range(first + 1, last + 2)
        )
        assert set(found) <= set(allowed)
        expected = found.total() / len(allowed)
        if expected >= 3:
            statistic += sum((found[t] - expected) ** 2 / expected for t in allowed)
            freedom += len(allowed) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * max(freedom, 1)) + 15
    assert plain


def test_without_terminated_nothing_ends(store: Store) -> None:
    drawn = store.sampler(arrowrb.Hindsight(reward, fraction=1.0), batch_size=200, seed=1).sample()
    assert not drawn["terminated"].any()
    assert drawn["relabelled"].all()
    assert drawn["truncated"].any()
    none = store.sampler(arrowrb.Hindsight(reward, fraction=0.0), batch_size=200, seed=1).sample()
    assert none["terminated"].any()
    assert not none["relabelled"].any()


def test_columns_and_tensors(store: Store) -> None:
    def by_torch(achieved: np.ndarray, desired: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(achieved - desired).norm(dim=1)

    sampler = store.sampler(
        arrowrb.Hindsight(by_torch, fraction=1.0), batch_size=20, columns=["observation.desired_goal", "reward"]
    )
    drawn = sampler.sample()
    assert set(drawn) == {"observation.desired_goal", "reward", "relabelled", "row_id"}
    assert (drawn["reward"] >= 0).all()
    assert (drawn["observation.desired_goal"] >= 0).all()


def test_same_seed_same_goals(store: Store) -> None:
    drawn = [
        [sampler.sample() for _ in range(4)]
        for prefetch in (0, 3)
        for sampler in [store.sampler(arrowrb.Hindsight(reward), batch_size=20, seed=4, prefetch=prefetch)]
    ]
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one["row_id"], other["row_id"])
        assert torch.equal(one["observation"]["desired_goal"], other["observation"]["desired_goal"])


def test_wrong_use(store: Store) -> None:
    with pytest.raises(OptionError, match="goals is 'past'"):
        arrowrb.Hindsight(reward, goals="past")
    with pytest.raises(OptionError, match="fraction"):
        arrowrb.Hindsight(reward, fraction=1.5)
    with pytest.raises(OptionError, match="reward is 3"):
        arrowrb.Hindsight(3)  # type: ignore[arg-type]
    with pytest.raises(ColumnError, match="has no 'goal'"):
        store.sampler(arrowrb.Hindsight(reward, desired="goal"), batch_size=2)
    with pytest.raises(ColumnError, match="reward returned"):
        store.sampler(arrowrb.Hindsight(lambda a, d: a - d, fraction=1.0), batch_size=2).sample()
    with Store.temporary(plain_schema()) as other:
        other.extend(plain_batch(10))
        with pytest.raises(ColumnError, match="has no parts, expected a dict of goals"):
            other.sampler(arrowrb.Hindsight(reward), batch_size=2)


def test_a_reward_of_three_arguments_is_refused() -> None:
    """As that of a goal environment is, which also takes ``info``."""

    def compute_reward(achieved: Any, desired: Any, info: Any) -> Any:
        return info["weight"] * (achieved == desired)

    for name in ("reward", "terminated"):
        with pytest.raises(OptionError, match=f"{name} is .*cannot be called with two arrays.*compute_reward"):
            arrowrb.Hindsight(**{"reward": np.equal, name: compute_reward})
    arrowrb.Hindsight(lambda achieved, desired, info=None: compute_reward(achieved, desired, info))
    arrowrb.Hindsight(lambda *goals: compute_reward(*goals, {"weight": 1}), terminated=np.equal)
