"""Draws of cold rows out of a pool of row groups, which turns over: far fewer are decoded, and rows are correlated.

Each place of the pool holds a row group that was chosen in proportion to its rows, whatever was chosen before. So a row
that is drawn from a place, uniformly among those of its group, is as likely as any other row of the cold tier; but two
rows of a batch are of one group more often than they would be by chance.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..errors import CorruptError, OptionError
from .chains import nobody
from .sources import nothing_to_draw

REUSE: Final = 4  # how often a decoded row is drawn, in the mean
_LEAST, _MOST = 16, 4096  # row groups of a pool
_SHARE: Final = 0.5  # of the cache

Place = tuple[int, int, int]
"""A row group: the shard and the number of its segment, and its own."""


class BlockRows:
    """All transitions; those of the cold tier out of a pool of row groups.

    The pool begins small and grows by each group that comes, up to half of what the cache holds. A group goes when
    about `REUSE` times as many rows as it has were drawn from the pool since the last one went.

    Args:
        cache_bytes: of the cache of decoded row groups.
    """

    joins = False

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._pool: list[Place] = []
        self._next = 0  # the place that is filled anew next
        self._due = 0.0  # of groups that are to go
        self._layout: Callable[[], Any] = nobody
        self._slots: dict[tuple[int, int], int] = {}  # of the cold segments
        self._until = np.zeros(0, np.int64)  # running sums of their rows
        self._cold: list[int] = []
        self._known: set[tuple[int, int]] = set()
        self._table = np.zeros((0, 3), np.int64)

    def save(self) -> Any:
        """The pool."""
        known = [list(key) for key in sorted(self._known)]
        return {"pool": [list(place) for place in self._pool], "known": known, "next": self._next, "due": self._due}

    def load(self, state: Any) -> None:
        """The pool as it was; what is gone of it is chosen anew."""
        state = state if isinstance(state, dict) else {}
        pool, known, following, due = (state.get(name) for name in ("pool", "known", "next", "due"))
        if not _are_keys(pool, 3) or not _are_keys(known, 2) or not isinstance(following, int) or due is None:
            raise OptionError("The state that the sampler is to go on from holds no pool of row groups.")
        self._pool, self._known = [tuple(each) for each in pool], {tuple(each) for each in known}
        self._next, self._due = following, float(due)
        self._layout = nobody

    def draw(self, snapshot: Snapshot, state: NDArray[np.uint64], count: int, *, tiers: str) -> Located:
        """Draw transitions uniformly, with replacement; not independently of each other."""
        if tiers == "hot" or not snapshot.layout.cold:
            return snapshot.draw_uniform(state, count, tiers=tiers)
        if snapshot.num_transitions == 0:
            raise nothing_to_draw(snapshot, "")
        self._follow(snapshot, state)
        places, cold = np.empty((3, count), np.int64), np.zeros(1, np.int64)
        num_cold = int(self._until[-1]) if self._until.size else 0
        found = kernels.draw_blocks(
            state, snapshot.hot_domain.table, num_cold, self._table, snapshot.layout.cold_table, places, cold
        )
        if found < count:
            raise CorruptError("The cold tier holds no transitions, or next to none. The store is damaged.")
        self._turn_over(snapshot, state, int(cold[0]))
        return Located(places[0], places[1], places[2])

    def _follow(self, snapshot: Snapshot, state: NDArray[np.uint64]) -> None:
        """Go by the cold segments of a snapshot."""
        layout = snapshot.layout
        if layout is self._layout():
            return
        self._cold = sorted(layout.cold)
        keys = [(layout.views[slot].shard, layout.views[slot].entry.number) for slot in self._cold]
        self._slots = dict(zip(keys, self._cold, strict=True))
        rows = np.array([layout.views[slot].entry.num_rows for slot in self._cold], np.int64)
        self._until = np.cumsum(rows)
        total = int(self._until[-1]) if self._until.size else 0
        new = sum(count for key, count in zip(keys, rows.tolist(), strict=True) if key not in self._known)
        if total == 0:
            self._pool = []
        elif self._pool and self._known != set(keys):
            # What is gone is chosen among all that is there. Of the others each becomes one of the new groups as often
            # as these are rows of all: then each place is again as if it had been chosen among all.
            luck = np.empty(len(self._pool), np.float64)
            kernels.fill_uniform(state, luck)
            fresh = [key for key in keys if key not in self._known]
            for i, place in enumerate(self._pool):
                if place[:2] not in self._slots:
                    self._pool[i] = self._choose(snapshot, state, keys)
                elif luck[i] < new / total:
                    self._pool[i] = self._choose(snapshot, state, fresh)
        while total and len(self._pool) < min(_LEAST, self._room(snapshot)):
            self._pool.append(self._choose(snapshot, state, keys))
        self._known = set(keys)
        self._list(snapshot)
        self._layout = weakref.ref(layout)

    def _choose(self, snapshot: Snapshot, state: NDArray[np.uint64], keys: list[tuple[int, int]]) -> Place:
        """A row group of these segments, in proportion to its rows."""
        layout, slots = snapshot.layout, [self._slots[key] for key in keys]
        until = np.cumsum([layout.views[slot].entry.num_rows for slot in slots])
        luck = np.empty(1, np.float64)
        kernels.fill_uniform(state, luck)
        row = min(int(luck[0] * int(until[-1])), int(until[-1]) - 1)
        at = int(np.searchsorted(until, row, side="right"))
        inside = row - (int(until[at - 1]) if at else 0)
        return (*keys[at], inside >> layout.cold[slots[at]].group_shift)

    def _room(self, snapshot: Snapshot) -> int:
        """How many row groups the pool may have."""
        segment = snapshot.layout.cold[self._cold[0]]
        each = snapshot.layout.schema.row_bytes << segment.group_shift
        return int(min(max(self._cache_bytes * _SHARE / each, 1), _MOST))

    def _turn_over(self, snapshot: Snapshot, state: NDArray[np.uint64], num_drawn: int) -> None:
        """Let groups go and come, as many rows as were drawn."""
        segment = snapshot.layout.cold[self._cold[0]]
        self._due += num_drawn / (REUSE << segment.group_shift)
        if self._due < 1:
            return
        keys = list(self._slots)
        while self._due >= 1:
            self._due -= 1
            if len(self._pool) < self._room(snapshot):
                self._pool.append(self._choose(snapshot, state, keys))
                continue
            self._next = (self._next + 1) % len(self._pool)
            self._pool[self._next] = self._choose(snapshot, state, keys)
        self._list(snapshot)

    def _list(self, snapshot: Snapshot) -> None:
        """The pool as the kernel takes it."""
        rows = []
        for shard, number, group in self._pool:
            slot = self._slots[shard, number]
            shift, count = snapshot.layout.cold[slot].group_shift, snapshot.layout.views[slot].entry.num_rows
            first = group << shift
            rows.append((slot, first, min(count - first, 1 << shift)))
        self._table = np.array(rows, np.int64).reshape(-1, 3)


def _are_keys(value: Any, length: int) -> bool:
    """Whether these are lists of so many whole numbers."""
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == length and all(isinstance(number, int) for number in each)
        for each in value
    )
