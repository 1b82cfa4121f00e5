"""Following rows of an episode, or of a lane, forwards and backwards, over the ends of blocks and segments.

`Chains` tells for each block which one comes behind it and before it in its lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .drawing import BLOCK_ROWS, FIRST_FILL, KINDS, ROW_BASE, WHOLE
from .memory import address_of, inline, kernel, load_f32, load_f64, load_i32, load_i64, load_u8, prefetch, store_i64

# Fields of a chain: addresses of what each block of a segment is followed by, comes after, and is told to go on at.
BEHIND, BEFORE, CONTINUATION = range(3)
CHAIN_FIELDS = 3
SHAPE_BYTES = 56
TRANSITION, FINAL, CONTINUED, CUT = 1, 2, 3, 4
WRONG, RIGHT, UNKNOWN = range(3)


@inline
def committed_kind(shapes: int, fills: int, slot: int, position: int) -> int:
    """The kind of a row, 0 where it is not committed. By addresses, as in all inner functions."""
    shape = shapes + slot * SHAPE_BYTES
    if load_i64(shape + WHOLE * 8) == 0:
        block_rows = load_i64(shape + BLOCK_ROWS * 8)
        block = position // block_rows
        fill = load_i32(fills + (load_i64(shape + FIRST_FILL * 8) + block) * 4)
        if position - block * block_rows >= fill:
            return 0
    return int(load_u8(load_i64(shape + KINDS * 8) + position))


@inline
def committed_stop(shapes: int, fills: int, slot: int, position: int) -> int:
    """Up to which position the block of a row is committed, or may be: kinds tell where a segment is whole."""
    shape = shapes + slot * SHAPE_BYTES
    block_rows = load_i64(shape + BLOCK_ROWS * 8)
    block = position // block_rows
    if load_i64(shape + WHOLE * 8) != 0:
        return int((block + 1) * block_rows)
    return int(block * block_rows + load_i32(fills + (load_i64(shape + FIRST_FILL * 8) + block) * 4))


@inline
def find_slot(row_id: int, shards: int, num_shards: int, slots: int, shard_shift: int, position_bits: int) -> int:
    """The slot of a row's segment; -1 where a snapshot has it not."""
    shard = row_id >> shard_shift
    segment = (row_id >> position_bits) & ((1 << (shard_shift - position_bits)) - 1)
    if row_id < 0 or shard >= num_shards or segment >= load_i64(shards + shard * 16 + 8):
        return -1
    return int(load_i32(slots + (load_i64(shards + shard * 16) + segment) * 4))


@kernel(
    "void(int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1], float64[::1], int64[::1], int64[::1], int64[::1],"
    " float32[::1])"
)
def finish_steps(
    slots: Any,
    positions: Any,
    row_ids: Any,
    counts: Any,
    powers: Any,
    last_slots: Any,
    last_positions: Any,
    last_row_ids: Any,
    discounts: Any,
) -> None:
    """The last of the rows of each walk, and ``powers`` of their counts."""
    last = slots.shape[1] - 1
    for i in range(counts.shape[0]):
        last_slots[i], last_positions[i], last_row_ids[i] = slots[i, last], positions[i, last], row_ids[i, last]
        discounts[i] = powers[counts[i]]


@kernel("void(int64[:, ::1], int64[:, ::1], int64[::1], int64[:, ::1], int64, boolean, float64[::1], float64[::1])")
def discount_rewards(
    slots: Any,
    positions: Any,
    counts: Any,
    addresses: Any,
    column: int,
    wide: bool,
    powers: Any,
    sums: Any,
) -> None:
    """Sums of rewards in hot rows, each the k-th times ``powers[k]``; ``wide`` where they are float64, else float32."""
    for i in range(counts.shape[0]):
        prefetch(addresses[slots[i, 0], column] + positions[i, 0] * (8 if wide else 4))
    for i in range(counts.shape[0]):
        total = 0.0
        for k in range(counts[i]):
            rewards = addresses[slots[i, k], column]
            if wide:
                total += powers[k] * load_f64(rewards + positions[i, k] * 8)
            else:
                total += powers[k] * np.float64(load_f32(rewards + positions[i, k] * 4))
        sums[i] = total


@kernel("void(int64[::1], int64[:, ::1], int32[::1], int64, int64, int64[::1], int64[::1])")
def find_slots(
    row_ids: Any,
    shard_table: Any,
    slot_table: Any,
    shard_shift: int,
    position_bits: int,
    slots: Any,
    positions: Any,
) -> None:
    """Split row ids into slots, -1 where a snapshot has them not, and positions."""
    shards, places = address_of(shard_table), address_of(slot_table)
    for i in range(row_ids.shape[0]):
        slots[i] = find_slot(row_ids[i], shards, shard_table.shape[0], places, shard_shift, position_bits)
        positions[i] = row_ids[i] & ((1 << position_bits) - 1)


@kernel("void(int64[:, ::1], int64[:, ::1], int64[::1], int64[::1], int64[::1], uint8[::1])")
def check_links(chains: Any, shapes: Any, slots: Any, positions: Any, row_ids: Any, verdicts: Any) -> None:
    """Whether the block at ``positions`` goes on at ``row_ids``, as far as its run table tells."""
    for i in range(slots.shape[0]):
        s, block_rows = slots[i], shapes[slots[i], BLOCK_ROWS]
        verdicts[i] = RIGHT
        if load_u8(shapes[s, KINDS] + positions[i] + block_rows - 1) == CONTINUED:
            told = chains[s, CONTINUATION]
            if told == 0:
                verdicts[i] = UNKNOWN
            elif load_i64(told + positions[i] // block_rows * 8) != row_ids[i]:
                verdicts[i] = WRONG


@kernel("void(int64[:, ::1], int64[:, ::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])")
def link_blocks(
    chains: Any,
    shapes: Any,
    slots: Any,
    positions: Any,
    row_ids: Any,
    next_slots: Any,
    next_positions: Any,
    next_row_ids: Any,
) -> None:
    """Note for pairs of blocks, by their first rows, that one is behind the other."""
    for i in range(slots.shape[0]):
        one = positions[i] // shapes[slots[i], BLOCK_ROWS]
        other = next_positions[i] // shapes[next_slots[i], BLOCK_ROWS]
        store_i64(chains[slots[i], BEHIND] + one * 8, next_row_ids[i])
        store_i64(chains[next_slots[i], BEFORE] + other * 8, row_ids[i])


@kernel(
    "void(int64[::1], int64[::1], int64[:, ::1], int32[::1], int64[:, ::1], int64[:, ::1], int32[::1], int64, int64,"
    " boolean, boolean, int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1])"
)
def walk_forward(
    slots: Any,
    positions: Any,
    shapes: Any,
    fills: Any,
    chains: Any,
    shard_table: Any,
    slot_table: Any,
    shard_shift: int,
    position_bits: int,
    across: bool,
    tails: bool,
    out_slots: Any,
    out_positions: Any,
    out_row_ids: Any,
    counts: Any,
) -> None:
    """Follow rows to those behind them.

    Args:
        slots: of the rows to begin at; likewise ``positions``.
        positions: see ``slots``.
        shapes: of a snapshot's segments; likewise ``fills``, ``shard_table`` and ``slot_table``.
        fills: see ``shapes``.
        chains: how their blocks are linked.
        shard_table: see ``shapes``.
        slot_table: see ``shapes``.
        shard_shift: of row ids.
        position_bits: of row ids.
        across: follow the lane into its next episode; else the episode only.
        tails: count final observations as rows.
        out_slots: takes the rows' slots, [n, length], the first of which is where it begins; places that no row is
            left for repeat the last. Likewise ``out_positions`` and ``out_row_ids``.
        out_positions: see ``out_slots``.
        out_row_ids: see ``out_slots``.
        counts: takes how many rows were found.
    """
    length, shape_table, fill_table = out_slots.shape[1], address_of(shapes), address_of(fills)
    shards, places, num_shards = address_of(shard_table), address_of(slot_table), shard_table.shape[0]
    for i in range(slots.shape[0]):
        slot, position = slots[i], positions[i]
        shape = shape_table + slot * SHAPE_BYTES
        kinds, base = load_i64(shape + KINDS * 8), load_i64(shape + ROW_BASE * 8)
        stop = committed_stop(shape_table, fill_table, slot, position)
        out_slots[i, 0], out_positions[i, 0], out_row_ids[i, 0] = slot, position, base + position
        found, last_slot, last_position, last_base = 1, slot, position, base
        kind = TRANSITION
        while found < length:
            if kind in (FINAL, CUT) and not across:
                break
            while position + 1 < stop and load_u8(kinds + position + 1) == TRANSITION:  # the way of most
                position += 1
                out_slots[i, found], out_positions[i, found], out_row_ids[i, found] = slot, position, base + position
                last_slot, last_position, last_base, kind = slot, position, base, TRANSITION
                found += 1
                if found == length:
                    break
            if found == length:
                break
            position += 1
            kind = load_u8(kinds + position) if position < stop else 0
            if kind in (0, CONTINUED):  # the lane goes on elsewhere, if at all
                if kind == 0 and not across:
                    break
                block_rows = load_i64(shape + BLOCK_ROWS * 8)
                behind = load_i64(chains[slot, BEHIND] + (position - 1) // block_rows * 8)
                slot = find_slot(behind, shards, num_shards, places, shard_shift, position_bits)
                if slot < 0:
                    break
                position = behind & ((1 << position_bits) - 1)
                shape = shape_table + slot * SHAPE_BYTES
                kinds, base = load_i64(shape + KINDS * 8), load_i64(shape + ROW_BASE * 8)
                stop = committed_stop(shape_table, fill_table, slot, position)
                kind = load_u8(kinds + position) if position < stop else 0
                if kind == 0:
                    break
            if kind == TRANSITION or tails:
                out_slots[i, found], out_positions[i, found], out_row_ids[i, found] = slot, position, base + position
                last_slot, last_position, last_base = slot, position, base
                found += 1
        counts[i] = found
        for j in range(found, length):
            out_slots[i, j], out_positions[i, j] = last_slot, last_position
            out_row_ids[i, j] = last_base + last_position


@kernel(
    "void(int64[::1], int64[::1], int64[:, ::1], int32[::1], int64[:, ::1], int64[:, ::1], int32[::1], int64, int64,"
    " int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1])"
)
def walk_back(
    slots: Any,
    positions: Any,
    shapes: Any,
    fills: Any,
    chains: Any,
    shard_table: Any,
    slot_table: Any,
    shard_shift: int,
    position_bits: int,
    out_slots: Any,
    out_positions: Any,
    out_row_ids: Any,
    counts: Any,
) -> None:
    """Follow rows to those before them in their episodes; see `walk_forward`.

    The last place of ``out_slots`` is where it begins; places in front of the first row that there is repeat it.
    """
    length, shape_table, fill_table = out_slots.shape[1], address_of(shapes), address_of(fills)
    shards, places, num_shards = address_of(shard_table), address_of(slot_table), shard_table.shape[0]
    for i in range(slots.shape[0]):
        slot, position = slots[i], positions[i]
        block_rows = load_i64(shape_table + slot * SHAPE_BYTES + BLOCK_ROWS * 8)
        found = 1
        out_slots[i, length - 1], out_positions[i, length - 1] = slot, position
        while found < length:
            to_slot, to_position = slot, position - 1
            if position % block_rows == 0:
                before = load_i64(chains[slot, BEFORE] + position // block_rows * 8)
                to_slot = find_slot(before, shards, num_shards, places, shard_shift, position_bits)
                if to_slot < 0:
                    break
                block_rows = load_i64(shape_table + to_slot * SHAPE_BYTES + BLOCK_ROWS * 8)
                to_position = (before & ((1 << position_bits) - 1)) + block_rows - 1
                if committed_kind(shape_table, fill_table, to_slot, to_position) != CONTINUED:
                    break
                to_position -= 1
            if committed_kind(shape_table, fill_table, to_slot, to_position) != TRANSITION:
                break
            slot, position = to_slot, to_position
            found += 1
            out_slots[i, length - found], out_positions[i, length - found] = slot, position
        counts[i] = found
        for j in range(length - found):
            out_slots[i, j], out_positions[i, j] = slot, position
        for j in range(length):
            base = load_i64(shape_table + out_slots[i, j] * SHAPE_BYTES + ROW_BASE * 8)
            out_row_ids[i, j] = base + out_positions[i, j]
