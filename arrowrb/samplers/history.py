"""Which rows have their history: retention drops the steps before others, which frame stacks then cannot show."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..engine.tables import STEP
from .chains import Chains

NO_HISTORY: Final = (
    "Retention has left no transition (that can be drawn) of which it has dropped nothing that frame stacks or windows "
    "show. Keep more rows, or leave out strict."
)


class WholeHistory:
    """Tells rows of which so many steps before are there, or all that the episode ever had. Not thread-safe.

    Args:
        steps: how many; None: all of the episode.
    """

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self._chains = Chains()

    def keep(self, snapshot: Snapshot, rows: Located) -> NDArray[np.int64]:
        """Which of the rows these are."""
        if self._steps is None:
            first = Located(rows.slots.copy(), rows.positions.copy(), rows.row_ids.copy())
            lengths, ended = np.empty(rows.slots.size, np.int64), np.empty(rows.slots.size, np.bool_)
            world = self._chains.world(snapshot)
            kernels.bound_episodes(world, first.slots, first.positions, first.row_ids, lengths, ended)
            return np.flatnonzero(snapshot.read(first, [(STEP, 0)])[STEP, 0] == 0)
        there = self._chains.back(snapshot, rows, self._steps + 1).counts - 1
        short = np.flatnonzero(there < self._steps)
        if short.size == 0:
            return np.arange(there.size)
        at = Located(rows.slots[short], rows.positions[short], rows.row_ids[short])
        begun = snapshot.read(at, [(STEP, 0)])[STEP, 0]
        return np.setdiff1d(np.arange(there.size), short[there[short] < begun])
