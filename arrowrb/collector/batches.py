"""Events, or rows of a store -> the record batch that a collector yields: ordered by lane, then step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from arrowrb.engine import Located, Snapshot
from arrowrb.events import Events
from arrowrb.schema import SYSTEM_COLUMNS, Column, Schema
from arrowrb.schema.arrays import column_array

_Write = Callable[[NDArray[Any]], pa.Array]
_ROW_ID = Column("row_id", "int64", (), "row")
_NAMES: Final = ("lane", "episode_id", "step", "time", "policy_version")
_SYSTEM = {column.name: column for column in SYSTEM_COLUMNS}


@dataclass(frozen=True, slots=True)
class _Source:
    """A column of the batch: which array of the events holds it, and its valid flags (-1: not nullable)."""

    column: Column
    index: int
    valid: int


class Batches:
    """Makes record batches of one schema."""

    def __init__(self, schema: Schema, num_lanes: int, *, with_row_id: bool) -> None:
        """Fix the columns.

        Args:
            schema: The schema of the events.
            num_lanes: The lanes of the tape that the events come from.
            with_row_id: Whether the batches start with `row_id`.
        """
        self._with_row_id = with_row_id
        self._num_lanes = num_lanes
        names = ["row_id"] if with_row_id else []
        names += _NAMES
        self._places = schema.places
        self._observed = [schema.places[column.name] for column in schema.observation_columns]
        self._followed = [schema.places[column.name] for column in schema.transition_columns]
        num_leaves = len(schema.observation_tree.paths)
        first_extra = 3 + len(schema.action_tree.paths)
        observed = _sources(schema, schema.observation_columns)
        followed = _sources(schema, schema.transition_columns)
        leaves = [source for source in observed if source.index < num_leaves]
        entries = [source for source in observed if source.index >= num_leaves]
        # What to read, from where, in the order of the batch.
        sources = [("observation", source) for source in leaves]
        sources += [("outcome", source) for source in followed if 2 <= source.index < first_extra]
        sources += [("next", source) for source in leaves]
        sources += [("outcome", source) for source in followed if source.index < 2]
        sources += [("observation", source) for source in entries]
        sources += [("outcome", source) for source in followed if source.index >= first_extra]
        sources += [("next", source) for source in entries]
        self._columns = [(what, source, _writer(source.column)) for what, source in sources]
        system = [_ROW_ID if name == "row_id" else _SYSTEM[name] for name in names]
        self._system = [(column.storage, _writer(column)) for column in system]
        fields = [column.field(batch=True) for column in system]
        for what, source in sources:
            name = ("next_" if what == "next" else "") + source.column.name
            fields.append(source.column.field(batch=True, name=name, nullable=source.valid >= 0))
        self.schema = pa.schema(fields)

    def build(self, events: Events, row_ids: NDArray[np.int64]) -> pa.RecordBatch:
        """The batch of a tape's events, whose episodes and steps have been filled in. Copies everything."""
        order = None if self._num_lanes == 1 else _by_lane(events.lane)
        system: tuple[NDArray[Any], ...] = (events.lane, events.episode_id, events.step, events.time)
        system = (row_ids, *system) if self._with_row_id else system
        system = (*system, events.policy_version)
        following = events.next_observation if order is None else events.next_observation[order]
        rows = _Rows(events.row, order)
        outside = np.flatnonzero(following < 0)
        # Elsewhere the next observation is one row of lanes further down the tape.
        after = rows.shifted(self._num_lanes)
        places = ~following[outside]

        def read(what: str, index: int) -> NDArray[Any]:
            if what == "outcome":
                return rows.of(events.outcome[index])
            if what == "observation":
                return rows.of(events.arrived[index])
            values = after.of(events.arrived[index])
            if outside.size:
                values[outside] = events.final[index][places]
            return values

        return self._assemble([values if order is None else values[order] for values in system], read)

    def read(self, snapshot: Snapshot, rows: Located, schema: pa.Schema | None = None) -> pa.RecordBatch:
        """The batch of rows that are in a store, in their order; its schema may be given metadata."""
        system, keys = self._stored
        values = snapshot.read(rows, [*system, *set(keys.values())])
        arrays = [rows.row_ids, *(values[key] for key in system)]
        return self._assemble(arrays, lambda what, index: values[keys[what, index]], schema)

    @cached_property
    def _stored(self) -> tuple[list[tuple[int, int]], dict[tuple[str, int], tuple[int, int]]]:
        """Where a store has the system columns and the others: the place of each, and 1 for the row behind."""
        owners = {"outcome": self._followed, "observation": self._observed, "next": self._observed}
        keys = {
            (what, index): (owners[what][index], int(what == "next"))
            for what, source, _ in self._columns
            for index in (source.index, source.valid)
            if index >= 0
        }
        return [(self._places[name], 0) for name in _NAMES], keys

    def _assemble(
        self,
        system: Sequence[NDArray[Any]],
        read: Callable[[str, int], NDArray[Any]],
        schema: pa.Schema | None = None,
    ) -> pa.RecordBatch:
        """The batch of these system columns, and of what `read` gives for each other one."""
        arrays = [write(np.array(values, dtype)) for values, (dtype, write) in zip(system, self._system, strict=True)]
        for what, source, write in self._columns:
            values = read(what, source.index)
            if source.valid < 0:
                arrays.append(write(values))
            else:
                arrays.append(column_array(source.column, values, valid=read(what, source.valid)))
        return pa.RecordBatch.from_arrays(arrays, schema=schema or self.schema)


def _by_lane(lane: NDArray[np.int64]) -> NDArray[np.int64]:
    # A stable sort of 16-bit integers is a radix sort.
    first = int(lane.min())
    small = (lane - first).astype(np.int16) if int(lane.max()) - first < 2**15 else lane
    return np.argsort(small, kind="stable")


class _Rows:
    """Rows to copy out of arrays, as a slice where they adjoin."""

    __slots__ = ("_index", "_slice")

    def __init__(self, index: NDArray[np.int64], order: NDArray[np.int64] | None) -> None:
        """Take rows in ascending order, or in another order."""
        self._index = index if order is None else index[order]
        self._slice: slice | None = None
        if order is None and index.size and index[-1] - index[0] == index.size - 1:
            self._slice = slice(int(index[0]), int(index[-1]) + 1)

    def shifted(self, distance: int) -> _Rows:
        """The rows so far further down."""
        other = _Rows.__new__(_Rows)
        other._index, other._slice = self._index, None
        if self._slice is None:
            other._index = self._index + distance
        else:
            other._slice = slice(self._slice.start + distance, self._slice.stop + distance)
        return other

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy of the rows."""
        return array.take(self._index, axis=0) if self._slice is None else array[self._slice].copy()


def _writer(column: Column) -> _Write:
    """What makes the Arrow array of a column without nulls; it shares the memory of values in the storage dtype."""
    arrow_type, make, buffer = column.batch_arrow_type, pa.Array.from_buffers, pa.py_buffer
    if pa.types.is_boolean(arrow_type):
        return lambda v: make(arrow_type, len(v), [None, buffer(np.packbits(v, bitorder="little"))], 0)
    if column.encoding != "tensor":
        return lambda v: make(arrow_type, len(v), [None, buffer(v)], 0)
    item = arrow_type.value_type
    lists = pa.list_(item, column.num_elements)

    def tensor(values: NDArray[Any]) -> pa.Array:
        items = make(item, values.size, [None, buffer(values)], 0)
        storage = make(lists, len(values), [None], 0, children=[items])
        return pa.ExtensionArray.from_storage(arrow_type, storage)

    return tensor


def _sources(schema: Schema, columns: tuple[Column, ...]) -> list[_Source]:
    place = {column.name: index for index, column in enumerate(columns)}
    masks = schema.masks
    flags = set(masks.values())
    return [
        _Source(column, index, place[masks[column.name]] if column.name in masks else -1)
        for index, column in enumerate(columns)
        if column.name not in flags
    ]
