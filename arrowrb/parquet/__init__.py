"""Parquet's own structures: footers, and pages of vectors. The rest of the format is Arrow's."""

from .footers import MAGIC, join_footer, split_footer
from .lists import Lists, decode, encode, lists_of
from .writing import Writer

__all__ = ["MAGIC", "Lists", "Writer", "decode", "encode", "join_footer", "lists_of", "split_footer"]
