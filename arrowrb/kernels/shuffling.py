"""Draws without replacement: a permutation of row numbers that is computed, not kept.

A balanced Feistel network over twice so many bits as a half has (Luby and Rackoff 1988, "How to construct pseudorandom
permutations from pseudorandom functions"), with splitmix64's finalizer as the round function and a key a round. Numbers
beyond the last are passed through it again until they are none ("cycle walking": Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"), which makes it a permutation of any count of numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .listing import search_sums
from .memory import address_of, inline, kernel, load_u64
from .walking import FILLS, POSITION_BITS, SHAPES, TRANSITION, committed_kind, slot_of

ROUNDS = 8
LEAST_HALF_BITS = 4


@inline
def _mix(value: Any) -> Any:
    """The finalizer of splitmix64 (Vigna, https://prng.di.unimi.it/splitmix64.c)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@inline
def _permute(keys: int, half_bits: int, value: int) -> int:
    """The number that stands for a number, of twice so many bits."""
    bits = np.uint64(half_bits)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = np.uint64(value) >> bits, np.uint64(value) & mask
    for i in range(ROUNDS):
        left, right = right, left ^ (_mix(right ^ load_u64(keys + i * 8)) & mask)
    return int(np.int64((left << bits) | right))


@kernel(
    "int64(int64[::1], uint64[::1], int64, int64, int64[::1], int64[::1], int64[::1], int64[::1], int64[::1],"
    " int64[::1])"
)
def draw_shuffled(
    world_table: Any,
    keys: Any,
    half_bits: int,
    cursor: int,
    until: Any,
    firsts: Any,
    slots: Any,
    positions: Any,
    row_ids: Any,
    found: Any,
) -> int:
    """Take the next transitions of an epoch, those that are there.

    Args:
        world_table: of the snapshot.
        keys: of the epoch, uint64[ROUNDS].
        half_bits: of the permutation.
        cursor: how many numbers were taken.
        until: running sums of the rows of the epoch's extents.
        firsts: the row id of the first row of each.
        slots: takes where they are; likewise ``positions`` and ``row_ids``.
        positions: see ``slots``.
        row_ids: see ``slots``.
        found: takes how many there are: fewer than there is room for at the end of the epoch.

    Returns:
        How many numbers were taken.
    """
    world, key_table, sums, count = address_of(world_table), address_of(keys), address_of(until), until.shape[0]
    shape_table, fill_table = world_table[SHAPES], world_table[FILLS]
    position_mask = (1 << world_table[POSITION_BITS]) - 1
    total: Any = until[count - 1]
    have = 0
    while have < slots.shape[0] and cursor < total:
        number = _permute(key_table, half_bits, cursor)
        while number >= total:
            number = _permute(key_table, half_bits, number)
        cursor += 1
        extent = search_sums(sums, count, number)
        row_id = firsts[extent] + number - (until[extent - 1] if extent > 0 else 0)
        slot = slot_of(world, row_id)
        if slot < 0 or committed_kind(shape_table, fill_table, slot, row_id & position_mask) != TRANSITION:
            continue
        slots[have], positions[have], row_ids[have] = slot, row_id & position_mask, row_id
        have += 1
    found[0] = have
    return cursor
