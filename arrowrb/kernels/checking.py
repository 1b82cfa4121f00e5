"""Checksums of columns, and whether two hold the same: without the GIL, and without copies of what is left out.

The CRC-32 of a block is that of `zlib.crc32`, where zeros stand for what is not there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .crc import BEGUN, sum_bytes, sum_zeros
from .memory import inline, kernel, load_u8, same_bytes

# Fields of a column: where it lies, bytes of an item, whether only transitions have it, where its valid flags lie or 0.
ADDRESS, ITEM, OF_TRANSITIONS, MASK = range(4)


@inline
def _is_there(kinds: Any, row: Any, of_transitions: bool, mask: Any) -> Any:
    there = kinds[row] == 1 if of_transitions else kinds[row] != 0
    return there and (mask == 0 or load_u8(mask + row) != 0)


@kernel("void(int64[:, ::1], uint8[::1], int64, uint32[:, ::1], uint8[::1], uint32[:, ::1])")
def checksum_blocks(columns: Any, kinds: Any, block_rows: int, table: Any, left: Any, result: Any) -> None:
    """Fill ``result``, uint32[columns, blocks]; values that are not there count as zero bytes."""
    for c in range(columns.shape[0]):
        address, item, mask = columns[c, ADDRESS], columns[c, ITEM], columns[c, MASK]
        of_transitions = columns[c, OF_TRANSITIONS] != 0
        for block in range(result.shape[1]):
            crc = BEGUN
            row, stop = block * block_rows, (block + 1) * block_rows
            while row < stop:
                first = row
                while row < stop and _is_there(kinds, row, of_transitions, mask):
                    row += 1
                crc = sum_bytes(crc, address + first * item, (row - first) * item, table, left)
                first = row
                while row < stop and not _is_there(kinds, row, of_transitions, mask):
                    row += 1
                crc = sum_zeros(crc, (row - first) * item, table)
            result[c, block] = ~crc


@kernel("boolean(int64, int64, int64, Array(uint8, 1, 'C', readonly=True))")
def same_items(one: int, other: int, size: int, there: Any) -> bool:
    """Whether two columns, of which the addresses are given, hold the same bytes in all rows that are there."""
    row = 0
    while row < there.shape[0]:
        first = row
        while row < there.shape[0] and there[row] != 0:
            row += 1
        if not same_bytes(one + first * size, other + first * size, (row - first) * size):
            return False
        row += 1
    return True


# What can be wrong with the order of rows; the places of `find_disorder`'s result.
KIND, BEHIND_FREE, LANES, STEPS, CONTINUED, ORDINALS, OPEN = range(7)


@inline
def _note(found: Any, what: int, row: Any) -> None:
    if found[what, 1] == 0:
        found[what, 0] = row
    found[what, 1] += 1


_Read = "Array({}, 1, 'C', readonly=True)"
_SIGNATURE = ", ".join(_Read.format(kind) for kind in ("uint8", "int64", "int32", "int64", "int32", "int64"))


@kernel(f"void({_SIGNATURE}, int64, int64[:, ::1])")
def find_disorder(
    kinds: Any, fills: Any, lanes: Any, episodes: Any, steps: Any, ordinals: Any, block_rows: int, found: Any
) -> None:
    """Rows of a segment that do not follow one another as they should.

    ``kinds`` has 0 where no row is visible, ``fills`` the visible rows of each block. ``found``, int64[7, 2] and zeros,
    takes for each of `KIND` and so on the first position and how many there are.
    """
    for block in range(fills.shape[0]):
        first = block * block_rows
        end = first + fills[block]
        for row in range(first, first + block_rows):
            kind = kinds[row]
            if kind == 0:
                continue
            if kind > 4 or ordinals[row] < 1:
                _note(found, KIND, row)
            if row >= end:
                _note(found, BEHIND_FREE, row)
            if lanes[row] != lanes[first]:
                _note(found, LANES, row)
            if row + 1 < end:
                if kind == 1 and (
                    episodes[row] != episodes[row + 1] or np.int64(steps[row]) + 1 != np.int64(steps[row + 1])
                ):
                    _note(found, STEPS, row)
                if kind == 3:
                    _note(found, CONTINUED, row)
                if ordinals[row] >= ordinals[row + 1]:
                    _note(found, ORDINALS, row)
            elif row + 1 == end and row + 1 == first + block_rows and kind == 1:
                _note(found, OPEN, row)
