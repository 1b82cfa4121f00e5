"""The newest rows of segments, and advantages over runs of them."""

from __future__ import annotations

from typing import Any

from .memory import kernel, load_i64, load_u8


@kernel("void(int64[::1], int32[::1], int64[:, ::1], int64[::1], int64[::1])")
def find_after(segment: Any, fills: Any, found: Any, pieces: Any, counts: Any) -> None:
    """Find the transitions of a segment that came between two moments, looking from the end of each block.

    Args:
        segment: addresses of the rows' ordinals, which rise in each block, and of their kinds; rows in a block;
            the number of blocks; whether all are full; the ordinals beyond which and up to which; the slot, and the
            row id of the first row.
        fills: up to which row of each block to look, unless all are full.
        found: takes slots, positions and row ids, in order of blocks and rows; what there is no room for is left out.
        pieces: takes where those of each block begin.
        counts: how many there are of either. Added to.
    """
    ordinals, kinds, block_rows = segment[0], segment[1], segment[2]
    since, until = segment[5], segment[6]
    count, room = counts[0], found.shape[1]
    for block in range(segment[3]):
        first, begin = block * block_rows, count
        at = first + (block_rows if segment[4] else fills[block])
        while at > first and count < room:
            at -= 1
            kind = load_u8(kinds + at)
            if kind == 0:
                continue
            ordinal = load_i64(ordinals + at * 8)
            if ordinal <= since:
                break
            if kind == 1 and ordinal <= until:
                found[1, count] = at
                count += 1
        if count > begin:
            pieces[counts[1]] = begin
            counts[1] += 1
            found[1, begin:count] = found[1, begin:count][::-1].copy()
    for at in range(counts[0], count):
        found[0, at] = segment[7]
        found[2, at] = segment[8] + found[1, at]
    counts[0] = count


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
