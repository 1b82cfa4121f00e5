"""Evaluating policies, and the random actions that both evaluation and collecting draw."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from arrowrb.collector import evaluate
from arrowrb.collector.random_actions import RandomActions
from arrowrb.errors import OptionError
from arrowrb.schema import Schema
from tests.worlds import Maker, World, episodes_of


def test_returns_and_lengths_are_those_of_the_episodes() -> None:
    maker = Maker()
    found = evaluate(lambda observation: np.zeros(1, np.int64), maker, num_episodes=9, seed=4)
    episodes = episodes_of(maker.logs[0])
    assert found.returns.tolist() == [sum(episode.rewards) for episode in episodes]
    assert found.lengths.tolist() == [len(episode.actions) for episode in episodes]
    assert list(found.seeds) == [episode.seed for episode in episodes]
    assert found.num_episodes == len(set(found.seeds)) == 9
    assert found.mean_return == np.mean(found.returns)
    assert found.std_return == np.std(found.returns)
    assert "9 episodes" in str(found)


def test_evaluation_repeats_by_its_seed() -> None:
    runs = [evaluate(None, "CartPole-v1", num_episodes=3, seed=seed).returns.tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_actors_begin_anew_with_each_episode() -> None:
    firsts: list[bool] = []

    class Actor:
        def act(self, step: Any) -> Any:
            firsts.append(bool(step.is_first[0]))
            state = np.zeros(1) if step.state is None else step.state
            assert (state[0] == 0) == firsts[-1]
            return 0, None, state + 1

    found = evaluate(Actor(), World(), num_episodes=5, max_frames_per_episode=6)
    assert sum(firsts) == 5
    assert len(firsts) == found.lengths.sum()
    assert found.lengths.max() <= 6


def test_bad_arguments() -> None:
    with pytest.raises(OptionError, match="vector"):
        evaluate(None, SyncVectorEnv([World]))
    for options in ({"num_episodes": 0}, {"max_frames_per_episode": -1}, {"seed": -1}):
        with pytest.raises(OptionError):
            evaluate(None, World(), **options)


WIDEST = spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64)
SPACES = [
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([2, 7, 3], start=[0, -3, 1]),
    spaces.MultiDiscrete([[2, 3], [4, 5]]),
    spaces.MultiBinary([2, 2]),
    spaces.Box(-1, 2, (3,), np.float32),
    spaces.Box(-1, 1, (), np.float64),
    spaces.Box(0, 255, (2, 2), np.uint8),
    spaces.Box(-5, 3, (2,), np.int64),
    WIDEST,
    spaces.Box(0, 1, (3,), np.bool_),
    spaces.Box(np.array([-np.inf, 1, -np.inf, 0]), np.array([np.inf, np.inf, 2, 1]), dtype=np.float64),
    spaces.Dict({"a": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2,)))), "b": spaces.MultiBinary(2)}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_random_actions_lie_in_the_space_and_spread_as_its_samples(space: Any) -> None:
    schema = Schema.from_spaces(spaces.Discrete(2), space)
    tree = schema.action_tree
    drawn = RandomActions(space, tree.paths, 3, np.random.SeedSequence(0)).take(2000)
    assert all(leaf.shape[:2] == (2000, 3) for leaf in drawn)
    for step in range(0, 2000, 97):
        action = tree.build([leaf[step, 1, ...] for leaf in drawn])
        assert space.contains(action), action
    if space == WIDEST:
        return  # Gymnasium's own sample overflows and is always the lowest
    space.seed(0)
    samples = [tree.leaves(space.sample()) for _ in range(6000)]
    for index, leaf in enumerate(drawn):
        values = leaf.reshape(6000, -1).astype(np.float64)
        expected = np.array([sample[index] for sample in samples], np.float64).reshape(6000, -1)
        scale = expected.std(0) + 1e-9
        assert leaf.dtype == np.asarray(samples[0][index]).dtype
        assert np.all(np.abs(values.mean(0) - expected.mean(0)) < 0.1 * scale)
        assert np.all(np.abs(values.std(0) / scale - 1) < 0.1)


def test_the_stream_does_not_depend_on_how_it_is_taken() -> None:
    space = spaces.Box(-1, 1, (2,))
    whole = RandomActions(space, [()], 2, np.random.SeedSequence(5)).take(6000)[0]
    other = RandomActions(space, [()], 2, np.random.SeedSequence(5))
    parts = [other.take(size)[0] for size in (1, 999, 2000, 3000)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_random_actions_step_an_environment() -> None:
    env = gymnasium.make("Pendulum-v1")
    assert evaluate(None, env, num_episodes=1).lengths.tolist() == [200]
    env.close()
