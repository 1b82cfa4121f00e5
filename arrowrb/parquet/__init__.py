"""Parquet's own structures: footers, and pages of vectors. The rest of the format is Arrow's."""

from .chunk_table import ChunkTable, read_chunk_table
from .lists import DOUBLE, FLOAT, LZ4, Lists, decode, empty, encode, lists_of
from .writing import Writer, create, encoded

__all__ = [
    "DOUBLE",
    "FLOAT",
    "LZ4",
    "ChunkTable",
    "Lists",
    "Writer",
    "create",
    "decode",
    "empty",
    "encode",
    "encoded",
    "lists_of",
    "read_chunk_table",
]
