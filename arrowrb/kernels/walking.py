"""Following rows of an episode, or of a lane, forwards and backwards, over the ends of blocks and segments.

`Chains` tells for each block which one comes behind it and before it in its lane.
"""

from __future__ import annotations

from typing import Any

from .drawing import BLOCK_ROWS, FIRST_FILL, KINDS, ROW_BASE, WHOLE
from .memory import (
    address_of,
    inline,
    kernel,
    load_i32,
    load_i64,
    load_u8,
    store_i64,
)

# Fields of a chain: addresses of what each block of a segment is followed by, comes after, and is told to go on at.
BEHIND, BEFORE, CONTINUATION = range(3)
CHAIN_FIELDS = 3
# Fields of what inner functions need of a snapshot: addresses and sizes of its tables.
SHAPES, FILLS, CHAINS, SHARDS, NUM_SHARDS, SLOTS, SHARD_SHIFT, POSITION_BITS = range(8)
WORLD_FIELDS = 8
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


@inline
def slot_of(world: int, row_id: int) -> int:
    """The slot of a row's segment; -1 where the snapshot has it not."""
    shards, num_shards = load_i64(world + SHARDS * 8), load_i64(world + NUM_SHARDS * 8)
    places, shift = load_i64(world + SLOTS * 8), load_i64(world + SHARD_SHIFT * 8)
    return int(find_slot(row_id, shards, num_shards, places, shift, load_i64(world + POSITION_BITS * 8)))


@inline
def last_of_block(shapes: int, fills: int, slot: int, first: int) -> int:
    """The last committed row of the block that begins at a position; one less than that where there is none.

    Few blocks end early: those of a lane that was moved out of a segment which it alone held open.
    """
    stop = committed_stop(shapes, fills, slot, first)
    kinds = load_i64(shapes + slot * SHAPE_BYTES + KINDS * 8)
    while stop > first and load_u8(kinds + stop - 1) == 0:
        stop -= 1
    return int(stop - 1)


@inline
def linked_row(world: int, slot: int, position: int, field: int) -> tuple[int, int]:
    """The first row of the block behind or before that of a row, in its lane; slot -1 where there is none."""
    block = position // load_i64(load_i64(world + SHAPES * 8) + slot * SHAPE_BYTES + BLOCK_ROWS * 8)
    links = load_i64(load_i64(world + CHAINS * 8) + (slot * CHAIN_FIELDS + field) * 8)
    row_id = load_i64(links + block * 8)
    return slot_of(world, row_id), row_id & ((1 << load_i64(world + POSITION_BITS * 8)) - 1)


@inline
def go_on(world: int, slot: int, position: int) -> tuple[int, int]:
    """The row at which the lane of a block goes on behind it, by any row of that; slot -1 where there is none (yet).

    A block that holds nothing but a tail, since its lane rested until it was moved again, is passed over.
    """
    while True:
        slot, position = linked_row(world, slot, position, BEHIND)
        if slot < 0:
            return -1, 0
        kind = committed_kind(load_i64(world + SHAPES * 8), load_i64(world + FILLS * 8), slot, position)
        if kind == 0:
            return -1, 0
        if kind != CONTINUED:
            return slot, position


@inline
def come_from(world: int, slot: int, position: int) -> tuple[int, int]:
    """The tail at which the episode of a block's first row was carried into it; slot -1 where there is none.

    Blocks that hold nothing but a tail are passed over, as `go_on` does.
    """
    shapes, fills = load_i64(world + SHAPES * 8), load_i64(world + FILLS * 8)
    while True:
        slot, position = linked_row(world, slot, position, BEFORE)
        if slot < 0:
            return -1, 0
        last = last_of_block(shapes, fills, slot, position)
        if last < position or committed_kind(shapes, fills, slot, last) != CONTINUED:
            return -1, 0
        if last > position:
            return slot, last


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


@kernel("void(int64[:, ::1], int64[:, ::1], int32[::1], int64[::1], int64[::1], int64[::1], uint8[::1], int64[::1])")
def check_links(
    chains: Any, shapes: Any, fills: Any, slots: Any, positions: Any, row_ids: Any, verdicts: Any, last: Any
) -> None:
    """Whether the block at ``positions`` goes on at ``row_ids``, as far as its run table tells; and its last rows."""
    shape_table, fill_table = address_of(shapes), address_of(fills)
    for i in range(slots.shape[0]):
        s = slots[i]
        verdicts[i], last[i] = RIGHT, last_of_block(shape_table, fill_table, s, positions[i])
        if last[i] >= positions[i] and load_u8(shapes[s, KINDS] + last[i]) == CONTINUED:
            told = chains[s, CONTINUATION]
            if told == 0:
                verdicts[i] = UNKNOWN
            elif load_i64(told + positions[i] // shapes[s, BLOCK_ROWS] * 8) != row_ids[i]:
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


@inline
def _put(out: int, to_positions: int, to_row_ids: int, place: int, slot: int, position: int, base: int) -> None:
    """Note a row at a place of a walk."""
    store_i64(out + place * 8, slot)
    store_i64(out + to_positions + place * 8, position)
    store_i64(out + to_row_ids + place * 8, base + position)


@kernel("void(int64[::1], int64[::1], int64[::1], boolean, boolean, int64[:, :, ::1], int64[::1])")
def walk_forward(
    world_table: Any, slots: Any, positions: Any, across: bool, tails: bool, places: Any, counts: Any
) -> None:
    """Follow rows to those behind them.

    Args:
        world_table: addresses and sizes of a snapshot's tables, and of how its blocks are linked.
        slots: of the rows to begin at; likewise ``positions``.
        positions: see ``slots``.
        across: follow the lane into its next episode; else the episode only.
        tails: count final observations as rows.
        places: takes slots, positions and row ids, [3, n, length], the first of which is where it begins; places that
            no row is left for repeat the last.
        counts: takes how many rows were found.
    """
    world, n, length = address_of(world_table), places.shape[1], places.shape[2]
    shape_table, fill_table = world_table[SHAPES], world_table[FILLS]
    into = address_of(places)
    to_positions, to_row_ids = n * length * 8, 2 * n * length * 8
    for i in range(n):
        slot, position = slots[i], positions[i]
        shape = shape_table + slot * SHAPE_BYTES
        kinds, base = load_i64(shape + KINDS * 8), load_i64(shape + ROW_BASE * 8)
        stop = committed_stop(shape_table, fill_table, slot, position)
        out = into + i * length * 8
        _put(out, to_positions, to_row_ids, 0, slot, position, base)
        found, last_slot, last_position, last_base = 1, slot, position, base
        kind = TRANSITION
        while found < length:
            if kind in (FINAL, CUT) and not across:
                break
            while position + 1 < stop and load_u8(kinds + position + 1) == TRANSITION:  # the way of most
                position += 1
                _put(out, to_positions, to_row_ids, found, slot, position, base)
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
                slot, position = go_on(world, slot, position - 1)
                if slot < 0:
                    break
                shape = shape_table + slot * SHAPE_BYTES
                kinds, base = load_i64(shape + KINDS * 8), load_i64(shape + ROW_BASE * 8)
                stop = committed_stop(shape_table, fill_table, slot, position)
                kind = load_u8(kinds + position)
            if kind == TRANSITION or tails:
                _put(out, to_positions, to_row_ids, found, slot, position, base)
                last_slot, last_position, last_base = slot, position, base
                found += 1
        counts[i] = found
        for j in range(found, length):
            _put(out, to_positions, to_row_ids, j, last_slot, last_position, last_base)


@kernel("void(int64[::1], int64[::1], int64[::1], int64, int64[:, :, ::1], int64[::1])")
def walk_back(world_table: Any, slots: Any, positions: Any, behind: int, places: Any, counts: Any) -> None:
    """Follow rows to those before them in their episodes; see `walk_forward`.

    The last place is where it begins; places in front of the first row that there is repeat it. With ``behind`` 1 the
    last place is the row behind, whatever its kind, and the one before it where it begins; it counts, too.
    """
    world, shape_table, length = address_of(world_table), world_table[SHAPES], places.shape[2]
    for i in range(slots.shape[0]):
        slot, position = slots[i], positions[i]
        block_rows = load_i64(shape_table + slot * SHAPE_BYTES + BLOCK_ROWS * 8)
        found, last = 1, length - 1
        places[0, i, last], places[1, i, last] = slot, position + behind
        if behind == 1 and length > 1:
            found, last = 2, length - 2
            places[0, i, last], places[1, i, last] = slot, position
        while found < length:
            to_slot, to_position = slot, position
            if position % block_rows == 0:
                to_slot, to_position = come_from(world, slot, position)
                if to_slot < 0:
                    break
                block_rows = load_i64(shape_table + to_slot * SHAPE_BYTES + BLOCK_ROWS * 8)
            to_position -= 1
            if committed_kind(shape_table, world_table[FILLS], to_slot, to_position) != TRANSITION:
                break
            slot, position = to_slot, to_position
            found += 1
            places[0, i, length - found], places[1, i, length - found] = slot, position
        counts[i] = found
        for j in range(length - found):
            places[0, i, j], places[1, i, j] = slot, position
        for j in range(length):
            base = load_i64(shape_table + places[0, i, j] * SHAPE_BYTES + ROW_BASE * 8)
            places[2, i, j] = base + places[1, i, j]


# What a step of a sequence is.
THERE, ACTS, ENDS = 1, 2, 4


@kernel("void(int64[::1], int64[:, :, ::1], int64[::1], boolean, int64[:, :, ::1], int64[:, :, ::1], uint8[:, ::1])")
def part_steps(
    world_table: Any, places: Any, counts: Any, bootstrap: bool, observed: Any, acted: Any, flags: Any
) -> None:
    """Tell where the observations of steps are, and where their actions.

    Args:
        world_table: of the snapshot.
        places: slots, positions and row ids of walks, [3, n, length].
        counts: how many of each are steps.
        bootstrap: the row behind the last step is one, too, for its observation, unless the last has none.
        observed: takes where observations are, [3, n, length + bootstrap]; the row id is -1 where there is no step.
        acted: takes where actions are: those of the step before, where a step has none.
        flags: takes what each step is.
    """
    shape_table, fill_table = world_table[SHAPES], world_table[FILLS]
    for i in range(counts.shape[0]):
        count, latest = counts[i], 0
        for j in range(observed.shape[2]):
            at, row_id, flag = min(j, count - 1), -1, 0
            slot, position = places[0, i, at], places[1, i, at]
            kind = committed_kind(shape_table, fill_table, slot, position)
            if j < count:
                row_id, flag = places[2, i, at], THERE | (ACTS if kind == TRANSITION else ENDS)
                latest = at if kind == TRANSITION else latest
            elif j == count and bootstrap and kind == TRANSITION:
                position, flag = position + 1, THERE
            observed[0, i, j], observed[1, i, j], observed[2, i, j] = slot, position, row_id
            for k in range(3):
                acted[k, i, j] = places[k, i, latest]
            flags[i, j] = flag
