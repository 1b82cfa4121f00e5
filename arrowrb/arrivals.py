"""What has arrived: the newest transitions of a store, and all since a moment, in the order of their episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .engine import Located, Snapshot
from .engine.tables import EPISODE, LANE, ORDINAL, STEP, TIME
from .errors import EmptyError, OptionError
from .rows import SHARD_SHIFT, row_id_base


class Watermark(NamedTuple):
    """A moment of a store: what had been committed by then. ``tuple`` of it can stand in a checkpoint's state.

    Attributes:
        shards: of each shard, in order, the newest ordinal and how many transitions there ever were.
        num_missing: transitions that came since the moment before, and were dropped before they were read.
    """

    shards: tuple[tuple[int, int], ...]
    num_missing: int = 0


def watermark_of(snapshot: Snapshot, num_missing: int = 0) -> Watermark:
    """The moment of a snapshot."""
    shards = tuple((record.watermark, record.num_transitions) for record in snapshot.records)
    return Watermark(shards, num_missing)


def rows_since(snapshot: Snapshot, mark: Any) -> tuple[Located, NDArray[np.bool_], Watermark]:
    """The transitions that came after a moment, in order, where runs of them end, and the moment now.

    Raises:
        OptionError: if it is no moment of this store.
    """
    before = _check(snapshot, mark)
    found = _find(snapshot, [watermark for watermark, _ in before])
    came = sum(record.num_transitions for record in snapshot.records) - sum(count for _, count in before)
    if came < found.row_ids.size:
        raise OptionError(f"mark is {mark!r}, which is no moment of this store. Is it one of another store?")
    rows, ends = _in_order(snapshot, found)
    return rows, ends, watermark_of(snapshot, came - rows.row_ids.size)


def rows_between(snapshot: Snapshot, moments: Mapping[int, tuple[int, int]]) -> Located:
    """The transitions that arrived between two moments, in order of shard, lane and arrival.

    Args:
        snapshot: in which to look.
        moments: by shard, the ordinals after which and up to which; other shards are left out.
    """
    newest = [record.watermark for record in snapshot.records]
    since = [moments.get(shard, (each, each))[0] for shard, each in enumerate(newest)]
    until = [moments.get(shard, (each, each))[1] for shard, each in enumerate(newest)]
    return _in_order(snapshot, _find(snapshot, since, until))[0]


def newest_rows(snapshot: Snapshot, count: int) -> tuple[Located, NDArray[np.bool_]]:
    """The newest transitions, all where there are fewer, in order, and where runs of them end.

    Raises:
        EmptyError: if there is none.
    """
    if snapshot.num_transitions == 0:
        raise EmptyError("There is no transition yet: the store is empty. Collect or extend first.")
    newest, width = [record.watermark for record in snapshot.records], count
    while True:
        since = [max(0, watermark - width) for watermark in newest]
        found = _find(snapshot, since)
        per_shard = np.bincount(found.row_ids >> SHARD_SHIFT, minlength=len(newest))
        if all(each >= count or not mark for each, mark in zip(per_shard.tolist(), since, strict=True)):
            break
        width *= 2
    if found.row_ids.size > count:
        values = snapshot.read(found, [(TIME, 0), (ORDINAL, 0)])
        order = np.lexsort((values[ORDINAL, 0], values[TIME, 0]))[-count:]
        if len(newest) == 1:
            order = np.argsort(values[ORDINAL, 0])[-count:]
        found = _chosen(found, order)
    return _in_order(snapshot, found)


def _check(snapshot: Snapshot, mark: Any) -> list[tuple[int, int]]:
    """Ordinal and count of each shard at a moment; 0 of those that came later."""
    now = watermark_of(snapshot).shards
    shards = () if mark is None else mark[0] if isinstance(mark, Sequence) and len(mark) == 2 else None
    pairs = isinstance(shards, Sequence) and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in shards)
    if not pairs or shards is None or not all(_is_count(each) for pair in shards for each in pair):
        raise OptionError(f"mark is {mark!r}, expected what Store.watermark or Store.since returned, or None.")
    before = [(int(watermark), int(count)) for watermark, count in shards]
    later = any(one[0] > two[0] or one[1] > two[1] for one, two in zip(before, now, strict=False))
    if later or len(before) > len(now):
        raise OptionError(f"mark is {mark!r}, which lies in the future of this store. Is it one of another store?")
    return before + [(0, 0)] * (len(now) - len(before))


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def _find(snapshot: Snapshot, since: Sequence[int], stops: Sequence[int] | None = None) -> Located:
    """The transitions with ordinals beyond these of their shards, and up to those, in no order."""
    layout = snapshot.layout
    stops = [record.watermark for record in snapshot.records] if stops is None else stops
    found = [np.zeros((3, 0), np.int64)]
    for slot, view in enumerate(layout.views):
        until = stops[view.shard]
        last = view.entry.last_ordinal
        if since[view.shard] >= until or (view.entry.sealed and last <= since[view.shard]):
            continue
        rows, first = view.entry.block_rows, int(layout.shapes[slot, 2])
        blocks = view.entry.rows // rows
        fills = np.full(blocks, rows, np.int32) if view.whole else snapshot.fills[first : first + blocks].copy()
        ordinals = np.ascontiguousarray(view.column(ORDINAL))
        address, kinds = ordinals.__array_interface__["data"][0], int(layout.shapes[slot, 5])
        places = np.empty(0, np.int64)
        while True:
            room = places.size
            where = places.__array_interface__["data"][0]
            count = kernels.find_after(address, kinds, rows, fills, since[view.shard], until, where, room)
            if count <= room:
                break
            places = np.empty(count, np.int64)
        base = row_id_base(view.shard, view.entry.number)
        found.append(np.stack([np.full(count, slot, np.int64), places[:count], base + places[:count]]))
    slots, positions, row_ids = np.concatenate(found, axis=1)
    return Located(slots, positions, row_ids)


def _in_order(snapshot: Snapshot, rows: Located) -> tuple[Located, NDArray[np.bool_]]:
    """Rows by shard, lane and arrival, and where the next one is not the next step of the same episode."""
    values = snapshot.read(rows, [(LANE, 0), (ORDINAL, 0)])
    rows = _chosen(rows, np.lexsort((values[ORDINAL, 0], values[LANE, 0], rows.row_ids >> SHARD_SHIFT)))
    values = snapshot.read(rows, [(EPISODE, 0), (STEP, 0)])
    ends = np.ones(rows.row_ids.size, np.bool_)
    episode, step = values[EPISODE, 0], values[STEP, 0].astype(np.int64)
    ends[:-1] = (np.diff(episode) != 0) | (np.diff(step) != 1)
    return rows, ends


def _chosen(rows: Located, at: NDArray[np.int64]) -> Located:
    return Located(rows.slots[at], rows.positions[at], rows.row_ids[at])
