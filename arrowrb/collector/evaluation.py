"""Evaluating a policy: whole episodes, nothing recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowrb.collector import environments
from arrowrb.collector.environments import Wanted
from arrowrb.collector.policies import Runner
from arrowrb.collector.random_actions import RandomActions
from arrowrb.errors import OptionError
from arrowrb.schema import Schema


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a policy reached.

    Attributes:
        returns: float64 `[num_episodes]`, the sum of rewards of each episode.
        lengths: int64 `[num_episodes]`, steps.
        seeds: The seed each episode was reset with.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    seeds: tuple[int, ...]

    @property
    def num_episodes(self) -> int:
        """How many episodes."""
        return len(self.seeds)

    @property
    def mean_return(self) -> float:
        """The mean of the returns."""
        return float(self.returns.mean())

    @property
    def std_return(self) -> float:
        """The standard deviation of the returns (of these episodes: divided by their number)."""
        return float(self.returns.std())

    @property
    def mean_length(self) -> float:
        """The mean of the lengths."""
        return float(self.lengths.mean())

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"return {self.mean_return:.2f} +- {self.std_return:.2f} (from {self.returns.min():.2f} to "
            f"{self.returns.max():.2f}) over {self.num_episodes} episodes of {self.mean_length:.1f} steps"
        )


def evaluate(
    policy: Any,
    env: Any,
    *,
    num_episodes: int = 20,
    seed: int = 1,
    env_kwargs: Mapping[str, Any] | None = None,
    frame_stack: Mapping[str, int] | None = None,
    max_frames_per_episode: int | None = None,
) -> Evaluation:
    """Run whole episodes with a policy in a single environment.

    The policy is called as a `Collector` calls it, with a batch of one lane. Whether it acts greedily is its matter.

    Args:
        policy: A callable, a torch.nn.Module, or an object with `act`; None takes random actions.
        env: An environment's id, a function that makes one, or a gymnasium Env, which is left open.
        num_episodes: How many.
        seed: The seeds of the episodes derive from it, one each.
        env_kwargs: For making the environment.
        frame_stack: Observation column -> how many frames the policy sees.
        max_frames_per_episode: Where to stop an episode that does not end.

    Raises:
        OptionError: If an option is out of range, or `env` is a vector environment.
        ColumnError: If an action does not fit its space.
    """
    for name, value in (
        ("num_episodes", num_episodes),
        ("max_frames_per_episode", max_frames_per_episode or 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name} is {value!r}, expected a positive integer.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise OptionError(f"seed is {seed!r}, expected an integer that is not negative.")
    made = environments.make(Wanted(env, env_kwargs=env_kwargs), None)
    try:
        if not made.layout.single:
            raise OptionError("env is a vector environment, expected a single one. Give its id or a factory.")
        schema = Schema.from_env(made.env)
        seeds = [int(np.random.SeedSequence(seed, spawn_key=(i,)).generate_state(1)[0]) for i in range(num_episodes)]
        runner: Runner | _Random = _Random(schema, seed)
        if policy is not None:
            runner = Runner(policy, schema, 1, single=True, frame_stack=frame_stack)
        episodes = [_episode(made.env, runner, schema, one, max_frames_per_episode) for one in seeds]
    finally:
        if made.owned:
            environments.close(made.env)
    returns = np.array([episode[0] for episode in episodes], np.float64)
    return Evaluation(returns, np.array([episode[1] for episode in episodes], np.int64), tuple(seeds))


class _Random:
    """Random actions where no policy is given."""

    def __init__(self, schema: Schema, seed: int) -> None:
        sequence = np.random.SeedSequence(seed, spawn_key=(0, 1))
        self._random = RandomActions(schema.action_space, schema.action_tree.paths, 1, sequence)

    def act(self) -> list[NDArray[Any]]:
        return self._random.next()


def _episode(env: Any, runner: Runner | _Random, schema: Schema, seed: int, limit: int | None) -> tuple[float, int]:
    observation, info = env.reset(seed=seed)
    first, later = np.ones(1, np.bool_), np.zeros(1, np.bool_)
    total, length, ended = 0.0, 0, False
    while not ended and (limit is None or length < limit):
        if isinstance(runner, Runner):
            leaves = runner.decide(observation, later if length else first, info, 0).actions
        else:
            leaves = runner.act()
        actions = [leaf[0] if leaf.dtype.kind in "iu" else leaf[0, ...] for leaf in leaves]
        observation, reward, terminated, truncated, info = env.step(schema.action_tree.build(actions))
        total += float(reward)
        length += 1
        ended = bool(terminated or truncated)
    return total, length
