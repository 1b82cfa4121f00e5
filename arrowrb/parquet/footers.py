"""Footers of Parquet files: those that Arrow wrote, taken apart and put together again."""

from __future__ import annotations

from typing import Any, Final

from ..errors import CorruptError
from . import thrift
from .thrift import BINARY, I32, I64, LIST, STRUCT, Structure

MAGIC: Final = b"PAR1"
_CHUNK_DEPTH: Final = 4  # in the list of a row group, which is in a list
TAIL: Final = 8  # length of the footer, and the magic bytes again

# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
NUM_ROWS, ROW_GROUPS = 3, 4
COLUMNS, GROUP_BYTES, GROUP_POSITION, GROUP_COMPRESSED_BYTES, ORDINAL = 1, 2, 5, 6, 7
CHUNK_POSITIONS: Final = (2, 4, 6)  # of the chunk, its offset index and its column index
CHUNK_POSITION, METADATA = 2, 3
TYPE, ENCODINGS, PATH, CODEC, NUM_VALUES, BYTES, COMPRESSED_BYTES, DATA_POSITION = 1, 2, 3, 4, 5, 6, 7, 9
PAGE_POSITIONS: Final = (9, 10, 11, 14)  # of data, index and dictionary pages, and of a Bloom filter


def end_bytes(tail: bytes | memoryview) -> int:
    """Bytes of a file's end, the footer and what follows it, of which these are the last."""
    return int.from_bytes(tail[:4], "little") + TAIL


def split_footer(encoded: memoryview, *, raw_chunks: bool = False) -> tuple[Structure, int]:
    """A whole file's footer, and where it begins; with ``raw_chunks``, entries of column chunks are left bytes.

    Raises:
        CorruptError: if it is no Parquet file.
    """
    size = end_bytes(encoded[-TAIL:]) - TAIL
    end = len(encoded) - TAIL - size
    if not bytes(encoded[:4]) == bytes(encoded[-4:]) == MAGIC or end < len(MAGIC):
        raise CorruptError(f"What was encoded is no Parquet file: {len(encoded):,} bytes, footer of {size:,}.")
    return thrift.read(encoded[end:-TAIL], _CHUNK_DEPTH if raw_chunks else 0)[0], end


def join_footer(footer: Structure, num_rows: int, groups: list[Any]) -> bytes:
    """The end of a file: a footer with other row groups."""
    changed = footer | {NUM_ROWS: (I64, num_rows), ROW_GROUPS: (LIST, (STRUCT, groups))}
    content = thrift.write(changed)
    return content + len(content).to_bytes(4, "little") + MAGIC


def describe_chunk(
    path: tuple[str, ...],
    *,
    physical: int,
    encodings: tuple[int, ...],
    codec: int,
    num_values: int,
    num_bytes: int,
    compressed_bytes: int,
    position: int,
) -> Structure:
    """The footer's entry of a column chunk of data pages only."""
    metadata: Structure = {
        TYPE: (I32, physical),
        ENCODINGS: (LIST, (I32, list(encodings))),
        PATH: (LIST, (BINARY, [name.encode() for name in path])),
        CODEC: (I32, codec),
        NUM_VALUES: (I64, num_values),
        BYTES: (I64, num_bytes),
        COMPRESSED_BYTES: (I64, compressed_bytes),
        DATA_POSITION: (I64, position),
    }
    return {CHUNK_POSITION: (I64, 0), METADATA: (STRUCT, metadata)}
