"""One Parquet file out of row groups that were encoded apart, so that several threads can encode for one file.

Each comes as a small Parquet file in memory. The bytes of its columns are taken as they are; its footer tells where
they lie, counted from the start of that file, and these positions are moved. What comes out is, byte for byte, what
one writer would have written.
"""

from __future__ import annotations

from ..parquet import thrift
from ..parquet.footers import (
    CHUNK_POSITIONS,
    COLUMNS,
    GROUP_POSITION,
    MAGIC,
    METADATA,
    NUM_ROWS,
    ORDINAL,
    PAGE_POSITIONS,
    ROW_GROUPS,
    join_footer,
    split_footer,
)
from ..parquet.thrift import I64, Structure

__all__ = ["MAGIC", "Stitched"]


class Stitched:
    """What of a file's footer is known so far.

    Attributes:
        position: where the next row group begins; the file must be written up to there.
    """

    def __init__(self) -> None:
        self.position = len(MAGIC)
        self._footer: Structure = {}
        self._num_rows = 0
        self._groups: list[bytes] = []

    def add(self, encoded: memoryview) -> memoryview:
        """Take the row groups of a Parquet file; returns the bytes to write at ``position``, which moves on."""
        encoded = encoded.cast("B")  # Arrow's buffers have signed bytes
        footer, end = split_footer(encoded)
        by = self.position - len(MAGIC)
        for group in footer[ROW_GROUPS][1][1]:
            _move_group(group, by)
            self._groups.append(thrift.write(group))
        self._num_rows += footer[NUM_ROWS][1]
        self._footer = footer
        self.position += end - len(MAGIC)
        return encoded[len(MAGIC) : end]

    def finish(self) -> bytes:
        """The footer of all that was added, to be written at ``position``."""
        return join_footer(self._footer, self._num_rows, self._groups)


def _move_group(group: Structure, by: int) -> None:
    """Move a row group's positions; 0 says that there is none."""
    for chunk in group[COLUMNS][1][1]:
        _move(chunk, CHUNK_POSITIONS, by)
        if METADATA in chunk:
            _move(chunk[METADATA][1], PAGE_POSITIONS, by)
    _move(group, (GROUP_POSITION,), by)
    group.pop(ORDINAL, None)  # its number in the file, which it need not say


def _move(structure: Structure, fields: tuple[int, ...], by: int) -> None:
    for field in fields:
        kind, value = structure.get(field, (I64, 0))
        if value > 0:
            structure[field] = (kind, value + by)
