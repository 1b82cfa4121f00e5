"""Draws of what is rare: by trial as long as that finds any, else out of a list of all that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..rows import Kind
from .reading import Drawn
from .sources import AllRows, Rows

_MOST_MISSES: Final = 1000  # trials without a success, one after the other
_PIECE: Final = 1 << 18  # rows


def draw_fitting(
    state: NDArray[np.uint64], count: int, trial: Callable[[int], Drawn | None], every: Callable[[], Iterable[Drawn]]
) -> Drawn | None:
    """Draw rows that fit, each as likely, with replacement; None where there are none.

    Args:
        state: the generator's state, uint64[4], advanced in place.
        count: how many.
        trial: draws so many rows at most uniformly, and gives those of them that fit; None where there is nothing.
        every: all rows that fit.
    """
    found: list[Drawn] = []
    have = misses = 0
    while have < count:
        drawn = trial(count - have)
        if drawn is None:
            return None
        if drawn.rows.row_ids.size == 0 and misses < _MOST_MISSES:
            misses += 1
            continue
        if drawn.rows.row_ids.size == 0:
            drawn = _any_of(state, count - have, list(every()))
            if drawn is None:
                return None
        misses = 0
        have += drawn.rows.row_ids.size
        found.append(drawn)
    return Drawn.joined(found)


def draw_fitting_rows(
    rows: Rows,
    fitting: Callable[[Located], Drawn],
    snapshot: Snapshot,
    state: NDArray[np.uint64],
    count: int,
    *,
    tiers: str,
) -> Drawn | None:
    """Draw those of some rows that fit, as likely beside each other as they are among all; None where there are none.

    ``fitting`` gives those that fit.
    """

    def trial(missing: int) -> Drawn:
        return fitting(rows.draw(snapshot, state, missing, tiers=tiers))

    def every() -> Iterator[Drawn]:
        if not isinstance(rows, AllRows):
            return iter(())  # some rows, each as likely as its weight says
        return (fitting(each) for each in all_transitions(snapshot, tiers=tiers))

    return draw_fitting(state, count, trial, every)


def _any_of(state: NDArray[np.uint64], count: int, parts: list[Drawn]) -> Drawn | None:
    """Rows of these, uniformly and with replacement."""
    whole = Drawn.joined([part for part in parts if part.rows.row_ids.size] or [Drawn(Located.empty(0))])
    total = whole.rows.row_ids.size
    if total == 0:
        return None
    luck = np.empty(count, np.float64)
    kernels.fill_uniform(state, luck)
    return whole.part(np.minimum((luck * total).astype(np.int64), total - 1))


def all_transitions(snapshot: Snapshot, *, tiers: str) -> Iterator[Located]:
    """All transitions of these tiers, some at a time."""
    layout = snapshot.layout
    for slot in range(len(layout.views)):
        if tiers == "hot" and slot in layout.cold:
            continue
        every = np.flatnonzero(snapshot.visible_kinds(slot) == Kind.TRANSITION)
        for first in range(0, every.size, _PIECE):
            positions = np.ascontiguousarray(every[first : first + _PIECE])
            yield Located(np.full(positions.size, slot), positions, layout.shapes[slot, 6] + positions)
