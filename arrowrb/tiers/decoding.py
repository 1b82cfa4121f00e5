"""Reading row groups of a cold segment's file: columns of vectors by our own reader, the others by Arrow.

Arrow also reads the vectors wherever their pages are not such as we write, which those of files that it wrote are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .. import parquet
from ..errors import ArrowRBError, CorruptError
from ..files import Mapping
from ..parquet.bitmaps import validity_of
from ..schema import Column
from .columnar import in_one_piece, values_of

# What Arrow raises over a damaged file: its own errors, those of a name or text, and ours of sizes.
READING_ERRORS: Final = (pa.ArrowException, ArrowRBError, OSError, ValueError, LookupError, OverflowError)

# Values [rows, *shape], and which are there (None: all); what is not there holds anything.
Values = tuple[NDArray[Any], NDArray[np.bool_] | None]


def buffer_of(mapping: Mapping) -> pa.Buffer:
    """A mapped file's content, which keeps the mapping alive."""
    return pa.foreign_buffer(mapping.address, mapping.size, base=mapping)


def open_file(
    mapping: Mapping, name: str, metadata: pq.FileMetaData | None = None, *, checking: bool = True
) -> pq.ParquetFile:
    """A mapped file as Arrow reads it; with its checksums, which Arrow and DuckDB leave alone unless asked."""
    source = pa.BufferReader(buffer_of(mapping))
    try:
        return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=checking)
    except READING_ERRORS as error:
        raise CorruptError(f"Segment {name} is damaged: {plainly(error)}.") from None


def plainly(error: Exception) -> str:
    """An error of Arrow's in one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".")


class Footer:
    """What a mapped file says of itself.

    Attributes:
        mapping: the file's.
        metadata: as Arrow reads it. Of a chunk, Arrow may only be asked once `chunks` was.
    """

    def __init__(self, mapping: Mapping, metadata: pq.FileMetaData) -> None:
        self.mapping: Final = mapping
        self.metadata: Final = metadata

    @cached_property
    def chunks(self) -> parquet.ChunkTable:
        """What it says of its column chunks; raises CorruptError if that cannot be."""
        return parquet.read_chunk_table(self.mapping.array(0, self.mapping.size, np.uint8), self.metadata)


class Groups:
    """The row groups of a mapped file. Thread-safe.

    Attributes:
        footer: the file's.
    """

    def __init__(self, mapping: Mapping, file: pq.ParquetFile, columns: Sequence[Column], fields: pa.Schema) -> None:
        """Read the columns of a schema, which lie in the file from its second on; ``file`` is given away."""
        self.footer: Final = Footer(mapping, file.metadata)
        self._mapping, self._columns = mapping, columns
        self._names = fields.names[1:]
        self._lists = [parquet.lists_of(field) for field in fields][1:]
        self._idle = [file]

    @contextlib.contextmanager
    def borrow(self) -> Iterator[pq.ParquetFile]:
        """A file object of one's own: one is not for several threads, and to make one takes long."""
        try:
            file = self._idle.pop()
        except IndexError:
            file = open_file(self._mapping, self._mapping.path.name, self.footer.metadata)
        yield file
        if not self._idle:
            self._idle.append(file)

    def read(self, group: int, places: Sequence[int], *, valid: Container[int]) -> list[Values]:
        """Columns of a row group, by their places in the schema; ``valid`` has those of which it matters what is there.

        Raises:
            CorruptError: and other `READING_ERRORS`, if they cannot be read.
        """
        rows = self.footer.metadata.row_group(group).num_rows
        found = {place: own for place in places if (own := self._read_lists(group, rows, place)) is not None}
        others = [place for place in places if place not in found]
        if others:
            names = [self._names[place] for place in others]
            with self.borrow() as file:
                table = file.read_row_group(group, columns=names, use_threads=False)
            for place, name in zip(others, names, strict=True):
                array = in_one_piece(table.column(name))
                there = validity_of(array) if place in valid else None
                found[place] = values_of(array, self._columns[place]), there
        for values, _ in found.values():
            if len(values) != rows:
                raise CorruptError(f"it has {len(values):,} rows there, too few or too many")
        return [found[place] for place in places]

    def _read_lists(self, group: int, rows: int, place: int) -> Values | None:
        """A column by our own reader, if it can."""
        lists, chunks, chunk = self._lists[place], self.footer.chunks, (group, place + 1)
        if lists is None:
            return None
        content = self._mapping.array(int(chunks.positions[chunk]), int(chunks.compressed_bytes[chunk]), np.uint8)
        found = parquet.decode(lists, content, rows)
        if found is None:
            return None
        values, valid = found
        # What the footer says besides is what Arrow and others go by.
        count = rows * lists.length if valid is None else int(np.count_nonzero(valid)) * (lists.length - 1) + rows
        said = chunks.codecs[chunk], chunks.types[chunk], chunks.num_values[chunk], chunks.dictionaries[chunk]
        if said != (parquet.LZ4, lists.physical, count, -1):
            return None
        column = self._columns[place]
        return values.view(column.storage).reshape(-1, *column.shape), valid
