"""Values of a column without those that are NULL, out of its pages, for queries: nothing is put in their places."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import address_of, copy, inline, kernel
from .pages import read_count

_BYTES = "Array(uint8, 1, 'C', readonly=True)"
_PLAIN, _RLE = 0, 3
_TRUE, _FALSE, _I32, _I64, _BINARY, _STRUCT = 1, 2, 5, 6, 8, 12  # types of Thrift's compact protocol


@inline
def _read_varint(content: Any, at: int, stop: int, found: Any) -> Any:
    """Where a number ends, which goes to ``found[0]``; -1 if it does not."""
    value = np.int64(0)
    shift = np.int64(0)
    while at < stop and shift < 63:
        byte = np.int64(content[at])
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found[0] = value
            return at
    return np.int64(-1)


@inline
def _read_structure(content: Any, at: int, stop: int, fields: Any, found: Any) -> Any:
    """Where a structure of numbers ends, whose fields go to ``fields``; -1 if it is none, its size if it holds another.

    Text is passed over. At a structure within it this stops: ``found[1]`` tells its field, 0 that there is none.
    """
    number = np.int64(0)
    found[1] = 0
    while at < stop:
        header = np.int64(content[at])
        at += 1
        if header == 0:
            return at
        kind, delta = header & 15, header >> 4
        if delta == 0:
            return np.int64(-1)
        number += delta
        if kind == _STRUCT:
            found[1] = number
            return at
        if kind == _I32 or kind == _I64 or kind == _BINARY:
            at = _read_varint(content, at, stop, found)
            if at < 0:
                return np.int64(-1)
            if kind == _BINARY:
                if found[0] < 0 or found[0] > stop - at:
                    return np.int64(-1)
                at += found[0]
            elif number < fields.shape[0]:
                fields[number] = (found[0] >> 1) ^ -(found[0] & 1)
        elif kind != _TRUE and kind != _FALSE:
            return np.int64(-1)
    return np.int64(-1)


@inline
def _decode_lz4(content: Any, at: Any, stop: int, target: Any, size: int) -> Any:
    """Decode a block of LZ4 that stands for ``size`` bytes; returns whether it does."""
    base, source = address_of(target), address_of(content)
    done = np.int64(0)
    while at < stop:
        token = np.int64(content[at])
        at += 1
        at, count = read_count(source, at, stop, token >> 4)
        if at < 0 or count > stop - at or count > size - done:
            return False
        copy(base + done, source + at, count)
        done += count
        at += count
        if at == stop:
            return done == size
        if stop - at < 2:
            return False
        back = np.int64(content[at]) | np.int64(content[at + 1]) << 8
        at, count = read_count(source, at + 2, stop, token & 15)
        count += 4
        if at < 0 or back == 0 or back > done or count > size - done:
            return False
        if back >= count:
            copy(base + done, base + done - back, count)
        else:
            for i in range(done, done + count):
                target[i] = target[i - back]
        done += count
    return False


@kernel(f"int64({_BYTES}, int64[::1], int64[::1], uint8[::1], uint8[::1])")
def read_packed(content: Any, firsts: Any, sizes: Any, target: Any, scratch: Any) -> Any:
    """Fill ``target`` with the values of column chunks that may hold NULL, plainly encoded and compressed by LZ4.

    Args:
        content: of the file; it may be damaged, or made to harm.
        firsts: where in it each chunk's pages begin.
        sizes: how many bytes they have.
        target: takes the values' bytes, one after another.
        scratch: takes a page.

    Returns:
        Bytes that were filled; -1 if a page is another than this reads.
    """
    page = np.zeros(6, np.int64)
    data = np.zeros(5, np.int64)
    rest = np.zeros(1, np.int64)
    found = np.zeros(2, np.int64)
    filled = np.int64(0)
    for chunk in range(firsts.shape[0]):
        at, stop = firsts[chunk], firsts[chunk] + sizes[chunk]
        if at < 0 or sizes[chunk] < 0 or stop > content.shape[0]:
            return -1
        while at < stop:
            page[:] = -1
            data[:] = -1
            at = _read_structure(content, at, stop, page, found)
            if at < 0 or found[1] != 5:  # the header of a data page
                return -1
            at = _read_structure(content, at, stop, data, found)
            while at >= 0 and found[1] != 0:  # statistics within it
                at = _read_structure(content, at, stop, rest, found)
                if at >= 0 and found[1] == 0:
                    at = _read_structure(content, at, stop, rest, found)
            if at < 0 or at >= stop or content[at] != 0:
                return -1
            at += 1
            size, compressed = page[2], page[3]
            if page[1] != 0 or data[2] != _PLAIN or data[3] != _RLE:
                return -1
            if compressed < 0 or compressed > stop - at or size < 4 or size > scratch.shape[0]:
                return -1
            if not _decode_lz4(content, at, at + compressed, scratch, size):
                return -1
            at += compressed
            levels = np.int64(0)
            for k in range(4):
                levels |= np.int64(scratch[k]) << 8 * k
            count = size - 4 - levels
            if count < 0 or count > target.shape[0] - filled:
                return -1
            copy(address_of(target) + filled, address_of(scratch) + 4 + levels, count)
            filled += count
    return filled
