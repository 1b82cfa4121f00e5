"""Row ids, kinds of row, and runs: the vocabulary in which all other modules speak of rows.

A row id is an address that is never reused: ``shard << 48 | segment << POSITION_BITS | position``. It says where
a row lies, not when it came: time is the ``ordinal``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHARD_SHIFT: Final = 48
POSITION_BITS: Final = 24
MAX_SHARDS: Final = 1 << 15
MAX_SEGMENTS: Final = 1 << (SHARD_SHIFT - POSITION_BITS)
MAX_SEGMENT_ROWS: Final = 1 << POSITION_BITS


class Kind(IntEnum):
    """What a committed row is (column ``kind``)."""

    NONE = 0  # not committed; may hold the newest observation of a running episode
    TRANSITION = 1
    FINAL = 2  # tail: the final observation of an episode that ended
    CONTINUED = 3  # tail at a block's end: the episode goes on in the lane's next block
    CUT = 4  # tail: the episode was abandoned; not an environment's truncation


class End(IntEnum):
    """How a run of rows ends (run tables and the view ``episodes``)."""

    RUNNING = 0  # the newest rows of an episode that goes on
    TERMINATED = 1
    TRUNCATED = 2
    BOTH = 3  # terminated and truncated at the same step
    CUT = 4
    CONTINUED = 5  # goes on in the lane's next block


def pack_row_id(shard: int, segment: int, position: int) -> int:
    """The row id of a position in a segment of a shard."""
    return shard << SHARD_SHIFT | segment << POSITION_BITS | position


def row_id_base(shard: int, segment: int) -> int:
    """The row id of a segment's first row; the others follow by position."""
    return pack_row_id(shard, segment, 0)


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one segment: consecutive rows of one episode within one block, a tail included.

    All arrays have one entry a run, in order of position.
    """

    first: NDArray[np.int64]  # position of the first row
    num_rows: NDArray[np.int64]  # rows, the tail included
    num_transitions: NDArray[np.int64]
    first_step: NDArray[np.int64]
    end: NDArray[np.int64]  # End


def find_runs(
    kind: NDArray[np.uint8],
    episode_id: NDArray[np.int64],
    step: NDArray[np.int32],
    terminated: NDArray[np.uint8],
    truncated: NDArray[np.uint8],
    block_rows: int,
) -> Runs:
    """Find the runs of one segment from its columns.

    Args:
        kind: the rows' kinds, with 0 where a row is not visible (the caller applies the watermark).
        episode_id: the column; entries of invisible rows are not used, here and in the next three.
        step: the column.
        terminated: the column.
        truncated: the column.
        block_rows: rows in a block; a run never crosses from one block to the next.
    """
    visible = np.flatnonzero(kind)
    if visible.size == 0:
        empty = np.empty(0, np.int64)
        return Runs(empty, empty, empty, empty, empty)
    kinds = kind[visible]
    episodes = episode_id[visible]
    steps = step[visible]
    starts = np.empty(visible.size, np.bool_)
    starts[0] = True
    np.not_equal(visible[1:], visible[:-1] + 1, out=starts[1:])
    starts[1:] |= kinds[:-1] != Kind.TRANSITION
    starts[1:] |= (visible[1:] % block_rows) == 0
    starts[1:] |= episodes[1:] != episodes[:-1]
    starts[1:] |= steps[1:] != steps[:-1] + 1
    first = np.flatnonzero(starts)
    stop = np.append(first[1:], visible.size)
    last = stop - 1
    last_kind = kinds[last]
    num_transitions = stop - first - (last_kind != Kind.TRANSITION)
    before_tail = visible[np.maximum(last - 1, first)]
    flags = (terminated[before_tail] != 0) * np.int64(End.TERMINATED) + (truncated[before_tail] != 0) * np.int64(
        End.TRUNCATED
    )
    end = np.select(
        [last_kind == Kind.FINAL, last_kind == Kind.CONTINUED, last_kind == Kind.CUT],
        [flags, np.int64(End.CONTINUED), np.int64(End.CUT)],
        default=np.int64(End.RUNNING),
    )
    return Runs(
        first=visible[first],
        num_rows=(stop - first).astype(np.int64),
        num_transitions=num_transitions.astype(np.int64),
        first_step=steps[first].astype(np.int64),
        end=end.astype(np.int64),
    )
