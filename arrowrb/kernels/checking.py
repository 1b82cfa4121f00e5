"""Checksums of columns, and whether two hold the same: without the GIL, and without copies of what is left out.

The CRC-32 of a block is that of `zlib.crc32`, where zeros stand for what is not there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import inline, kernel, load_i64, load_u8, same_bytes

# Fields of a column: where it lies, bytes of an item, whether only transitions have it, where its valid flags lie or 0.
ADDRESS, ITEM, OF_TRANSITIONS, MASK = range(4)


@inline
def _sum(crc: Any, source: int, left: int, there: bool, table: Any) -> Any:
    """Go on with the bytes of one value, or with as many zeros."""
    while left >= 8:
        word = np.uint64(load_i64(source)) if there else np.uint64(0)
        word ^= np.uint64(crc)
        crc = (
            table[7, word & np.uint64(0xFF)]
            ^ table[6, (word >> np.uint64(8)) & np.uint64(0xFF)]
            ^ table[5, (word >> np.uint64(16)) & np.uint64(0xFF)]
            ^ table[4, (word >> np.uint64(24)) & np.uint64(0xFF)]
            ^ table[3, (word >> np.uint64(32)) & np.uint64(0xFF)]
            ^ table[2, (word >> np.uint64(40)) & np.uint64(0xFF)]
            ^ table[1, (word >> np.uint64(48)) & np.uint64(0xFF)]
            ^ table[0, word >> np.uint64(56)]
        )
        source += 8
        left -= 8
    while left > 0:
        byte = np.uint32(load_u8(source)) if there else np.uint32(0)
        crc = table[0, (crc ^ byte) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
        source += 1
        left -= 1
    return crc


@kernel("void(int64[:, ::1], uint8[::1], int64, uint32[:, ::1], uint32[:, ::1])")
def checksum_blocks(columns: Any, kinds: Any, block_rows: int, table: Any, result: Any) -> None:
    """Fill ``result``, uint32[columns, blocks]; values that are not there count as zero bytes."""
    for c in range(columns.shape[0]):
        address, item, mask = columns[c, ADDRESS], columns[c, ITEM], columns[c, MASK]
        for block in range(result.shape[1]):
            crc = np.uint32(0xFFFFFFFF)
            for row in range(block * block_rows, (block + 1) * block_rows):
                there = kinds[row] == 1 if columns[c, OF_TRANSITIONS] != 0 else kinds[row] != 0
                if mask != 0:
                    there = there and load_u8(mask + row) != 0
                crc = _sum(crc, address + row * item, item, there, table)
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
