"""What pages of Parquet are made of: streams of bytes, definition levels in runs, and blocks of LZ4."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import address_of, inline, kernel, load_u8

RUN_BYTES = 7  # a run takes at most: a varint of 34 bits and the level
# What the header of a page says: its type, sizes and CRC-32; number of values, and how these and levels are encoded.
PAGE_TYPE, SIZE, COMPRESSED_SIZE, CRC, NUM_VALUES, ENCODING, DEFINITIONS, REPETITIONS = range(8)

_BYTES, _32, _64 = (f"Array(uint{bits}, 1, 'C', readonly=True)" for bits in (8, 32, 64))
_STREAMS = "Array(uint8, 2, 'C', readonly=True)"


def _splitter(word: Any, size: int) -> Any:
    def split(values: Any, streams: Any) -> None:
        """Byte k of each value to ``streams[k]``."""
        for k in range(size):
            shift = word(8 * k)
            for i in range(values.shape[0]):
                streams[k, i] = np.uint8(values[i] >> shift)

    return split


def _joiner(word: Any, size: int) -> Any:
    def join(streams: Any, values: Any) -> None:
        """The values whose bytes ``streams`` has."""
        for i in range(values.shape[0]):
            value = word(0)
            for k in range(size):
                value |= word(streams[k, i]) << word(8 * k)
            values[i] = value

    return join


split_32 = kernel(f"void({_32}, uint8[:, ::1])")(_splitter(np.uint32, 4))
split_64 = kernel(f"void({_64}, uint8[:, ::1])")(_splitter(np.uint64, 8))
join_32 = kernel(f"void({_STREAMS}, uint32[::1])")(_joiner(np.uint32, 4))
join_64 = kernel(f"void({_STREAMS}, uint64[::1])")(_joiner(np.uint64, 8))


@inline
def _write_varint(content: Any, at: Any, value: Any) -> Any:
    while value > 0x7F:
        content[at] = value & 0x7F | 0x80
        value >>= 7
        at += 1
    content[at] = value
    return at + 1


@inline
def _write_size(content: Any, at: int, size: int) -> None:
    for k in range(4):
        content[at + k] = size >> 8 * k & 0xFF


@kernel(f"int64({_BYTES}, int64, int64, uint8[::1])")
def encode_levels(valid: Any, length: int, level: int, content: Any) -> Any:
    """Write a page's levels, each kind with its size before it; returns their size.

    Repetition levels take a bit: 0 begins a list, whether it is there or not, and 1 goes on with it. Definition levels
    are runs of ``level`` for the elements of lists that are there, and of a 0 for each of those that are not.
    """
    count = valid.shape[0]
    for row in range(valid.shape[0]):
        count += (length - 1) * valid[row]
    first = _write_varint(content, 4, (count + 7) >> 3 << 1 | 1)
    stop = first + ((count + 7) >> 3)
    for at in range(first, stop):
        content[at] = 0xFF
    if count & 7:
        content[stop - 1] = (1 << (count & 7)) - 1
    bit = 0
    for row in range(valid.shape[0]):
        content[first + (bit >> 3)] &= ~(1 << (bit & 7))
        bit += length if valid[row] else 1
    _write_size(content, 0, stop - 4)
    at, row = stop + 4, 0
    while row < valid.shape[0]:
        begin = row
        while row < valid.shape[0] and valid[row] == valid[begin]:
            row += 1
        at = _write_varint(content, at, ((row - begin) * length if valid[begin] else row - begin) << 1)
        content[at] = level if valid[begin] else 0
        at += 1
    _write_size(content, stop, at - stop - 4)
    return at


@kernel(f"int64({_BYTES}, int64, int64, uint8[::1])")
def decode_definitions(content: Any, length: int, level: int, valid: Any) -> Any:
    """Fill ``valid`` from runs; returns how many lists they are of, or -1 if they are none that we write."""
    at = row = 0
    while at < content.shape[0]:
        value = shift = 0
        while True:
            if at >= content.shape[0] or shift > 28:
                return -1
            byte = content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value & 1 or at >= content.shape[0]:
            return -1
        count, there = value >> 1, content[at] == level
        if there:
            if count % length:
                return -1
            count //= length
        elif content[at] != 0:
            return -1
        at += 1
        if count > valid.shape[0] - row:
            return -1
        for i in range(row, row + count):
            valid[i] = there
        row += count
    return row


@inline
def read_count(source: int, at: Any, stop: int, count: Any) -> Any:
    """Where a count of LZ4 ends that begins with these four bits, and the count; -1 if it does not end."""
    if count < 15:
        return at, count
    while at < stop:
        byte = np.int64(load_u8(source + at))
        at += 1
        count += byte
        if byte != 255:
            return at, count
    return np.int64(-1), count


@kernel(f"int64({_BYTES})")
def lz4_size(block: Any) -> Any:
    """Bytes that a block of LZ4 stands for, or -1 where it is none. That what it repeats is there is not looked at."""
    source, stop = address_of(block), np.int64(block.shape[0])
    size, at = np.int64(0), np.int64(0)
    while at < stop:
        token = np.int64(block[at])
        at, count = read_count(source, at + 1, stop, token >> 4)
        if at < 0:
            return -1
        size += count
        at += count
        if at >= stop:
            return size if at == stop else -1
        at, count = read_count(source, at + 2, stop, token & 15)
        if at < 0:
            return -1
        size += count + 4
    return -1


@kernel(f"int64({_BYTES}, int64[::1])")
def read_header(content: Any, fields: Any) -> Any:
    """Fill ``fields`` (eight) from the header of a page; returns its size, or -1 if it is none such as we write.

    All are 32-bit integers of Thrift's compact protocol, the last four in a structure of their own.
    """
    at = 0
    for i in range(8):
        if at + 2 > content.shape[0] or content[at] != (0x1C if i == NUM_VALUES else 0x15):
            return -1
        at += 1
        if i == NUM_VALUES:
            if content[at] != 0x15:
                return -1
            at += 1
        value = shift = 0
        while True:
            if at >= content.shape[0] or shift > 28:
                return -1
            byte = content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        fields[i] = value >> 1 ^ -(value & 1)
    if at + 2 > content.shape[0] or content[at] != 0 or content[at + 1] != 0:
        return -1
    return at + 2
