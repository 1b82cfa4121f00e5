"""Writing Parquet files: columns of vectors in pages of our own, the others by Arrow, in one file."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .bitmaps import validity_of
from .footers import (
    BYTES,
    COLUMNS,
    COMPRESSED_BYTES,
    GROUP_BYTES,
    GROUP_COMPRESSED_BYTES,
    MAGIC,
    METADATA,
    NUM_ROWS,
    ROW_GROUPS,
    TAIL,
    describe_chunk,
    end_bytes,
    join_footer,
    split_footer,
)
from .lists import BYTE_STREAM_SPLIT, LZ4, RLE, Lists, encode, lists_of
from .thrift import I64, LIST, STRUCT, Structure


class Writer:
    """Writes record batches, a row group each; to be used as a context.

    Arrow writes to the sink by itself, without the GIL, and we write our columns behind its, row group by row group.
    The footer that it writes at the end tells of its own columns only: `end` is to stand in its place.
    """

    def __init__(self, sink: pa.NativeFile, fields: pa.Schema, *, vectors: bool = True, **options: Any) -> None:
        """Write a file to an empty sink.

        Args:
            sink: is left open.
            fields: the columns.
            vectors: whether those of vectors are written by us; else all are Arrow's, and so is the footer.
            options: of Arrow's writer.
        """
        self._sink, self._fields, self._options = sink, fields, options
        own = {place: lists_of(field) for place, field in enumerate(fields)} if vectors else {}
        self._lists = {place: lists for place, lists in own.items() if lists is not None}
        self._others = [place for place in range(len(fields)) if place not in self._lists]
        self._chunks: list[dict[int, Structure]] = []
        self._written = pa.schema([fields.field(place) for place in self._others]) if self._lists else fields
        self._writer = pq.ParquetWriter(sink, self._written, **options)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a row group."""
        others = batch
        if self._lists:
            arrays = [batch.column(place) for place in self._others]
            others = pa.RecordBatch.from_arrays(arrays, schema=self._written)
        self._writer.write_batch(others, row_group_size=max(batch.num_rows, 1))
        self._chunks.append({place: self._write(lists, batch.column(place)) for place, lists in self._lists.items()})

    def _write(self, lists: Lists, array: pa.FixedSizeListArray) -> Structure:
        position, num_values, num_bytes = self._sink.tell(), 0, 0
        values, valid = _values_of(array, lists)
        for page in encode(lists, values, valid):
            self._sink.write(page.header)
            self._sink.write(page.body)
            num_values += page.num_values
            num_bytes += page.num_bytes
        return describe_chunk(
            lists.path,
            physical=lists.physical,
            encodings=(RLE, BYTE_STREAM_SPLIT),
            codec=LZ4,
            num_values=num_values,
            num_bytes=num_bytes,
            compressed_bytes=self._sink.tell() - position,
            position=position,
        )

    def end(self, arrows: bytes) -> bytes:
        """The end of the file, given the end that Arrow wrote; to be called when all is written."""
        if not self._lists:
            return arrows
        footer, _ = split_footer(memoryview(MAGIC + arrows), raw_chunks=True)
        groups = footer[ROW_GROUPS][1][1]
        for group, chunks in zip(groups, self._chunks, strict=True):
            _add_chunks(group, chunks)
        return join_footer(_describe(self._fields, self._options), footer[NUM_ROWS][1], groups)


@contextlib.contextmanager
def create(file: io.BufferedWriter, fields: pa.Schema, **options: Any) -> Iterator[Writer]:
    """A `Writer` of an empty file that has a name."""
    with pa.OSFile(file.name, "wb") as sink, Writer(sink, fields, **options) as writer:
        yield writer
    with open(file.name, "rb") as written:
        written.seek(-TAIL, os.SEEK_END)
        begin = written.seek(-end_bytes(written.read()), os.SEEK_END)
        end = writer.end(written.read())
    file.seek(begin)
    file.write(end)
    file.truncate()


def encoded(batch: pa.RecordBatch, **options: Any) -> pa.Buffer:
    """A file of one row group in memory; for the options, see `Writer`."""
    sink = pa.BufferOutputStream()
    with Writer(sink, batch.schema, **options) as writer:
        writer.write(batch)
    content = memoryview(sink.getvalue()).cast("B")
    begin = len(content) - end_bytes(content[-TAIL:])
    return pa.py_buffer(b"".join([content[:begin], writer.end(bytes(content[begin:]))]))


def _values_of(array: pa.FixedSizeListArray, lists: Lists) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Bits of the values, [rows, length], and which lists are there; None: all."""
    kind = np.dtype(np.uint32 if lists.bits == 32 else np.uint64)
    first, values = array.offset * lists.length + array.values.offset, array.values.buffers()[1]
    if not len(array) or values is None:
        return np.zeros((0, lists.length), kind), None
    bits = np.frombuffer(values, kind, len(array) * lists.length, first * kind.itemsize)
    return bits.reshape(-1, lists.length), validity_of(array)


def _describe(fields: pa.Schema, options: dict[str, Any]) -> Structure:
    """What the footer of a file says of its columns and metadata."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, fields, **options):
        pass
    return split_footer(memoryview(sink.getvalue()).cast("B"), raw_chunks=True)[0]


def _add_chunks(group: Structure, chunks: dict[int, Structure]) -> None:
    """Put column chunks to their places in a row group's entry, which counts their bytes."""
    found = group[COLUMNS][1][1]
    for place, chunk in sorted(chunks.items()):
        found.insert(place, chunk)
        metadata = chunk[METADATA][1]
        for total, each in ((GROUP_BYTES, BYTES), (GROUP_COMPRESSED_BYTES, COMPRESSED_BYTES)):
            if total in group:
                group[total] = (I64, group[total][1] + metadata[each][1])
    group[COLUMNS] = (LIST, (STRUCT, found))
