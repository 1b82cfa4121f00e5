"""A small schema and batches of one lane, for tests that need any store."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from arrowrb.schema import Schema

SPACES = gym.spaces
VECTOR = SPACES.Box(-1, 1, (4,), np.float32)


def plain_schema(**options: Any) -> Schema:
    return Schema.from_spaces(VECTOR, SPACES.Discrete(3), **options)


def plain_batch(count: int, seed: int = 0, *, every: int = 7, **columns: Any) -> dict[str, Any]:
    """One lane's rows that go on from each other; an episode ends (terminated) every so many rows."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(count + 1, 4)).astype(np.float32)
    batch = {
        "observation": observation[:-1].copy(),
        "next_observation": observation[1:].copy(),
        "action": rng.integers(0, 3, count),
        "reward": rng.normal(size=count),
        "terminated": np.arange(count) % every == every - 1,
        "truncated": np.zeros(count, np.bool_),
    }
    return batch | columns
