"""Looking over the rows of segments: what is committed, block by block, and which runs of episodes there are."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import kernel, load_i64, load_u8, store_i64, store_u8


@kernel("int64(int64, int64, int64, int64)")
def wipe(ordinals: int, kinds: int, rows: int, watermark: int) -> int:
    """Undo rows beyond the watermark: their kind and ordinal become 0. Returns how many there were."""
    count = 0
    for i in range(rows):
        ordinal = load_i64(ordinals + i * 8)
        if (ordinal < 1 or ordinal > watermark) and (ordinal != 0 or load_u8(kinds + i) != 0):
            store_u8(kinds + i, 0)
            store_i64(ordinals + i * 8, 0)
            count += 1
    return count


@kernel("int64(int64, int64, int64, int32[::1])")
def advance(ordinals: int, block_rows: int, watermark: int, fills: Any) -> int:
    """Bring the blocks' counts of committed rows up to a watermark. Returns the rows that came.

    Rows of a block are committed in order, so each count only moves forward: the cost is one look a block, and
    one a new row.
    """
    came = 0
    for block in range(fills.shape[0]):
        fill = fills[block]
        start = ordinals + block * block_rows * 8
        while fill < block_rows:
            ordinal = load_i64(start + fill * 8)
            if ordinal < 1 or ordinal > watermark:
                break
            fill += 1
        came += fill - fills[block]
        fills[block] = fill
    return came


@kernel("void(int64, int64, int64, int64, int32[::1], int64[::1])")
def survey(ordinals: int, kinds: int, block_rows: int, watermark: int, fills: Any, summary: Any) -> None:
    """Count a wiped segment's blocks: fills, then (transitions, first ordinal, last ordinal, blocks ever used)."""
    transitions, first, last, used = 0, 0, 0, 0
    for block in range(fills.shape[0]):
        fill = 0
        start = block * block_rows
        while fill < block_rows:
            ordinal = load_i64(ordinals + (start + fill) * 8)
            if ordinal < 1 or ordinal > watermark:
                break
            first = ordinal if first == 0 else min(first, ordinal)
            last = max(last, ordinal)
            transitions += load_u8(kinds + start + fill) == 1
            fill += 1
        fills[block] = fill
        if fill:
            used = block + 1
    summary[0] = transitions
    summary[1] = first
    summary[2] = last
    summary[3] = used


_TRANSITION, _FINAL, _CONTINUED, _CUT = 1, 2, 3, 4
_RUNNING, _ENDS_CUT, _GOES_ON = 0, 4, 5  # how a run ends, beside the flags of its last transition
_Read = "Array({}, 1, 'C', readonly=True)"
_SIGNATURE = ", ".join(_Read.format(kind) for kind in ("uint8", "int64", "int32", "uint8", "uint8"))


@kernel(f"int64({_SIGNATURE}, int64, int64[:, ::1])")
def find_runs(
    kinds: Any, episodes: Any, steps: Any, terminated: Any, truncated: Any, block_rows: int, found: Any
) -> int:
    """Fill (first position, rows, transitions, first step, how it ends) of each run. Returns how many there are.

    ``kinds`` has 0 where no row is visible; of those rows nothing else is looked at.
    """
    count, row, stop = 0, 0, kinds.shape[0]
    while row < stop:
        if kinds[row] == 0:
            row += 1
            continue
        first, end = row, min(stop, (row // block_rows + 1) * block_rows)
        while (
            row + 1 < end
            and kinds[row] == _TRANSITION
            and kinds[row + 1] != 0
            and episodes[row + 1] == episodes[row]
            and np.int64(steps[row + 1]) == np.int64(steps[row]) + 1
        ):
            row += 1
        kind, before = kinds[row], max(row - 1, first)
        found[count, 0], found[count, 1] = first, row + 1 - first
        found[count, 2] = row + 1 - first - (kind != _TRANSITION)
        found[count, 3], found[count, 4] = steps[first], _RUNNING
        if kind == _FINAL:
            found[count, 4] = (1 if terminated[before] else 0) + (2 if truncated[before] else 0)
        elif kind == _CONTINUED:
            found[count, 4] = _GOES_ON
        elif kind == _CUT:
            found[count, 4] = _ENDS_CUT
        count += 1
        row += 1
    return count
