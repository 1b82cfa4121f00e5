"""Snapshots: one watermark a shard, with every segment it names mapped. The mapping is the pin.

A `Layout` is what changes when a segment comes or goes; it is shared by all snapshots in between. A `Snapshot` adds
the commit and the blocks' counts of committed rows at that commit. Addresses live only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..commits import Record
from ..errors import CorruptError, EmptyError, RowError
from ..manifest import Evicted, SegmentEntry
from ..rows import POSITION_BITS, SHARD_SHIFT, row_id_base
from ..schema import Schema
from ..tiers.cold import ColdSegment
from ..tiers.hot import HotSegment
from . import reading
from .reading import GroupCache

_ORDINAL: Final = 0
_KIND: Final = 6
_NUM_FILLS: Final = 3
_WHOLE: Final = 4
_SHAPE_FIELDS: Final = 7


@dataclass(frozen=True, slots=True, eq=False)
class SegmentView:
    """One segment as readers see it.

    Attributes:
        shard: the shard's number.
        entry: its place in the manifest.
        hot: its mapping, where it lies in the hot tier.
        cold: its mapping, where it lies in the cold tier.
        closed: every row that it will ever have is at or below the watermark; ``kind`` alone tells what is visible.
        whole: closed and at least half full, so that draws may take the segment as one extent.
        live: the writer's own counts of committed rows, one a block, which move on; None where they are read off
            the rows.
    """

    shard: int
    entry: SegmentEntry
    closed: bool
    whole: bool
    hot: HotSegment | None = None
    cold: ColdSegment | None = None
    live: NDArray[np.int32] | None = None

    def column(self, index: int) -> NDArray[Any]:
        """A column, all allocated rows; without a copy in the hot tier, decoded in the cold one."""
        return self.cold.column(index) if self.hot is None and self.cold is not None else self.in_hot.column(index)

    @property
    def in_hot(self) -> HotSegment:
        """Its mapping in the hot tier, which it has unless it is cold."""
        if self.hot is None:
            raise CorruptError(f"Segment {self.entry.name} is in no tier.")
        return self.hot

    def visible_kinds(self, watermark: int) -> NDArray[np.uint8]:
        """The kinds of its rows with 0 where a row is not visible at this watermark. A copy."""
        kinds: NDArray[np.uint8] = (self.column(_KIND) if self.cold is None else self.cold.kinds).copy()
        if not self.closed:
            ordinals = self.column(_ORDINAL)
            kinds[(ordinals < 1) | (ordinals > watermark)] = 0
        return kinds


class Located(NamedTuple):
    """Rows of a snapshot: the slot of each row's segment, its position there, and its row id. All int64[n]."""

    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    row_ids: NDArray[np.int64]

    @classmethod
    def empty(cls, count: int) -> Located:
        """Places for so many."""
        places = np.empty((3, count), np.int64)
        return cls(places[0], places[1], places[2])


class Layout:
    """The segments of all shards, in order of shard and number, with the tables that kernels read.

    How rows are drawn does not depend on the tier that a segment is in: extents and kinds are the same in both.
    """

    def __init__(
        self, schema: Schema, views: Sequence[SegmentView], cache: GroupCache, leaving: Sequence[SegmentView] = ()
    ) -> None:
        self.schema = schema
        self.views = tuple(views)
        self.leaving = tuple(leaving)
        self.cache = cache
        count = len(self.views)
        self.addresses = np.zeros((count, len(schema.columns)), np.int64)
        self.shapes = np.zeros((count, _SHAPE_FIELDS), np.int64)
        self._counted = [slot for slot, view in enumerate(self.views) if not view.whole]
        self._cache: tuple[tuple[int, ...], NDArray[np.int32]] | None = None
        num_fills = 0
        self.cold_table = np.zeros((count, 5), np.int64)
        self.cold = {slot: view.cold for slot, view in enumerate(self.views) if view.cold is not None}
        for slot, view in enumerate(self.views):
            if view.cold is not None:
                self.cold_table[slot] = view.cold.table_row()
                kinds = view.cold.kinds.__array_interface__["data"][0]
            else:
                self.addresses[slot] = view.in_hot.addresses
                kinds = self.addresses[slot, _KIND]
            blocks = 0 if view.whole else view.entry.rows // view.entry.block_rows
            self.shapes[slot] = (
                view.entry.rows,
                view.entry.block_rows,
                num_fills,
                blocks,
                view.whole,
                kinds,
                row_id_base(view.shard, view.entry.number),
            )
            num_fills += blocks
        self.num_fills = num_fills
        self.num_extents = count - len(self._counted) + num_fills
        self.shard_table, self.slot_table = self._tables()

    def _tables(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        shards = max((view.shard for view in self.views), default=-1) + 1
        shard_table = np.zeros((shards, 2), np.int64)
        for view in self.views:
            shard_table[view.shard, 1] = max(shard_table[view.shard, 1], view.entry.number + 1)
        shard_table[1:, 0] = np.cumsum(shard_table[:-1, 1])
        slot_table = np.full(int(shard_table[:, 1].sum()), -1, np.int32)
        for slot, view in enumerate(self.views):
            slot_table[shard_table[view.shard, 0] + view.entry.number] = slot
        return shard_table, slot_table

    def copy_live(self) -> list[NDArray[np.int32]]:
        """The writer's counts as they are now; called under the lock that commits hold."""
        return [live.copy() for slot in self._counted if (live := self.views[slot].live) is not None]

    def count_fills(self, records: Sequence[Record], live: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
        """Committed rows of each block that is not part of a whole segment, at these commits.

        Counts that no writer of this process keeps are read off the ordinals, from where an earlier count
        under this layout stopped: one look a block, and one a new row.
        """
        own = iter(live)
        watermarks = tuple(record.watermark for record in records)
        cache = self._cache
        usable = cache is not None and all(a <= b for a, b in zip(cache[0], watermarks, strict=True))
        fills = cache[1].copy() if cache is not None and usable else np.zeros(self.num_fills, np.int32)
        for slot in self._counted:
            view = self.views[slot]
            first, count = int(self.shapes[slot, 2]), int(self.shapes[slot, 3])
            part = fills[first : first + count]
            if view.live is not None:
                part[:] = next(own)
            elif view.cold is not None:
                part[:] = view.cold.fills
            else:
                ordinals = int(self.addresses[slot, _ORDINAL])
                kernels.advance(ordinals, view.entry.block_rows, watermarks[view.shard], part)
        self._cache = (watermarks, fills)
        return fills


@dataclass(frozen=True, slots=True)
class Domain:
    """What uniform draws draw from; see the draw kernels.

    Attributes:
        start: running sums of the extents' rows, from 0 on.
        slot: of their segments.
        first: the position of the first row of each.
        table: addresses and sizes, as the kernel takes them.
        held: what lies at these addresses.
    """

    start: NDArray[np.int64]
    slot: NDArray[np.int32]
    first: NDArray[np.int64]
    table: NDArray[np.int64]
    held: tuple[NDArray[Any], ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is visible at one commit of each shard. Immutable; holding it holds every segment in it.

    Attributes:
        layout: the segments.
        records: the commit of each shard, in order of shard.
        num_transitions: transitions that can be sampled.
        evicted: of each shard, what retention has dropped.
        live: the writer's counts of committed rows at that commit.
    """

    layout: Layout
    records: tuple[Record, ...]
    num_transitions: int
    evicted: tuple[Evicted, ...] = ()
    live: Sequence[NDArray[np.int32]] = field(repr=False, default=())

    @cached_property
    def fills(self) -> NDArray[np.int32]:
        """Committed rows of the blocks that draws look at one by one."""
        return self.layout.count_fills(self.records, self.live)

    @cached_property
    def domain(self) -> Domain:
        """The extents of committed rows."""
        return self._lay_out(self.layout.shapes)

    @cached_property
    def hot_domain(self) -> Domain:
        """The extents of committed rows in the hot tier."""
        shapes = self.layout.shapes.copy()
        for slot in self.layout.cold:
            shapes[slot, _NUM_FILLS] = shapes[slot, _WHOLE] = 0
        return self._lay_out(shapes)

    def _lay_out(self, shapes: NDArray[np.int64]) -> Domain:
        layout = self.layout
        start = np.empty(layout.num_extents + 1, np.int64)
        slot = np.empty(layout.num_extents + 1, np.int32)
        first = np.empty(layout.num_extents + 1, np.int64)
        guide = np.empty(2 * layout.num_extents + 16, np.int32)
        result = np.zeros(2, np.int64)
        count = kernels.build_domain(shapes, self.fills, start, slot, first, guide, result)
        held = (start, slot, first, guide, layout.shapes)
        addresses = [each.__array_interface__["data"][0] for each in held]
        table = np.array([*addresses, *result], np.int64)
        return Domain(start[: count + 1], slot[:count], first[:count], table, held)

    def draw_uniform(self, state: NDArray[np.uint64], count: int, *, tiers: str = "all") -> Located:
        """Draw transitions uniformly with replacement.

        Args:
            state: the generator's state, uint64[4], advanced in place.
            count: how many.
            tiers: ``"all"``, or ``"hot"`` to leave out what lies in the cold tier.
        """
        if self.num_transitions == 0:
            raise EmptyError("There is no transition to sample: the store is empty. Collect or extend first.")
        domain = self.domain if tiers == "all" else self.hot_domain
        places = np.empty((3, count), np.int64)
        found = kernels.draw(state, domain.table, places)
        if found < count:
            if tiers == "hot" and self.layout.cold:
                raise EmptyError('The hot tier holds no transition: all lie in the cold one. Draw with tiers="all".')
            raise CorruptError(
                f"The commit record speaks of {self.num_transitions:,} transitions, but the segments hold none or "
                "next to none. The store is damaged."
            )
        return Located(places[0], places[1], places[2])

    def locate(self, row_ids: NDArray[np.int64]) -> Located:
        """Find transitions by row id; raises `RowError` for one that is none, or that is not visible here."""
        slots = np.empty(row_ids.size, np.int64)
        positions = np.empty(row_ids.size, np.int64)
        layout = self.layout
        wrong = kernels.locate(
            row_ids, layout.shard_table, layout.slot_table, SHARD_SHIFT, POSITION_BITS, slots, positions
        )
        if wrong < 0:
            wrong = kernels.find_missing(slots, positions, layout.shapes, self.fills)
        if wrong >= 0:
            raise RowError(
                f"row_ids[{wrong}] = {row_ids[wrong]} names no transition of this store: it was never written, is a "
                "tail, or its segment was evicted. Take row ids from batches or from SELECT row_id FROM transitions."
            )
        return Located(slots, positions, row_ids)

    def find(self, row_ids: NDArray[np.int64]) -> Located:
        """Those of these transitions whose segments are still there; raises `RowError` for a row that never was one."""
        slots, positions, sources = (np.empty(row_ids.size, np.int64) for _ in range(3))
        layout = self.layout
        tables = (layout.shard_table, layout.slot_table, SHARD_SHIFT, POSITION_BITS, layout.shapes, self.fills)
        found = kernels.sift(row_ids, *tables, slots, positions, sources)
        if found < 0:
            raise RowError(f"Row id {row_ids[-1 - found]} names no transition of this store: never written, or a tail.")
        return Located(slots[:found], positions[:found], row_ids[sources[:found]])

    def gather(self, located: Located, outputs: NDArray[np.int64]) -> None:
        """Copy rows to where a table of outputs (see the gather kernel) says, whatever tier they lie in."""
        if self.layout.cold:
            reading.gather(self.layout, located, outputs, self.layout.cache)
        else:
            kernels.gather(located.slots, located.positions, self.layout.addresses, outputs)

    def read(self, located: Located, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], NDArray[Any]]:
        """Copies of some columns of rows, all in one pass.

        Args:
            located: the rows, of any kind.
            wanted: (place of a column, 0 for the row's own value or 1 for that of the row behind).

        Returns:
            Each as [n, *shape], storage dtype.
        """
        columns, count = self.layout.schema.columns, located.row_ids.size
        values = {key: np.empty((count, *columns[key[0]].shape), columns[key[0]].storage) for key in wanted}
        table = [
            (place, shift, columns[place].item_bytes, 0, array.__array_interface__["data"][0])
            for (place, shift), array in values.items()
        ]
        self.gather(located, np.array(table, np.int64))
        return values

    def column(self, slot: int, index: int) -> NDArray[Any]:
        """A column of one segment, all allocated rows; without a copy in the hot tier."""
        return self.layout.views[slot].column(index)

    def visible_kinds(self, slot: int) -> NDArray[np.uint8]:
        """The kinds of one segment's rows with 0 where a row is not visible here. A copy."""
        view = self.layout.views[slot]
        return view.visible_kinds(self.records[view.shard].watermark)
