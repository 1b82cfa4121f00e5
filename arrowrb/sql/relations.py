"""Segments as Arrow tables over their mapped memory: what DuckDB scans.

Tables, not datasets: DuckDB hands filters on a dataset to Arrow, which compares NaN otherwise than SQL does and copies
what it keeps, and measured no faster. A row's id is ``base + position``: the base is one run-length encoded value a
segment, the positions are one array that all segments share, so that row ids cost no memory.

Segments that are *closed* (all of their rows are at or below the watermark) make one table, in which ``kind`` alone
says what is visible; those that are open make one a shard, which is filtered by the shard's watermark too. Those in
the cold tier are no tables: `cold_rows` reads them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa

from ..engine.snapshot import Layout, SegmentView
from ..rows import row_id_base
from ..schema import Column, Schema
from ..tiers.cold import ColdSegment

BASE: Final = "row_base"
POSITION: Final = "row_position"


@dataclass(frozen=True)
class Names:
    """Plain names of the columns within the tables; user's names with dots or quotes appear in the views only.

    Attributes:
        schema: the store's schema.
    """

    schema: Schema

    @cached_property
    def _given(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        taken = {BASE, POSITION}
        names: list[list[str]] = []
        for prefix in ("", "next_"):
            names.append([])
            for place, column in enumerate(self.schema.columns):
                name = prefix + column.name
                # Names of extras are the user's, and may be reserved words of SQL.
                plain = name.isascii() and name.isidentifier() and column.name not in self.schema.all_extras
                if not plain or name.casefold() in taken:
                    name = f"{prefix}column_{place}"
                while name.casefold() in taken:
                    name += "_"
                taken.add(name.casefold())
                names[-1].append(name)
        return tuple(names[0]), tuple(names[1])

    @property
    def own(self) -> tuple[str, ...]:
        """One a column of the schema, in its order."""
        return self._given[0]

    @property
    def next(self) -> tuple[str, ...]:
        """The same for the row behind; only those of observation columns are in the tables."""
        return self._given[1]


@dataclass(frozen=True)
class Relations:
    """The tables of one layout; each is made when it is first asked for."""

    # Not the layout: `tables_of` keeps these tables only as long as somebody else holds it.
    views: Sequence[SegmentView] = field(repr=False)
    names: Names

    @cached_property
    def open_shards(self) -> tuple[int, ...]:
        """Shards that have segments which are not closed."""
        return tuple(sorted({view.shard for view in self.views if not view.closed}))

    @cached_property
    def _made(self) -> dict[tuple[bool, int | None], pa.Table]:
        return {}

    def table(self, *, ahead: bool, shard: int | None) -> pa.Table:
        """Rows of segments.

        Args:
            ahead: with the observation columns of the row behind, and without each segment's last row, which has none.
            shard: the open segments of this shard; None is the closed ones of all.
        """
        table = self._made.get((ahead, shard))
        if table is None:
            hot = [view for view in self.views if view.cold is None]
            chosen = [view for view in hot if (None if view.closed else view.shard) == shard]
            batches = [_batch(view, self.names, ahead=ahead) for view in chosen]
            schema = batches[0].schema if batches else _empty_schema(self.names, ahead=ahead)
            table = self._made.setdefault((ahead, shard), pa.Table.from_batches(batches, schema=schema))
        return table

    @cached_property
    def has_closed(self) -> bool:
        """Whether there is a table of closed segments."""
        return any(view.closed and view.cold is None for view in self.views)

    @cached_property
    def cold(self) -> tuple[ColdSegment, ...]:
        """The segments in the cold tier."""
        return tuple(view.cold for view in self.views if view.cold is not None)


_relations: weakref.WeakKeyDictionary[Layout, Relations] = weakref.WeakKeyDictionary()
# Not by pa.array, whose first call imports pandas where it is installed: half a second for every command.
_positions = pa.Array.from_buffers(pa.int32(), 0, [None, pa.py_buffer(b"")])
_guard = threading.Lock()


def tables_of(layout: Layout) -> Relations:
    """The tables of a layout, made once."""
    with _guard:
        known = _relations.get(layout)
        if known is None:
            known = _relations[layout] = Relations(layout.views, Names(layout.schema))
        return known


def _shared_positions(count: int) -> pa.Array:
    """0 to count - 1 as int32: a slice of one array."""
    global _positions
    with _guard:
        if len(_positions) < count:
            _positions = pa.array(np.arange(count, dtype=np.int32))
        return _positions.slice(0, count)


def _batch(view: SegmentView, names: Names, *, ahead: bool) -> pa.RecordBatch:
    """One segment's rows, all that are allocated."""
    rows = view.entry.rows - ahead
    base = pa.array([row_id_base(view.shard, view.entry.number)], pa.int64())
    arrays: dict[str, pa.Array] = {
        BASE: pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), base),
        POSITION: _shared_positions(rows),
    }
    for place, column in enumerate(names.schema.columns):
        arrays[names.own[place]] = _array(column, view.in_hot.buffer(place, 0, rows), rows)
        if ahead and column.owner == "observation":
            arrays[names.next[place]] = _array(column, view.in_hot.buffer(place, 1, rows + 1), rows)
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _empty_schema(names: Names, *, ahead: bool) -> pa.Schema:
    fields = [pa.field(BASE, pa.run_end_encoded(pa.int32(), pa.int64())), pa.field(POSITION, pa.int32())]
    for place, column in enumerate(names.schema.columns):
        fields.append(pa.field(names.own[place], arrow_type(column)))
        if ahead and column.owner == "observation":
            fields.append(pa.field(names.next[place], arrow_type(column)))
    return pa.schema(fields)


def _element_type(column: Column) -> pa.DataType:
    # DuckDB does not read Arrow's float16: its bits travel, as bfloat16's do, and a view makes floats of them.
    return pa.uint16() if column.dtype == "float16" else pa.from_numpy_dtype(column.storage)


def arrow_type(column: Column) -> pa.DataType:
    """What DuckDB sees of a column: lists of numbers, or bytes."""
    if column.encoding == "binary":
        return pa.binary(column.item_bytes)
    element = _element_type(column)
    return element if column.encoding == "primitive" else pa.list_(element, column.num_elements)


def _array(column: Column, content: pa.Buffer, rows: int) -> pa.Array:
    kind = arrow_type(column)
    if column.encoding != "tensor":
        return pa.Array.from_buffers(kind, rows, [None, content])
    child = pa.Array.from_buffers(_element_type(column), rows * column.num_elements, [None, content])
    return pa.Array.from_buffers(kind, rows, [None], children=[child])
