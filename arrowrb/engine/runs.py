"""The runs of a segment: consecutive rows of one episode within one block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import kernels


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
    found = np.empty((np.count_nonzero(kind), len(Runs.__slots__)), np.int64)
    columns = (np.ascontiguousarray(each) for each in (kind, episode_id, step, terminated, truncated))
    count = kernels.find_runs(*columns, block_rows, found)
    return Runs(*(np.ascontiguousarray(found[:count, field]) for field in range(found.shape[1])))
