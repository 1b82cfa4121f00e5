"""Returns to go: discounted sums of rewards to the end of the episode, as far as it is there."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..errors import OptionError
from ..schema import Column
from .chains import Chains
from .reading import REWARD

RETURN: Final = "return_to_go"
_PIECE: Final = 64  # steps that are followed in one go


def check_discount(name: str, value: Any) -> float:
    """A discount, checked.

    Raises:
        OptionError: if it is none.
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not 0 <= value <= 1:
        raise OptionError(f"{name} is {value!r}, expected a number from 0 to 1.")
    return float(value)


def widened(values: NDArray[Any]) -> NDArray[Any]:
    """The bits of bfloat16 as float32."""
    wide: NDArray[Any] = (values.astype(np.uint32) << 16).view(np.float32)
    return wide


def as_numbers(spec: Column, rewards: NDArray[Any]) -> NDArray[np.float64]:
    """Rewards as they are stored as float64[n, length, elements]."""
    if spec.dtype == "bfloat16":
        rewards = widened(rewards)
    return rewards.reshape(*rewards.shape[:2], -1).astype(np.float64, copy=False)


def as_stored(spec: Column, sums: NDArray[np.float64]) -> NDArray[Any]:
    """Sums [..., elements] in the shape of rewards, and their dtype where that is a float of NumPy."""
    shaped = sums.reshape(*sums.shape[:-1], *spec.shape)
    return shaped.astype(spec.dtype) if spec.dtype in ("float16", "float32") else shaped


def returns_to_go(snapshot: Snapshot, chains: Chains, rows: Located, gamma: float) -> NDArray[np.float64]:
    """Of each of these transitions the sum of gamma ** k times the reward k steps on: float64[n, elements]."""
    place = snapshot.layout.schema.places[REWARD]
    spec = snapshot.layout.schema.columns[place]
    powers = np.power(gamma, np.arange(_PIECE + 1, dtype=np.float64))
    count = rows.slots.size
    sums, factors = np.zeros((count, spec.num_elements), np.float64), np.ones(count, np.float64)
    at = np.arange(count)
    while at.size:
        steps = chains.forward(snapshot, rows, _PIECE)
        rewards = snapshot.read(steps.rows(), [(place, 0)])[place, 0]
        values = as_numbers(spec, rewards.reshape(at.size, _PIECE, *spec.shape))
        part = np.empty((at.size, spec.num_elements), np.float64)
        kernels.discount(np.ascontiguousarray(values), steps.counts, powers, part)
        sums[at] += factors[at, None] * part
        factors[at] *= powers[steps.counts]
        last, _ = steps.finish(powers)
        behind = chains.forward(snapshot, last, 2)
        on = np.flatnonzero((steps.counts == _PIECE) & (behind.counts == 2))
        at, rows = at[on], Located(*np.ascontiguousarray(behind.places[:, on, 1]))
    return sums
