"""Where sequences of one length can begin, kept up with snapshots; see the kernels."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from .chains import Chains, Follower, Key, address_of, nobody


@dataclass(eq=False)
class _Counts:
    """Of the blocks of one segment: starts and last starts, their running sums, and how many rows were counted."""

    blocks: int
    done: bool = False
    starts: NDArray[np.int32] = field(init=False)
    last_starts: NDArray[np.int32] = field(init=False)
    starts_until: NDArray[np.int64] = field(init=False)
    last_starts_until: NDArray[np.int64] = field(init=False)
    seen: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.starts, self.last_starts = (np.zeros(self.blocks, np.int32) for _ in range(2))
        self.starts_until, self.last_starts_until, self.seen = (np.zeros(self.blocks, np.int64) for _ in range(3))

    def addresses(self) -> list[int]:
        """As the kernels take them."""
        return [address_of(each) for each in (self.starts, self.last_starts, self.starts_until, self.last_starts_until)]


class Starts(Follower):
    """The starts of sequences of ``length`` in snapshots, each newer than the one before. Not thread-safe."""

    def __init__(self, length: int, chains: Chains) -> None:
        super().__init__()
        self.length = length
        self._chains = chains
        self._forget()

    def _forget(self) -> None:
        self._layout: Callable[[], Any] = nobody
        self._counts: dict[Key, _Counts] = {}
        self._slots: list[_Counts] = []
        self._growing: list[int] = []
        self._table = np.zeros((0, kernels.COUNT_FIELDS), np.int64)
        self._blocks = np.zeros(0, np.int64)
        self._totals = np.zeros((2, 0), np.int64)
        self._until = np.zeros((2, 0), np.int64)  # their running sums

    def _follow(self, snapshot: Snapshot) -> None:
        layout = snapshot.layout
        if layout is not self._layout():
            self._lay_out(snapshot)
        changed = np.zeros(len(self._slots), np.uint8)
        world = self._chains.world(snapshot)
        for slot in self._growing:
            counts, view = self._slots[slot], layout.views[slot]
            rows = np.full(counts.blocks, view.entry.block_rows, np.int64)
            if not view.whole:
                first = int(layout.shapes[slot, 2])
                rows = snapshot.fills[first : first + counts.blocks].astype(np.int64)
            new = np.flatnonzero(rows > counts.seen)
            if new.size:
                seen = counts.seen[new]
                counts.seen[new] = rows[new]
                kernels.count_starts(world, self._table, slot, new, seen, self.length, changed)
            counts.done = view.closed
        if changed.any():
            kernels.sum_starts(self._table, changed, self._blocks, self._totals[0], self._totals[1])
        self._growing = [slot for slot in self._growing if not self._slots[slot].done]
        self._until = np.cumsum(self._totals, axis=1)

    def _lay_out(self, snapshot: Snapshot) -> None:
        before, self._counts = self._counts, {}
        for view in snapshot.layout.views:
            key = (view.shard, view.entry.number)
            self._counts[key] = before.get(key) or _Counts(view.entry.rows // view.entry.block_rows)
        self._slots, self._layout = list(self._counts.values()), weakref.ref(snapshot.layout)
        self._growing = [slot for slot, counts in enumerate(self._slots) if not counts.done]
        self._table = np.array([each.addresses() for each in self._slots], np.int64).reshape(-1, kernels.COUNT_FIELDS)
        self._blocks = np.array([each.blocks for each in self._slots], np.int64)
        sums = [(each.starts_until, each.last_starts_until) for each in self._slots]
        self._totals = np.array([[until[-1] for until in pair] for pair in sums], np.int64).reshape(-1, 2).T.copy()

    def count(self, snapshot: Snapshot, *, by_episode: bool = False) -> int:
        """How many starts there are, or how many episodes with one."""
        self.follow(snapshot)
        return int(self._totals[int(by_episode)].sum())

    def draw(
        self,
        snapshot: Snapshot,
        state: NDArray[np.uint64],
        count: int,
        *,
        by_episode: bool = False,
        hot_only: bool = False,
    ) -> Located | None:
        """Draw starts uniformly, with replacement; None where there is none.

        Args:
            snapshot: what to draw from.
            state: the generator's state, uint64[4], advanced in place.
            count: how many.
            by_episode: draw an episode uniformly, among those with a start, then one of its starts.
            hot_only: leave out the starts that lie in the cold tier.
        """
        self.follow(snapshot)
        until = self._until[int(by_episode)]
        if hot_only and snapshot.layout.cold:
            totals = self._totals[int(by_episode)].copy()
            totals[list(snapshot.layout.cold)] = 0
            until = np.cumsum(totals)
        if until.size == 0 or until[-1] == 0:
            return None
        places = np.empty((3, count), np.int64)
        kernels.draw_starts(
            state,
            self._chains.world(snapshot),
            self._table,
            until,
            self._blocks,
            self.length,
            by_episode,
            places,
        )
        return Located(places[0], places[1], places[2])
