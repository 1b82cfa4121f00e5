"""The cold tier: a segment is one Parquet file, which any Parquet reader can open.

Only committed rows are in it, in order of position, with their ``row_id`` beside the columns of the hot tier. What a
tail does not have (action, reward, ...) is NULL, and so is a nullable extra where it is not valid. The block table
tells which row of the file a position is, and, by a byte a row, of which kind: drawing looks at nothing else.

A row group is the unit of random access. Its size was measured: SQL over row groups of 4,096 narrow rows takes three
times as long as over 32,768, while draws, which decode each group once for many batches, do not care. Rows with
images decode faster than they compress, and are read one by one more often: their groups are smaller.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ArrowRBError, CorruptError
from ..files import Mapping
from ..rows import Kind
from ..schema import Column, Schema
from .chunks import Chunks
from .columnar import as_slice
from .decoding import READING_ERRORS, Groups, open_file, plainly
from .hot import HotSegment, from_columns
from .statistics import wrong_statistics

ROW_ID: Final = "row_id"
_IDENTITY: Final = b"arrowrb.segment"
_GROUP_ROWS: Final = b"arrowrb.group_rows"
_MOST_GROUP_ROWS: Final = 1 << 15
_LEAST_GROUP_ROWS: Final = 1 << 5
_NARROW_ROW_BYTES: Final = 1 << 10
_NARROW_GROUP_BYTES: Final = 4 << 20
_WIDE_GROUP_BYTES: Final = 1 << 20
KIND: Final = 6  # its place in the schema
_serials = itertools.count()


def group_rows(schema: Schema) -> int:
    """Rows of a row group, a power of two."""
    row_bytes = schema.row_bytes
    target = _NARROW_GROUP_BYTES if row_bytes <= _NARROW_ROW_BYTES else _WIDE_GROUP_BYTES
    rows = _MOST_GROUP_ROWS
    while rows > _LEAST_GROUP_ROWS and rows * row_bytes > target:
        rows //= 2
    return rows


def column_names(columns: Sequence[Column]) -> list[str]:
    """Names of the columns in the file: their own, numbered where they differ in case only, which SQL ignores."""
    taken = {ROW_ID}
    names = []
    for column in columns:
        name, count = column.name, 0
        while name.casefold() in taken:
            count += 1
            name = f"{column.name}_{count}"
        taken.add(name.casefold())
        names.append(name)
    return names


def stored_type(column: Column) -> pa.DataType:
    """The Arrow type in the file: that of the hot tier, tensors as lists of their numbers."""
    kind = column.arrow_type
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.list_(pa.field("element", kind.value_type, nullable=False), column.num_elements)
    return kind


def file_schema(schema: Schema, identity: str) -> pa.Schema:
    """The file's schema, which names the segment in its metadata."""
    metadata = {_IDENTITY: identity.encode(), _GROUP_ROWS: str(group_rows(schema)).encode()}
    return _fields(schema).with_metadata(metadata)


@lru_cache(maxsize=8)
def _fields(schema: Schema) -> pa.Schema:
    """The file's schema without a segment; kept, since every segment that is opened is held against it."""
    masked = set(schema.masks)
    fields = [pa.field(ROW_ID, pa.int64(), nullable=False)]
    for column, name in zip(schema.columns, column_names(schema.columns), strict=True):
        nullable = column.owner == "transition" or column.name in masked
        field = column.field(name=name)
        fields.append(pa.field(name, stored_type(column), nullable=nullable, metadata=field.metadata))
    return pa.schema(fields)


def _read_numbers(file: pq.ParquetFile, group: int, column: str, name: str) -> NDArray[Any]:
    """A column of numbers of one row group."""
    try:
        values: NDArray[Any] = file.read_row_group(group, columns=[column], use_threads=False).column(0).to_numpy()
    except READING_ERRORS as error:
        raise CorruptError(
            f"Segment {name} is damaged: column {column!r}, row group {group}: {plainly(error)}."
        ) from None
    return values


def _without(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """A copy with zeros for what is not there."""
    values = values.copy()
    values[~valid] = 0
    return values


def read_kinds(path: Path, size: int, rows: int, base: int) -> NDArray[np.uint8]:
    """The kinds of a segment's rows, uint8[rows], from its file alone: for where its block table is lost.

    Raises:
        CorruptError: if the file's row ids are not such of this segment, in order.
    """
    file = open_file(Mapping(path, size=size), path.name)
    groups = range(file.num_row_groups)
    ids, found = (
        np.concatenate([np.zeros(0, kind), *(_read_numbers(file, group, column, path.name) for group in groups)])
        for column, kind in ((ROW_ID, np.int64), ("kind", np.uint8))
    )
    positions = ids - base
    inside = positions.size == 0 or (positions[0] >= 0 and positions[-1] < rows and (np.diff(positions) > 0).all())
    if not inside or positions.size != found.size:
        raise CorruptError(f"Segment {path.name} holds row ids of another segment, or not in order.")
    kinds = np.zeros(rows, np.uint8)
    kinds[positions] = found
    return kinds


class ColdSegment:
    """One mapped Parquet file with its block table's knowledge; decodes row groups.

    Attributes:
        serial: a number of its own, for caches.
        mapping: the file's.
        chunks: reads columns of the file, for scans.
        rows, block_rows: allocated when it was hot; positions count in these.
        kinds: uint8[rows], 0 where nothing was committed.
        fills: int32[blocks], committed rows.
        starts: int64[blocks], the row of the file at which each block begins.
        group_shift: a row group has ``1 << group_shift`` rows.
        decoded: int64[groups, columns], addresses of columns that a cache holds decoded; 0: it does not.
        used: uint8[groups], set by whoever reads decoded columns.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        identity: str,
        size: int,
        *,
        block_rows: int,
        fills: NDArray[np.int64],
        kinds: NDArray[np.uint8],
    ) -> None:
        """Map a segment's file and check that it is what the manifest says."""
        try:
            self.mapping = Mapping(path, size=size)
            file = open_file(self.mapping, path.name)
        except ArrowRBError as error:
            raise CorruptError(f"Segment {path.name} cannot be used: {error}") from (
                error.__cause__ if isinstance(error.__cause__, FileNotFoundError) else None
            )
        self.serial = next(_serials)
        self.columns = schema.columns
        self.rows, self.block_rows, self.kinds = kinds.size, block_rows, kinds
        self.fills = fills.astype(np.int32)
        self.starts = np.concatenate([[0], np.cumsum(fills)[:-1]]).astype(np.int64)
        self._masked = {place for place, column in enumerate(schema.columns) if column.name in schema.masks}
        self._check(file, schema, identity, int(fills.sum()))
        self._groups = Groups(self.mapping, file, schema.columns, _fields(schema))
        self.chunks = Chunks(self._groups.footer)
        num_groups = self.num_groups
        self.decoded = np.zeros((max(num_groups, 1), len(schema.columns)), np.int64)
        self.used = np.zeros(max(num_groups, 1), np.uint8)

    def _check(self, file: pq.ParquetFile, schema: Schema, identity: str, num_rows: int) -> None:
        """Refuse a file of another segment or schema."""
        name = self.mapping.path.name
        try:
            found, footer = file.schema_arrow, file.metadata
            counts = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        except READING_ERRORS as error:
            raise CorruptError(f"Segment {name} is damaged: {plainly(error)}.") from None
        metadata = found.metadata or {}
        if metadata.get(_IDENTITY) != identity.encode():
            raise CorruptError(f"Segment {name} belongs to another segment or store.")
        if not found.equals(_fields(schema), check_metadata=False):
            raise CorruptError(f"Segment {name} has other columns than the store's schema.")
        groups = metadata.get(_GROUP_ROWS, b"")
        rows = int(groups) if groups.isdigit() else 0
        whole = all(count == rows for count in counts[:-1]) and (not counts or counts[-1] <= rows)
        if rows < 1 or rows & (rows - 1) or not whole or sum(counts) != num_rows:
            raise CorruptError(f"Segment {name} has other row groups than it says.")
        self.group_shift = rows.bit_length() - 1

    @cached_property
    def group_transitions(self) -> NDArray[np.int64]:
        """How many transitions each row group has, int64[groups]."""
        step = 1 << self.group_shift
        parts = [self.file_kinds[group * step : (group + 1) * step] for group in range(self.num_groups)]
        return np.array([np.count_nonzero(part == np.uint8(Kind.TRANSITION)) for part in parts], np.int64)

    @cached_property
    def file_kinds(self) -> NDArray[np.uint8]:
        """The kinds of the file's rows, uint8[num_rows]."""
        return self.kinds if self.kinds.all() else self.kinds[self.kinds != 0]

    def table_row(self) -> tuple[int, int, int, int, int]:
        """What kernels need to know of it; the addresses live as long as it does."""
        starts, decoded, used = (each.__array_interface__["data"][0] for each in (self.starts, self.decoded, self.used))
        return starts, self.block_rows, self.group_shift, decoded, used

    def decode(self, group: int, places: Sequence[int]) -> list[NDArray[Any]]:
        """Columns (by place in the schema) of one row group, each [rows, *shape], contiguous.

        Values that are NULL are zero bytes where a mask tells of them, and anything otherwise (in tails).
        """
        try:
            found = self._groups.read(group, places, valid=self._masked)
        except READING_ERRORS as error:
            if len(places) > 1:
                for place in places:
                    self.decode(group, [place])  # which names the column
            raise CorruptError(
                f"Segment {self.mapping.path.name} is damaged: column "
                f"{', '.join(repr(self.columns[place].name) for place in places)}, row group {group}: "
                f"{plainly(error)}."
            ) from None
        return [
            values if valid is None or place not in self._masked else _without(values, valid)
            for place, (values, valid) in zip(places, found, strict=True)
        ]

    @property
    def num_groups(self) -> int:
        """Row groups of the file."""
        return int(self._groups.footer.metadata.num_row_groups)

    @cached_property
    def group_spans(self) -> list[NDArray[np.int64] | slice]:
        """The positions of the rows of each row group."""
        positions, step = np.flatnonzero(self.kinds), 1 << self.group_shift
        return [as_slice(positions[group * step : (group + 1) * step]) for group in range(self.num_groups)]

    def positions(self, group: int) -> tuple[int, int]:
        """First and stop of the positions that a row group covers."""
        chosen = np.flatnonzero(self.kinds)[group << self.group_shift : (group + 1) << self.group_shift]
        return (int(chosen[0]), int(chosen[-1]) + 1) if chosen.size else (0, 0)

    def group_row_ids(self, group: int) -> NDArray[np.int64]:
        """The row ids that a row group holds, in order of position."""
        with self._groups.borrow() as file:
            return _read_numbers(file, group, ROW_ID, self.mapping.path.name)

    def wrong_statistics(self, group: int, columns: dict[int, tuple[NDArray[Any], int]]) -> list[int]:
        """Columns of a row group whose statistics, by which queries pass over it, are not those of its rows.

        Args:
            group: its number.
            columns: of single values, by their places in the schema (-1 for the row ids): the values that are there,
                and how many are missing.

        Raises:
            CorruptError: if the footer is damaged.
        """
        self.chunks.table()  # before Arrow is asked about them
        leaves = {place + 1: column for place, column in columns.items()}
        return [leaf - 1 for leaf in wrong_statistics(self._groups.footer.metadata.row_group(group), leaves)]

    def column(self, place: int) -> NDArray[Any]:
        """A whole column as it lay in the hot tier, [rows, *shape]: zeros where nothing was committed, or is NULL."""
        return self.whole([place])[0]

    def whole(self, places: Sequence[int], *, into: Sequence[NDArray[Any]] | None = None) -> list[NDArray[Any]]:
        """Several of these columns, in arrays that are given or new; each row group is read once for all of them."""
        columns = [self.columns[place] for place in places]
        whole = [np.zeros((self.rows, *column.shape), column.storage) for column in columns] if into is None else into
        for group, rows in enumerate(self.group_spans):
            for target, values in zip(whole, self.decode(group, places), strict=True):
                target[rows] = values
        free, tails = np.flatnonzero(self.kinds == 0), np.flatnonzero(self.kinds != Kind.TRANSITION)
        for target, column in zip(whole, columns, strict=True):
            target[tails if column.owner == "transition" else free] = 0
        return list(whole)

    def in_memory(self) -> HotSegment:
        """The whole segment as if it had stayed hot, in memory of its own."""
        return from_columns(self.mapping.path, self.columns, self.whole(range(len(self.columns))))
