"""Random actions, drawn in bulk: the distributions of `space.sample()`, many lanes and steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from arrowrb.errors import SchemaError

_BLOCK_ACTIONS = 4096


class RandomActions:
    """An endless stream of actions. The stream depends on the seed alone, not on how it is taken."""

    def __init__(
        self, space: Any, paths: Sequence[tuple[str | int, ...]], num_lanes: int, seed: np.random.SeedSequence
    ) -> None:
        """Prepare the draws.

        Args:
            space: The action space of one environment.
            paths: The paths of the action's leaves.
            num_lanes: Actions a step.
            seed: Where the stream starts.
        """
        self._draws = [_draw_of(_follow(space, path)) for path in paths]
        self._rng = np.random.default_rng(seed)
        self._num_lanes = num_lanes
        self._steps = max(1, _BLOCK_ACTIONS // num_lanes)
        self._block: list[NDArray[Any]] = []
        self._used = self._steps

    def next(self) -> list[NDArray[Any]]:
        """The actions of the next step: one array `[num_lanes, *shape]` per leaf."""
        if self._used == self._steps:
            self._refill()
        self._used += 1
        return [leaf[self._used - 1] for leaf in self._block]

    def _refill(self) -> None:
        size = (self._steps, self._num_lanes)
        self._block = [draw(self._rng, size) for draw in self._draws]
        self._used = 0

    def take(self, num_steps: int) -> list[NDArray[Any]]:
        """The next actions: one array `[num_steps, num_lanes, *shape]` per leaf, the caller's to keep."""
        parts: list[list[NDArray[Any]]] = []
        while num_steps > 0:
            if self._used == self._steps:
                self._refill()
            stop = min(self._used + num_steps, self._steps)
            parts.append([leaf[self._used : stop] for leaf in self._block])
            num_steps -= stop - self._used
            self._used = stop
        return parts[0] if len(parts) == 1 else [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]


_Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]


def _follow(space: Any, path: Sequence[str | int]) -> Any:
    for key in path:
        space = space[key]
    return space


def _draw_of(space: Any) -> _Draw:
    if isinstance(space, spaces.Discrete):
        start, stop = int(space.start), int(space.start) + int(space.n)
        return lambda rng, size: rng.integers(start, stop, size, dtype=space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        # Gymnasium keeps the dtype's own bounds: nvec from start on.
        low = np.asarray(space.start, np.int64)
        high = low + np.asarray(space.nvec, np.int64)
        return lambda rng, size: rng.integers(low, high, (*size, *low.shape)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return lambda rng, size: rng.integers(0, 2, (*size, *space.shape), dtype=np.int8)
    if isinstance(space, spaces.Box):
        return _draw_of_box(space)
    raise SchemaError(f"Random actions cannot be drawn from {type(space).__name__}. Give a policy.")


def _draw_of_box(space: spaces.Box) -> _Draw:
    below, above = space.bounded_below, space.bounded_above
    dtype: np.dtype[Any] = np.dtype(space.dtype)
    shape = tuple(space.shape)
    if dtype.kind in "iub" and bool((below & above).all()):
        low, high = np.asarray(space.low), np.asarray(space.high)
        drawn: Any = np.dtype(np.uint8) if dtype.kind == "b" else dtype

        def integers(rng: np.random.Generator, size: tuple[int, ...]) -> NDArray[Any]:
            first, last = low.astype(drawn), high.astype(drawn)
            values = rng.integers(first, last, (*size, *shape), dtype=drawn, endpoint=True)
            return np.asarray(values).astype(dtype)

        return integers
    bounded, free, lower, upper = below & above, ~below & ~above, below & ~above, ~below & above
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    # In halves, because high - low of the widest boxes is no float64.
    half = np.where(bounded, high, 0.0) / 2 - np.where(bounded, low, 0.0) / 2
    base = np.where(bounded | lower, low, np.where(upper, high, 0.0))
    sign = np.where(upper, -1.0, 1.0)

    def draw(rng: np.random.Generator, size: tuple[int, ...]) -> NDArray[Any]:
        if bounded.all():
            values = rng.random((*size, *shape)) * half
            values = base + values + values
        else:
            values = np.empty((*size, *shape))
            uniform = rng.random((*size, *shape)) * half
            values[...] = base + uniform + uniform
            if free.any():
                values[..., free] = rng.standard_normal((*size, int(free.sum())))
            if (lower | upper).any():
                half_bounded = lower | upper
                drawn = rng.standard_exponential((*size, int(half_bounded.sum())))
                values[..., half_bounded] = base[half_bounded] + sign[half_bounded] * drawn
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            # float64 has no exact largest int64; stay inside before the cast.
            values = np.clip(np.floor(values), max(info.min, -(2.0**62)), min(info.max, 2.0**62))
        # Rounding to a narrower float may step over the bound.
        return np.asarray(np.clip(values.astype(dtype), space.low, space.high))

    return draw
