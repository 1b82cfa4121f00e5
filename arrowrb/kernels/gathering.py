"""Reading rows by address into one batch: all columns of a row in one go, the rows ahead prefetched."""

from __future__ import annotations

from typing import Any

from .memory import address_of, copy, copy_item, inline, kernel, load_f64, load_i64, load_u8, prefetch, store_f32

# Fields of an output column.
COLUMN, SHIFT, ITEM, CAST, TARGET = range(5)
OUTPUT_BYTES = 40
_AHEAD = 8
_LINE = 64
_MAX_LINES = 8
_LEAST_RUN = 4


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


@kernel(
    "int64(int64[::1], int64[:, ::1], int32[::1], int64, int64, int64[:, ::1], int32[::1], int64[::1], int64[::1],"
    " int64[::1])"
)
def sift(
    row_ids: Any,
    shard_table: Any,
    slot_table: Any,
    shard_shift: int,
    position_bits: int,
    shapes: Any,
    fills: Any,
    slots: Any,
    positions: Any,
    sources: Any,
) -> int:
    """Find transitions by row id, those that are still there; see `locate` and `find_missing` for the tables.

    ``sources`` takes which of the row ids each of them is.

    Returns:
        How many there are; or -1 - i where row_ids[i] never was a transition, as far as can be seen.
    """
    position_mask = (1 << position_bits) - 1
    segment_mask = (1 << (shard_shift - position_bits)) - 1
    found: Any = 0
    for i in range(row_ids.shape[0]):
        row_id = row_ids[i]
        shard, segment, p = row_id >> shard_shift, (row_id >> position_bits) & segment_mask, row_id & position_mask
        if row_id < 0 or shard >= shard_table.shape[0] or segment >= shard_table[shard, 1]:
            return -1 - i
        s = slot_table[shard_table[shard, 0] + segment]
        if s < 0:
            continue  # its segment is gone
        if p >= shapes[s, 0]:
            return -1 - i
        if shapes[s, 4] == 0:
            block = p // shapes[s, 1]
            if block >= shapes[s, 3] or p - block * shapes[s, 1] >= fills[shapes[s, 2] + block]:
                return -1 - i
        if load_u8(shapes[s, 5] + p) != 1:
            return -1 - i
        slots[found], positions[found], sources[found] = s, p, i
        found += 1
    return int(found)


@inline
def _fetch(source: int, size: int) -> None:
    """Ask for the cache lines of a value."""
    last = source + size - 1
    for _ in range(_MAX_LINES):
        if source >= last:
            break
        prefetch(source)
        source += _LINE
    prefetch(last)


@inline
def _cast(target: int, source: int, count: int) -> None:
    for k in range(count):
        store_f32(target + k * 4, load_f64(source + k * 8))


@inline
def _fetch_row(outputs: int, num_outputs: int, addresses: int, position: int) -> None:
    for c in range(num_outputs):
        output = outputs + c * OUTPUT_BYTES
        size = load_i64(output + ITEM * 8)
        source = load_i64(addresses + load_i64(output) * 8) + (position + load_i64(output + SHIFT * 8)) * size
        _fetch(source, size)


@kernel("void(int64[::1], int64[::1], int64[:, ::1], int64[:, ::1])")
def gather(slots: Any, positions: Any, address_table: Any, output_table: Any) -> None:
    """Copy the columns that ``outputs`` names, each row to its place in the batch.

    An output with SHIFT 1 reads the row behind (``next_observation``); one with CAST reads float64, writes float32.
    """
    n, num_outputs = slots.shape[0], output_table.shape[0]
    outputs = address_of(output_table)
    addresses, row_bytes = address_of(address_table), address_table.shape[1] * 8
    for i in range(min(_AHEAD, n)):
        _fetch_row(outputs, num_outputs, addresses + slots[i] * row_bytes, positions[i])
    i = 0
    while i < n:
        ahead = i + _AHEAD
        if ahead < n:
            _fetch_row(outputs, num_outputs, addresses + slots[ahead] * row_bytes, positions[ahead])
        here, position = addresses + slots[i] * row_bytes, positions[i]
        run = 1  # rows that lie one behind the other
        while i + run < n and positions[i + run] == position + run and slots[i + run] == slots[i]:
            run += 1
        if run < _LEAST_RUN:
            run = 1
        for c in range(num_outputs):
            output = outputs + c * OUTPUT_BYTES
            size, target = load_i64(output + ITEM * 8), load_i64(output + TARGET * 8)
            source = load_i64(here + load_i64(output) * 8) + (position + load_i64(output + SHIFT * 8)) * size
            if load_i64(output + CAST * 8) != 0:
                _cast(target + i * (size >> 1), source, run * (size >> 3))
            elif run == 1:
                copy_item(target + i * size, source, size)
            else:
                copy(target + i * size, source, run * size)
        i += run
