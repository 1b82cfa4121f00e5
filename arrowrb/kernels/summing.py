"""Sums over the steps of an episode: n-step returns, and returns to go."""

from __future__ import annotations

from typing import Any

import numpy as np

from .drawing import KINDS, ROW_BASE
from .memory import address_of, kernel, load_f32, load_f64, load_i64, load_u8, prefetch
from .walking import (
    CONTINUED,
    FILLS,
    SHAPE_BYTES,
    SHAPES,
    TRANSITION,
    committed_kind,
    committed_stop,
    go_on,
)


@kernel(
    "void(int64[::1], int64[::1], int64[::1], int64[:, ::1], int64, boolean, float64[::1], int64[:, ::1], int64[::1],"
    " float32[::1], float64[::1])"
)
def sum_steps(
    world_table: Any,
    slots: Any,
    positions: Any,
    addresses: Any,
    column: int,
    wide: bool,
    powers: Any,
    last: Any,
    counts: Any,
    discounts: Any,
    sums: Any,
) -> None:
    """Follow rows of the hot tier in their episodes, and sum rewards: `walk_forward`, `finish_steps` and `discount`.

    Args:
        world_table: of a snapshot without cold rows.
        slots: of the rows to begin at; likewise ``positions``.
        positions: see ``slots``.
        addresses: of each slot's columns.
        column: the place of the reward, which is float64 if ``wide``, else float32.
        wide: see ``column``.
        powers: of the discount, from 0 on, one more than the most steps.
        last: takes slots, positions and row ids of the last rows that were summed, [3, n].
        counts: takes how many there were.
        discounts: takes ``powers`` of that.
        sums: takes the sums.
    """
    world, shape_table, fill_table = address_of(world_table), world_table[SHAPES], world_table[FILLS]
    most = powers.shape[0] - 1
    for i in range(slots.shape[0]):
        shape = shape_table + slots[i] * SHAPE_BYTES
        prefetch(load_i64(shape + KINDS * 8) + positions[i] + 1)
        prefetch(addresses[slots[i], column] + positions[i] * (8 if wide else 4))
    for i in range(slots.shape[0]):
        slot, position = slots[i], positions[i]
        shape = shape_table + slot * SHAPE_BYTES
        kinds, stop = load_i64(shape + KINDS * 8), committed_stop(shape_table, fill_table, slot, position)
        rewards, total, found = addresses[slot, column], 0.0, 0
        while True:
            if wide:
                total += powers[found] * load_f64(rewards + position * 8)
            else:
                total += powers[found] * np.float64(load_f32(rewards + position * 4))
            found += 1
            if found == most or position + 1 >= stop:
                break
            kind = load_u8(kinds + position + 1)
            if kind == TRANSITION:
                position += 1
                continue
            if kind != CONTINUED:
                break
            to, at = go_on(world, slot, position)
            if to < 0 or committed_kind(shape_table, fill_table, to, at) != TRANSITION:
                break
            slot, position, shape = to, at, shape_table + to * SHAPE_BYTES
            kinds, stop = load_i64(shape + KINDS * 8), committed_stop(shape_table, fill_table, slot, position)
            rewards = addresses[slot, column]
        last[0, i], last[1, i] = slot, position
        last[2, i] = load_i64(shape + ROW_BASE * 8) + position
        counts[i], discounts[i], sums[i] = found, powers[found], total


@kernel("void(int64[:, :, ::1], int64[::1], float64[::1], int64[:, ::1], float32[::1])")
def finish_steps(places: Any, counts: Any, powers: Any, last: Any, discounts: Any) -> None:
    """The last of the rows of each walk, [3, n], and ``powers`` of their counts."""
    for i in range(counts.shape[0]):
        for k in range(3):
            last[k, i] = places[k, i, counts[i] - 1]
        discounts[i] = powers[counts[i]]


@kernel("void(float64[:, :, ::1], int64[::1], float64[::1], float64[:, ::1])")
def discount(values: Any, counts: Any, powers: Any, sums: Any) -> None:
    """Sums over the first ``counts`` of values, [n, length, elements], each the k-th times ``powers[k]``."""
    for i in range(counts.shape[0]):
        for e in range(values.shape[2]):
            total = 0.0
            for k in range(counts[i]):
                total += powers[k] * values[i, k, e]
            sums[i, e] = total


@kernel("void(float64[:, :, ::1], boolean[:, ::1], boolean[:, ::1], float64, float64[:, ::1], float64[:, :, ::1])")
def sum_backwards(rewards: Any, acts: Any, follows: Any, gamma: float, ends: Any, sums: Any) -> None:
    """Returns to go of sequences, from their last action back.

    Args:
        rewards: of each step, [n, length, elements].
        acts: which steps have one.
        follows: which of them are followed by the next step of the same episode.
        gamma: the discount.
        ends: those of the last steps that act, [n, elements].
        sums: takes the sums; 0 where a step does not act.
    """
    for i in range(rewards.shape[0]):
        for e in range(rewards.shape[2]):
            total, begun = 0.0, False
            for j in range(rewards.shape[1] - 1, -1, -1):
                sums[i, j, e] = 0.0
                if not acts[i, j]:
                    continue
                if not begun:
                    total, begun = ends[i, e], True
                else:
                    total = rewards[i, j, e] + (gamma * total if follows[i, j] else 0.0)
                sums[i, j, e] = total
