"""Which rows an export holds and in which order, from run tables: nothing is searched and nothing is sorted by rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..rows import End

_TAILED = (End.TERMINATED, End.TRUNCATED, End.BOTH, End.CUT)


def order_rows(runs: pa.Table, *, steps: bool) -> NDArray[np.int64]:
    """Row ids in the order of a data set: episodes by their first arrival, steps within an episode.

    Args:
        runs: runs of segments that have their rows, with ``shard``.
        steps: with the final observations of episodes that ended or were cut.
    """
    column: dict[str, NDArray[Any]] = {
        name: runs[name].to_numpy()
        for name in ("row_id", "num_transitions", "shard", "episode_id", "first_ordinal", "first_step", "end")
    }
    count = column["num_transitions"].copy()
    if steps:
        count += np.isin(column["end"], [int(end) for end in _TAILED])
    by_episode = np.lexsort((column["first_ordinal"], column["episode_id"], column["shard"]))
    begins = np.ones(by_episode.size, np.bool_)
    begins[1:] = np.diff(column["shard"][by_episode]) != 0
    begins[1:] |= np.diff(column["episode_id"][by_episode]) != 0
    arrival = np.empty(by_episode.size, np.int64)
    arrival[by_episode] = column["first_ordinal"][by_episode][np.flatnonzero(begins)][np.cumsum(begins) - 1]
    order = np.lexsort((column["first_ordinal"], column["episode_id"], arrival, column["shard"]))
    first, count = column["row_id"][order], count[order]
    stop = np.cumsum(count)
    total = int(stop[-1]) if stop.size else 0
    row_ids: NDArray[np.int64] = np.arange(total) + np.repeat(first - (stop - count), count)
    return row_ids


def keep_only(row_ids: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the row ids that are chosen, in their order."""
    known = np.sort(chosen)
    if known.size == 0:
        return known
    place = np.minimum(np.searchsorted(known, row_ids), known.size - 1)
    kept: NDArray[np.int64] = row_ids[known[place] == row_ids]
    return kept
