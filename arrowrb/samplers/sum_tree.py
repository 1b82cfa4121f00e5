"""The priorities of a store's rows, and draws in proportion to them.

Raw priorities are the truth: one float32 a row, in a file where the sampler has a name. From them the tree of sums is
made (see the kernels), a part for each segment, so that rows come, move between tiers and go with their segments.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, PriorityFiles, SegmentView, Snapshot, check_values
from ..errors import CorruptError, RowError
from ..rows import POSITION_BITS, SHARD_SHIFT
from .chains import Follower, address_of, nobody
from .sources import Source

_LINE: Final = 64  # bytes
_KINDS: Final = 5  # field of a segment's shape
_MOST: Final = float(np.finfo(np.float32).max)

Key = tuple[int, int]
"""A segment: number of the shard, and its own."""


def _aligned(count: int, dtype: Any) -> NDArray[Any]:
    """Zeros that begin at a cache line."""
    size = np.dtype(dtype).itemsize
    memory = np.zeros(count * size + _LINE, np.uint8)
    first = -memory.__array_interface__["data"][0] % _LINE
    return memory[first : first + count * size].view(dtype)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


@dataclass(eq=False)
class _Tree:
    """The part of the tree over one segment, with how far its rows were taken."""

    raw: NDArray[np.float32]
    block_rows: int
    admitted: NDArray[np.uint8] | None = None  # which rows may be drawn; None: all transitions
    done: bool = False  # all rows that there will ever be were taken
    fields: NDArray[np.int64] = field(init=False)
    seen: NDArray[np.int32] = field(init=False)
    _held: tuple[NDArray[Any], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        levels, width = [], _round_up(self.raw.size, kernels.LEAVES) // kernels.LEAVES
        while True:
            levels.append(_round_up(width, kernels.FAN))
            if width <= kernels.FAN:
                break
            width = levels[-1] // kernels.FAN
        masses = _aligned(_round_up(self.raw.size, kernels.LEAVES * kernels.FAN), np.float32)
        sums, least = _aligned(sum(levels), np.float64), _aligned(sum(levels), np.float32)
        least[:] = np.inf
        self._held = (masses, sums, least)
        firsts = np.concatenate([[0], np.cumsum(levels)[:-1]])
        addresses = [address_of(each) for each in (self.raw, masses, sums, least, self.admitted)]
        self.fields = np.zeros(kernels.TREE_FIELDS, np.int64)
        self.fields[: 6 + len(levels)] = [*addresses, len(levels), *firsts]
        self.seen = np.zeros(self.raw.size // self.block_rows, np.int32)


class SumTree(Follower):
    """Priorities of the transitions of snapshots. Not thread-safe.

    A transition that is new gets the largest raw priority so far, 1.0 at first.

    Args:
        alpha: the exponent that makes priorities into masses, 0 to 1.
        files: where raw priorities are kept; None keeps them in memory.
        source: the rows that may be drawn; None: all transitions.
        newest: the raw priority of rows that are new, in place of the largest one so far.
    """

    def __init__(
        self,
        alpha: float,
        files: PriorityFiles | None = None,
        source: Source | None = None,
        newest: float | None = None,
    ) -> None:
        super().__init__()
        self._alpha = alpha
        self._files = files
        self._source = source
        self._newest = newest
        self._largest = 1.0 if files is None else files.largest
        self._layout: Callable[[], Any] = nobody
        self._trees: dict[Key, _Tree] = {}
        self._slots: list[_Tree] = []
        self._growing: list[int] = []  # slots with rows to come
        self._table = np.zeros((0, kernels.TREE_FIELDS), np.int64)
        self._totals = np.zeros(0, np.float64)
        self._least = np.zeros(0, np.float32)
        self._rests = np.zeros(0, np.float64)

    def _follow(self, snapshot: Snapshot) -> None:
        if snapshot.layout is not self._layout():
            self._lay_out(snapshot)
        if self._source is None:
            self._admit(snapshot)
        else:
            self._admit_rows(snapshot, self._source)

    def _forget(self) -> None:
        self._layout = nobody  # the trees stay, and are laid out anew
        if self._source is not None:
            self._source.restart()

    def _admit(self, snapshot: Snapshot) -> None:
        """Take the transitions that are new."""
        fills, shapes = snapshot.fills, snapshot.layout.shapes
        newest = np.float32(self._largest if self._newest is None else self._newest)
        for slot in self._growing:
            tree, view = self._slots[slot], snapshot.layout.views[slot]
            first, count = int(shapes[slot, 2]), int(shapes[slot, 3])
            filled = np.full(tree.seen.size, tree.block_rows, np.int32) if view.whole else fills[first : first + count]
            kernels.admit(
                self._table,
                self._totals,
                self._least,
                slot,
                int(shapes[slot, _KINDS]),
                tree.block_rows,
                filled,
                tree.seen,
                self._alpha,
                newest,
            )
            tree.done = view.closed
        self._growing = [slot for slot in self._growing if not self._slots[slot].done]

    def _admit_rows(self, snapshot: Snapshot, source: Source) -> None:
        """Take the rows that the source has named since, or all that it names if it begins anew."""
        news = source.follow(snapshot)
        if news.anew:
            for tree in self._slots:
                if tree.admitted is not None:
                    tree.admitted[:] = 0
            self._plant(snapshot)
        self._let(news.rows)

    def _let(self, rows: Mapping[int, NDArray[Any]]) -> None:
        """Let rows be drawn, by slot."""
        newest = np.float32(self._largest if self._newest is None else self._newest)
        for slot, positions in rows.items():
            slots = np.full(positions.size, slot, np.int64)
            places = np.sort(positions).astype(np.int64)
            kernels.admit_rows(self._table, self._totals, self._least, slots, places, self._alpha, newest)

    def _plant(self, snapshot: Snapshot) -> None:
        """Make all trees anew, of the raw priorities."""
        for key, tree in self._trees.items():
            self._trees[key] = _Tree(tree.raw, tree.block_rows, tree.admitted)
        self._lay_out(snapshot)

    def _lay_out(self, snapshot: Snapshot) -> None:
        """Go by the segments of another layout."""
        layout = snapshot.layout
        trees: dict[Key, _Tree] = {}
        for view in layout.views:
            key = (view.shard, view.entry.number)
            tree = self._trees.get(key)
            trees[key] = tree or _Tree(self._take(key, view.entry.rows), view.entry.block_rows, self._flags(view))
        if self._files is not None and (self._layout is nobody or not self._trees.keys() <= trees.keys()):
            self._files.retain(set(trees))
        self._trees, self._slots, self._layout = trees, list(trees.values()), weakref.ref(layout)
        count = len(trees)
        self._table = np.zeros((count, kernels.TREE_FIELDS), np.int64)
        for slot, tree in enumerate(self._slots):
            self._table[slot] = tree.fields
        self._totals, self._least = np.empty(count, np.float64), np.empty(count, np.float32)
        kernels.mend_roots(self._table, self._totals, self._least)
        self._growing = [slot for slot, tree in enumerate(self._slots) if not tree.done]

    def _take(self, key: Key, rows: int) -> NDArray[np.float32]:
        """The raw priorities of a segment, to be written to; 0 where there is none yet."""
        return np.zeros(rows, np.float32) if self._files is None else self._files.take(key, rows)

    def _flags(self, view: SegmentView) -> NDArray[np.uint8] | None:
        return None if self._source is None else np.zeros(view.entry.rows, np.uint8)

    def _set_largest(self, value: float) -> None:
        self._largest = value
        if self._files is not None:
            self._files.largest = value

    def draw(
        self, snapshot: Snapshot, state: NDArray[np.uint64], count: int, *, hot_only: bool = False
    ) -> tuple[Located, NDArray[np.float32], NDArray[np.float32]]:
        """Draw transitions in proportion to their mass, with replacement.

        Args:
            snapshot: what to draw from.
            state: the generator's state, uint64[4], advanced in place.
            count: how many.
            hot_only: leave out the cold tier.

        Returns:
            The rows, their masses, float32[count], and the least masses of parts of what could be drawn. There are
            no rows where nothing has any mass.
        """
        self.follow(snapshot)
        totals, least = self._totals, self._least
        if hot_only and snapshot.layout.cold:
            cold = list(snapshot.layout.cold)
            totals, least = totals.copy(), least.copy()
            totals[cold], least[cold] = 0.0, np.inf
        if self._rests.size < count:
            self._rests = np.empty(count, np.float64)
        located, masses = Located.empty(count), np.empty(count, np.float32)
        found = kernels.draw_weighted(
            state,
            self._table,
            totals,
            self._rests,
            snapshot.layout.shapes,
            located.slots,
            located.positions,
            located.row_ids,
            masses,
        )
        if found < count:
            located, masses = Located.empty(0), masses[:0]
        return located, masses, least

    def update(self, snapshot: Snapshot, row_ids: NDArray[np.int64], raw: NDArray[np.float32]) -> int:
        """Give transitions raw priorities, finite and not negative, in this order; 0 is never drawn.

        Returns:
            How many of the rows are gone, and were left out.

        Raises:
            RowError: if a row id names no transition.
        """
        self.follow(snapshot)
        count, layout = row_ids.size, snapshot.layout
        slots, positions, sources = (np.empty(count, np.int64) for _ in range(3))
        found = kernels.sift(
            row_ids,
            layout.shard_table,
            layout.slot_table,
            SHARD_SHIFT,
            POSITION_BITS,
            layout.shapes,
            snapshot.fills,
            slots,
            positions,
            sources,
        )
        if found < 0:
            wrong = -1 - found
            raise RowError(
                f"row_ids[{wrong}] = {row_ids[wrong]} names no transition of this store: it was never written, or is a "
                "tail. Take row ids from batches, from extend, or from SELECT row_id FROM transitions."
            )
        largest = kernels.set_priorities(
            self._table, self._totals, self._least, slots, positions, sources, found, raw, self._alpha
        )
        if largest > self._largest:
            self._set_largest(float(largest))
        return count - int(found)

    def save(self, snapshot: Snapshot) -> dict[str, Any]:
        """Raw priorities as they are now, by segment."""
        self.follow(snapshot)
        kept = {_told(view): np.array(tree.raw) for view, tree in zip(snapshot.layout.views, self._slots, strict=True)}
        return {"largest": self._largest, "raw": kept}

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Go back to raw priorities that `save` gave; rows that it does not know are new."""
        raw = state.get("raw")
        largest = state.get("largest")
        if not isinstance(raw, Mapping) or not isinstance(largest, float) or not 0 < largest <= _MOST:
            raise CorruptError("The state of the sampler is damaged: it holds no priorities.")
        for view in snapshot.layout.views:  # all of it, before anything is changed
            kept = raw.get(_told(view))
            if kept is None:
                continue
            if not isinstance(kept, np.ndarray) or kept.shape != (view.entry.rows,) or kept.dtype != np.float32:
                raise CorruptError("The state of the sampler is damaged: its priorities are not those of the segments.")
            check_values(kept, "The state of the sampler", "Take an older one.")
        self.follow(snapshot)
        self._set_largest(largest)
        flags = [tree.admitted for tree in self._slots]
        for view, admitted in zip(snapshot.layout.views, flags, strict=True):
            into = self._take((view.shard, view.entry.number), view.entry.rows)
            into[:] = raw.get(_told(view), 0)
            self._trees[view.shard, view.entry.number] = _Tree(into, view.entry.block_rows, admitted)
        self._lay_out(snapshot)
        if self._source is None:
            self._admit(snapshot)
        else:
            self._let({slot: np.flatnonzero(each) for slot, each in enumerate(flags) if each is not None})

    def begin_anew(self) -> None:
        """Ask the source again, which begins anew."""
        self._snapshot = nobody


def _told(view: SegmentView) -> str:
    """How a segment is called in a state."""
    return f"{view.shard}-{view.entry.number}"
