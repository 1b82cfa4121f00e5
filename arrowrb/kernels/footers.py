"""What a Parquet file's footer says of each column chunk, in one pass over its bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import inline, kernel

# What is kept of each chunk; -1 where the footer does not say it.
CHUNK_FIELDS = TYPE, CODEC, NUM_VALUES, BYTES, COMPRESSED_BYTES, POSITION, DICTIONARY = range(7)

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
_MOST_DEPTH = 16  # of structures and lists in each other; a footer has 8
# Where things lie: the depths of structures and lists, and the numbers of their fields.
_GROUPS, _COLUMNS, _METADATA, _STATISTICS, _SIZES = 4, 1, 3, 12, 16
_GROUP, _CHUNK, _INSIDE = 1, 3, 5  # depths: of the list of row groups, of the list of chunks, of a chunk's description


@inline
def _read_varint(content: Any, at: int, found: Any) -> Any:
    """Where a number ends, which goes to ``found[0]``; -1 if it does not."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < content.shape[0] and shift < 64:
        byte = np.uint64(content[at])
        at += 1
        value |= (byte & np.uint64(0x7F)) << shift
        shift += np.uint64(7)
        if byte < 0x80:
            found[0] = np.int64(value)
            return at
    return np.int64(-1)


@inline
def _keep(chunk: Any, field: int, kind: int, value: int) -> Any:
    """Keep a number of a chunk's description; False if it is there twice, of another type, or no such number."""
    place = np.int64(-1)
    wide = True
    if field == 1:
        place, wide = np.int64(TYPE), False
    elif field == 4:
        place, wide = np.int64(CODEC), False
    elif field == 5:
        place = np.int64(NUM_VALUES)
    elif field == 6:
        place = np.int64(BYTES)
    elif field == 7:
        place = np.int64(COMPRESSED_BYTES)
    elif field == 9:
        place = np.int64(POSITION)
    elif field == 11:
        place = np.int64(DICTIONARY)
    if place < 0:
        return True
    if chunk[place] != -1 or value < 0 or kind != (_I64 if wide else _I32):
        return False
    chunk[place] = value
    return True


@inline
def _signed(value: Any) -> Any:
    """The number that a varint stands for."""
    return np.int64(np.uint64(value) >> np.uint64(1)) ^ -(value & 1)


@inline
def _read_field(content: Any, at: int, last: int, found: Any) -> Any:
    """The end of a field's header; its number goes to ``found[0]``, its kind to ``found[1]`` (0: no field)."""
    if at >= content.shape[0]:
        return np.int64(-1)
    header = np.int64(content[at])
    at += 1
    if header == 0:
        found[0] = 0
    elif header >> 4:
        found[0] = last + (header >> 4)
    else:
        at = _read_varint(content, at, found)
        found[0] = _signed(found[0])
    found[1] = header & 15
    return np.int64(at)


@inline
def _read_elements(content: Any, at: int, found: Any) -> Any:
    """Where a list's header ends; how many elements follow goes to ``found[0]``, their kind to ``found[1]``."""
    if at >= content.shape[0]:
        return np.int64(-1)
    header = np.int64(content[at])
    at += 1
    found[0] = header >> 4
    if found[0] == 15:
        at = _read_varint(content, at, found)
    found[1] = header & 15
    if at < 0 or found[0] < 0 or found[0] > content.shape[0] - at:
        return np.int64(-1)
    return np.int64(at)


@inline
def _read_value(content: Any, at: int, kind: int, element: Any, found: Any) -> Any:
    """Where a value ends that has no others inside; a number, or a text's length, goes to ``found[0]``."""
    if kind == _TRUE or kind == _FALSE:
        at += 1 if element else 0
    elif kind == _BYTE:
        at += 1
    elif kind == _DOUBLE:
        at += 8
    elif kind == _I16 or kind == _I32 or kind == _I64:
        at = _read_varint(content, at, found)
        found[0] = _signed(found[0])
    elif kind == _BINARY:
        at = _read_varint(content, at, found)
        if at < 0 or found[0] < 0 or found[0] > content.shape[0] - at:
            return np.int64(-1)
        at += found[0]
    else:
        return np.int64(-1)
    return np.int64(at) if at <= content.shape[0] else np.int64(-1)


@inline
def _counts_right(depth: int, fields: Any, inside: Any, count: int, leaves: Any, chunks: Any) -> Any:
    """Whether a list may have so many elements where it stands."""
    if depth == 0 and fields[0] == _GROUPS:
        return count == chunks.shape[0]
    if depth == 2 and fields[0] == _GROUPS and fields[2] == _COLUMNS:
        return count == chunks.shape[1]
    if inside and depth == _INSIDE + 1 and fields[_INSIDE] == _SIZES and 2 <= fields[depth] <= 3:
        return count == 0 or count == leaves[fields[_CHUNK], 2 if fields[depth] == 2 else 1]
    return True


@inline
def _value_right(depth: int, fields: Any, kind: int, value: int, leaves: Any, chunks: Any) -> Any:
    """Whether a value may stand in a chunk's description where it does; what `CHUNK_FIELDS` names is kept."""
    if depth == _INSIDE and kind != _BINARY:
        return _keep(chunks[fields[_GROUP], fields[_CHUNK]], fields[depth], kind, value)
    if depth == _INSIDE + 1 and fields[_INSIDE] == _STATISTICS and kind == _BINARY:
        size = leaves[fields[_CHUNK], 0]
        return size < 0 or value == size
    return True


@kernel("int64(Array(uint8, 1, 'C', readonly=True), int64[:, ::1], int64[:, :, ::1])")
def read_chunks(content: Any, leaves: Any, chunks: Any) -> Any:
    """Fill ``chunks`` (row groups, leaves, `CHUNK_FIELDS`; all -1) from a footer's bytes; whether it is well-formed.

    It is not if there are other numbers of row groups and chunks, or if statistics are not of the length that values
    have: over these readers break off the process. ``leaves`` has, for each column, the bytes of its values (-1: they
    differ) and how many definition and repetition levels there are.
    """
    kinds = np.zeros(_MOST_DEPTH, np.int64)  # of a list's elements, at each depth that is open; 0: a structure
    fields = np.zeros(_MOST_DEPTH, np.int64)  # number of a structure's last field, of a list's last element
    left = np.zeros(_MOST_DEPTH, np.int64)  # elements of a list
    found = np.zeros(2, np.int64)
    depth, at = np.int64(0), np.int64(0)
    while depth >= 0:
        element = kinds[depth] != 0
        if element:
            kind = kinds[depth] if left[depth] else np.int64(0)
            left[depth] -= 1
            fields[depth] += 1
        else:
            at = _read_field(content, at, fields[depth], found)
            if at < 0:
                return False
            fields[depth], kind = found[0], found[1]
        if kind == 0:
            depth -= 1
            continue
        inside = depth >= _INSIDE and fields[0] == _GROUPS and fields[2] == _COLUMNS and fields[4] == _METADATA
        inside = inside and kinds[_GROUP] and kinds[_CHUNK] and not (kinds[0] or kinds[2] or kinds[4])
        if kind == _LIST or kind == _SET or kind == _STRUCT:
            found[:] = 0
            if kind != _STRUCT:
                at = _read_elements(content, at, found)
                if at < 0 or not _counts_right(depth, fields, inside, found[0], leaves, chunks):
                    return False
            elif depth + 1 == _INSIDE and fields[0] == _GROUPS and (fields[_GROUP] < 0 or fields[_CHUNK] < 0):
                return False
            depth += 1
            if depth == _MOST_DEPTH or (kind != _STRUCT and found[1] == 0 and found[0]):
                return False
            left[depth], kinds[depth] = found[0], found[1]
            fields[depth] = 0 if kind == _STRUCT else -1
            if kind != _STRUCT and found[1] == 0:
                depth -= 1  # an empty list that does not say of what
            continue
        at = _read_value(content, at, kind, element, found)
        if at < 0 or (inside and not _value_right(depth, fields, kind, found[0], leaves, chunks)):
            return False
    return at == content.shape[0]
