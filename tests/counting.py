"""An environment that counts, so that whatever is recorded of it tells whether a row is missing, or there twice."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np

from arrowrb import Store

LENGTH = 7


class Counting(gym.Env[Any, Any]):
    """Observations (number of the episode, step); each episode takes seven steps; the reward is the action."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, fails_at: int = -1, pause: float = 0.0) -> None:
        self.episode = self.steps = -1
        self.taken, self.fails_at, self.pause = 0, fails_at, pause

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self.observe(), {}

    def observe(self) -> Any:
        return np.array([self.episode, self.steps], np.float32)

    def step(self, action: Any) -> Any:
        if self.taken == self.fails_at:
            raise ZeroDivisionError("the environment broke")
        if self.pause:
            time.sleep(self.pause)
        self.taken += 1
        self.steps += 1
        return self.observe(), float(np.asarray(action).item()), self.steps == LENGTH, False, {}


def check_counting(store: Store) -> None:
    """Each episode's steps are there in order, none twice; all but the last one of each lane ended."""
    rows = store.sql(
        "SELECT row_id >> 48 AS shard, lane, episode_id, list(step ORDER BY step) AS steps, "
        "list(observation[2] ORDER BY step) AS seen, bool_or(terminated) AS ended FROM transitions GROUP BY ALL"
    ).fetchall()
    assert rows
    for _, _, _, steps, seen, ended in rows:
        assert steps == list(range(len(steps)))
        assert seen == steps
        assert ended == (len(steps) == LENGTH)
    assert len({episode for _, _, episode, *_ in rows}) == len(rows)
