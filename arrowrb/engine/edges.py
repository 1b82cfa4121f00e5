"""The first rows of blocks, and where episodes go on: from rows where these are hot, else from run tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import StoreError
from ..rows import End, row_id_base
from .snapshot import Located, SegmentView, Snapshot
from .tables import EPISODE, LANE, ORDINAL, STEP, column_of, read_runs


@dataclass(frozen=True, slots=True)
class Edges:
    """Blocks of one segment.

    Attributes:
        lane: of the first row of each, int64[n]; likewise ``ordinal``, ``episode`` and ``step``.
        ordinal, episode, step: see ``lane``.
        continuation: of all blocks of the segment, int64[blocks]: the row id at which the episode of the last row goes
            on, or -1. None where that is to be seen from the rows.
    """

    lane: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    episode: NDArray[np.int64]
    step: NDArray[np.int64]
    continuation: NDArray[np.int64] | None


def stored_runs(view: SegmentView) -> pa.Table | None:
    """The run table that sealing wrote; None where there is none (yet, or any more: rows still tell)."""
    if not view.closed or view.entry.runs is None:
        return None  # a reader may see less than sealing saw
    mapping = view.in_hot.mapping if view.cold is None else view.cold.mapping
    base = row_id_base(view.shard, view.entry.number)
    try:
        path = mapping.path.parent / view.entry.runs.name
        return read_runs(path, view.entry.runs, (base, base + view.entry.rows))
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_edges(snapshot: Snapshot, slot: int, blocks: NDArray[np.int64]) -> Edges:
    """Of these blocks of a segment, whose first rows are committed."""
    view = snapshot.layout.views[slot]
    runs = stored_runs(view) if view.cold is not None else None
    if runs is not None:
        return _from_runs(view, runs, blocks)
    positions = blocks * view.entry.block_rows
    rows = Located(np.full(blocks.size, slot, np.int64), positions, positions)
    wanted = [(LANE, 0), (ORDINAL, 0), (EPISODE, 0), (STEP, 0)]
    values = snapshot.read(rows, wanted)
    lane, ordinal, episode, step = (values[key].astype(np.int64) for key in wanted)
    return Edges(lane, ordinal, episode, step, None)


def _from_runs(view: SegmentView, runs: pa.Table, blocks: NDArray[np.int64]) -> Edges:
    position = column_of(runs, "row_id") - row_id_base(view.shard, view.entry.number)
    block = position // view.entry.block_rows
    first = np.searchsorted(block, blocks)
    names = ("lane", "first_ordinal", "episode_id", "first_step")
    continuation = np.full(view.entry.rows // view.entry.block_rows, -1, np.int64)
    going_on = np.flatnonzero(column_of(runs, "end") == int(End.CONTINUED))
    continuation[block[going_on]] = column_of(runs, "continuation")[going_on]
    lane, ordinal, episode, step = (column_of(runs, name)[first].astype(np.int64) for name in names)
    return Edges(lane, ordinal, episode, step, continuation)
