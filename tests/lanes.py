"""Which lanes write: at random, but some rest for whole commits, and so are moved from segment to segment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw_lanes(rng: np.random.Generator, num_lanes: int, count: int) -> NDArray[np.int64]:
    """The lanes of so many steps, int64[count]: of a random part of all lanes."""
    active = rng.permutation(num_lanes)[: rng.integers(1, num_lanes + 1)]
    return np.asarray(rng.choice(active, count), np.int64)
