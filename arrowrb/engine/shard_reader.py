"""The reading end of a shard: follows a live writer, or shows what a dead one left, and changes nothing.

A refresh takes the watermark, then the manifest, then maps what is new. A file that has gone meanwhile means that the
manifest has moved on: start again.
"""

from __future__ import annotations

import contextlib
import os

from .. import commits, files
from .. import manifest as manifests
from ..checkpoints import Mark
from ..commits import CommitFile, Record
from ..errors import CorruptError, StoreError, WaitError
from ..files import Holder
from ..manifest import Manifest, SegmentEntry
from ..retention import Action, Limits, plan
from ..schema import Schema
from ..tiers import hot
from ..tiers.cold import ColdSegment
from .past import Past, look_back
from .paths import ShardPaths, identity
from .pins import Pins
from .segments import in_force, measure_tier
from .snapshot import SegmentView
from .state import Look, ShardState, check_record
from .tiering import open_cold

_TRIES = 20


class ShardReader:
    """Follows one shard through its files. Not thread-safe: the engine serialises its calls."""

    def __init__(self, paths: ShardPaths, schema: Schema, store_id: str, until: Mark | None = None) -> None:
        """Follow a shard, or with ``until`` look back at that commit of it."""
        self.paths = paths
        self._until = until
        self._past: Past | None = None
        self._manifest_path = str(paths.manifest)  # looked at for every snapshot
        self._schema = schema
        self._store_id = store_id
        self._commits = CommitFile(paths.visible)
        self._boot_id = files.boot_id()
        self._stamp: tuple[int, int, int] | None = None
        self._state: ShardState | None = None
        self._pins = Pins()
        self.record: Record = Record()
        self.refresh()

    def refresh(self) -> None:
        """Move on to the newest commit and manifest."""
        why: StoreError | None = None
        for _ in range(_TRIES):
            record = self._newest()
            stamp = self._stat()
            if stamp == self._stamp:
                self.record = self._bound(record)
                return
            try:
                state = self._read_state()
            except StoreError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                why = error
                if self._stat() == stamp:
                    break  # the manifest still lists it: nobody has moved it
                continue
            if record.watermark < state.manifest.reach:
                # Segments have gone or moved that are younger than this record: there is a newer one.
                why = CorruptError(
                    f"{self.paths.root}: the commit records know of {record.watermark:,} rows, but the manifest says "
                    f"that rows up to {state.manifest.reach:,} were moved or dropped. `arrowrb verify` tells more."
                )
                continue
            check_record(record, state.manifest, self.paths.root)
            self._take(state, stamp, self._bound(record))
            return
        raise why or WaitError(f"{self.paths.root}: the manifest changed {_TRIES} times while it was read.")

    def _bound(self, record: Record) -> Record:
        if self._until is None:
            return record
        bounded = self._until.bound(record)
        return self.record if bounded == self.record else bounded  # the same object as long as nothing changes

    def _read_state(self) -> ShardState:
        """The manifest as it is now, with its segments mapped; those that were mapped before are kept."""
        listed = manifests.read(self.paths.manifest, self.paths.number)
        known = self._state or ShardState(listed)
        mapped: dict[int, hot.HotSegment] = {}
        moved: dict[int, ColdSegment] = {}
        for entry in listed.segments:
            if entry.tier == "hot":
                mapped[entry.number] = known.hot.get(entry.number) or self._map(entry)
            else:
                moved[entry.number] = known.cold.get(entry.number) or open_cold(
                    self.paths, self._schema, self._store_id, entry
                )
        return ShardState(listed, mapped, moved, version=known.version + 1)

    def _take(self, state: ShardState, stamp: tuple[int, int, int], record: Record) -> None:
        if self._state is not None:
            before: list[hot.HotSegment | ColdSegment] = [*self._state.hot.values(), *self._state.cold.values()]
            kept = {id(segment) for segment in (*state.hot.values(), *state.cold.values())}
            for each in before:
                if id(each) not in kept:
                    self._pins.add(each.mapping)
        self._state, self._stamp, self.record = state, stamp, record

    @property
    def manifest(self) -> Manifest:
        """The list of segments, as last seen."""
        return self._seen.manifest

    @property
    def _seen(self) -> ShardState:
        if self._state is None:
            raise StoreError(f"{self.paths.root} was not read yet.")
        return self._state

    @property
    def pinned_bytes(self) -> int:
        """Bytes of files that are gone or moved, which snapshots in this process still hold."""
        return self._pins.num_bytes

    def _newest(self) -> Record:
        visible = self._commits.read()
        if visible is not None and visible.boot_id == self._boot_id:
            return visible
        record, _ = commits.trusted(visible, commits.read_file(self.paths.durable), self._boot_id)
        return record

    def _stat(self) -> tuple[int, int, int]:
        try:
            stat = os.stat(self._manifest_path)
        except OSError as error:
            raise StoreError(error.errno, "Looking for the manifest failed", self._manifest_path) from error
        return files.stamp_of(stat)

    def plan(self, limits: Limits) -> list[Action]:
        """What a writer with these limits would do with the segments, as they are now."""
        state, limits = self._seen, in_force(limits, self._schema)
        live = self.record.num_transitions - state.num_evicted
        return plan(state.pieces({}), measure_tier(self._schema, state, limits, 1), live)

    def mark(self) -> tuple[object, object]:
        """Two objects that are the same ones as long as `look` shows the same."""
        return self._state, self.record

    def _map(self, entry: SegmentEntry) -> hot.HotSegment:
        name = identity(self._store_id, self.paths.number, entry.number)
        path = self.paths.segments / entry.name
        return hot.open_segment(path, self._schema, name, entry.rows, entry.bytes)

    def look(self) -> Look:
        """What readers see."""
        state, record = self._seen, self.record
        evicted = state.manifest.evicted
        if self._until is not None:
            self._past = look_back(state, record, self._until, self._past)
            return self._past.look
        count = record.num_transitions - evicted.num_transitions
        return Look(state.version, record, count, evicted, lambda: self._views(state, record), tuple)

    def _views(self, state: ShardState, record: Record) -> list[SegmentView]:
        """The shard's segments."""
        return [state.view_at(entry, record.watermark) for entry in state.manifest.segments]

    def holder(self) -> Holder | None:
        """The process that has the shard open for writing, as far as can be seen."""
        holder = files.read_holder(self.paths.holder)
        if holder is not None:
            with contextlib.suppress(PermissionError):
                try:
                    os.kill(holder.pid, 0)
                except ProcessLookupError:
                    return None
        return holder
