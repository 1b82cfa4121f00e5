"""What every strategy of drawing offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..engine import PriorityFiles, Snapshot
from ..errors import OptionError
from .chains import Chains
from .reading import AnyView, Drawn
from .views import View

_MOST_ROWS: Final = (1 << 31) - 1  # of a batch
_MOST_AHEAD: Final = 1 << 16


class Stream(Protocol):
    """The running state of a strategy.

    Not thread-safe: whoever owns the stream draws in one thread. Deterministic: the same seed and the same snapshots
    give the same rows.

    Attributes:
        extra_columns: names of the columns that it gives beside rows.
    """

    extra_columns: tuple[str, ...]

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """Choose ``count`` transitions of a snapshot; the arrays are fresh, the caller's to keep.

        ``tiers`` is ``"all"``, or ``"hot"`` to leave out the cold one.

        Raises:
            EmptyError: if there is nothing to draw.
        """
        ...

    def save(self, snapshot: Snapshot) -> dict[str, Any]:
        """Its state as plain values and arrays, from which `load` goes on, with the rows that there are now."""
        ...

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Go on from a state that `save` gave, with the rows that there are now.

        Raises:
            OptionError: if it is that of another strategy.
        """
        ...


@runtime_checkable
class Learning(Protocol):
    """A stream that learns from what was drawn: it keeps priorities."""

    num_ignored: int

    def keep_in(self, files: PriorityFiles) -> None:
        """Keep the priorities in files, and go on from those that are there."""
        ...

    def update(self, snapshot: Snapshot, row_ids: NDArray[np.int64], td_error: Any, priority: Any, mask: Any) -> None:
        """Set priorities of rows; see `Sampler.update`."""
        ...


@runtime_checkable
class Joining(Protocol):
    """A stream that may say that one draw of many rows is the same as several of fewer, one after the other."""

    @property
    def joins(self) -> bool:
        """Whether it is."""
        ...


@runtime_checkable
class Once(Protocol):
    """A stream that draws each row once."""

    num_skipped: int


@runtime_checkable
class Sequential(Protocol):
    """A stream of sequences."""

    def count_short(self, snapshot: Snapshot) -> int:
        """How many episodes are too short for any."""
        ...


class StrategyView(AnyView, Protocol):
    """What a strategy has of its own to say of what is read."""

    def combined(self, view: View) -> AnyView:
        """With options of transitions.

        Raises:
            OptionError: if they do not go together.
        """
        ...


@runtime_checkable
class Viewing(Protocol):
    """A stream that says itself what a batch reads for the rows that it draws."""

    view: StrategyView
    chains: Chains


@runtime_checkable
class Strategy(Protocol):
    """How to draw: a frozen value."""

    def start(self, seed: int | None) -> Stream:
        """A new stream; ``seed`` None takes one from the system."""
        ...


def check_batch_size(value: Any, name: str = "batch_size") -> int:
    """A number of rows, checked."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= _MOST_ROWS:
        raise OptionError(f"{name} is {value!r}, expected a whole number of 1 to {_MOST_ROWS:,}.")
    return int(value)


def check_prefetch(value: Any) -> int:
    """How many batches are drawn ahead, checked."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= _MOST_AHEAD:
        raise OptionError(f"prefetch is {value!r}, expected a number of batches from 0 to {_MOST_AHEAD:,}.")
    return int(value)


def check_tiers(tiers: object) -> str:
    """Which tiers to draw from, checked."""
    if not isinstance(tiers, str) or tiers not in ("all", "hot"):
        raise OptionError(f'tiers is {tiers!r}, expected "all" or "hot".')
    return str(tiers)


def generator_state(seed: int | None, stream: int = 0) -> NDArray[np.uint64]:
    """The state of the kernels' generator (xoshiro256++), uint64[4], from a seed by NumPy's SeedSequence.

    Of one seed there are several streams that are independent of each other.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0):
        raise OptionError(f"seed is {seed!r}, expected a whole number from 0 on, or None for a fresh one.")
    key = (stream,) if stream else ()
    sequence = np.random.SeedSequence(None if seed is None else int(seed), spawn_key=key)
    return sequence.generate_state(4, np.uint64).astype(np.uint64)


def check_generator(state: Mapping[str, Any], strategy: str, how: str) -> NDArray[np.uint64]:
    """The generator's state in that of a stream.

    Args:
        state: what a stream's `save` gave.
        strategy: whose it has to be.
        how: this strategy draws, in words.

    Raises:
        OptionError: if it is that of another strategy.
    """
    generator = state.get("generator")
    if state.get("strategy") != strategy or not isinstance(generator, np.ndarray) or generator.shape != (4,):
        raise OptionError(
            f"The sampler draws {how}, but the state that it is to go on from is of strategy "
            f"{state.get('strategy')!r}. Make it with the strategy that it had."
        )
    return generator
