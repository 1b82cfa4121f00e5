"""Reading row groups of a cold segment's file: columns of vectors by our own reader, the others by Arrow.

Arrow also reads the vectors wherever their pages are not such as we write, which those of files that it wrote are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence
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


class Groups:
    """The row groups of a mapped file. Thread-safe.

    Attributes:
        metadata: the file's footer.
    """

    def __init__(self, mapping: Mapping, file: pq.ParquetFile, columns: Sequence[Column], fields: pa.Schema) -> None:
        """Read the columns of a schema, which lie in the file from its second on; ``file`` is given away."""
        self.metadata: Final[pq.FileMetaData] = file.metadata
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
            file = open_file(self._mapping, self._mapping.path.name, self.metadata)
        yield file
        if not self._idle:
            self._idle.append(file)

    def read(self, group: int, places: Sequence[int], *, valid: Container[int]) -> list[Values]:
        """Columns of a row group, by their places in the schema; ``valid`` has those of which it matters what is there.

        Raises:
            CorruptError: and other `READING_ERRORS`, if they cannot be read.
        """
        footer = self.metadata.row_group(group)
        found = {place: own for place in places if (own := self._read_lists(footer, place)) is not None}
        others = [place for place in places if place not in found]
        if others:
            names = [self._names[place] for place in others]
            with self.borrow() as file:
                table = file.read_row_group(group, columns=names, use_threads=False)
            for place, name in zip(others, names, strict=True):
                array = in_one_piece(table.column(name))
                there = validity_of(array) if place in valid else None
                found[place] = values_of(array, self._columns[place]), there
        rows = footer.num_rows
        for values, _ in found.values():
            if len(values) != rows:
                raise CorruptError(f"it has {len(values):,} rows there, too few or too many")
        return [found[place] for place in places]

    def _read_lists(self, footer: pq.RowGroupMetaData, place: int) -> Values | None:
        """A column by our own reader, if it can."""
        lists = self._lists[place]
        if lists is None:
            return None
        chunk, rows = footer.column(place + 1), footer.num_rows
        first, size = chunk.data_page_offset, chunk.total_compressed_size
        if first < 0 or size < 0 or first + size > self._mapping.size:
            return None
        found = parquet.decode(lists, self._mapping.array(first, size, np.uint8), rows)
        if found is None:
            return None
        values, valid = found
        # What the footer says besides is what Arrow and others go by.
        count = rows * lists.length if valid is None else int(np.count_nonzero(valid)) * (lists.length - 1) + rows
        said = chunk.compression, chunk.physical_type, chunk.num_values, chunk.has_dictionary_page
        if said != ("LZ4", "FLOAT" if lists.bits == 32 else "DOUBLE", count, False):
            return None
        column = self._columns[place]
        return values.view(column.storage).reshape(-1, *column.shape), valid
