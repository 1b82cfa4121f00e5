"""Looking over the rows of open segments: what is committed, block by block."""

from __future__ import annotations

from typing import Any

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
