"""The runs of a segment: consecutive rows of one episode within one block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..rows import End, Kind


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
    visible = kind != 0
    starts = np.ones(kind.size, np.bool_)
    np.not_equal(episode_id[1:], episode_id[:-1], out=starts[1:])
    starts[1:] |= kind[:-1] != Kind.TRANSITION
    starts[1:] |= (step[1:] - step[:-1]) != 1
    starts[::block_rows] = True
    stops = np.ones(kind.size, np.bool_)  # the last rows of runs
    np.logical_or(starts[1:], ~visible[1:], out=stops[:-1])
    starts &= visible
    stops &= visible
    first, last = np.flatnonzero(starts), np.flatnonzero(stops)
    last_kind = kind[last]
    before_tail = np.maximum(last - 1, first)
    flags = (terminated[before_tail] != 0) * np.int64(End.TERMINATED)
    flags += (truncated[before_tail] != 0) * np.int64(End.TRUNCATED)
    end = np.select(
        [last_kind == Kind.FINAL, last_kind == Kind.CONTINUED, last_kind == Kind.CUT],
        [flags, np.int64(End.CONTINUED), np.int64(End.CUT)],
        default=np.int64(End.RUNNING),
    )
    num_rows = last + 1 - first
    return Runs(first, num_rows, num_rows - (last_kind != Kind.TRANSITION), step[first].astype(np.int64), end)
