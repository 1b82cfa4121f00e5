"""Rows of cold segments, read when DuckDB scans them: the columns and row groups that a statement needs, no others.

DuckDB asks an Arrow dataset for a scanner of some columns under a condition, and does not look at the condition again.
Arrow's own scanner took longer to pick the rows than to decode them, and hands on small batches.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..parquet.bitmaps import pack_bits
from ..rows import Kind
from ..schema import Column, Schema
from ..tiers import cold
from ..tiers.cold import ColdSegment
from ..tiers.columnar import in_one_piece
from .conditions import Term, terms_of

_PART_BYTES: Final = 4 << 20
_NARROW_BYTES: Final = 8
_MOST_THREADS: Final = 8
_KIND: Final = "kind"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Row groups of a segment."""

    segment: ColdSegment
    groups: range


@dataclass(frozen=True)
class ColdRows:
    """The rows of some kinds in cold segments. Immutable; may be scanned by several threads.

    Attributes:
        segments: whose rows.
        layout: the store's schema.
        kinds: kinds of the rows.
        threads: how many read at once.
    """

    segments: tuple[ColdSegment, ...]
    layout: Schema
    kinds: tuple[Kind, ...]
    threads: int

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The columns by their names in the files."""
        return dict(zip(cold.column_names(self.layout.columns), self.layout.columns, strict=True))

    @cached_property
    def schema(self) -> pa.Schema:
        """What DuckDB sees: the columns of the files, but for float16, which it does not read from Arrow."""
        fields = [pa.field(cold.ROW_ID, pa.int64())]
        for name, column in self.columns.items():
            kind = cold.stored_type(column)
            if column.dtype == "float16" and column.encoding != "binary":
                kind = pa.list_(pa.float32(), column.num_elements) if column.shape else pa.float32()
            fields.append(pa.field(name, kind))
        return pa.schema(fields)

    def item_bytes(self, name: str) -> int:
        """Bytes of a value of a column."""
        return self.columns[name].item_bytes if name in self.columns else 8

    def has_nulls(self, name: str) -> bool:
        """Whether a column may be NULL in rows of these kinds."""
        if name not in self.columns:
            return False
        column = self.columns[name]
        tails = self.kinds != (Kind.TRANSITION,)
        return column.name in self.layout.masks or (tails and column.owner == "transition")

    def dataset(self) -> Any:
        """An Arrow dataset for DuckDB to scan, and for nothing else."""
        return _dataset_class()(self)


@cache
def _dataset_class() -> Any:
    import pyarrow.dataset as ds

    class Dataset(ds.Dataset):  # type: ignore[misc]
        """What DuckDB uses of a dataset: its schema, and scanners."""

        def __init__(self, rows: ColdRows) -> None:
            self._rows = rows

        @property
        def schema(self) -> pa.Schema:
            return self._rows.schema

        def scanner(self, columns: Sequence[str] | None = None, filter: Any = None) -> _Scan:  # noqa: A002
            return _Scan(self._rows, columns, filter)

    return Dataset


class _Scan:
    """Reads some columns of the rows that fulfil a condition."""

    def __init__(self, rows: ColdRows, names: Sequence[str] | None, condition: Any) -> None:
        self._rows, self._condition = rows, condition
        self._names = rows.schema.names if names is None else list(names)
        self._schema = pa.schema([rows.schema.field(name) for name in self._names])
        found = None if condition is None else terms_of(condition, rows.schema)
        # They are faster by far, but know nothing of NULL.
        self._terms = None if found is None or any(rows.has_nulls(term.name) for term in found) else found
        asked = [] if condition is None else _named_in(condition, self._terms, rows.schema.names)
        self._row_bytes = sum(rows.item_bytes(name) for name in {*self._names, *asked})
        # Wide columns are read only where a row is left.
        narrow = [name for name in self._names if rows.item_bytes(name) <= _NARROW_BYTES]
        self._first = [name for name in dict.fromkeys([*asked, *narrow]) if name != _KIND]

    def to_reader(self) -> pa.RecordBatchReader:
        """The rows as batches, which are read when they are asked for."""
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for batches in _ahead(self._read, self._parts(), self._rows.threads):
            yield from batches

    def _parts(self) -> Iterator[list[_Piece]]:
        """What is read at once: one piece at first, since often no more is asked for, then some megabytes."""
        part: list[_Piece] = []
        size, target = 0, 0
        for segment in self._rows.segments:
            group_bytes = self._row_bytes << segment.group_shift
            step = max(1, _PART_BYTES // group_bytes)
            for first in range(0, segment.num_groups, step):
                groups = range(first, min(first + step, segment.num_groups))
                part.append(_Piece(segment, groups))
                size += len(groups) * group_bytes
                if size >= target:
                    yield part
                    part, size, target = [], 0, _PART_BYTES
        if part:
            yield part

    def _read(self, part: list[_Piece]) -> list[pa.RecordBatch]:
        tables = [table for piece in part if (table := self._read_piece(piece)) is not None]
        return [batch for table in tables for batch in table.to_batches()]

    def _read_piece(self, piece: _Piece) -> pa.Table | None:
        segment, groups = piece.segment, list(piece.groups)
        groups = self._matching(segment, groups)
        if not groups:
            return None
        packed = self._packed(segment, groups)
        if self._condition is None and len(packed) == len(self._names) > 0:
            return pa.Table.from_arrays([packed[name] for name in self._names], schema=self._schema)
        kinds = _groups_of(segment.file_kinds, groups, 1 << segment.group_shift)
        # Compared with a number of another type, a byte would become one first.
        keep = np.logical_or.reduce([kinds == np.uint8(kind) for kind in self._rows.kinds])
        first = [name for name in self._first if name not in packed]
        known = {_KIND: pa.chunked_array([_bytes(kinds)])} | self._columns(segment, groups, first)
        if self._terms is not None:
            for term in self._terms:
                keep &= term.holds(_values(known[term.name]))
        elif self._condition is not None:
            keep &= _fulfilled(self._condition, known)
        if not keep.any():
            return None
        later = [name for name in self._names if name not in known and name not in packed]
        known |= self._columns(segment, groups, later)
        mask = _mask_of(keep)
        # Among what is packed, there is nothing of other rows.
        of_packed = (
            _mask_of(keep[kinds == np.uint8(Kind.TRANSITION)]) if packed and self._condition is not None else None
        )
        picked = [
            _picked(packed[name], of_packed) if name in packed else _picked(known[name], mask) for name in self._names
        ]
        return pa.Table.from_arrays(picked, schema=self._schema)

    def _packed(self, segment: ColdSegment, groups: list[int]) -> dict[str, pa.Array]:
        """Columns that are NULL in tails only, without these, where no more than transitions are wanted."""
        if self._rows.kinds != (Kind.TRANSITION,) or (self._condition is not None and self._terms is None):
            return {}
        count, found = int(segment.group_transitions[groups].sum()), {}
        for name in self._names:
            column = self._rows.columns.get(name)
            if column is None or column.owner != "transition" or column.shape or self._rows.has_nulls(name):
                continue
            if column.dtype in ("float32", "float64"):
                values = segment.chunks.packed(groups, name, count, column.storage)
                if values is not None:
                    kind = self._rows.schema.field(name).type
                    found[name] = pa.Array.from_buffers(kind, count, [None, pa.py_buffer(values)])
        return found

    def _matching(self, segment: ColdSegment, groups: list[int]) -> list[int]:
        """Those row groups that may hold rows which fulfil the condition."""
        if self._terms is not None:
            for term in self._terms:
                found = term.possible(*segment.chunks.bounds(term.name))
                groups = [group for group in groups if found[group]]
        elif self._condition is not None:
            matching = set(segment.chunks.matching(self._condition, self._rows.schema))
            groups = [group for group in groups if group in matching]
        return groups

    def _columns(self, segment: ColdSegment, groups: Sequence[int], names: list[str]) -> dict[str, pa.ChunkedArray]:
        """Columns of the file as DuckDB sees them."""
        found = dict(zip(names, segment.chunks.read(groups, names), strict=True)) if names else {}
        kinds = {name: self._rows.schema.field(name).type for name in names}
        for name, column in found.items():
            if column.type != kinds[name]:
                found[name] = column.cast(kinds[name])
            elif column.null_count and not self._rows.has_nulls(name):
                # In no row that is wanted; and Arrow takes five times as long over an array with a bitmap.
                found[name] = pa.chunked_array([_filled(chunk) for chunk in column.chunks])
        return found


def _named_in(condition: Any, terms: Sequence[Term] | None, names: Sequence[str]) -> list[str]:
    """The columns that a condition is of, or some more: it does not tell, but its text holds the names of them all."""
    if terms is not None:
        return [term.name for term in terms]
    text = str(condition)
    return [name for name in names if name in text]


def _groups_of(values: NDArray[np.uint8], groups: Sequence[int], rows: int) -> NDArray[np.uint8]:
    """What a file's values, one a row, are in some row groups; in order."""
    if groups[-1] - groups[0] == len(groups) - 1:
        return values[groups[0] * rows : (groups[-1] + 1) * rows]
    return np.concatenate([values[group * rows : (group + 1) * rows] for group in groups])


def _bytes(values: NDArray[np.uint8]) -> pa.Array:
    return pa.Array.from_buffers(pa.uint8(), values.size, [None, pa.py_buffer(values)])


def _picked(column: Any, mask: pa.BooleanArray | None) -> Any:
    return column if mask is None else column.filter(mask)


def _mask_of(keep: NDArray[np.bool_]) -> pa.BooleanArray | None:
    """Which rows to keep, for Arrow; None: all."""
    bits = pack_bits(keep)
    return None if bits is None else pa.BooleanArray.from_buffers(pa.bool_(), keep.size, [None, bits])


def _filled(array: pa.Array) -> pa.Array:
    """An array with anything in place of NULL; not copied."""
    content: dict[str, Any] = {"buffers": [None, *array.buffers()[1:2]]}
    if pa.types.is_fixed_size_list(array.type):
        content = {"buffers": [None], "children": [array.values]}
    return pa.Array.from_buffers(array.type, len(array), offset=array.offset, **content)


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of numbers without NULL; not copied where it is one piece."""
    values: NDArray[Any] = column.to_numpy()
    return values


def _fulfilled(condition: Any, columns: dict[str, pa.ChunkedArray]) -> NDArray[np.bool_]:
    """Which rows fulfil a condition; where it is NULL, they do not."""
    import pyarrow.acero as ac

    source = ac.Declaration("table_source", ac.TableSourceNodeOptions(pa.table(columns)))
    project = ac.Declaration("project", ac.ProjectNodeOptions([condition], ["found"]), [source])
    found = in_one_piece(project.to_table(use_threads=False).column("found")).fill_null(False)
    values: NDArray[np.bool_] = found.cast(pa.uint8()).to_numpy().view(np.bool_)
    return values


def _ahead(
    read: Callable[[list[_Piece]], list[pa.RecordBatch]], parts: Iterator[list[_Piece]], threads: int
) -> Iterator[list[pa.RecordBatch]]:
    """Read parts in order, in so many threads while what came before is used."""
    yield from map(read, itertools.islice(parts, 1 if threads > 1 else None))
    second = next(parts, None)
    if second is None:
        return
    waiting: deque[Future[list[pa.RecordBatch]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="arrowrb-sql")
    try:
        for part in itertools.chain([second], parts):
            waiting.append(pool.submit(read, part))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def count_threads(threads: int | None) -> int:
    """How many threads read: those of the query, by default one a core that this process may use, but not many.

    Each has a part in memory, and all of them share Python's lock.
    """
    return min(threads or len(os.sched_getaffinity(0)), _MOST_THREADS)
