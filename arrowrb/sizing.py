"""How large the next segment is: a pure function of counts, so that a seeded run repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .rows import MAX_SEGMENT_ROWS

FIRST_ROWS: Final = 4096
FIRST_BYTES: Final = 4 << 20
MOST_ROWS: Final = 1 << 18
MOST_BYTES: Final = 64 << 20
LEAST_BLOCK_ROWS: Final = 8
ROOMY_BLOCK_ROWS: Final = 32
MOST_BLOCK_ROWS: Final = 512
MIN_MAX_ROWS: Final = 1000
_BLOCKS_A_LANE: Final = 4
_GROWTH: Final = 3
SHARE_OF_MAX_ROWS: Final = 16
SHARE_OF_HOT_ROWS: Final = 8
LEAST_HOT_BYTES: Final = 256 << 10
MOST_SMALL_SEGMENTS: Final = 512
_MOST_ELEMENTS: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class SegmentShape:
    """Rows of a segment, and of each of its blocks."""

    rows: int
    block_rows: int


def shape_segment(
    *,
    num_lanes: int,
    row_bytes: int,
    rows_so_far: int,
    max_rows: int | None = None,
    hot_rows: int | None = None,
    list_size: int = 1,
) -> SegmentShape:
    """Choose the shape of a segment that is about to be opened.

    Segments grow with the shard (each makes it four times as large) up to 64 MiB or 262,144 rows, so that a small
    store stays small and the files of a large one stay few. There are at least four blocks a lane. A segment is
    at most a sixteenth of ``max_rows`` and an eighth of ``hot_rows``, unless the lanes need more (32 rows each).
    A hot tier that is small beside the store makes no tiny segments, since all that is cold stays in pieces of that
    size, and each costs syncs, a line of the manifest and a mapping: they have at least a 512th of the rows so far,
    up to 4,096 rows or 256 KiB.

    Args:
        num_lanes: lanes now active.
        row_bytes: bytes of a row over all columns.
        rows_so_far: rows that the shard's segments have allocated.
        max_rows: the retention limit in transitions, if there is one.
        hot_rows: rows that the hot tier holds, if it is bounded.
        list_size: the most elements that a tensor column has in a row (Arrow's lists hold fewer than 2^31 in all).
    """
    lanes = max(1, num_lanes)
    most = max(64, min(MOST_ROWS, MOST_BYTES // max(1, row_bytes)))
    first = max(64, min(FIRST_ROWS, FIRST_BYTES // max(1, row_bytes)))
    rows = min(most, max(first, _GROWTH * rows_so_far))
    shares = [max_rows // SHARE_OF_MAX_ROWS] if max_rows is not None else []
    least = min(rows_so_far // MOST_SMALL_SEGMENTS, FIRST_ROWS, LEAST_HOT_BYTES // max(1, row_bytes))
    shares += [max(hot_rows // SHARE_OF_HOT_ROWS, least)] if hot_rows is not None else []
    share = min(shares, default=MAX_SEGMENT_ROWS)
    rows = min(rows, max(share, LEAST_BLOCK_ROWS))
    block_rows = LEAST_BLOCK_ROWS
    # With many lanes, rather a larger segment than a tail every eighth row.
    while block_rows < ROOMY_BLOCK_ROWS:
        needed = _BLOCKS_A_LANE * lanes * block_rows * 2
        if needed * row_bytes > MOST_BYTES or needed > share:
            break
        block_rows *= 2
    while block_rows * 2 <= MOST_BLOCK_ROWS and _BLOCKS_A_LANE * lanes * block_rows * 2 <= rows:
        block_rows *= 2
    num_blocks = max(rows // block_rows, _BLOCKS_A_LANE * lanes)
    limit = min(MAX_SEGMENT_ROWS, _MOST_ELEMENTS // max(1, list_size)) // block_rows
    return SegmentShape(min(num_blocks, limit) * block_rows, block_rows)
