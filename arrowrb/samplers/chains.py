"""How the blocks of a lane follow each other: by this, rows are followed over the ends of blocks and segments.

Within a block the row behind is the next one of its lane. A block's last row is a tail; where it says that the episode
goes on, it does so at the first row of the lane's next block. A block need not be full, and may hold nothing but such a
tail: a lane that rests is moved out of a segment that it alone holds open. `Chains` keeps for each block which one
comes behind it, and which one came before, as row ids, so that nothing has to be searched when rows are drawn. See the
walking kernels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, SegmentView, Snapshot, read_edges
from ..engine.tables import EPISODE, KIND, STEP
from ..rows import POSITION_BITS, SHARD_SHIFT

_NONE: Final = -1
ROW_BASE = 6  # a field of a segment's shape

Key = tuple[int, int]


def nobody() -> None:
    """In place of a weak reference to what has not been seen yet."""


@dataclass(eq=False)
class _Blocks:
    """The blocks of one segment.

    Attributes:
        behind: row id of the first row of the lane's next block, -1 where there is none (yet); one a block.
        before: of its previous block, likewise.
        seen: whether the block's first row was committed when it was last looked at.
        continuation: where the episode goes on, as the segment's run table has it; None where its rows tell.
        done: whether the segment will not change any more.
    """

    count: int
    behind: NDArray[np.int64] = field(init=False)
    before: NDArray[np.int64] = field(init=False)
    seen: NDArray[np.bool_] = field(init=False)
    continuation: NDArray[np.int64] | None = None
    done: bool = False

    def __post_init__(self) -> None:
        self.behind = np.full(self.count, _NONE, np.int64)
        self.before = np.full(self.count, _NONE, np.int64)
        self.seen = np.zeros(self.count, np.bool_)


@dataclass(frozen=True)
class _Places:
    """First rows of blocks that are new, and what they belong to. All int64[n]."""

    row_id: NDArray[np.int64]
    lane: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    episode: NDArray[np.int64]
    step: NDArray[np.int64]


class Follower:
    """What keeps up with snapshots, each newer than the one before; where that is broken off, it begins anew."""

    def __init__(self) -> None:
        self._snapshot: Callable[[], Snapshot | None] = nobody  # weak: a sampler that rests keeps no segment from going

    def follow(self, snapshot: Snapshot) -> None:
        """Take what is new in a snapshot, and forget what is gone."""
        if snapshot is self._snapshot():
            return
        try:
            self._follow(snapshot)
        except BaseException:  # Ctrl-C among them
            self._forget()
            raise
        self._snapshot = weakref.ref(snapshot)

    def _follow(self, snapshot: Snapshot) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        """Begin anew with the next snapshot."""
        raise NotImplementedError


class Chains(Follower):
    """The chains of all lanes of snapshots, each newer than the one before. Not thread-safe.

    Attributes:
        table: of each slot, the addresses of its blocks' ``behind``, ``before`` and ``continuation``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forget()

    def _forget(self) -> None:
        self.table = np.zeros((0, 3), np.int64)
        self._layout: Callable[[], Any] = nobody
        self._blocks: dict[Key, _Blocks] = {}
        self._slots: list[_Blocks] = []
        self._growing: list[int] = []
        self._world = np.zeros(kernels.WORLD_FIELDS, np.int64)
        self._newest: dict[Key, int] = {}  # (shard, lane) -> row id of the first row of its newest block

    def _follow(self, snapshot: Snapshot) -> None:
        if snapshot.layout is not self._layout():
            self._lay_out(snapshot)
        found = [places for slot in self._growing if (places := self._look(snapshot, slot)) is not None]
        if found:
            self._link(snapshot, _Places(*(np.concatenate(each) for each in zip(*map(_fields, found), strict=True))))
        self._growing = [slot for slot in self._growing if not self._slots[slot].done]
        self._world = self._see(snapshot)

    def _lay_out(self, snapshot: Snapshot) -> None:
        views = snapshot.layout.views
        before = self._blocks
        self._blocks = {}
        for view in views:
            key = (view.shard, view.entry.number)
            self._blocks[key] = before.get(key) or _Blocks(view.entry.rows // view.entry.block_rows)
        self._slots, self._layout = list(self._blocks.values()), weakref.ref(snapshot.layout)
        self._growing = [slot for slot, blocks in enumerate(self._slots) if not blocks.done]
        self.table = np.zeros((len(self._slots), 3), np.int64)
        for slot, blocks in enumerate(self._slots):
            self.table[slot] = [address_of(each) for each in (blocks.behind, blocks.before, blocks.continuation)]

    def _look(self, snapshot: Snapshot, slot: int) -> _Places | None:
        """The blocks of a segment that have their first row now, and had not at the last look."""
        blocks, view = self._slots[slot], snapshot.layout.views[slot]
        used = _used_blocks(snapshot, slot, view)
        new = np.flatnonzero(used & ~blocks.seen)
        blocks.done = view.closed
        if new.size == 0:
            return None
        blocks.seen[new] = True
        edges = read_edges(snapshot, slot, new)
        if edges.continuation is not None:
            blocks.continuation = edges.continuation
            self.table[slot, 2] = address_of(blocks.continuation)
        row_id = snapshot.layout.shapes[slot, ROW_BASE] + new * view.entry.block_rows
        return _Places(row_id, edges.lane, edges.ordinal, edges.episode, edges.step)

    def _link(self, snapshot: Snapshot, new: _Places) -> None:
        """Link new blocks with the ones before them of their lanes, in order of arrival."""
        shard = new.row_id >> SHARD_SHIFT
        order = np.lexsort((new.ordinal, new.lane, shard))
        same = np.zeros(order.size, np.bool_)
        same[1:] = (np.diff(new.lane[order]) == 0) & (np.diff(shard[order]) == 0)
        previous = np.full(order.size, _NONE, np.int64)
        previous[1:] = new.row_id[order[:-1]]
        heads = np.flatnonzero(~same)
        ends = np.append(heads, order.size)[1:] - 1
        for head, end in zip(heads.tolist(), ends.tolist(), strict=True):
            lane = (int(shard[order[head]]), int(new.lane[order[head]]))
            previous[head] = self._newest.get(lane, _NONE)
            self._newest[lane] = int(new.row_id[order[end]])
        linked = np.flatnonzero(previous != _NONE)
        at, rows = order[linked], previous[linked]
        slots, positions = _find(snapshot, rows)
        right = self._agree(snapshot, new, at, slots, positions)
        at, rows, slots, positions = at[right], rows[right], slots[right], positions[right]
        to = np.ascontiguousarray(new.row_id[at])
        next_slots, next_positions = _find(snapshot, to)
        kernels.link_blocks(self.table, snapshot.layout.shapes, slots, positions, rows, next_slots, next_positions, to)

    def _agree(
        self,
        snapshot: Snapshot,
        new: _Places,
        at: NDArray[np.int64],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Those pairs of blocks of which the second goes on with the episode of the first, or that has ended.

        It does not where what came between was lost: with the power, or with a damaged segment.

        Args:
            snapshot: what they are in.
            new: blocks that are new.
            at: which of these are the second ones.
            slots: of the first ones, -1 where they are gone.
            positions: of their first rows.
        """
        there = np.flatnonzero(slots >= 0)
        verdicts, last = np.empty(there.size, np.uint8), np.empty(there.size, np.int64)
        pairs = (slots[there], positions[there], new.row_id[at[there]])
        kernels.check_links(self.table, snapshot.layout.shapes, snapshot.fills, *pairs, verdicts, last)
        unknown = verdicts == kernels.UNKNOWN
        asked, right = there[unknown], there[verdicts != kernels.WRONG]
        if asked.size:
            last = last[unknown]
            values = snapshot.read(Located(slots[asked], last, last), [(EPISODE, 0), (STEP, 0)])
            other = (values[EPISODE, 0] != new.episode[at[asked]]) | (values[STEP, 0] != new.step[at[asked]])
            right = np.setdiff1d(right, asked[other])
        return np.asarray(right)

    def world(self, snapshot: Snapshot) -> NDArray[np.int64]:
        """A snapshot as the kernels that walk see it: addresses, good as long as it and this live."""
        self.follow(snapshot)
        return self._world

    def _see(self, snapshot: Snapshot) -> NDArray[np.int64]:
        layout = snapshot.layout
        tables = (layout.shapes, snapshot.fills, self.table, layout.shard_table)
        sizes = (len(layout.shard_table), address_of(layout.slot_table), SHARD_SHIFT, POSITION_BITS)
        return np.array([*(address_of(each) for each in tables), *sizes], np.int64)

    def forward(
        self, snapshot: Snapshot, rows: Located, length: int, *, across: bool = False, tails: bool = False
    ) -> Steps:
        """The rows behind rows, these included: ``length`` of each, the last one again where there are fewer.

        Args:
            snapshot: what they are in.
            rows: transitions.
            length: how many.
            across: go on with the lane's next episode; else they end with the episode.
            tails: count final observations as rows.
        """
        steps = Steps.empty(rows.slots.size, length)
        world = self.world(snapshot)
        kernels.walk_forward(world, rows.slots, rows.positions, across, tails, steps.places, steps.counts)
        return steps

    def sum_steps(
        self, snapshot: Snapshot, rows: Located, column: int, powers: NDArray[np.float64]
    ) -> tuple[Located, NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
        """Sum rewards over steps of the hot tier, each the k-th times ``powers[k]``.

        Args:
            snapshot: what they are in; it has no cold rows.
            rows: transitions.
            column: the place of the reward, float32 or float64 without a shape.
            powers: one more than the most steps.

        Returns:
            The last rows, how many there were of each, ``powers`` of that, and the sums.
        """
        count, wide = rows.slots.size, snapshot.layout.schema.columns[column].dtype == "float64"
        last, counts = np.empty((3, count), np.int64), np.empty(count, np.int64)
        discounts, sums = np.empty(count, np.float32), np.empty(count, np.float64)
        kernels.sum_steps(
            self.world(snapshot),
            rows.slots,
            rows.positions,
            snapshot.layout.addresses,
            column,
            wide,
            powers,
            last,
            counts,
            discounts,
            sums,
        )
        return Located(*last), counts, discounts, sums

    def back(self, snapshot: Snapshot, rows: Located, length: int, *, behind: int = 0) -> Steps:
        """The rows before rows in their episodes, these included as the last; the first again where there are fewer.

        Args:
            snapshot: what they are in.
            rows: transitions.
            length: how many.
            behind: 1 to end with the row behind, which holds the next observation.
        """
        steps = Steps.empty(rows.slots.size, length)
        kernels.walk_back(self.world(snapshot), rows.slots, rows.positions, behind, steps.places, steps.counts)
        return steps


class Steps(NamedTuple):
    """Rows that follow each other.

    Attributes:
        places: slots of their segments, positions and row ids, int64[3, n, length].
        counts: how many of each there are, int64[n]; the other places repeat the row at the end.
    """

    places: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, count: int, length: int) -> Steps:
        """Places for so many."""
        return cls(np.empty((3, count, length), np.int64), np.empty(count, np.int64))

    def rows(self) -> Located:
        """All of them, one after the other."""
        slots, positions, row_ids = self.places.reshape(3, -1)
        return Located(slots, positions, row_ids)

    def finish(self, powers: NDArray[np.float64]) -> tuple[Located, NDArray[np.float32]]:
        """The last of each, and ``powers`` of how many there are."""
        count = self.counts.size
        last, discounts = np.empty((3, count), np.int64), np.empty(count, np.float32)
        kernels.finish_steps(self.places, self.counts, powers, last, discounts)
        return Located(*last), discounts


def _find(snapshot: Snapshot, row_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Slots, -1 where a row is gone, and positions."""
    slots, positions = np.empty(row_ids.size, np.int64), np.empty(row_ids.size, np.int64)
    layout = snapshot.layout
    kernels.find_slots(row_ids, layout.shard_table, layout.slot_table, SHARD_SHIFT, POSITION_BITS, slots, positions)
    return slots, positions


def _used_blocks(snapshot: Snapshot, slot: int, view: SegmentView) -> NDArray[np.bool_]:
    """Which blocks of a segment have a committed row."""
    if not view.whole:
        first, count = snapshot.layout.shapes[slot, 2:4].tolist()
        return np.asarray(snapshot.fills[first : first + count] > 0)
    kinds = view.cold.kinds if view.cold is not None else view.column(KIND)
    return np.asarray(kinds[:: view.entry.block_rows] != 0)


def address_of(array: NDArray[Any] | None) -> int:
    """Where an array's values begin, 0 for none."""
    return 0 if array is None else int(array.__array_interface__["data"][0])


def _fields(places: _Places) -> tuple[NDArray[np.int64], ...]:
    return tuple(getattr(places, each.name) for each in fields(places))
