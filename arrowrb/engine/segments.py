"""The segments of a shard that is written: the manifest's one owner.

What the threads of a writer see is one immutable state, which is replaced whole. Replacing the manifest file takes as
long as a sync, and only those who do it wait for each other; the state in memory is replaced at once.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from .. import files
from .. import manifest as manifests
from ..manifest import Manifest, SegmentEntry
from ..retention import LEAST_HOT_SEGMENTS, HotTier, Limits, Piece
from ..schema import Schema
from ..sharing import Orders, narrower
from ..sizing import SegmentShape, shape_segment
from ..tiers import hot
from ..tiers.cold import ColdSegment
from ..tiers.hot import HotSegment
from ..writer import OpenSegment
from .paths import ShardPaths, identity, segment_name
from .pins import Pins
from .reserve import Reserve
from .state import ShardState
from .tiering import demote, merge_runs, open_cold, remove_files

_T = TypeVar("_T")


class Segments:
    """Segments that come, move and go. Thread-safe.

    Attributes:
        state: the manifest and the mappings, as they are now.
        limits: what the shard may hold now.
        changed: called after each change, by the thread that made it.
        pins: what snapshots hold of segments that went or moved.
    """

    def __init__(
        self,
        paths: ShardPaths,
        schema: Schema,
        store_id: str,
        manifest: Manifest,
        *,
        limits: Limits,
        durable: bool,
        check_lock: Callable[[], None],
        num_shards: Callable[[], int],
    ) -> None:
        self._paths = paths
        self._reserve = Reserve(paths.reserve)
        self._schema = schema
        self._store_id = store_id
        self._durable = durable
        self._check_lock = check_lock
        self._manifest_guard = threading.Lock()
        self._state_guard = threading.Lock()
        self.pins = Pins()
        self._next_number = 0
        self._num_shards = num_shards
        self._asked = limits
        self._told: Orders | None = None
        self._own = self.limits = in_force(limits, schema)
        self.changed: Callable[[], None] = _nothing
        entries = manifest.segments
        self.state = ShardState(
            manifest,
            {entry.number: self._map(entry) for entry in entries if entry.tier == "hot"},
            {entry.number: open_cold(paths, schema, store_id, entry) for entry in entries if entry.tier == "cold"},
        )

    def _map(self, entry: SegmentEntry) -> hot.HotSegment:
        name = identity(self._store_id, self._paths.number, entry.number)
        path = self._paths.segments / entry.name
        return hot.open_segment(path, self._schema, name, entry.rows, entry.bytes, writable=not entry.sealed)

    @property
    def manifest(self) -> Manifest:
        """The list of segments."""
        return self.state.manifest

    def keep(self, below: int) -> None:
        """Keep segments below this number for good: those of checkpoints that say so."""
        with self._state_guard:
            self._own = in_force(replace(self._asked, keep_below=below), self._schema)
            self.limits = narrower(self._own, self._told)

    def tell(self, orders: Orders | None) -> None:
        """Bound the shard by what its store as a whole may hold."""
        with self._state_guard:
            self._told = orders
            self.limits = narrower(self._own, orders)

    def shape(self, num_lanes: int) -> SegmentShape:
        """How large the next segment is."""
        return shape_next(self._schema, self.state, self._own, num_lanes, self._num_shards())

    def outgrows(self, entry: SegmentEntry, num_lanes: int) -> bool:
        """Whether an open segment, made under wider limits, is most of what the hot tier may hold now."""
        bounded = self.limits.hot_rows is not None or self.limits.hot_bytes is not None
        return bounded and entry.rows > LEAST_HOT_SEGMENTS // 2 * self.shape(num_lanes).rows

    def create(self, num_lanes: int) -> OpenSegment:
        """Allocate and map the next segment's file, and list it."""
        with self._manifest_guard:
            number = max(self.manifest.next_segment, self._next_number)
            self._next_number = number + 1
        shape = self.shape(num_lanes)
        path = self._paths.segments / segment_name(number)
        name = identity(self._store_id, self._paths.number, number)
        size = hot.create(path, self._schema, name, shape.rows, shape.block_rows, sync=self._durable)
        try:
            mapped = hot.open_segment(path, self._schema, name, shape.rows, size, writable=True)
            hot.warm(mapped)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        entry = SegmentEntry(number, shape.rows, shape.block_rows, "hot", path.name, size)
        # Where this fails the manifest may list the file all the same; if not, the next writer removes it.
        self.update(lambda manifest: manifest.with_segment(entry), hot={number: mapped})
        return OpenSegment(entry, mapped, np.zeros(shape.rows // shape.block_rows, np.int32))

    def sync(self) -> None:
        """Make the rows of segments that are not sealed durable."""
        for entry in self.state.manifest.segments:
            if not entry.is_open:
                continue
            try:
                files.sync_file(self._paths.segments / entry.name)
            except OSError as error:
                # Sealed and moved, or dropped, since it was listed: there is nothing left to sync.
                listed = any(each.number == entry.number and each.is_open for each in self.state.manifest.segments)
                if error.errno != errno.ENOENT or listed:
                    raise

    def update(
        self,
        change: Callable[[Manifest], Manifest],
        *,
        hot: Mapping[int, HotSegment | None] | None = None,
        cold: Mapping[int, ColdSegment | None] | None = None,
        frees: bool = False,
    ) -> None:
        """Make the names of new files durable, replace the manifest file, then the state in memory.

        None takes a segment away. ``frees`` says that files go afterwards, so that this may take the last room.
        """
        with self._manifest_guard:
            self._check_lock()  # never over the manifest of another process
            if self._durable:
                files.sync_directory(self._paths.segments)
            changed = change(self.manifest)
            changed = replace(changed, sequence=self.manifest.sequence + 1)
            self._write(changed, frees=frees)
            listed = {entry.number for entry in changed.segments}
            with self._state_guard:
                state = self.state
                self.state = replace(
                    state,
                    manifest=changed,
                    hot=_updated(state.hot, hot or {}),
                    cold=_updated(state.cold, cold or {}),
                    leaving={number: count for number, count in state.leaving.items() if number in listed},
                    version=state.version + 1,
                )
        self.changed()

    def _write(self, manifest: Manifest, *, frees: bool) -> None:
        write = partial(manifests.write, self._paths.manifest, manifest, sync=self._durable)
        if frees:
            self._reserve.spend_on(write)
        else:
            write()

    def open(self, without: Set[int]) -> None:
        """Write the manifest of a writer that begins, ``without`` these segments, which hold nothing."""
        manifest = self.manifest
        left = tuple(entry for entry in manifest.segments if entry.number in without)
        kept = replace(manifest, segments=tuple(entry for entry in manifest.segments if entry.number not in without))
        self._write(kept, frees=True)
        self.state = replace(self.state, manifest=kept, hot=_updated(self.state.hot, dict.fromkeys(without)))
        self._remove([entry.name for entry in left])

    def _set_room_aside(self) -> None:
        self._reserve.fill(self._paths.manifest.stat().st_size)

    def _remove(self, names: Sequence[str]) -> None:
        """Unlink files that are not listed any more."""
        remove_files(self._paths, names)
        self._set_room_aside()

    def touch(self) -> None:
        """Note that the views of segments are others now."""
        with self._state_guard:
            self.state = replace(self.state, version=self.state.version + 1)

    def leave(self, pieces: Sequence[Piece]) -> None:
        """Take segments out of what can be sampled; `evict` drops them when they are sealed."""
        with self._state_guard:
            leaving = {**self.state.leaving, **{piece.number: piece.num_transitions for piece in pieces}}
            self.state = replace(self.state, leaving=leaving, version=self.state.version + 1)

    def stay(self, below: int) -> None:
        """Take back that segments below this number leave, as far as they are there."""
        with self._state_guard:
            leaving = {number: count for number, count in self.state.leaving.items() if number >= below}
            if len(leaving) < len(self.state.leaving):
                self.state = replace(self.state, leaving=leaving, version=self.state.version + 1)

    def evict_one(self) -> bool:
        """Drop the oldest segment that leaves, for good; returns whether there was one, and it is sealed.

        In order: sealing looks at what came after a segment.
        """
        state = self.state
        entry = next((each for each in state.manifest.segments if each.number in state.leaving), None)
        if entry is None or not entry.sealed:
            return False
        gone = {entry.number: None}
        mapping = (state.cold if entry.tier == "cold" else state.hot)[entry.number].mapping
        self.update(lambda manifest: manifest.without_segment(entry), hot=gone, cold=gone, frees=True)
        self.pins.add(mapping)
        self._remove([entry.name, *([entry.blocks.name] if entry.blocks is not None else [])])
        return True

    def demote(self, numbers: Sequence[int]) -> None:
        """Move sealed segments to the cold tier."""
        state, entries, moved = self.state, [], {}
        for number in numbers:
            entry, segment = demote(
                self._paths,
                self._schema,
                self._store_id,
                state.manifest.segment(number),
                state.hot[number],
                durable=self._durable,
            )
            entries.append(entry)
            moved[number] = segment
        gone = dict.fromkeys(numbers)
        self.update(lambda manifest: manifest.with_segments(entries), hot=gone, cold=moved, frees=True)
        for number in numbers:
            self.pins.add(state.hot[number].mapping)
        self._remove([state.manifest.segment(number).name for number in numbers])

    def merge_runs(self) -> None:
        """Keep the run tables of evicted segments few."""
        runs = self.manifest.evicted.runs
        merged = merge_runs(self._paths, runs, durable=self._durable)
        if merged != runs:
            self.update(lambda manifest: replace(manifest, evicted=replace(manifest.evicted, runs=merged)))
            self._remove(sorted({file.name for file in runs} - {file.name for file in merged}))

    def tier(self, num_lanes: int) -> HotTier:
        """How full the hot tier is."""
        return measure_tier(self._schema, self.state, self.limits, self.shape(max(1, num_lanes)))


def in_force(limits: Limits, schema: Schema) -> Limits:
    """The limits, without a bound of the hot tier where nothing would ever leave it."""
    return replace(limits, hot_rows=None, hot_bytes=None) if limits.keeps_all_hot(schema.row_bytes) else limits


def shape_next(schema: Schema, state: ShardState, limits: Limits, num_lanes: int, num_shards: int = 1) -> SegmentShape:
    """How large the next segment is; the limits are those of the store, of which each shard has its part."""
    row_bytes = schema.row_bytes
    hot_rows = [each for each in (limits.hot_rows, limits.hot_bytes and limits.hot_bytes // row_bytes) if each]
    kept = [limits.max_rows]
    if num_shards > 1:
        kept.append(limits.max_bytes and limits.max_bytes // row_bytes)
    return shape_segment(
        num_lanes=num_lanes,
        row_bytes=row_bytes,
        rows_so_far=state.rows_so_far,
        max_rows=min((each // num_shards for each in kept if each is not None), default=None),
        hot_rows=min((each // num_shards for each in hot_rows), default=None),
        list_size=max(c.num_elements for c in schema.columns if c.encoding != "binary"),
    )


def measure_tier(schema: Schema, state: ShardState, limits: Limits, following: SegmentShape) -> HotTier:
    """How full the hot tier is, and what the next segment takes."""
    entries = [entry for entry in state.manifest.segments if entry.tier == "hot"]
    rows, num_bytes = sum(entry.rows for entry in entries), sum(entry.bytes for entry in entries)
    return HotTier(rows, num_bytes, following.rows, following.rows * schema.row_bytes, limits)


def _updated(before: Mapping[int, _T], changes: Mapping[int, _T | None]) -> dict[int, _T]:
    merged = {**before, **changes}
    return {number: value for number, value in merged.items() if value is not None}


def _nothing() -> None:
    """Until somebody wants to know of changes."""
