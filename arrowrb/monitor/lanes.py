"""How many lanes the writers of shards have, and on how many of them an episode runs.

A lane is written a block at a time, and the block that it is at lies in a segment that is open. So the last rows of
the blocks of open segments tell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from arrowrb.engine import Snapshot
from arrowrb.engine.tables import KIND, LANE, ORDINAL
from arrowrb.rows import Kind

_GOING_ON = (int(Kind.TRANSITION), int(Kind.CONTINUED))


class Lanes(NamedTuple):
    """Of one shard: its lanes in open segments, and those of them whose newest episode has not ended."""

    num_lanes: int = 0
    num_running: int = 0


def count_lanes(snapshot: Snapshot) -> dict[int, Lanes]:
    """The lanes of each shard that has open segments with rows."""
    found: dict[int, list[np.ndarray]] = {}
    for slot, view in enumerate(snapshot.layout.views):
        if view.entry.sealed or view.whole:
            continue
        rows, first = view.entry.block_rows, int(snapshot.layout.shapes[slot, 2])
        fills = snapshot.fills[first : first + view.entry.rows // rows].astype(np.int64)
        used = np.flatnonzero(fills)
        last = used * rows + fills[used] - 1
        values = [view.column(place)[last].astype(np.int64) for place in (LANE, ORDINAL, KIND)]
        found.setdefault(view.shard, []).append(np.stack(values))
    counts = {}
    for shard, parts in found.items():
        lane, ordinal, kind = np.concatenate(parts, axis=1)
        order = np.lexsort((ordinal, lane))
        newest = order[np.append(lane[order][1:] != lane[order][:-1], True)] if order.size else order
        counts[shard] = Lanes(newest.size, int(np.isin(kind[newest], _GOING_ON).sum()))
    return counts
