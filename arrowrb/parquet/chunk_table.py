"""What a file's footer says of its column chunks, read by ourselves and checked.

Arrow breaks off the whole process, without an error that could be caught, when it is asked about a chunk whose type is
not the column's, whose codec nobody knows, or whose statistics are of another length than its values. So a file that
may be anything is looked at here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .. import kernels
from ..errors import CorruptError
from . import footers

_TYPES: Final = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_SIZES: Final = (1, 4, 8, 12, 4, 8, -1, -1)  # bytes of a value; -1: they differ, or the column says it
_FIXED: Final = 7
_NUM_CODECS: Final = 8


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """What a footer says of each column chunk, each int64[groups, columns].

    Attributes:
        types, codecs: their numbers in Parquet.
        num_values: those that are NULL too.
        num_bytes, compressed_bytes: of the pages with their headers, without and with compression.
        positions: where the first data page lies in the file.
        dictionaries: where the page of a dictionary does; -1: there is none.
    """

    types: NDArray[np.int64]
    codecs: NDArray[np.int64]
    num_values: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    compressed_bytes: NDArray[np.int64]
    positions: NDArray[np.int64]
    dictionaries: NDArray[np.int64]


def read_chunk_table(encoded: NDArray[np.uint8], metadata: pq.FileMetaData) -> ChunkTable:
    """The table of a file.

    Args:
        encoded: the whole file.
        metadata: its footer as Arrow read it.

    Raises:
        CorruptError: if the footer says of a chunk what cannot be.
    """
    columns = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    types = [_TYPES.index(column.physical_type) if column.physical_type in _TYPES else -1 for column in columns]
    leaves = np.array(
        [
            (
                column.length if kind == _FIXED else _SIZES[kind],
                column.max_definition_level + 1,
                column.max_repetition_level + 1,
            )
            for column, kind in zip(columns, types, strict=True)
        ],
        np.int64,
    ).reshape(-1, 3)
    fields = kernels.CHUNK_FIELDS
    found = np.full((metadata.num_row_groups, len(columns), len(fields)), -1, np.int64)
    end = encoded.size - footers.TAIL
    first = end - (footers.end_bytes(encoded[-footers.TAIL :].tobytes()) - footers.TAIL)
    if first < 0 or not kernels.read_chunks(encoded[first:end], leaves, found):
        raise CorruptError("its footer is not well-formed, or speaks of other columns")
    table = ChunkTable(*(np.ascontiguousarray(found[:, :, field]) for field in fields))
    firsts = np.where(table.dictionaries >= 0, np.minimum(table.dictionaries, table.positions), table.positions)
    needed = np.stack([table.codecs, table.num_values, table.num_bytes, table.compressed_bytes, table.positions])
    right = (
        (needed >= 0).all()
        and (table.types == np.array(types, np.int64)).all()
        and (table.codecs < _NUM_CODECS).all()
        and (table.positions <= first).all()
        and (firsts <= first - np.minimum(table.compressed_bytes, first + 1)).all()
    )
    if not right:
        raise CorruptError("its footer tells of a column chunk that cannot be")
    return table
