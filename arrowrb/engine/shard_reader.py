"""The reading end of a shard: follows a live writer, or shows what a dead one left, and changes nothing.

A refresh takes the watermark, then the manifest, then maps what is new. A file that has gone meanwhile means that the
manifest has moved on: start again.
"""

from __future__ import annotations

import os
import time

from .. import commits, files
from .. import manifest as manifests
from ..checkpoints import Mark
from ..commits import CommitFile, Record
from ..errors import CorruptError, StoreError
from ..files import Holder
from ..manifest import Manifest, SegmentEntry
from ..schema import Schema
from ..tiers import hot
from ..tiers.cold import ColdSegment
from ..tiers.hot import HotSegment
from .past import Past, look_back
from .paths import ShardPaths, identity
from .pins import Pins
from .snapshot import SegmentView
from .state import Look, ShardState, check_record
from .tiering import open_cold

_TRIES = 20
_PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.001


class ShardReader:
    """Follows one shard through its files. Not thread-safe: the engine serialises its calls."""

    def __init__(self, paths: ShardPaths, schema: Schema, store_id: str, until: Mark | None = None) -> None:
        """Follow a shard, or with ``until`` look back at that commit of it."""
        if not paths.manifest.exists():
            raise CorruptError(f"{paths.root} has no manifest: it is damaged. `arrowrb repair` makes it anew.")
        self.paths = paths
        self._until = until
        self._past: Past | None = None
        self._manifest_path, self._durable_path = str(paths.manifest), paths.durable  # looked at for every snapshot
        self._schema = schema
        self._store_id = store_id
        self._commits = CommitFile(paths.visible)
        self._boot_id = files.boot_id()
        self._held: files.Mapping | None = None  # the manifest file as it was read
        self._state: ShardState | None = None
        self._pins = Pins()
        self.record: Record = Record()
        self._latest: Record | None = None  # the newest commit at the last look
        self._due = 0.0  # when the manifest is looked at again
        self.refresh()

    def refresh(self) -> None:
        """Move on to the newest commit and manifest.

        Where there is no new commit, segments have at most moved or gone, and what is mapped of them stays readable:
        then a look at the manifest every millisecond will do.
        """
        record, now = commits.read_newest(self._commits, self._durable_path, self._boot_id), time.monotonic()
        if record is self._latest and now < self._due:
            return
        if self._held is not None and self._stat() == self._held.stamp:
            self.record = self._bound(record)
        else:
            self._follow()
        self._latest, self._due = record, now + _LOOK_SECONDS

    def _follow(self) -> None:
        """Read the manifest, and map what is new."""
        mapped = dict(self._state.hot) if self._state is not None else {}
        moved = dict(self._state.cold) if self._state is not None else {}
        behind, patience = 0, time.monotonic() + _PATIENCE_SECONDS
        while True:
            record = commits.read_newest(self._commits, self._durable_path, self._boot_id)
            if self._held is not None and self._stat() == self._held.stamp:
                self.record = self._bound(record)
                return
            listed, held = manifests.read_mapped(self.paths.manifest, self.paths.number)
            try:
                self._map_new(listed, mapped, moved)
            except StoreError as error:
                # Where the manifest still lists it, nobody has moved it.
                gone = isinstance(error.__cause__, FileNotFoundError) and self._stat() != held.stamp
                if not gone or time.monotonic() > patience:
                    raise
                continue
            if record.watermark >= listed.reach:
                check_record(record, listed, self.paths.root)
                self._take(listed, mapped, moved)
                self._held, self.record = held, self._bound(record)
                return
            # Segments have gone or moved that are younger than this record: there is a newer one.
            behind += 1
            if behind == _TRIES:
                raise CorruptError(
                    f"{self.paths.root}: the commit records know of {record.watermark:,} rows, but the manifest says "
                    f"that rows up to {listed.reach:,} were moved or dropped. `arrowrb verify` tells more."
                )

    def _bound(self, record: Record) -> Record:
        if self._until is None:
            return record
        bounded = self._until.bound(record)
        return self.record if bounded == self.record else bounded  # the same object as long as nothing changes

    def _map_new(self, listed: Manifest, mapped: dict[int, HotSegment], moved: dict[int, ColdSegment]) -> None:
        """Map the segments that were not mapped yet; where one is not there, those before it stay for the next try."""
        for entry in listed.segments:
            if entry.tier == "hot" and entry.number not in mapped:
                mapped[entry.number] = self._map(entry)
            elif entry.tier == "cold" and entry.number not in moved:
                moved[entry.number] = open_cold(self.paths, self._schema, self._store_id, entry)

    def _take(self, listed: Manifest, mapped: dict[int, HotSegment], moved: dict[int, ColdSegment]) -> None:
        """Show these segments; what went is pinned as long as somebody holds it."""
        known = self._state or ShardState(listed)
        numbers = {tier: {each.number for each in listed.segments if each.tier == tier} for tier in ("hot", "cold")}
        self._state = ShardState(
            listed,
            {number: mapped[number] for number in sorted(numbers["hot"])},
            {number: moved[number] for number in sorted(numbers["cold"])},
            version=known.version + 1,
        )
        before: list[HotSegment | ColdSegment] = [*known.hot.values(), *known.cold.values()]
        kept = {id(segment) for segment in (*self._state.hot.values(), *self._state.cold.values())}
        for segment in before:
            if id(segment) not in kept:
                self._pins.add(segment.mapping)

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

    def _stat(self) -> tuple[int, int, int]:
        try:
            stat = os.stat(self._manifest_path)
        except OSError as error:
            raise StoreError(error.errno, "Looking for the manifest failed", self._manifest_path) from error
        return files.stamp_of(stat)

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
        return holder if holder is not None and files.is_alive(holder.pid) else None
