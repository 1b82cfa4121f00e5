"""Parquet's own structures: footers, and pages of vectors. The rest of the format is Arrow's."""

from .lists import Lists, decode, empty, encode, lists_of
from .writing import Writer, create, encoded

__all__ = ["Lists", "Writer", "create", "decode", "empty", "encode", "encoded", "lists_of"]
