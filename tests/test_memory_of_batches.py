"""Sampling allocates nothing but the batch: what else it needs is small, goes at once, and does not follow the size."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import arrowrb
from arrowrb.store import Store

WIDE = gym.spaces.Box(-9, 9, (1000,), np.float32)
ROWS, BATCH = 4000, 64


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store.temporary(arrowrb.Schema.from_spaces(WIDE, gym.spaces.Discrete(5))) as made:
        rng = np.random.default_rng(0)
        observation = rng.random((ROWS + 1, 1000), np.float32)
        made.extend(
            {
                "observation": observation[:-1],
                "next_observation": observation[1:],
                "action": np.zeros(ROWS, np.int64),
                "reward": rng.normal(size=ROWS),
                "terminated": np.arange(ROWS) % 50 == 49,
                "truncated": np.zeros(ROWS, np.bool_),
            }
        )
        yield made


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (arrowrb.Uniform(), {}),
        (arrowrb.Uniform(), {"n_step": 3, "frame_stack": {"observation": 2}}),
        (arrowrb.Prioritized(), {}),
        (arrowrb.Shuffled(), {}),
        (arrowrb.Sequences(4), {}),
        (arrowrb.Sequences(4, strict=False, burn_in=2), {"n_step": 2}),
        (arrowrb.Where("reward > 0"), {}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "-".join(value) or "plain",
)
def test_nothing_but_the_batch(store: Store, strategy: Any, options: dict[str, Any], prefetch: int) -> None:
    sampler = store.sampler(strategy, batch_size=BATCH, seed=0, prefetch=prefetch, **options)
    batch = sampler.sample()
    size = sum(each.nbytes for each in batch.values())
    for _ in range(70):  # an epoch, and all memory that is used over and over
        batch = sampler.sample()
    addresses, largest = set(), 0
    tracemalloc.start()
    try:
        for round_ in range(3):
            gc.collect()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(40):
                batch = sampler.sample()
                addresses.add(batch["observation"].untyped_storage().data_ptr())
            after, peak = tracemalloc.get_traced_memory()
            if round_:
                largest = max(largest, peak - before)
                assert after - before < 0.05 * size * (1 + prefetch)
    finally:
        tracemalloc.stop()
    assert largest < 0.1 * size * (1 + prefetch)
    assert len(addresses) <= (16 if isinstance(strategy, arrowrb.Shuffled) else 4)  # short batches end epochs
