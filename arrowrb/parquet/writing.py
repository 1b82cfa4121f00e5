"""Writing Parquet files: columns of vectors in pages of our own, the others by Arrow, in one file."""

from __future__ import annotations

import io
import os
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
    describe_chunk,
    join_footer,
    split_footer,
)
from .lists import BYTE_STREAM_SPLIT, LZ4, RLE, Lists, encode, lists_of
from .thrift import I64, LIST, STRUCT, Structure


class Writer:
    """Writes record batches, a row group each; to be used as a context.

    Arrow writes to the file by itself, without the GIL, and we write our columns behind its, row group by row group.
    The footer that it writes at the end tells of its own columns only, and is replaced.
    """

    def __init__(self, file: io.BufferedWriter, fields: pa.Schema, **options: Any) -> None:
        """Write to an empty file that has a name; ``options`` are those of Arrow's writer."""
        self._file, self._fields, self._options = file, fields, options
        self._lists = {place: found for place, field in enumerate(fields) if (found := lists_of(field)) is not None}
        self._others = [place for place in range(len(fields)) if place not in self._lists]
        self._chunks: list[dict[int, Structure]] = []
        self._sink = pa.OSFile(file.name, "wb")
        # Where all columns are Arrow's, so is the footer.
        self._written = pa.schema([fields.field(place) for place in self._others]) if self._lists else fields
        self._writer = pq.ParquetWriter(self._sink, self._written, **options)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._sink:
            self._writer.close()
        if self._lists and kind is None:
            self._replace_footer()

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

    def _replace_footer(self) -> None:
        with open(self._file.name, "rb") as written:
            size = int.from_bytes(_read(written, -8)[:4], "little") + 8
            begin = os.path.getsize(self._file.name) - size
            footer, _ = split_footer(memoryview(MAGIC + _read(written, begin)), raw_chunks=True)
        groups = footer[ROW_GROUPS][1][1]
        for group, chunks in zip(groups, self._chunks, strict=True):
            _add_chunks(group, chunks)
        whole = _describe(self._fields, self._options)
        self._file.seek(begin)
        self._file.write(join_footer(whole, footer[NUM_ROWS][1], groups))
        self._file.truncate()


def _read(file: io.BufferedReader, position: int) -> bytes:
    """What lies behind a position, counted from the end where it is negative."""
    file.seek(position, os.SEEK_END if position < 0 else os.SEEK_SET)
    return file.read()


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
