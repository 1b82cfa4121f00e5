"""Uniform draws over the committed rows of a snapshot.

The *domain* is a list of extents: stretches of rows in which every row is committed (a block up to its fill, full
neighbouring blocks joined) or, in a closed segment at least half full, the whole segment. A draw takes a row of the
domain
uniformly and keeps it if it is a transition, so every transition is equally likely, and at most four trials are
expected at any fill (a transition is at least every second committed row).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import address_of, inline, kernel, load_i32, load_i64, load_u8, load_u64, prefetch, store_u64

# Fields of a segment's shape.
ROWS, BLOCK_ROWS, FIRST_FILL, NUM_FILLS, WHOLE, KINDS, ROW_BASE = range(7)
SHAPE_FIELDS = 7
_MOST_MISSES = 4096  # at least every fourth row is a transition, so this many in a row never happen by chance


@kernel("int64(int64[:, ::1], int32[::1], int64[::1], int32[::1], int64[::1], int32[::1], int64[::1])")
def build_domain(shapes: Any, fills: Any, start: Any, slot: Any, first: Any, guide: Any, result: Any) -> int:
    """Lay the extents end to end. Returns their number; result holds (rows of the domain, shift of the guide).

    ``start`` has one entry more than there are extents; ``guide[r >> shift]`` is the extent at which to begin looking
    for row r.
    """
    count, total = 0, 0
    for s in range(shapes.shape[0]):
        if shapes[s, WHOLE]:
            start[count], slot[count], first[count] = total, s, 0
            count += 1
            total += shapes[s, ROWS]
            continue
        block_rows = shapes[s, BLOCK_ROWS]
        joins = False
        for block in range(shapes[s, NUM_FILLS]):
            fill = fills[shapes[s, FIRST_FILL] + block]
            if fill > 0:
                if not joins:
                    start[count], slot[count], first[count] = total, s, block * block_rows
                    count += 1
                total += fill
            joins = fill == block_rows
    start[count] = total
    shift = 0
    while (total >> shift) + 1 > guide.shape[0]:
        shift += 1
    extent = 0
    for g in range((total >> shift) + 1):
        while extent + 1 < count and start[extent + 1] <= (g << shift):
            extent += 1
        guide[g] = extent
    result[0] = total
    result[1] = shift
    return count


@inline
def _rotate(x: Any, k: int) -> Any:
    return (x << np.uint64(k)) | (x >> np.uint64(64 - k))


@inline
def _next(state: int) -> Any:
    """One 64-bit number of xoshiro256++ (Blackman and Vigna, https://prng.di.unimi.it), by its state's address."""
    s0, s1, s2, s3 = load_u64(state), load_u64(state + 8), load_u64(state + 16), load_u64(state + 24)
    result = _rotate(s0 + s3, 23) + s0
    shifted = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    store_u64(state + 8, s1 ^ s2)
    store_u64(state, s0 ^ s3)
    store_u64(state + 16, s2 ^ shifted)
    store_u64(state + 24, _rotate(s3, 45))
    return result


@inline
def next_uniform(state: int) -> Any:
    """A number from 0 to 1, 1 excluded, with 53 random bits."""
    return np.float64(_next(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inline
def mask_of(bound: Any) -> Any:
    """The least number of all ones that is not below a bound."""
    mask = np.uint64(1)
    while mask < bound:
        mask = (mask << np.uint64(1)) | np.uint64(1)
    return mask


@inline
def below(state: int, mask: Any, bound: Any) -> Any:
    """A uniform number below ``bound``, by rejection under the next power of two: exact for any bound."""
    while True:
        value = (_next(state) >> np.uint64(8)) & mask
        if value < bound:
            return value


# Fields of a domain: addresses of its extents' starts, slots and first rows, of the guide and of the segments' shapes;
# how many rows it has, and the shift of the guide.
START, SLOT, FIRST, GUIDE, SHAPES, TOTAL, SHIFT = range(7)


@kernel("int64(uint64[::1], int64[::1], int64[:, ::1])")
def draw(state: Any, domain: Any, places: Any) -> int:
    """Fill slots, positions and row ids, [3, n], with uniform draws from a domain.

    Returns how many it found: all, unless many rounds in a row met no transition, so that the domain holds none.
    """
    wanted, total, shift = places.shape[1], domain[TOTAL], domain[SHIFT]
    if total < 1:
        return 0
    start, slot, first, guide, shapes = domain[START], domain[SLOT], domain[FIRST], domain[GUIDE], domain[SHAPES]
    bound = np.uint64(total)
    mask = mask_of(bound)
    generator = address_of(state)
    have, misses = 0, 0
    while have < wanted and misses < _MOST_MISSES:
        for i in range(have, wanted):
            r = np.int64(below(generator, mask, bound))
            extent = np.int64(load_i32(guide + (r >> shift) * 4))
            while load_i64(start + (extent + 1) * 8) <= r:
                extent += 1
            s = np.int64(load_i32(slot + extent * 4))
            p = load_i64(first + extent * 8) + r - load_i64(start + extent * 8)
            places[0, i], places[1, i] = s, p
            prefetch(load_i64(shapes + (s * SHAPE_FIELDS + KINDS) * 8) + p)
        kept = have
        for i in range(have, wanted):
            s, p = places[0, i], places[1, i]
            shape = shapes + s * (SHAPE_FIELDS * 8)
            if load_u8(load_i64(shape + KINDS * 8) + p) == 1:
                places[0, kept], places[1, kept] = s, p
                places[2, kept] = load_i64(shape + ROW_BASE * 8) + p
                kept += 1
        misses = misses + 1 if kept == have else 0
        have = kept
    return have


@kernel("void(uint64[::1], float64[::1])")
def fill_uniform(state: Any, numbers: Any) -> None:
    """Fill with uniform numbers from 0 to 1, 1 excluded."""
    generator = address_of(state)
    for i in range(numbers.shape[0]):
        numbers[i] = next_uniform(generator)


@kernel("void(uint64[::1], uint64[::1])")
def fill_bits(state: Any, numbers: Any) -> None:
    """Fill with random bits."""
    generator = address_of(state)
    for i in range(numbers.shape[0]):
        numbers[i] = _next(generator)
