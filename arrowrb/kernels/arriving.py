"""The newest rows of segments, and advantages over runs of them."""

from __future__ import annotations

from typing import Any

from .memory import kernel, load_i64, load_u8, store_i64


@kernel("int64(int64, int64, int64, int32[::1], int64, int64, int64, int64)")
def find_after(
    ordinals: int, kinds: int, block_rows: int, fills: Any, since: int, until: int, places: int, room: int
) -> int:
    """Find the transitions of a segment that came after an ordinal, looking from the end of each block.

    Args:
        ordinals: address of the rows' ordinals, which rise in each block.
        kinds: of their kinds.
        block_rows: rows in a block.
        fills: up to which row of each block to look.
        since: the ordinal; rows up to it are left out.
        until: rows beyond this one, too.
        places: takes positions, int64.
        room: how many of these there is room for.

    Returns:
        How many there are, be there room for them or not.
    """
    found = 0
    for block in range(fills.shape[0]):
        at = block * block_rows + fills[block]
        while at > block * block_rows:
            at -= 1
            kind = load_u8(kinds + at)
            if kind == 0:
                continue
            ordinal = load_i64(ordinals + at * 8)
            if ordinal <= since:
                break
            if kind == 1 and ordinal <= until:
                if found < room:
                    store_i64(places + found * 8, at)
                found += 1
    return found


@kernel("void(float64[::1], float64[::1], float64[::1], uint8[::1], uint8[::1], float64, float64, float64[::1])")
def sum_advantages(
    reward: Any, value: Any, next_value: Any, terminated: Any, run_end: Any, gamma: float, lam: float, advantage: Any
) -> None:
    """Generalized advantage estimates of runs that lie one behind the other; see `arrowrb.gae`."""
    behind = 0.0
    for i in range(reward.shape[0] - 1, -1, -1):
        following = 0.0 if terminated[i] else gamma * next_value[i]
        if run_end[i] or terminated[i]:
            behind = 0.0
        behind = reward[i] + following - value[i] + gamma * lam * behind
        advantage[i] = behind
