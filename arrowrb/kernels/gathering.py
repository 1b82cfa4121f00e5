"""Reading rows by address into one batch: all columns of a row in one go, the rows ahead prefetched."""

from __future__ import annotations

from typing import Any

from .memory import copy, inline, kernel, load_f64, load_u8, prefetch, store_f32

# Fields of an output column.
COLUMN, SHIFT, ITEM, CAST, TARGET = range(5)
OUTPUT_FIELDS = 5
_AHEAD = 12
_LINE = 64
_MAX_LINES = 8


@kernel("int64(int64[::1], int64[:, ::1], int32[::1], int64, int64, int64[::1], int64[::1])")
def locate(
    row_ids: Any,
    shard_table: Any,
    slot_table: Any,
    shard_shift: int,
    position_bits: int,
    slots: Any,
    positions: Any,
) -> int:
    """Split row ids into slots of a snapshot and positions. Returns the first that lies nowhere, or -1.

    ``shard_table`` has a row (first entry in slot_table, segments) for every shard number below its length.
    """
    position_mask = (1 << position_bits) - 1
    segment_mask = (1 << (shard_shift - position_bits)) - 1
    for i in range(row_ids.shape[0]):
        row_id = row_ids[i]
        shard = row_id >> shard_shift
        segment = (row_id >> position_bits) & segment_mask
        if row_id < 0 or shard >= shard_table.shape[0] or segment >= shard_table[shard, 1]:
            return i
        slot = slot_table[shard_table[shard, 0] + segment]
        if slot < 0:
            return i
        slots[i] = slot
        positions[i] = row_id & position_mask
    return -1


@kernel("int64(int64[::1], int64[::1], int64[:, ::1], int32[::1])")
def find_missing(slots: Any, positions: Any, shapes: Any, fills: Any) -> int:
    """The first of these rows that is no committed transition, or -1. ``shapes`` as in the draw kernels."""
    for i in range(slots.shape[0]):
        s, p = slots[i], positions[i]
        if p >= shapes[s, 0]:
            return i
        if shapes[s, 4] == 0:
            block = p // shapes[s, 1]
            if block >= shapes[s, 3] or p - block * shapes[s, 1] >= fills[shapes[s, 2] + block]:
                return i
        if load_u8(shapes[s, 5] + p) != 1:
            return i
    return -1


@inline
def _fetch(outputs: Any, addresses: Any, slot: int, position: int) -> None:
    for c in range(outputs.shape[0]):
        size = outputs[c, ITEM]
        address = addresses[slot, outputs[c, COLUMN]] + (position + outputs[c, SHIFT]) * size
        lines = min((size + _LINE - 1) // _LINE, _MAX_LINES)
        for line in range(lines):
            prefetch(address + line * _LINE)
        prefetch(address + size - 1)


@kernel("void(int64[::1], int64[::1], int64[:, ::1], int64[:, ::1])")
def gather(slots: Any, positions: Any, addresses: Any, outputs: Any) -> None:
    """Copy the columns that ``outputs`` names, each row to its place in the batch.

    An output with SHIFT 1 reads the row behind (``next_observation``); one with CAST reads float64, writes float32.
    """
    n = slots.shape[0]
    num_outputs = outputs.shape[0]
    for i in range(min(_AHEAD, n)):
        _fetch(outputs, addresses, slots[i], positions[i])
    for i in range(n):
        if i + _AHEAD < n:
            _fetch(outputs, addresses, slots[i + _AHEAD], positions[i + _AHEAD])
        slot, position = slots[i], positions[i]
        for c in range(num_outputs):
            size = outputs[c, ITEM]
            source = addresses[slot, outputs[c, COLUMN]] + (position + outputs[c, SHIFT]) * size
            if outputs[c, CAST]:
                count = size >> 3
                target = outputs[c, TARGET] + i * count * 4
                for k in range(count):
                    store_f32(target + k * 4, load_f64(source + k * 8))
            else:
                target = outputs[c, TARGET] + i * size
                if size == 4:
                    copy(target, source, 4)
                elif size == 8:
                    copy(target, source, 8)
                elif size == 1:
                    copy(target, source, 1)
                else:
                    copy(target, source, size)
