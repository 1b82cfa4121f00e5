"""The hot tier: a segment is a preallocated, valid Arrow IPC file with one record batch, filled in place.

Any Arrow reader can open the file at every moment. Rows that are not written yet are zero bytes, their ``kind`` is 0.
Buffer positions are read off the file with pyarrow (nothing here parses flatbuffers), checked, and turned into
addresses in one mapping.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ArrowRBError, CorruptError
from ..files import PAGE, Mapping, allocate, explaining, sync_descriptor, write_at
from ..schema import Column

_PADDING: Final = b"arrowrb.padding"
_IDENTITY: Final = b"arrowrb.segment"
_BLOCK_ROWS: Final = b"arrowrb.block_rows"
_MAGIC: Final = b"ARROW1\0\0"
# What Arrow raises over a damaged file: its own errors, those of a name or text, and ours.
_READING_ERRORS: Final = (pa.ArrowException, ArrowRBError, OSError, ValueError, LookupError, OverflowError)


class Fields(Protocol):
    """What a file has columns of: a schema, for one."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Each, in order."""
        ...

    @property
    def arrow_schema(self) -> pa.Schema:
        """The same, as they lie in files."""
        ...


NOTE: Final = b"arrowrb.note"  # what a schema may say beside its columns


def file_schema(schema: Fields, identity: str, block_rows: int, padding: int = 0) -> pa.Schema:
    """The Arrow schema of a segment's file, which names the segment and its blocks' rows in its metadata."""
    told = {_IDENTITY: identity.encode(), _BLOCK_ROWS: str(block_rows).encode(), _PADDING: b"." * padding}
    if NOTE in (schema.arrow_schema.metadata or {}):
        told[NOTE] = schema.arrow_schema.metadata[NOTE]
    return schema.arrow_schema.with_metadata(told)


def _empty_batch(columns: tuple[Column, ...], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """A batch of zero bytes; its memory is never touched (fresh zero pages are shared)."""
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        storage = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
        data = pa.py_buffer(np.zeros(rows * column.item_bytes, np.uint8))
        if pa.types.is_fixed_size_list(storage):
            child = pa.Array.from_buffers(storage.value_type, rows * storage.list_size, [None, data])
            array = pa.Array.from_buffers(storage, rows, [None], children=[child])
        else:
            array = pa.Array.from_buffers(storage, rows, [None, data])
        if isinstance(field.type, pa.BaseExtensionType):
            array = pa.ExtensionArray.from_storage(field.type, array)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _data_buffer(array: pa.Array) -> pa.Buffer:
    """The one buffer that holds a column's values; refuses validity bitmaps and offsets."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    buffers = array.buffers()
    if array.offset != 0 or array.null_count != 0 or any(each is not None for each in buffers[:-1]):
        raise CorruptError("a column has nulls or an offset")
    return buffers[-1]


def _body_start(columns: tuple[Column, ...], schema: pa.Schema) -> int:
    """Where the first column's values begin in a file of this schema."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(_empty_batch(columns, schema, 8))
    content = sink.getvalue()
    batch = pa.ipc.open_file(content).get_batch(0)
    return int(_data_buffer(batch.column(0)).address - content.address)


class _Skeleton:
    """A file object that takes an IPC file's metadata and passes over its columns, which are zero bytes anyway.

    Arrow hands metadata over as bytes and columns as buffers.
    """

    closed = False

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.position = 0

    def write(self, content: bytes | pa.Buffer) -> int:
        if self._descriptor is not None and isinstance(content, bytes):
            write_at(self._descriptor, content, self.position)
        size = len(content)
        self.position += size
        return size

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _write_skeleton(batch: pa.RecordBatch, descriptor: int | None) -> int:
    """Write all of a batch's IPC file but its columns; returns the size of the file. None only measures."""
    skeleton = _Skeleton(descriptor)
    with pa.PythonFile(skeleton, mode="w") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return skeleton.position


def create(path: Path, schema: Fields, identity: str, rows: int, block_rows: int, *, sync: bool) -> int:
    """Create a segment file with all its space allocated; returns its size.

    Only the metadata is written: allocated space reads as zeros, and syncing it costs little. The file takes its name
    when it is whole. A crash in the middle leaves a file that no manifest lists.
    """
    fields = file_schema(schema, identity, block_rows)
    padding = -_body_start(schema.columns, fields) % PAGE
    batch = _empty_batch(schema.columns, file_schema(schema, identity, block_rows, padding), rows)
    size = _write_skeleton(batch, None)
    temporary = path.with_name(f".{path.name}.tmp")
    with explaining(path, "removing what an earlier try left"), contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = allocate(temporary, size)
    try:
        with explaining(path, "creating a segment"):
            _write_skeleton(batch, descriptor)
            if sync:
                sync_descriptor(descriptor, path)
            os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    return size


def warm(segment: HotSegment) -> None:
    """Touch every page of a fresh segment's columns, so that the first write to each costs no page fault."""
    first, last = int(segment.offsets[0]), len(segment.columns) - 1
    stop = int(segment.offsets[last]) + segment.rows * segment.columns[last].item_bytes
    segment.mapping.clear(first, stop)


@dataclass(frozen=True, slots=True)
class HotSegment:
    """One mapped segment file; ``addresses`` (one a column, in schema order) live as long as it does."""

    mapping: Mapping
    columns: tuple[Column, ...]
    rows: int
    offsets: NDArray[np.int64]

    @property
    def addresses(self) -> NDArray[np.int64]:
        """Address of each column's first value."""
        return self.offsets + self.mapping.address

    def column(self, index: int) -> NDArray[Any]:
        """A column's values, shaped [rows, *shape], in storage dtype. No copy; keeps the mapping alive."""
        column = self.columns[index]
        count = self.rows * column.num_elements
        flat = self.mapping.array(int(self.offsets[index]), count, column.storage)
        return flat.reshape(self.rows, *column.shape)

    def buffer(self, index: int, first: int, stop: int) -> pa.Buffer:
        """The bytes of rows ``first`` to ``stop`` of a column as an Arrow buffer that keeps the mapping alive."""
        item = self.columns[index].item_bytes
        if not 0 <= first <= stop <= self.rows:
            raise CorruptError(f"{self.mapping.path.name}: rows {first} to {stop} lie outside it.")
        address = self.mapping.address + int(self.offsets[index]) + first * item
        return pa.foreign_buffer(address, (stop - first) * item, base=self.mapping)


def open_segment(
    path: Path, schema: Fields, identity: str, rows: int, size: int, *, writable: bool = False
) -> HotSegment:
    """Map a segment's file and check that it is what the manifest says."""
    mapping = Mapping(path, writable=writable, size=size)
    try:
        with explaining(path, "reading the header"):
            content = pa.foreign_buffer(mapping.address, mapping.size, base=mapping)
            reader = pa.ipc.open_file(content)
            if reader.num_record_batches != 1:
                raise CorruptError(f"it has {reader.num_record_batches} record batches, expected 1")
            found = reader.schema
            if not found.equals(schema.arrow_schema, check_metadata=False):
                raise CorruptError("its columns are not those of the store's schema")
            if found.metadata is None or found.metadata.get(_IDENTITY) != identity.encode():
                raise CorruptError("it belongs to another segment or store")
            batch = reader.get_batch(0)
            if batch.num_rows != rows:
                raise CorruptError(f"it has {batch.num_rows:,} rows, expected {rows:,}")
            offsets = _offsets(batch, schema.columns, mapping)
    except _READING_ERRORS as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise CorruptError(f"Segment {path.name} cannot be used: {told}.") from None
    return HotSegment(mapping, schema.columns, rows, offsets)


class Shape(NamedTuple):
    """What a segment's file says of itself."""

    schema: pa.Schema
    rows: int
    block_rows: int
    num_bytes: int


def read_shape(path: Path) -> Shape:
    """Its shape, by the file alone: for where no manifest tells.

    Raises:
        CorruptError: if it does not say.
    """
    mapping = Mapping(path)
    try:
        reader = pa.ipc.open_file(pa.foreign_buffer(mapping.address, mapping.size, base=mapping))
        schema = reader.schema
        block_rows = (schema.metadata or {}).get(_BLOCK_ROWS, b"")
        rows = reader.get_batch(0).num_rows
    except _READING_ERRORS as error:
        raise CorruptError(f"Segment {path.name} cannot be used: {' '.join(str(error).split())}.") from None
    if not block_rows.isdigit() or int(block_rows) < 2 or rows % int(block_rows):
        raise CorruptError(f"Segment {path.name} does not say how it is divided.")
    return Shape(schema, rows, int(block_rows), mapping.size)


def from_columns(path: Path, columns: tuple[Column, ...], arrays: Sequence[NDArray[Any]]) -> HotSegment:
    """A segment in memory of its own, in place of a file: for one whose rows are not all to be seen.

    Args:
        path: the file that it stands for.
        columns: of the schema.
        arrays: one a column, all of its rows.
    """
    sizes = [-(-array.nbytes // 64) * 64 for array in arrays]
    offsets = np.cumsum([0, *sizes])
    mapping = Mapping.anonymous(path, max(int(offsets[-1]), PAGE))
    segment = HotSegment(mapping, columns, len(arrays[0]), offsets[:-1].astype(np.int64))
    for place, array in enumerate(arrays):
        segment.column(place)[...] = array
    return segment


def check_beginning(segment: HotSegment) -> None:
    """Hold the beginning of a segment's file, by which Arrow reads it as a stream, against its end.

    `open_segment` goes by the end, as all do that read it as a file.
    """
    name, mapping = segment.mapping.path.name, segment.mapping
    content = pa.foreign_buffer(mapping.address, mapping.size, base=mapping)
    try:
        if bytes(content[: len(_MAGIC)]) != _MAGIC:
            raise CorruptError("it does not begin as an Arrow file")
        stream, expected = pa.ipc.open_stream(content[len(_MAGIC) :]), pa.ipc.open_file(content).schema
        if not stream.schema.equals(expected, check_metadata=True):
            raise CorruptError("the schema at its beginning is another than that at its end")
        if not np.array_equal(_offsets(stream.read_next_batch(), segment.columns, mapping), segment.offsets):
            raise CorruptError("the columns at its beginning lie elsewhere than those at its end")
        if (expected.metadata or {}).get(_PADDING, b"").strip(b"."):
            raise CorruptError("its padding was written over")
    except (*_READING_ERRORS, StopIteration) as error:  # the latter where there is no batch
        told = " ".join(str(error).split()).rstrip(".") or "it holds no record batch"
        raise CorruptError(f"Segment {name} is damaged at its beginning: {told}.") from None


def _offsets(batch: pa.RecordBatch, columns: tuple[Column, ...], mapping: Mapping) -> NDArray[np.int64]:
    offsets = np.empty(len(columns), np.int64)
    for i, column in enumerate(columns):
        array = batch.column(i)
        storage = array.storage if isinstance(array, pa.ExtensionArray) else array
        # Not flatten(), which imports pyarrow.compute; offsets are refused below.
        values = storage.values if pa.types.is_fixed_size_list(storage.type) else storage
        if pa.types.is_fixed_size_list(storage.type):
            _data_buffer(values)
            outer = storage.buffers()[0]
            if outer is not None or storage.null_count or storage.offset:
                raise CorruptError(f"column {column.name!r} has nulls or an offset")
        buffer = _data_buffer(values)
        offset = int(buffer.address - mapping.address)
        if offset < 0 or offset % 8 or offset + batch.num_rows * column.item_bytes > mapping.size:
            raise CorruptError(f"column {column.name!r} lies outside the file")
        if buffer.size < batch.num_rows * column.item_bytes:
            raise CorruptError(f"column {column.name!r} has {buffer.size:,} bytes, too few")
        offsets[i] = offset
    return offsets
