"""Reading rows by address into one batch: a block of rows column by column, the rows ahead prefetched."""

from __future__ import annotations

from typing import Any

from .memory import (
    address_of,
    copy,
    copy_item,
    inline,
    kernel,
    load_f64,
    load_i64,
    load_u8,
    prefetch,
    store_f32,
    store_u8,
)

# Fields of an output column.
COLUMN, SHIFT, ITEM, CAST, TARGET = range(5)
OUTPUT_BYTES = 40
_KIND, _TERMINATED, _TRUNCATED = 6, 7, 8  # places of columns
_FINAL = 2
_BLOCK = 256  # rows that are copied column by column: their places stay in the cache
_LEAST_AHEAD, _MOST_AHEAD, _AHEAD_BYTES = 8, 32, 4096  # rows that are asked for before they are copied
_LINE = 64
_MAX_LINES = 8
_LOOKED_AT, _LEAST_RUN = 64, 4  # of so many rows, those that lie one behind the other on average


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
def _run_at(slots: int, positions: int, count: int) -> int:
    """How many rows, at least one of so many, lie one behind the other."""
    slot, position = load_i64(slots), load_i64(positions)
    run: Any = 1
    while run < count and load_i64(positions + run * 8) == position + run and load_i64(slots + run * 8) == slot:
        run += 1
    return int(run)


@inline
def _are_runs(slots: int, positions: int, count: int) -> bool:
    """Whether rows lie in stretches one behind the other, as far as their beginning tells."""
    looked: Any = 0
    runs: Any = 0
    while looked < min(count, _LOOKED_AT):
        looked += _run_at(slots + looked * 8, positions + looked * 8, count - looked)
        runs += 1
    return bool(runs * _LEAST_RUN <= looked)


@inline
def _copy_runs(
    outputs: int, num_outputs: int, addresses: int, row_bytes: int, slots: int, positions: int, stop: int
) -> None:
    """Copy rows that lie in stretches, all columns of one stretch after the other."""
    i: Any = 0
    while i < stop:
        run = _run_at(slots + i * 8, positions + i * 8, stop - i)
        if i + run < stop:
            j = (i + run) * 8
            _fetch_row(outputs, num_outputs, addresses + load_i64(slots + j) * row_bytes, load_i64(positions + j))
        here, position = addresses + load_i64(slots + i * 8) * row_bytes, load_i64(positions + i * 8)
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


@inline
def _fetch_row(outputs: int, num_outputs: int, addresses: int, position: int) -> None:
    for c in range(num_outputs):
        output = outputs + c * OUTPUT_BYTES
        size = load_i64(output + ITEM * 8)
        source = load_i64(addresses + load_i64(output) * 8) + (position + load_i64(output + SHIFT * 8)) * size
        _fetch(source, size)


def _copying(width: int = 0, cast: bool = False) -> Any:
    """A function that copies a column of rows that lie anywhere; for items of one width it is much shorter code."""

    @inline
    def copy_items(
        target: int, column: int, row_bytes: int, slots: int, positions: int, count: int, shift: int, size: int
    ) -> None:
        item = width or size
        ahead = _MOST_AHEAD if width else max(_LEAST_AHEAD, min(_MOST_AHEAD, _AHEAD_BYTES // max(item, 1)))
        for i in range(-ahead, count):
            if i + ahead < count:
                j = (i + ahead) * 8
                slot, position = load_i64(slots + j), load_i64(positions + j)
                source = load_i64(column + slot * row_bytes) + (position + shift) * item
                if width:  # never in two lines
                    prefetch(source)
                else:
                    _fetch(source, item)
            if i >= 0:
                slot, position = load_i64(slots + i * 8), load_i64(positions + i * 8)
                source = load_i64(column + slot * row_bytes) + (position + shift) * item
                if cast:
                    _cast(target + i * (item >> 1), source, item >> 3)
                elif width:
                    copy(target + i * item, source, width)
                else:
                    copy_item(target + i * item, source, item)

    return copy_items


_copy_bytes, _copy_words, _copy_items, _cast_items = _copying(1), _copying(4), _copying(), _copying(cast=True)


@inline
def _copy_flags(target: int, column: int, kinds: int, row_bytes: int, slots: int, positions: int, count: int) -> None:
    """Copy whether steps ended their episodes, which few do: then a final observation lies behind them.

    So one column tells for both flags, and it is the one that draws have just looked at.
    """
    for i in range(-_MOST_AHEAD, count):
        if i + _MOST_AHEAD < count:
            j = (i + _MOST_AHEAD) * 8
            prefetch(load_i64(kinds + load_i64(slots + j) * row_bytes) + load_i64(positions + j) + 1)
        if i >= 0:
            table, position = load_i64(slots + i * 8) * row_bytes, load_i64(positions + i * 8)
            flag = 0
            if load_u8(load_i64(kinds + table) + position + 1) == _FINAL:
                flag = load_u8(load_i64(column + table) + position)
            store_u8(target + i, flag)


@kernel("void(int64[::1], int64[::1], int64[:, ::1], int64[:, ::1])")
def gather(slots: Any, positions: Any, address_table: Any, output_table: Any) -> None:
    """Copy the columns that ``outputs`` names, each row to its place in the batch.

    An output with SHIFT 1 reads the row behind (``next_observation``); one with CAST reads float64, writes float32.
    """
    n, num_outputs = slots.shape[0], output_table.shape[0]
    outputs = address_of(output_table)
    addresses, row_bytes = address_of(address_table), address_table.shape[1] * 8
    slot, position = address_of(slots), address_of(positions)
    if _are_runs(slot, position, n):
        _copy_runs(outputs, num_outputs, addresses, row_bytes, slot, position, n)
        return
    for first in range(0, n, _BLOCK):
        count = min(_BLOCK, n - first)
        here = first * 8
        for c in range(num_outputs):
            output = outputs + c * OUTPUT_BYTES
            size, shift = load_i64(output + ITEM * 8), load_i64(output + SHIFT * 8)
            column, cast = addresses + load_i64(output + COLUMN * 8) * 8, load_i64(output + CAST * 8) != 0
            target = load_i64(output + TARGET * 8) + first * (size >> 1 if cast else size)
            if cast:
                _cast_items(target, column, row_bytes, slot + here, position + here, count, shift, size)
            elif size == 4:
                _copy_words(target, column, row_bytes, slot + here, position + here, count, shift, size)
            elif shift == 0 and load_i64(output + COLUMN * 8) in (_TERMINATED, _TRUNCATED):
                kinds = addresses + _KIND * 8
                _copy_flags(target, column, kinds, row_bytes, slot + here, position + here, count)
            elif size == 1:
                _copy_bytes(target, column, row_bytes, slot + here, position + here, count, shift, size)
            else:
                _copy_items(target, column, row_bytes, slot + here, position + here, count, shift, size)
