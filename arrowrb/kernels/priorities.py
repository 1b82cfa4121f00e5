"""Draws in proportion to priority, by a tree of sums over each segment.

A segment's tree has a leaf a row, its *mass* (priority ** alpha, float32), and above them *nodes*: the first level
sums 16 leaves, one cache line, and each level above sums 8 nodes, one cache line as well, up to a level of 8. A node
also knows the smallest mass below it that is not zero. Sums are float64, and a node is always computed anew from what
lies below it, so that no error ever adds up. All levels lie in one array, each padded to whole lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .drawing import ROW_BASE, next_uniform
from .memory import (
    address_of,
    inline,
    kernel,
    load_f32,
    load_f64,
    load_i64,
    load_u8,
    prefetch,
    store_f32,
    store_f64,
    store_u8,
)

# Fields of a tree: addresses of its arrays (ADMITTED: which rows may be drawn, 0 for all transitions), how many levels
# of nodes there are, and at which node each begins, lowest first.
RAW, MASS, SUMS, LEAST, ADMITTED, LEVELS, FIRST = range(7)
MOST_LEVELS = 8
TREE_FIELDS = FIRST + MOST_LEVELS
LEAVES = 16  # of a node of the lowest level
FAN = 8  # nodes below a node of the others
EMPTY = np.float32(-1)  # the raw priority of a row that is never to be drawn; 0 is that of one not seen yet
_INFINITE: Any = np.float32(np.inf)
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@inline
def _mass_of(raw: Any, alpha: float) -> Any:
    if raw <= 0:
        return 0.0
    if alpha == 1.0:
        return np.float64(raw)
    return np.float64(raw) ** alpha


@inline
def _mend_lowest(tree: int, node: int) -> None:
    """Compute a node of the lowest level anew."""
    leaf = load_i64(tree + MASS * 8) + node * (LEAVES * 4)
    total, least = 0.0, _INFINITE
    for i in range(LEAVES):
        mass = load_f32(leaf + i * 4)
        total += np.float64(mass)
        least = min(least, mass if mass > 0 else _INFINITE)
    store_f64(load_i64(tree + SUMS * 8) + node * 8, total)
    store_f32(load_i64(tree + LEAST * 8) + node * 4, least)


@inline
def _mend_from(tree: int, below: int, total_at: int, least_at: int) -> None:
    """Compute a sum and the least mass anew from 8 nodes."""
    sums, leasts = load_i64(tree + SUMS * 8) + below * 8, load_i64(tree + LEAST * 8) + below * 4
    total, least = 0.0, _INFINITE
    for i in range(FAN):
        total += load_f64(sums + i * 8)
        least = min(least, load_f32(leasts + i * 4))
    store_f64(total_at, total)
    store_f32(least_at, least)


@inline
def _mend(tree: int, level: int, node: int) -> None:
    """Compute a node of a higher level anew from the nodes below it."""
    below = load_i64(tree + (FIRST + level - 1) * 8) + node * FAN
    place = load_i64(tree + (FIRST + level) * 8) + node
    _mend_from(tree, below, load_i64(tree + SUMS * 8) + place * 8, load_i64(tree + LEAST * 8) + place * 4)


@inline
def _mend_root(tree: int, slot: int, totals: int, leasts: int) -> None:
    """Compute a tree's total and least mass anew from its highest level."""
    highest = load_i64(tree + (FIRST + load_i64(tree + LEVELS * 8) - 1) * 8)
    _mend_from(tree, highest, totals + slot * 8, leasts + slot * 4)


@kernel("void(int64[:, ::1], float64[::1], float32[::1])")
def mend_roots(trees: Any, totals: Any, leasts: Any) -> None:
    """Compute the total and the least mass of every tree."""
    for slot in range(trees.shape[0]):
        _mend_root(address_of(trees) + slot * (TREE_FIELDS * 8), slot, address_of(totals), address_of(leasts))


@kernel("int64(int64[:, ::1], float64[::1], float32[::1], int64, int64, int64, int32[::1], int32[::1], f8, f4)")
def admit(
    trees: Any,
    totals: Any,
    leasts: Any,
    slot: int,
    kinds: int,
    block_rows: int,
    fills: Any,
    seen: Any,
    alpha: float,
    newest: Any,
) -> int:
    """Take the rows of a segment that were committed since the last look, one block after the other.

    Args:
        trees: a row of fields a slot.
        totals: of each slot's tree; likewise ``leasts``.
        leasts: see ``totals``.
        slot: which segment.
        kinds: the address of the rows' kinds.
        block_rows: rows in a block.
        fills: committed rows of each block.
        seen: how many of these were taken before; brought up to ``fills``.
        alpha: the exponent.
        newest: the raw priority of transitions that have none yet.

    Returns:
        How many transitions had none.
    """
    tree = address_of(trees) + slot * (TREE_FIELDS * 8)
    raws, masses, levels = load_i64(tree + RAW * 8), load_i64(tree + MASS * 8), load_i64(tree + LEVELS * 8)
    last_raw: Any = np.float32(0)
    last_mass = 0.0
    num_new, changed = 0, False
    for block in range(fills.shape[0]):
        if fills[block] <= seen[block]:
            continue
        first, stop = block * block_rows + seen[block], block * block_rows + fills[block]
        for row in range(first, stop):
            if load_u8(kinds + row) != 1:
                continue
            raw = load_f32(raws + row * 4)
            if raw == 0:
                raw = newest
                num_new += 1
                store_f32(raws + row * 4, raw)
            if raw != last_raw:
                last_raw, last_mass = raw, _mass_of(raw, alpha)
            store_f32(masses + row * 4, last_mass)
        low, high = first // LEAVES, (stop - 1) // LEAVES
        for node in range(low, high + 1):
            _mend_lowest(tree, node)
        for level in range(1, levels):
            low, high = low // FAN, high // FAN
            for node in range(low, high + 1):
                _mend(tree, level, node)
        seen[block] = fills[block]
        changed = True
    if changed:
        _mend_root(tree, slot, address_of(totals), address_of(leasts))
    return num_new


@kernel("int64(float64[::1], float64, boolean, float32[::1])")
def to_raw(values: Any, eps: float, signed: bool, raw: Any) -> int:
    """Make raw priorities of errors, or of priorities; one that is too small to be kept becomes the smallest.

    Returns:
        The first that is not finite, or below 0 where that is not allowed; -1 where all are right.
    """
    for i in range(values.shape[0]):
        value = abs(values[i]) + eps if signed else values[i]
        if not 0 <= value < np.inf:
            return i
        if value > 0:
            value = min(max(value, _SMALLEST), _LARGEST)
        raw[i] = value
    return -1


@inline
def _mend_all(trees: int, slots: int, positions: int, n: int, totals: int, leasts: int) -> None:
    """Compute anew what lies above n leaves."""
    width = LEAVES
    for level in range(MOST_LEVELS):
        last_slot, last_node = -1, -1
        for i in range(n):
            slot = load_i64(slots + i * 8)
            tree, node = trees + slot * (TREE_FIELDS * 8), load_i64(positions + i * 8) // width
            if level >= load_i64(tree + LEVELS * 8) or (slot == last_slot and node == last_node):
                continue
            last_slot, last_node = slot, node
            if level == 0:
                _mend_lowest(tree, node)
            else:
                _mend(tree, level, node)
        width *= FAN
    last_slot = -1
    for i in range(n):
        slot = load_i64(slots + i * 8)
        if slot != last_slot:
            last_slot = slot
            _mend_root(trees + slot * (TREE_FIELDS * 8), slot, totals, leasts)


@kernel("void(int64[:, ::1], float64[::1], float32[::1], int64[::1], int64[::1], float64, float32)")
def admit_rows(trees: Any, totals: Any, leasts: Any, slots: Any, positions: Any, alpha: float, newest: Any) -> None:
    """Let rows be drawn from now on; ``newest`` is the raw priority of those that have none yet, 0 to leave it so."""
    every = address_of(trees)
    for i in range(slots.shape[0]):
        tree, row = every + slots[i] * (TREE_FIELDS * 8), positions[i]
        store_u8(load_i64(tree + ADMITTED * 8) + row, 1)
        raw = load_f32(load_i64(tree + RAW * 8) + row * 4)
        if raw == 0:
            raw = newest
            store_f32(load_i64(tree + RAW * 8) + row * 4, raw)
        store_f32(load_i64(tree + MASS * 8) + row * 4, _mass_of(raw, alpha))
    _mend_all(every, address_of(slots), address_of(positions), slots.shape[0], address_of(totals), address_of(leasts))


@kernel(
    "float32(int64[:, ::1], float64[::1], float32[::1], int64[::1], int64[::1], int64[::1], int64, float32[::1], f8)"
)
def set_priorities(
    trees: Any,
    totals: Any,
    leasts: Any,
    slots: Any,
    positions: Any,
    sources: Any,
    n: int,
    values: Any,
    alpha: float,
) -> Any:
    """Give the first n rows the raw priorities ``values[sources]``, in this order; 0 is kept as `EMPTY`.

    Returns:
        The largest of those that may be drawn.
    """
    every, largest = address_of(trees), np.float32(0)
    for i in range(n):
        tree = every + slots[i] * (TREE_FIELDS * 8)
        prefetch(load_i64(tree + RAW * 8) + positions[i] * 4)
        prefetch(load_i64(tree + MASS * 8) + positions[i] * 4)
    for i in range(n):
        tree, raw = every + slots[i] * (TREE_FIELDS * 8), values[sources[i]]
        admitted = load_i64(tree + ADMITTED * 8)
        if admitted == 0 or load_u8(admitted + positions[i]) != 0:
            largest = max(largest, raw)
            store_f32(load_i64(tree + MASS * 8) + positions[i] * 4, _mass_of(raw, alpha))
        store_f32(load_i64(tree + RAW * 8) + positions[i] * 4, raw if raw > 0 else EMPTY)
        prefetch(load_i64(tree + SUMS * 8) + positions[i] // LEAVES * 8)
        prefetch(load_i64(tree + LEAST * 8) + positions[i] // LEAVES * 4)
    _mend_all(every, address_of(slots), address_of(positions), n, address_of(totals), address_of(leasts))
    return largest


@inline
def _descend(sums: int, rest: float) -> tuple[int, float]:
    """Which of 8 nodes holds ``rest``, and what is left of it; never one of no mass.

    Without branches, which nobody could foretell: how many running sums ``rest`` has reached.
    """
    found: Any = 0
    until, before = 0.0, 0.0
    for i in range(FAN):
        until += load_f64(sums + i * 8)
        reached = rest >= until
        found += reached
        before = until if reached else before
    if found == FAN:  # beyond the end, by rounding
        found = FAN - 1
        while found > 0 and load_f64(sums + found * 8) <= 0:
            found -= 1
        before = rest
    return found, rest - before


@inline
def _pick_leaf(leaves: int, rest: float) -> int:
    """Which of 16 leaves holds ``rest``; never one of no mass."""
    found: Any = 0
    until = 0.0
    for i in range(LEAVES):
        until += np.float64(load_f32(leaves + i * 4))
        found += rest >= until
    if found == LEAVES:
        found = LEAVES - 1
        while found > 0 and load_f32(leaves + found * 4) <= 0:
            found -= 1
    return int(found)


@inline
def _pick_tree(totals: int, until: int, count: int, rest: float) -> int:
    """Which of the trees holds ``rest``; never one of no mass. ``until`` are the running sums of ``totals``."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if rest < load_f64(until + middle * 8):
            high = middle
        else:
            low = middle + 1
    while low > 0 and load_f64(totals + low * 8) <= 0:  # beyond the end, by rounding
        low -= 1
    return low


@kernel(
    "int64(uint64[::1], int64[:, ::1], float64[::1], float64[::1], int64[:, ::1], int64[::1], int64[::1], int64[::1],"
    " float32[::1])"
)
def draw_weighted(
    state: Any,
    trees: Any,
    totals: Any,
    rests: Any,
    shapes: Any,
    slots: Any,
    positions: Any,
    row_ids: Any,
    masses: Any,
) -> int:
    """Draw rows in proportion to their mass, independently of each other.

    All draws go down together, a level at a time, so that their cache misses overlap.

    Args:
        state: of the generator, uint64[4], advanced in place.
        trees: a row of fields a slot.
        totals: of each slot's tree, 0 for those to leave out.
        rests: memory for the kernel's use, float64[n].
        shapes: of the snapshot's segments, as in the draw kernels.
        slots: takes the rows' slots; likewise ``positions``, ``row_ids`` and ``masses``.
        positions: see ``slots``.
        row_ids: see ``slots``.
        masses: see ``slots``.

    Returns:
        How many: all, unless there is no mass at all.
    """
    n, count, every, generator = slots.shape[0], totals.shape[0], address_of(trees), address_of(state)
    until = np.cumsum(totals)
    if count == 0 or not until[count - 1] > 0:
        return 0
    most = 0
    for i in range(n):
        rest = next_uniform(generator) * until[count - 1]
        slot = _pick_tree(address_of(totals), address_of(until), count, rest)
        slots[i], positions[i] = slot, 0
        rests[i] = max(rest - (until[slot - 1] if slot > 0 else 0.0), 0.0)
        tree = every + slot * (TREE_FIELDS * 8)
        most = max(most, load_i64(tree + LEVELS * 8))
    for level in range(most - 1, -1, -1):
        for i in range(n):
            tree = every + slots[i] * (TREE_FIELDS * 8)
            if level >= load_i64(tree + LEVELS * 8):
                continue
            sums = load_i64(tree + SUMS * 8)
            node = positions[i] * FAN
            found, rest = _descend(sums + (load_i64(tree + (FIRST + level) * 8) + node) * 8, rests[i])
            positions[i], rests[i] = node + found, rest
            if level > 0:
                prefetch(sums + (load_i64(tree + (FIRST + level - 1) * 8) + positions[i] * FAN) * 8)
            else:
                prefetch(load_i64(tree + MASS * 8) + positions[i] * (LEAVES * 4))
    for i in range(n):
        leaves = load_i64(every + slots[i] * (TREE_FIELDS * 8) + MASS * 8)
        position = positions[i] * LEAVES
        position += _pick_leaf(leaves + position * 4, rests[i])
        positions[i] = position
        masses[i] = load_f32(leaves + position * 4)
        row_ids[i] = shapes[slots[i], ROW_BASE] + position
    return int(n)


@kernel("void(float32[::1], float32[::1], float64, float32[::1])")
def weigh(masses: Any, leasts: Any, beta: float, weights: Any) -> None:
    """Importance weights: (N P) ** -beta over that of the row of the least mass, in which N and the total cancel.

    ``leasts`` holds the least mass, among others.
    """
    least = np.float64(leasts.min())
    for i in range(masses.shape[0]):
        weights[i] = (least / np.float64(masses[i])) ** beta
