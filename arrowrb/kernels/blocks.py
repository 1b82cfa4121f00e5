"""Draws of cold rows out of a pool of row groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from .drawing import FIRST, GUIDE, KINDS, ROW_BASE, SHAPE_FIELDS, SHAPES, SHIFT, SLOT, START, TOTAL, below, mask_of
from .listing import search_sums
from .memory import address_of, kernel, load_i32, load_i64, load_u8
from .mixing import BLOCK_ROWS, STARTS

_COLD_BYTES = 40
_MOST_MISSES = 1 << 16


@kernel("int64(uint64[::1], int64[::1], int64, int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1])")
def draw_blocks(state: Any, domain: Any, num_cold: int, pool: Any, cold_table: Any, places: Any, from_pool: Any) -> int:
    """Draw transitions of both tiers: hot ones from a domain, cold ones from the row groups of a pool.

    Args:
        state: of the generator, uint64[4], advanced in place.
        domain: of the hot tier.
        num_cold: how many rows the cold tier has.
        pool: its row groups: slot of the segment, first row in its file, and how many rows, int64[n, 3].
        cold_table: of the snapshot.
        places: takes slots, positions and row ids, [3, count].
        from_pool: takes how many were cold.

    Returns:
        How many were found: all, unless there is none.
    """
    generator, wanted = address_of(state), places.shape[1]
    start, slot, first, guide, shapes = domain[START], domain[SLOT], domain[FIRST], domain[GUIDE], domain[SHAPES]
    total = domain[TOTAL] + (num_cold if pool.shape[0] > 0 else 0)
    have, misses, cold = 0, 0, 0
    if total < 1:
        return 0
    bound, most = np.uint64(total), np.uint64(max(pool.shape[0], 1))
    mask, pool_mask = mask_of(bound), mask_of(most)
    while have < wanted and misses < _MOST_MISSES:
        r: Any = np.int64(below(generator, mask, bound))
        if r < domain[TOTAL]:
            extent = np.int64(load_i32(guide + (r >> domain[SHIFT]) * 4))
            while load_i64(start + (extent + 1) * 8) <= r:
                extent += 1
            s = np.int64(load_i32(slot + extent * 4))
            p = load_i64(first + extent * 8) + r - load_i64(start + extent * 8)
        else:
            g = np.int64(below(generator, pool_mask, most))
            s, count = pool[g, 0], np.uint64(pool[g, 2])
            row: Any = pool[g, 1] + np.int64(below(generator, mask_of(count), count))
            table = address_of(cold_table) + s * _COLD_BYTES
            starts, block_rows = load_i64(table + STARTS * 8), load_i64(table + BLOCK_ROWS * 8)
            blocks = load_i64(shapes + s * (SHAPE_FIELDS * 8)) // block_rows
            block = search_sums(starts, blocks + 1, row) - 1  # the last one that begins at or before the row
            p = block * block_rows + row - load_i64(starts + block * 8)
        shape = shapes + s * (SHAPE_FIELDS * 8)
        if load_u8(load_i64(shape + KINDS * 8) + p) != 1:
            misses += 1
            continue
        places[0, have], places[1, have], places[2, have] = s, p, load_i64(shape + ROW_BASE * 8) + p
        have, misses = have + 1, 0
        cold += r >= domain[TOTAL]
    from_pool[0] = cold
    return int(have)
