"""Rows that are listed by segment, and draws from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .drawing import ROW_BASE, below, mask_of
from .memory import address_of, inline, kernel, load_i32, load_i64, load_u8, prefetch, store_u8
from .world import step_back

_ALL = 3  # of the flags of a row that both sources have named


@inline
def search_sums(until: int, count: int, value: int) -> int:
    """The first place whose running sum is more than a value."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if value < load_i64(until + middle * 8):
            high = middle
        else:
            low = middle + 1
    return low


@kernel("void(uint64[::1], int64[::1], int64[::1], int64[:, ::1], int64[::1], int64[::1], int64[::1])")
def draw_listed(state: Any, until: Any, lists: Any, shapes: Any, slots: Any, positions: Any, row_ids: Any) -> None:
    """Draw listed rows uniformly, with replacement.

    Args:
        state: of the generator, uint64[4], advanced in place.
        until: running sums of how many rows of each slot are listed; the last is not 0.
        lists: addresses of each slot's positions, int32.
        shapes: of the snapshot's segments.
        slots: takes the rows' slots; likewise ``positions`` and ``row_ids``.
        positions: see ``slots``.
        row_ids: see ``slots``.
    """
    generator, sums, count = address_of(state), address_of(until), until.shape[0]
    bound = np.uint64(until[count - 1])
    mask = mask_of(bound)
    for i in range(slots.shape[0]):
        r = np.int64(below(generator, mask, bound))
        slot = search_sums(sums, count, r)
        slots[i] = slot
        positions[i] = lists[slot] + (r - (until[slot - 1] if slot > 0 else 0)) * 4
        prefetch(positions[i])
    for i in range(slots.shape[0]):
        positions[i] = load_i32(positions[i])
        row_ids[i] = shapes[slots[i], ROW_BASE] + positions[i]


@kernel("void(int64[::1], int64, int64[::1], int64[::1])")
def go_back(world_table: Any, steps: int, slots: Any, positions: Any) -> None:
    """Move rows back by so many steps of their episodes; slot -1 where there are fewer."""
    world = address_of(world_table)
    for i in range(slots.shape[0]):
        slot, position = slots[i], positions[i]
        for _ in range(steps):
            slot, position = step_back(world, slot, position)
            if slot < 0:
                break
        slots[i], positions[i] = slot, position


@kernel("int64(int64, uint8, int32[::1], int32[::1])")
def mark_rows(flags: int, flag: Any, positions: Any, both: Any) -> int:
    """Set a flag of rows. Returns how many have both flags now, and had not; ``both`` takes these."""
    found: Any = 0
    for i in range(positions.shape[0]):
        at = flags + positions[i]
        before = load_u8(at)
        store_u8(at, before | flag)
        if before | flag == _ALL and before != _ALL:
            both[found] = positions[i]
            found += 1
    return int(found)
