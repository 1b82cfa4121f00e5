"""A snapshot as inner functions see it: addresses and sizes of its tables in one array, and how blocks are walked."""

from __future__ import annotations

from .drawing import BLOCK_ROWS, KINDS, ROW_BASE
from .memory import inline, load_i64, load_u8
from .walking import (
    CONTINUED,
    FILLS,
    SHAPE_BYTES,
    SHAPES,
    TRANSITION,
    come_from,
    committed_kind,
    committed_stop,
    last_of_block,
    linked_row,
)

WORD, LINE = 8, 64  # kinds that are looked at together
ALL_TRANSITIONS = 0x0101010101010101


@inline
def kind_of(world: int, slot: int, position: int) -> int:
    """The kind of a row, 0 where it is not committed."""
    return int(committed_kind(load_i64(world), load_i64(world + FILLS * 8), slot, position))


@inline
def block_rows_of(world: int, slot: int) -> int:
    """How many rows a block of a segment has."""
    return int(load_i64(load_i64(world) + slot * SHAPE_BYTES + BLOCK_ROWS * 8))


@inline
def linked(world: int, slot: int, block: int, field: int) -> tuple[int, int]:
    """The slot and the block behind or before a block of its lane; slot -1 where there is none."""
    to, position = linked_row(world, slot, block * block_rows_of(world, slot), field)
    if to < 0:
        return -1, 0
    return to, position // block_rows_of(world, to)


@inline
def row_of(world: int, slot: int, position: int) -> int:
    """The row id of a row."""
    return int(load_i64(load_i64(world) + slot * SHAPE_BYTES + ROW_BASE * 8) + position)


@inline
def kinds_of(world: int, slot: int) -> int:
    """The address of a segment's kinds."""
    return int(load_i64(load_i64(world) + slot * SHAPE_BYTES + KINDS * 8))


@inline
def stop_of(world: int, slot: int, position: int) -> int:
    """Up to which position the block of a row is committed, or may be."""
    return int(committed_stop(load_i64(world), load_i64(world + FILLS * 8), slot, position))


@inline
def all_transitions(kinds: int) -> bool:
    """Whether 64 kinds are those of transitions."""
    other = 0
    for i in range(LINE // WORD):
        other |= load_i64(kinds + i * WORD) ^ ALL_TRANSITIONS
    return other == 0


@inline
def leading(world: int, slot: int, block: int) -> tuple[int, bool]:
    """How many transitions a block begins with, and whether their episode goes on in another."""
    first = block * block_rows_of(world, slot)
    kinds, stop = kinds_of(world, slot), stop_of(world, slot, first)
    at = first
    while at + LINE <= stop and all_transitions(kinds + at):
        at += LINE
    while at + WORD <= stop and load_i64(kinds + at) == ALL_TRANSITIONS:
        at += WORD
    while at < stop and load_u8(kinds + at) == TRANSITION:
        at += 1
    return at - first, at < stop and load_u8(kinds + at) == CONTINUED


@inline
def goes_on(world: int, slot: int, block: int) -> bool:
    """Whether the last row of a block says that its episode goes on in another."""
    first = block * block_rows_of(world, slot)
    last = last_of_block(load_i64(world + SHAPES * 8), load_i64(world + FILLS * 8), slot, first)
    return bool(last >= first and kind_of(world, slot, last) == CONTINUED)


@inline
def step_back(world: int, slot: int, position: int) -> tuple[int, int]:
    """The transition before one in its episode; slot -1 where there is none."""
    if position % block_rows_of(world, slot) == 0:
        slot, position = come_from(world, slot, position)
        if slot < 0:
            return -1, 0
    if kind_of(world, slot, position - 1) != TRANSITION:
        return -1, 0
    return slot, position - 1
