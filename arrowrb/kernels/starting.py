"""Where sequences of a length can begin: counted by block, so that what arrives changes few counts.

A row is a *start* if it and the rows behind it in its episode are at least ``length`` transitions. An episode's *last
start* is the one with exactly so many. Both are counted for each block, over the ends of blocks and segments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .drawing import ROW_BASE, below, mask_of
from .listing import search_sums
from .memory import address_of, inline, kernel, load_i32, load_i64, load_u8, store_i32, store_i64
from .walking import BEFORE, BEHIND, CONTINUED, SHAPE_BYTES, SHAPES, TRANSITION
from .world import (
    ALL_TRANSITIONS,
    LINE,
    WORD,
    all_transitions,
    block_rows_of,
    goes_on,
    kinds_of,
    leading,
    linked,
    step_back,
    stop_of,
)

# Fields of a segment's counts: addresses of its blocks' starts and last starts, and of their running sums.
STARTS, LAST_STARTS, STARTS_UNTIL, LAST_STARTS_UNTIL = range(4)
COUNT_FIELDS = 4


@inline
def _beyond(world: int, slot: int, block: int, enough: int) -> int:
    """How many transitions follow in the episode that goes on behind a block, looked for up to ``enough``."""
    total = 0
    while total < enough:
        slot, block = linked(world, slot, block, BEHIND)
        if slot < 0:
            break
        count, carried = leading(world, slot, block)
        total += count
        if not carried:
            break
    return total


@inline
def _find(world: int, slot: int, block: int, length: int, last_only: bool, wanted: int) -> tuple[int, int, int]:
    """Look for the starts of a block from its end: how many there are, and last ones, and which is the wanted one.

    Eight transitions in a row are passed over at once, unless a last start, or the wanted one, is among them.
    """
    first = block * block_rows_of(world, slot)
    kinds, at = kinds_of(world, slot), stop_of(world, slot, first)
    run, starts, last_starts = 0, 0, 0
    while at > first:
        before = run + LINE < length
        after = run >= length and (last_only or starts + LINE <= wanted or wanted < 0)
        if (before or after) and at - LINE >= first and all_transitions(kinds + at - LINE):
            run, at = run + LINE, at - LINE
            starts += LINE if after else 0
            continue
        if at - WORD >= first and load_i64(kinds + at - WORD) == ALL_TRANSITIONS:
            before = run + WORD < length
            after = run >= length and (last_only or starts + WORD <= wanted or wanted < 0)
            if before or after:
                run, at = run + WORD, at - WORD
                starts += WORD if after else 0
                continue
        at -= 1
        kind = load_u8(kinds + at)
        if kind == TRANSITION:
            run += 1
            hit = run == length or (run > length and not last_only)
            if hit and wanted == (last_starts if last_only else starts):
                return starts, last_starts, at
            starts += run >= length
            last_starts += run == length
        else:
            run = _beyond(world, slot, block, length) if kind == CONTINUED else 0
    return starts, last_starts, -1


@inline
def _count(world: int, counts: int, slot: int, block: int, length: int) -> None:
    starts, last_starts, _ = _find(world, slot, block, length, False, -1)
    store_i32(load_i64(counts + (slot * COUNT_FIELDS + STARTS) * 8) + block * 4, starts)
    store_i32(load_i64(counts + (slot * COUNT_FIELDS + LAST_STARTS) * 8) + block * 4, last_starts)


@kernel("void(int64[::1], int64[:, ::1], int64, int64[::1], int64[::1], int64, uint8[::1])")
def count_starts(world_table: Any, counts: Any, slot: int, blocks: Any, seen: Any, length: int, changed: Any) -> None:
    """Count the starts of blocks anew, and of those before them whose episodes they go on with.

    Args:
        world_table: of the snapshot, as above.
        counts: where the counts of each slot are.
        slot: of the blocks.
        blocks: those with new rows.
        seen: how many rows of each were there before.
        length: of sequences.
        changed: takes 1 for the slots of which counts were made anew.
    """
    world, places = address_of(world_table), address_of(counts)
    for i in range(blocks.shape[0]):
        _count(world, places, slot, blocks[i], length)
        changed[slot] = 1
        count, _ = leading(world, slot, blocks[i])
        known = min(count, seen[i])  # transitions from here on that were there already
        at_slot, at_block = slot, blocks[i]
        while known < length:
            at_slot, at_block = linked(world, at_slot, at_block, BEFORE)
            if at_slot < 0:
                break
            if not goes_on(world, at_slot, at_block):
                break
            _count(world, places, at_slot, at_block, length)
            changed[at_slot] = 1
            count, carried = leading(world, at_slot, at_block)
            if not carried:
                break
            known += count


@kernel("void(int64[:, ::1], uint8[::1], int64[::1], int64[::1], int64[::1])")
def sum_starts(counts: Any, changed: Any, blocks: Any, starts: Any, last_starts: Any) -> None:
    """Running sums over the blocks of slots that have changed, and the totals of these slots."""
    for s in range(changed.shape[0]):
        if changed[s] == 0:
            continue
        total, last_total = 0, 0
        for b in range(blocks[s]):
            total += load_i32(counts[s, STARTS] + b * 4)
            last_total += load_i32(counts[s, LAST_STARTS] + b * 4)
            store_i64(counts[s, STARTS_UNTIL] + b * 8, total)
            store_i64(counts[s, LAST_STARTS_UNTIL] + b * 8, last_total)
        starts[s], last_starts[s] = total, last_total


@kernel("void(uint64[::1], int64[::1], int64[:, ::1], int64[::1], int64[::1], int64, boolean, int64[:, ::1])")
def draw_starts(
    state: Any,
    world_table: Any,
    counts: Any,
    until: Any,
    blocks: Any,
    length: int,
    by_episode: bool,
    places: Any,
) -> None:
    """Draw starts uniformly, with replacement; or with ``by_episode`` an episode uniformly, then a start of it.

    ``until`` are the running sums of the slots' starts, or last starts; the last of them is not 0. ``places`` takes
    slots, positions and row ids, [3, n].
    """
    generator, world, shapes = address_of(state), address_of(world_table), world_table[SHAPES]
    bound = np.uint64(until[until.shape[0] - 1])
    field = LAST_STARTS_UNTIL if by_episode else STARTS_UNTIL
    for i in range(places.shape[1]):
        r = np.int64(below(generator, mask_of(bound), bound))
        slot = search_sums(address_of(until), until.shape[0], r)
        if slot > 0:
            r -= until[slot - 1]
        block = search_sums(counts[slot, field], blocks[slot], r)
        if block > 0:
            r -= load_i64(counts[slot, field] + (block - 1) * 8)
        _, _, position = _find(world, slot, block, length, by_episode, r)
        if by_episode:
            total, at_slot, at = 0, slot, position
            while at_slot >= 0:
                total += 1
                at_slot, at = step_back(world, at_slot, at)
            many = np.uint64(total)
            for _ in range(np.int64(below(generator, mask_of(many), many))):
                slot, position = step_back(world, slot, position)
        places[0, i], places[1, i] = slot, position
        places[2, i] = load_i64(shapes + slot * SHAPE_BYTES + ROW_BASE * 8) + position
