"""The reading end of a shard: follows a live writer, or shows what a dead one left, and changes nothing.

A refresh takes the watermark, then the manifest, then maps what is new. A file that has gone meanwhile means that the
manifest has moved on: start again.
"""

from __future__ import annotations

import contextlib
import os

from .. import commits, files
from .. import manifest as manifests
from ..commits import CommitFile, Record
from ..errors import StoreError
from ..files import Holder
from ..manifest import Manifest, SegmentEntry
from ..schema import Schema
from ..tiers import hot
from .paths import ShardPaths, identity
from .snapshot import SegmentView

_TRIES = 20


class ShardReader:
    """Follows one shard through its files. Not thread-safe: the engine serialises its calls."""

    def __init__(self, paths: ShardPaths, schema: Schema, store_id: str) -> None:
        self.paths = paths
        self._schema = schema
        self._store_id = store_id
        self._commits = CommitFile(paths.visible)
        self._boot_id = files.boot_id()
        self._hot: dict[int, hot.HotSegment] = {}
        self._stamp: tuple[int, int, int] | None = None
        self.layout_version = 0
        self.record: Record = Record()
        self.manifest: Manifest
        self.refresh()

    def refresh(self) -> None:
        """Move on to the newest commit."""
        for _ in range(_TRIES):
            record = self._newest()
            if record is self.record and self._stamp is not None:
                return  # no commit since; what the manifest says of sealing can wait for the next
            stamp = self._stat()
            if stamp == self._stamp:
                self.record = record
                return
            try:
                listed = manifests.read(self.paths.manifest, self.paths.number)
                mapped = {entry.number: self._map(entry) for entry in listed.segments if entry.tier == "hot"}
            except FileNotFoundError:
                continue
            except StoreError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue
                raise
            self.manifest, self._hot, self._stamp, self.record = listed, mapped, stamp, record
            self.layout_version += 1
            return
        raise StoreError(
            f"{self.paths.root}: files that the manifest lists keep disappearing. Is another program removing them?"
        )

    def _newest(self) -> Record:
        visible = self._commits.read()
        if visible is not None and visible.boot_id == self._boot_id:
            return visible
        record, _ = commits.trusted(visible, commits.read_file(self.paths.durable), self._boot_id)
        return record

    def _stat(self) -> tuple[int, int, int]:
        with files.explaining(self.paths.manifest, "looking for the manifest"):
            stat = os.stat(self.paths.manifest)
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _map(self, entry: SegmentEntry) -> hot.HotSegment:
        known = self._hot.get(entry.number)
        if known is not None:
            return known
        name = identity(self._store_id, self.manifest_shard, entry.number)
        path = self.paths.segments / entry.name
        return hot.open_segment(path, self._schema, name, entry.rows, entry.bytes)

    @property
    def manifest_shard(self) -> int:
        """The shard's number, by its folder."""
        return int(self.paths.root.name)

    def views(self) -> list[SegmentView]:
        """The shard's segments as readers see them.

        A segment may have been sealed after the watermark was taken; until it is passed, rows are told by their
        ordinals.
        """
        views = []
        for entry in self.manifest.segments:
            if entry.tier == "hot":
                closed = entry.sealed and entry.last_ordinal <= self.record.watermark
                whole = closed and 2 * entry.num_rows >= entry.rows
                views.append(SegmentView(self.manifest_shard, entry, self._hot[entry.number], closed, whole))
        return views

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
