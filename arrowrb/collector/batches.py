"""Events -> the record batch that a collector yields: ordered by lane, then step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from arrowrb.events import Events
from arrowrb.schema import SYSTEM_COLUMNS, Column, Schema
from arrowrb.schema.arrays import column_array

_ROW_ID = Column("row_id", "int64", (), "row")
_SYSTEM = {column.name: column for column in SYSTEM_COLUMNS}


@dataclass(frozen=True, slots=True)
class _Source:
    """A column of the batch: which array of the events holds it, and its valid flags (-1: not nullable)."""

    column: Column
    index: int
    valid: int


class Batches:
    """Makes record batches of one schema."""

    def __init__(self, schema: Schema, *, with_row_id: bool) -> None:
        """Fix the columns.

        Args:
            schema: The schema of the events.
            with_row_id: Whether the batches start with `row_id`.
        """
        self._with_row_id = with_row_id
        names = ["row_id"] if with_row_id else []
        names += ["lane", "episode_id", "step", "time", "policy_version"]
        num_leaves = len(schema.observation_tree.paths)
        first_extra = 3 + len(schema.action_tree.paths)
        observed = _sources(schema, schema.observation_columns)
        followed = _sources(schema, schema.transition_columns)
        leaves = [source for source in observed if source.index < num_leaves]
        entries = [source for source in observed if source.index >= num_leaves]
        # Each: served name, what to read, source. The order is that of the batch.
        self._columns: list[tuple[str, str, _Source]] = []
        self._columns += [(source.column.name, "observation", source) for source in leaves]
        self._columns += [(s.column.name, "outcome", s) for s in followed if 2 <= s.index < first_extra]
        self._columns += [("next_" + source.column.name, "next", source) for source in leaves]
        self._columns += [(s.column.name, "outcome", s) for s in followed if s.index < 2]
        self._columns += [(source.column.name, "observation", source) for source in entries]
        self._columns += [(s.column.name, "outcome", s) for s in followed if s.index >= first_extra]
        self._columns += [("next_" + source.column.name, "next", source) for source in entries]
        fields = [(_ROW_ID if name == "row_id" else _SYSTEM[name]).field(batch=True) for name in names]
        fields += [
            s.column.field(batch=True, name=name, nullable=s.valid >= 0) for name, _, s in self._columns
        ]
        self.schema = pa.schema(fields)

    def build(self, events: Events, row_ids: NDArray[np.int64]) -> pa.RecordBatch:
        """The batch of some events, whose episodes and steps have been filled in. Copies everything."""
        lane = events.lane
        if np.any(lane[1:] < lane[:-1]):
            small = lane.astype(np.int16) if int(lane.max()) < 2**15 else lane  # radix sort
            order: NDArray[np.int64] | slice = np.argsort(small, kind="stable")
        else:
            order = slice(None)
        arrays: list[pa.Array] = []
        if self._with_row_id:
            arrays.append(pa.array(np.ascontiguousarray(row_ids[order])))
        arrays.append(pa.array(lane[order].astype(np.int32)))
        arrays.append(pa.array(np.ascontiguousarray(events.episode_id[order])))
        arrays.append(pa.array(events.step[order].astype(np.int32)))
        arrays.append(pa.array(np.ascontiguousarray(events.time[order])))
        arrays.append(pa.array(events.policy_version[order].astype(np.int32)))
        rows, following = _Rows(events.row[order]), events.next_observation[order]
        observed = _Rows(events.observation[order])
        outside = np.flatnonzero(following < 0)
        inside = _Rows(np.where(following < 0, 0, following) if outside.size else following)
        places = ~following[outside]

        def read(what: str, index: int) -> NDArray[np.generic]:
            if what == "outcome":
                return rows.of(events.outcome[index])
            if what == "observation":
                return observed.of(events.arrived[index])
            values = inside.of(events.arrived[index])
            if outside.size:
                values[outside] = events.final[index][places]
            return values

        for _, what, source in self._columns:
            valid = read(what, source.valid) if source.valid >= 0 else None
            arrays.append(column_array(source.column, read(what, source.index), valid=valid))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


class _Rows:
    """Rows to copy out of arrays, as a slice where they adjoin."""

    __slots__ = ("_index", "_slice")

    def __init__(self, index: NDArray[np.int64]) -> None:
        self._index = index
        self._slice: slice | None = None
        if index.size and index[-1] - index[0] == index.size - 1 and bool((np.diff(index) == 1).all()):
            self._slice = slice(int(index[0]), int(index[-1]) + 1)

    def of(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """A copy of the rows."""
        return array.take(self._index, axis=0) if self._slice is None else array[self._slice].copy()


def _sources(schema: Schema, columns: tuple[Column, ...]) -> list[_Source]:
    place = {column.name: index for index, column in enumerate(columns)}
    masks = schema.masks
    flags = set(masks.values())
    return [
        _Source(column, index, place[masks[column.name]] if column.name in masks else -1)
        for index, column in enumerate(columns)
        if column.name not in flags
    ]
