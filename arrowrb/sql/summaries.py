"""The tables ``episodes`` and ``segments`` of a snapshot: run tables and the manifest, put together in NumPy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..engine import Snapshot, stored_runs, tables
from ..engine.paths import shard_paths
from ..engine.snapshot import SegmentView
from ..rows import End, Kind, row_id_base
from ..seeds import SeedEntry

ENDS: Final = {
    End.RUNNING: "running",
    End.TERMINATED: "terminated",
    End.TRUNCATED: "truncated",
    End.BOTH: "terminated and truncated",
    End.CUT: "cut",
    End.CONTINUED: "running",  # goes on in a block whose first row is not committed yet
}


def read_runs(snapshot: Snapshot, root: Any) -> pa.Table:
    """The runs of all segments, with their ``shard``.

    Args:
        snapshot: what is visible.
        root: the store's directory, where run tables lie beside their segments.
    """
    parts = []
    for shard, evicted in enumerate(snapshot.evicted):
        folder = shard_paths(root, shard).segments
        parts += [(shard, tables.read_runs(folder / file.name, file, None)) for file in evicted.runs]
    parts += [(view.shard, _runs_of(snapshot, None, view)) for view in snapshot.layout.leaving]
    return _joined(snapshot, [*parts, *_live_parts(snapshot)])


def read_live_runs(snapshot: Snapshot) -> pa.Table:
    """The runs of the segments that have their rows, with their ``shard``."""
    return _joined(snapshot, _live_parts(snapshot))


def _live_parts(snapshot: Snapshot) -> list[tuple[int, pa.Table]]:
    views = enumerate(snapshot.layout.views)
    return [(view.shard, _runs_of(snapshot, slot, view)) for slot, view in views]


def _joined(snapshot: Snapshot, parts: list[tuple[int, pa.Table]]) -> pa.Table:
    parts = [(0, tables.runs_schema(snapshot.layout.schema).empty_table()), *parts]
    return tables.join_runs(
        [runs.append_column("shard", pa.array(np.full(runs.num_rows, shard, np.int64))) for shard, runs in parts]
    )


def _runs_of(snapshot: Snapshot, slot: int | None, view: SegmentView) -> pa.Table:
    """The runs of one segment: as sealing wrote them, or from its rows. ``slot`` None: all its rows are visible."""
    base = row_id_base(view.shard, view.entry.number)
    runs = stored_runs(view)
    if runs is not None:
        return runs
    return tables.build_runs(
        snapshot.layout.schema,
        view.column,
        view.column(tables.KIND) if slot is None else snapshot.visible_kinds(slot),
        block_rows=view.entry.block_rows,
        base=base,
        starts={},
    )


def build_episodes(runs: pa.Table, seeds: Iterable[SeedEntry]) -> pa.Table:
    """One row an episode, in order of shard and of its first run's arrival.

    Args:
        runs: the runs of all segments, with ``shard``.
        seeds: what episodes were reset with.
    """
    column = {name: runs[name].to_numpy() for name in runs.column_names if name != "return"}
    shard, episode = column["shard"], column["episode_id"]
    order = np.lexsort((column["first_ordinal"], episode, shard))
    begins = np.ones(order.size, np.bool_)
    begins[1:] = (np.diff(shard[order]) != 0) | (np.diff(episode[order]) != 0)
    first = np.flatnonzero(begins)
    group = np.cumsum(begins) - 1
    # The newest run of each episode: the last of its group when ordered by last ordinal.
    by_last = np.lexsort((column["last_ordinal"][order], group))
    stop = np.append(first, order.size)[1:]
    oldest, newest = order[first], order[by_last[stop - 1]]
    length = _sums(column["num_transitions"][order], first)
    end = column["end"][newest]
    running = (end == End.RUNNING) | (end == End.CONTINUED)
    terminated, truncated = _either(end, End.TERMINATED), _either(end, End.TRUNCATED)
    whole = length == column["first_step"][newest] + column["num_transitions"][newest]
    begun = _minima(column["first_step"][order], first) == 0
    seed_of = {entry.episode_id: entry.seed for entry in seeds}
    ended_at = column["last_time"][newest]
    names = np.array([ENDS[End(code)] for code in range(len(ENDS))], object)
    table = {
        "episode_id": pa.array(episode[oldest]),
        "lane": pa.array(column["lane"][oldest]),
        "seed": pa.array([seed_of.get(each) for each in episode[oldest].tolist()], pa.uint64()),
        "started_at": pa.array(column["first_time"][oldest]),
        "ended_at": pa.array(ended_at, mask=running),
        "return": _returns(runs["return"], order, first),
        "length": pa.array(length),
        "ended_by": pa.array(names[end], pa.string()),
        "terminated": pa.array(terminated),
        "truncated": pa.array(truncated),
        "complete": pa.array(begun & whole & (terminated | truncated)),
        "num_runs": pa.array(stop - first),
        "shard": pa.array(shard[oldest]),
        "row_id": pa.array(column["row_id"][oldest]),
    }
    arrival = np.lexsort((column["first_ordinal"][oldest], shard[oldest]))
    return pa.table(table).take(pa.array(arrival))


def _either(end: NDArray[Any], which: End) -> NDArray[np.bool_]:
    either: NDArray[np.bool_] = (end == which) | (end == End.BOTH)
    return either


def _sums(values: NDArray[Any], first: NDArray[np.int64]) -> NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs, NaN
        return np.add.reduceat(values, first, axis=0) if first.size else values


def _minima(values: NDArray[Any], first: NDArray[np.int64]) -> NDArray[Any]:
    return np.minimum.reduceat(values, first) if first.size else values


def _returns(returns: pa.ChunkedArray, order: NDArray[np.int64], first: NDArray[np.int64]) -> pa.Array:
    """Sums of the runs' returns, in order of arrival; lists where rewards are vectors."""
    whole = returns.combine_chunks()
    if not pa.types.is_fixed_size_list(whole.type):
        return pa.array(_sums(whole.to_numpy()[order], first))
    size = whole.type.list_size
    values = whole.flatten().to_numpy().reshape(-1, size)
    sums = _sums(values[order], first)
    return pa.FixedSizeListArray.from_arrays(pa.array(sums.ravel()), size)


def build_segments(snapshot: Snapshot) -> pa.Table:
    """One row a segment. Counts of segments that are not sealed are of this snapshot."""
    rows = [_segment(snapshot, slot, view) for slot, view in enumerate(snapshot.layout.views)]
    return pa.Table.from_pylist(rows, schema=_SEGMENTS)


_SEGMENTS: Final = pa.schema(
    [
        ("shard", pa.int64()),
        ("segment", pa.int64()),
        ("tier", pa.string()),
        ("state", pa.string()),
        ("rows", pa.int64()),
        ("block_rows", pa.int64()),
        ("num_rows", pa.int64()),
        ("num_transitions", pa.int64()),
        ("first_ordinal", pa.int64()),
        ("last_ordinal", pa.int64()),
        ("first_time", pa.int64()),
        ("last_time", pa.int64()),
        ("bytes", pa.int64()),
        ("file", pa.string()),
        ("row_id", pa.int64()),
    ]
)


def _segment(snapshot: Snapshot, slot: int, view: SegmentView) -> dict[str, Any]:
    entry = view.entry
    row: dict[str, Any] = {
        "shard": view.shard,
        "segment": entry.number,
        "tier": entry.tier,
        "state": "sealed" if entry.sealed else "open",
        "rows": entry.rows,
        "block_rows": entry.block_rows,
        "bytes": entry.bytes,
        "file": entry.name,
        "row_id": row_id_base(view.shard, entry.number),
    }
    if entry.sealed:
        row |= {"num_rows": entry.num_rows, "num_transitions": entry.num_transitions}
        if entry.num_rows:
            row |= {name: getattr(entry, name) for name in ("first_ordinal", "last_ordinal", "first_time", "last_time")}
        return row
    kinds = snapshot.visible_kinds(slot)
    visible = np.flatnonzero(kinds)
    row |= {"num_rows": int(visible.size), "num_transitions": int(np.count_nonzero(kinds == Kind.TRANSITION))}
    if visible.size:
        ordinals, times = view.column(tables.ORDINAL)[visible], view.column(tables.TIME)[visible]
        row |= {"first_ordinal": int(ordinals.min()), "last_ordinal": int(ordinals.max())}
        row |= {"first_time": int(times.min()), "last_time": int(times.max())}
    return row
