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
    return found, _ends(snapshot, found), watermark_of(snapshot, came - found.row_ids.size)


def rows_between(snapshot: Snapshot, moments: Mapping[int, tuple[int, int]]) -> Located:
    """The transitions that arrived between two moments, in order of shard, lane and arrival.

    Args:
        snapshot: in which to look.
        moments: by shard, the ordinals after which and up to which; other shards are left out.
    """
    newest = [record.watermark for record in snapshot.records]
    since = [moments.get(shard, (each, each))[0] for shard, each in enumerate(newest)]
    until = [moments.get(shard, (each, each))[1] for shard, each in enumerate(newest)]
    return _find(snapshot, since, until)


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
        found = _chosen(found, np.sort(order))
    return found, _ends(snapshot, found)


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
    """The transitions with ordinals beyond these of their shards, and up to those, by shard, lane and arrival."""
    layout = snapshot.layout
    stops = [record.watermark for record in snapshot.records] if stops is None else stops
    places, num_rows, num_blocks = [], 0, 0
    for slot, view in enumerate(layout.views):
        entry, after = view.entry, since[view.shard]
        if after < stops[view.shard] and not (entry.sealed and entry.last_ordinal <= after):
            places.append((slot, view))
            num_rows, num_blocks = num_rows + entry.rows, num_blocks + entry.rows // entry.block_rows
    # A row has an ordinal of its own.
    room = min(num_rows, sum(max(0, until - after) for after, until in zip(since, stops, strict=True)))
    found, pieces, counts = np.empty((3, room), np.int64), np.empty(num_blocks, np.int64), np.zeros(2, np.int64)
    for slot, view in places:
        first, blocks = int(layout.shapes[slot, 2]), view.entry.rows // view.entry.block_rows
        kinds, base = int(layout.shapes[slot, 5]), row_id_base(view.shard, view.entry.number)
        # In the cold tier ordinals are decoded.
        decoded = None if view.cold is None else np.ascontiguousarray(view.column(ORDINAL))
        ordinals = layout.addresses[slot, ORDINAL] if decoded is None else decoded.__array_interface__["data"][0]
        between = (since[view.shard], stops[view.shard])
        segment = (ordinals, kinds, view.entry.block_rows, blocks, view.whole, *between, slot, base)
        kernels.find_after(np.array(segment, np.int64), snapshot.fills[first : first + blocks], found, pieces, counts)
    num_found, num_pieces = counts.tolist()
    slots, positions, row_ids = found[:, :num_found]
    return _in_order(snapshot, Located(slots, positions, row_ids), pieces[:num_pieces])


def _in_order(snapshot: Snapshot, rows: Located, begins: NDArray[np.int64]) -> Located:
    """Pieces of blocks, each of one lane and in order of arrival, by shard, lane and arrival."""
    if begins.size < 2:
        return rows
    firsts = _chosen(rows, begins)
    values = snapshot.read(firsts, [(LANE, 0), (ORDINAL, 0)])
    order = np.lexsort((values[ORDINAL, 0], values[LANE, 0], firsts.row_ids >> SHARD_SHIFT))
    if (np.diff(order) > 0).all():
        return rows
    lengths = np.diff(begins, append=rows.row_ids.size)[order]
    ends = np.cumsum(lengths)
    return _chosen(rows, np.arange(rows.row_ids.size) + np.repeat(begins[order] - ends + lengths, lengths))


def _ends(snapshot: Snapshot, rows: Located) -> NDArray[np.bool_]:
    """Where the next row is not the next step of the same episode."""
    values = snapshot.read(rows, [(EPISODE, 0), (STEP, 0)])
    ends = np.ones(rows.row_ids.size, np.bool_)
    episode, step = values[EPISODE, 0], values[STEP, 0].astype(np.int64)
    ends[:-1] = (np.diff(episode) != 0) | (np.diff(step) != 1)
    return ends


def _chosen(rows: Located, at: NDArray[np.int64]) -> Located:
    return Located(rows.slots[at], rows.positions[at], rows.row_ids[at])
