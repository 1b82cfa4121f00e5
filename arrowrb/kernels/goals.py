"""Where episodes begin and end, and goals for hindsight: a later, the last, or any observation of one."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import address_of, inline, kernel, load_u8
from .walking import BEHIND, CONTINUED, TRANSITION
from .walking import FINAL as ENDED
from .world import block_rows_of, kind_of, kinds_of, linked, row_of, step_back, stop_of

FUTURE, FINAL, EPISODE = range(3)


@inline
def _ahead(world: int, slot: int, position: int) -> tuple[int, bool]:
    """How many transitions follow from a row on in its block, it included, and whether the episode goes on behind."""
    kinds, stop, at = kinds_of(world, slot), stop_of(world, slot, position), position
    while at < stop and load_u8(kinds + at) == TRANSITION:
        at += 1
    return at - position, at < stop and load_u8(kinds + at) == CONTINUED


@inline
def _count_ahead(world: int, slot: int, position: int) -> int:
    """How many transitions there are from a row to the end of its episode, it included."""
    total = 0
    while True:
        count, goes_on = _ahead(world, slot, position)
        total += count
        if not goes_on:
            return int(total)
        slot, block = linked(world, slot, position // block_rows_of(world, slot), BEHIND)
        if slot < 0:
            return int(total)
        position = block * block_rows_of(world, slot)


@inline
def _step(world: int, slot: int, position: int, steps: int) -> tuple[int, int]:
    """The row so many steps behind one of the same episode, which there is."""
    while True:
        count, _ = _ahead(world, slot, position)
        if steps < count:
            return slot, position + steps
        steps -= count
        slot, block = linked(world, slot, position // block_rows_of(world, slot), BEHIND)
        position = block * block_rows_of(world, slot)


@kernel("void(float64[::1], int64[::1], int64[::1], int64[::1], int64, int64[::1], int64[::1])")
def find_goals(
    luck: Any, world_table: Any, slots: Any, positions: Any, mode: int, goal_slots: Any, goal_positions: Any
) -> None:
    """Choose for each row an observation of its episode, uniformly among those that a mode allows.

    Args:
        luck: of each row, uniform in [0, 1).
        world_table: of the snapshot.
        slots: of transitions; likewise ``positions``.
        positions: see ``slots``.
        mode: ``FUTURE``: one of the observations after the row's own; ``FINAL``: the last of these; ``EPISODE``: any of
            the episode but its first.
        goal_slots: takes where the observations are; likewise ``goal_positions``.
        goal_positions: see ``goal_slots``.
    """
    world = address_of(world_table)
    for i in range(slots.shape[0]):
        slot, position = slots[i], positions[i]
        ahead, before = _count_ahead(world, slot, position), 0
        if mode == EPISODE:
            at_slot, at = step_back(world, slot, position)
            while at_slot >= 0:
                before += 1
                at_slot, at = step_back(world, at_slot, at)
        steps = ahead
        if mode != FINAL:
            steps = 1 + min(np.int64(luck[i] * (before + ahead)), before + ahead - 1) - before
        if steps > 0:  # the row behind holds the observation after its own
            slot, position = _step(world, slot, position, steps - 1)
            position += 1
        else:
            for _ in range(-steps):
                slot, position = step_back(world, slot, position)
        goal_slots[i], goal_positions[i] = slot, position


@kernel("void(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], boolean[::1])")
def bound_episodes(world_table: Any, slots: Any, positions: Any, row_ids: Any, lengths: Any, ended: Any) -> None:
    """Move rows back to the first of their episodes that are there, and tell how many there are and if they ended.

    Args:
        world_table: of the snapshot.
        slots: of transitions; becomes those of the first ones. Likewise ``positions`` and ``row_ids``.
        positions: see ``slots``.
        row_ids: see ``slots``.
        lengths: takes how many transitions each has.
        ended: takes whether it has a final observation.
    """
    world = address_of(world_table)
    for i in range(slots.shape[0]):
        slot, position = slots[i], positions[i]
        ahead = _count_ahead(world, slot, position)
        before = 0
        at_slot, at = step_back(world, slot, position)
        while at_slot >= 0:
            slot, position = at_slot, at
            before += 1
            at_slot, at = step_back(world, slot, position)
        lengths[i] = before + ahead
        last_slot, last = _step(world, slots[i], positions[i], ahead - 1)
        ended[i] = kind_of(world, last_slot, last + 1) == ENDED
        slots[i], positions[i] = slot, position
        row_ids[i] = row_of(world, slot, position)
