"""What every strategy of drawing offers."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..engine import Located, Snapshot
from ..errors import OptionError


class Stream(Protocol):
    """The running state of a strategy.

    Not thread-safe: whoever owns the stream draws in one thread. Deterministic: the same seed and the same snapshots
    give the same rows.
    """

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Located:
        """Choose ``count`` transitions of a snapshot; the arrays are fresh, the caller's to keep.

        ``tiers`` is ``"all"``, or ``"hot"`` to leave out the cold one.

        Raises:
            EmptyError: if there is nothing to draw.
        """
        ...

    def save(self) -> dict[str, Any]:
        """Its state as plain values, from which `load` goes on."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state that `save` gave.

        Raises:
            OptionError: if it is that of another strategy.
        """
        ...


@runtime_checkable
class Strategy(Protocol):
    """How to draw: a frozen value."""

    def start(self, seed: int | None) -> Stream:
        """A new stream; ``seed`` None takes one from the system."""
        ...


def check_tiers(tiers: object) -> str:
    """Which tiers to draw from, checked."""
    if tiers not in ("all", "hot"):
        raise OptionError(f'tiers is {tiers!r}, expected "all" or "hot".')
    return str(tiers)


def generator_state(seed: int | None) -> NDArray[np.uint64]:
    """The state of the kernels' generator (xoshiro256++), uint64[4], from a seed by NumPy's SeedSequence."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0):
        raise OptionError(f"seed is {seed!r}, expected a whole number from 0 on, or None for a fresh one.")
    return np.random.SeedSequence(None if seed is None else int(seed)).generate_state(4, np.uint64).astype(np.uint64)
