"""Gathering from both tiers: cold rows are read where a cache holds their row group decoded."""

from __future__ import annotations

from typing import Any

from .gathering import CAST, COLUMN, ITEM, OUTPUT_BYTES, SHIFT, TARGET
from .memory import address_of, copy_item, inline, kernel, load_f64, load_i64, prefetch, store_f32, store_u8

# Fields of a cold segment (all 0 for a hot one): addresses of its blocks' first rows, decoded columns and use flags.
STARTS, BLOCK_ROWS, GROUP_SHIFT, DECODED, USED = range(5)
# Where a row is read: the address of a list of column addresses and the row counted from there; then, for the row
# behind it, the same again; then its row of the file, or -1 for a hot one.
BASE, OFFSET, NEXT_BASE, NEXT_OFFSET, FILE_ROW = range(5)
PLACE_FIELDS = 5
_PLACE_BYTES = PLACE_FIELDS * 8
_AHEAD = 8


@kernel("int64(int64[::1], int64[::1], int64[:, ::1], int64[:, ::1], int64[:, ::1])")
def find_places(slots: Any, positions: Any, cold: Any, address_table: Any, places: Any) -> int:
    """Where each row is read; what is not decoded has the address 0. Returns how many are cold."""
    count, row_bytes = 0, address_table.shape[1] * 8
    addresses = address_of(address_table)
    for i in range(slots.shape[0]):
        s, position = slots[i], positions[i]
        if cold[s, STARTS] == 0:
            places[i, BASE] = places[i, NEXT_BASE] = addresses + s * row_bytes
            places[i, OFFSET], places[i, NEXT_OFFSET], places[i, FILE_ROW] = position, position + 1, -1
            continue
        block = position // cold[s, BLOCK_ROWS]
        row = load_i64(cold[s, STARTS] + block * 8) + position - block * cold[s, BLOCK_ROWS]
        shift, decoded = cold[s, GROUP_SHIFT], cold[s, DECODED]
        group, behind = row >> shift, (row + 1) >> shift
        places[i, BASE], places[i, OFFSET] = decoded + group * row_bytes, row - (group << shift)
        places[i, NEXT_BASE], places[i, NEXT_OFFSET] = decoded + behind * row_bytes, row + 1 - (behind << shift)
        places[i, FILE_ROW] = row
        store_u8(cold[s, USED] + group, 1)
        prefetch(places[i, BASE])
        count += 1
    return count


@kernel("int64(int64[:, ::1], int64[:, ::1])")
def count_missing(places: Any, outputs: Any) -> int:
    """How many rows need a column that is not decoded."""
    missing = 0
    for i in range(places.shape[0]):
        if places[i, FILE_ROW] < 0:
            continue
        for c in range(outputs.shape[0]):
            if load_i64(places[i, 2 * outputs[c, SHIFT]] + outputs[c, COLUMN] * 8) == 0:
                missing += 1
                break
    return missing


@inline
def _write(target: int, source: int, size: int, cast: int, place: int) -> None:
    if cast != 0:
        for k in range(size >> 3):
            store_f32(target + place * (size >> 1) + k * 4, load_f64(source + k * 8))
    else:
        copy_item(target + place * size, source, size)


@inline
def _source(place: int, output: int) -> Any:
    """Where a value lies."""
    which = place + load_i64(output + SHIFT * 8) * 16
    return load_i64(load_i64(which) + load_i64(output) * 8) + load_i64(which + 8) * load_i64(output + ITEM * 8)


@kernel("void(int64[:, ::1], int64[:, ::1])")
def gather_found(place_table: Any, output_table: Any) -> None:
    """`gather` for rows of both tiers, all of whose row groups are decoded."""
    n, num_outputs = place_table.shape[0], output_table.shape[0]
    places, outputs = address_of(place_table), address_of(output_table)
    for i in range(n + _AHEAD):
        if i < n:
            for c in range(num_outputs):
                output = outputs + c * OUTPUT_BYTES
                source = _source(places + i * _PLACE_BYTES, output)
                prefetch(source)
                prefetch(source + load_i64(output + ITEM * 8) - 1)
        k = i - _AHEAD
        if k < 0:
            continue
        for c in range(num_outputs):
            output = outputs + c * OUTPUT_BYTES
            source = _source(places + k * _PLACE_BYTES, output)
            _write(load_i64(output + TARGET * 8), source, load_i64(output + ITEM * 8), load_i64(output + CAST * 8), k)


@kernel("void(int64[::1], int64[::1], int64[::1], int64[:, ::1], int64[:, ::1])")
def gather_places(slots: Any, positions: Any, places: Any, address_table: Any, output_table: Any) -> None:
    """`gather` of some rows of a batch: row i of these is row ``places[i]`` of the batch."""
    num_outputs, num_columns = output_table.shape[0], address_table.shape[1]
    addresses, outputs = address_of(address_table), address_of(output_table)
    for i in range(slots.shape[0]):
        for c in range(num_outputs):
            output = outputs + c * OUTPUT_BYTES
            size = load_i64(output + ITEM * 8)
            base = load_i64(addresses + (slots[i] * num_columns + load_i64(output)) * 8)
            source = base + (positions[i] + load_i64(output + SHIFT * 8)) * size
            _write(load_i64(output + TARGET * 8), source, size, load_i64(output + CAST * 8), places[i])
