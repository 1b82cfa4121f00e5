"""The writing end of a shard: lock, recovery, manifest, segments coming and going, and durability.

Order of things, and what a crash in between leaves:

- a new segment: file created whole, then listed in the manifest (a crash leaves an unlisted file, removed by the next
  writer), then the commit that uses it;
- sealing: all rows made durable, tables written beside, then the manifest says sealed (a crash leaves an open
  segment without free blocks, which the next writer seals);
- flush: segments synced, then the durable record (a crash leaves the durable record before, in force).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from .. import commits, files
from .. import manifest as manifests
from ..commits import CommitFile, DurableFile
from ..errors import ArrowRBError, LockedError, ReadOnlyError, WaitError
from ..interrupts import Uninterrupted
from ..manifest import SegmentEntry
from ..schema import Schema
from ..seeds import SeedLog
from ..sizing import shape_segment
from ..tiers import hot
from ..writer import OpenSegment, Writer
from .background import Background
from .paths import ShardPaths, identity, segment_name
from .reopening import remove_leftovers, survey
from .sealing import write_tables
from .snapshot import SegmentView

PREPARE_TIMEOUT_SECONDS = 120.0
_MOST_WAITING = 4  # closed segments that wait for a sync by the clock
_NEAR_SEGMENTS = 4  # a waiting copy lies at most so many segments after the tail that leads to it


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """What a writer is opened with.

    Attributes:
        sync_interval: seconds between syncs; at most so much is lost when the power fails. None never syncs by time.
        durable: whether to sync at all (temporary stores do not).
        max_rows: the retention limit, for the size of segments.
    """

    sync_interval: float | None = 5.0
    durable: bool = True
    max_rows: int | None = None


class ShardWriter:
    """Owns a shard: everything that changes its files goes through here. ``guard`` serialises commits."""

    def __init__(
        self,
        paths: ShardPaths,
        schema: Schema,
        store_id: str,
        options: WriterOptions,
        clock: Callable[[], int],
    ) -> None:
        self.paths = paths
        self.guard = threading.RLock()
        self._schema = schema
        self._store_id = store_id
        self._options = options
        self._clock = clock
        self._manifest_guard = threading.Lock()
        self._flush_guard = threading.Lock()
        self._prepared: Future[OpenSegment] | None = None
        self._hot: dict[int, hot.HotSegment] = {}
        self._closing: dict[int, OpenSegment] = {}  # closed, not sealed yet
        self._error: BaseException | None = None
        self._failed: str | None = None
        self._next_number = 0
        self._durable_watermark = 0
        self.layout_version = 0
        self._lock = files.Lock(paths.lock, paths.holder)
        try:
            self._recover()
        except BaseException:
            self._lock.release()
            raise
        # Two threads, so that a segment is prepared in time while another is synced and sealed.
        self._preparing = Background("arrowrb-prepare", _nothing, None, self._note_error)
        self._background = Background("arrowrb-seal", self._tick, options.sync_interval, self._note_error)
        self._submit_sealing()

    # -- opening -------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Bring the shard's files into the state that the trusted commit record describes. Safe to repeat."""
        paths = self.paths
        listed = manifests.read(paths.manifest, paths.number)
        self.manifest = replace(listed, times_opened=listed.times_opened + 1, sequence=listed.sequence + 1)
        visible, durable = commits.read_file(paths.visible), commits.read_file(paths.durable)
        record, unclean = commits.trusted(visible, durable, files.boot_id())
        remove_leftovers(paths, listed)
        sequence = 1 + max(each.sequence for each in (visible, durable) if each is not None)
        self._hot = {entry.number: self._map(entry) for entry in self.manifest.segments if entry.tier == "hot"}
        segments, plans = survey(paths, self.manifest, self._hot, record)
        if unclean:
            # Rows beyond the record may have been seen under their ids before the power failed.
            segments = [replace(each, used_blocks=each.entry.rows // each.entry.block_rows) for each in segments]
        manifests.write(paths.manifest, self.manifest, sync=self._options.durable)
        self._commits = CommitFile(paths.visible, writable=True)
        record = replace(record, sequence=sequence, boot_id=files.boot_id(), clean=False)
        self._commits.write(record)
        self._durable = DurableFile(paths.durable)
        if durable is not None and durable.clean:
            # From now on there may be rows beyond it, whose ids a restart of the machine must not give out again.
            self._durable.write(replace(durable, sequence=sequence, clean=False), sync=self._options.durable)
        self._seeds = SeedLog(paths.seeds, record.watermark)
        self.writer = Writer(self._schema, self.manifest.shard, self._commits, self._seeds, record, self._need_segment)
        slots = {segment.entry.number: slot for slot, segment in enumerate(segments)}
        kept = [plan for plan in plans if plan.running or not unclean]
        places = [(p.lane, slots[p.segment], p.cursor, p.stop, p.running, p.episode_id, p.step) for p in kept]
        self.writer.adopt(segments, np.array(places, np.int64).reshape(-1, 7))
        self.writer.cut([plan.lane for plan in kept if plan.running], self._clock())
        if unclean:
            self.writer.leave_blocks([plan.lane for plan in kept])
        if self.writer.has_closed():
            self._take_closed()

    def _map(self, entry: SegmentEntry) -> hot.HotSegment:
        name = identity(self._store_id, self.manifest.shard, entry.number)
        path = self.paths.segments / entry.name
        return hot.open_segment(path, self._schema, name, entry.rows, entry.bytes, writable=not entry.sealed)

    # -- segments ------------------------------------------------------------------------------------------------

    def _create_segment(self, num_lanes: int) -> OpenSegment:
        with self._manifest_guard:
            number = max(self.manifest.next_segment, self._next_number)
            self._next_number = number + 1
        shape = shape_segment(
            num_lanes=num_lanes,
            row_bytes=sum(column.item_bytes for column in self._schema.columns),
            rows_so_far=sum(entry.rows for entry in self.manifest.segments),
            max_rows=self._options.max_rows,
            list_size=max(c.num_elements for c in self._schema.columns if c.encoding != "binary"),
        )
        path = self.paths.segments / segment_name(number)
        name = identity(self._store_id, self.manifest.shard, number)
        size = hot.create(path, self._schema, name, shape.rows, sync=self._options.durable)
        try:
            mapped = hot.open_segment(path, self._schema, name, shape.rows, size, writable=True)
            if self._options.durable:
                files.sync_directory(self.paths.segments)
            hot.warm(mapped)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        entry = SegmentEntry(number, shape.rows, shape.block_rows, "hot", path.name, size)
        self._hot[number] = mapped
        # Where this fails the manifest may list the file all the same; if not, the next writer removes it.
        self._replace_manifest(entry)
        return OpenSegment(entry, mapped, np.zeros(shape.rows // shape.block_rows, np.int32))

    def _replace_manifest(self, entry: SegmentEntry) -> None:
        with self._manifest_guard:
            changed = self.manifest.with_segment(entry)
            changed = replace(changed, sequence=self.manifest.sequence + 1)
            manifests.write(self.paths.manifest, changed, sync=self._options.durable)
            self.manifest = changed

    def _need_segment(self, num_lanes: int) -> OpenSegment:
        if self._prepared is None:
            segment = self._create_segment(num_lanes)
        else:
            try:
                segment = self._prepared.result(PREPARE_TIMEOUT_SECONDS)
            except TimeoutError:
                raise WaitError(
                    f"Waited {PREPARE_TIMEOUT_SECONDS:g} s for the next segment to be prepared in "
                    f"{self.paths.segments}. Is the disk stuck?"
                ) from None
            except BaseException:
                if self._prepared.done():
                    self._prepared = None  # the next call tries anew: there may be room by then
                raise
            self._prepared = None
        self.layout_version += 1
        return segment

    def after_commit(self) -> None:
        """Ask for the next segment and for sealing where it is time; by counts only. The caller holds ``guard``."""
        if self._prepared is None and self.writer.segments and self.writer.wants_segment():
            lanes = self.writer.active_lanes()
            self._prepared = self._preparing.submit(lambda: self._create_segment(lanes), awaited=True)
        if self.writer.has_closed():
            with Uninterrupted():
                self._take_closed()
                self._submit_sealing()

    def _submit_sealing(self, *, at_once: bool = False) -> None:
        if self._closing:
            self._background.submit(partial(self._seal_closed, at_once), awaited=False)

    def _take_closed(self) -> None:
        closed = self.writer.take_closed()
        for segment in closed:
            self._closing[segment.entry.number] = segment
        if closed:
            self.layout_version += 1

    def _seal_closed(self, at_once: bool = False) -> None:
        """Seal the closed segments whose rows are durable.

        Where syncs come by the clock they are left to it: syncing what is being written slows the writer down. Only
        when many segments wait, or at once, this syncs for them.
        """
        waiting = sum(segment.last_ordinal > self._durable_watermark for segment in self._closing.values())
        if waiting and (at_once or self._options.sync_interval is None or waiting > _MOST_WAITING):
            self.flush()
        for number, segment in list(self._closing.items()):
            if segment.last_ordinal <= self._durable_watermark:
                self._seal(number, segment)

    def _seal(self, number: int, segment: OpenSegment) -> None:
        entry = write_tables(self.paths, self._schema, self.manifest, self._hot, segment, durable=self._options.durable)
        self._replace_manifest(entry)
        self._closing.pop(number, None)
        self.layout_version += 1

    def views(self) -> list[SegmentView]:
        """The shard's segments as readers see them; the caller holds ``guard``."""
        open_fills = {segment.entry.number: segment.fills for segment in self.writer.segments}
        closing = dict(self._closing)  # before the manifest: what leaves it meanwhile is sealed there
        views = []
        for entry in self.manifest.segments:
            if entry.tier != "hot":
                continue
            mapped = self._hot[entry.number]
            if entry.sealed:
                views.append(SegmentView(self.manifest.shard, entry, mapped, True, 2 * entry.num_rows >= entry.rows))
            elif entry.number in closing:
                fills = closing[entry.number].fills
                whole = 2 * int(fills.sum()) >= entry.rows
                views.append(SegmentView(self.manifest.shard, entry, mapped, True, whole))
            elif entry.number in open_fills:
                views.append(SegmentView(self.manifest.shard, entry, mapped, False, False, open_fills[entry.number]))
        return views

    # -- durability ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Make everything committed so far survive a power failure."""
        with self._flush_guard:
            self._check_not_failed()
            self._lock.renew()
            # First the record, then the manifest, which lists every segment that the record speaks of.
            record = self.writer.record
            try:
                if self._options.durable:
                    for entry in self.manifest.segments:
                        if entry.tier == "hot" and not entry.sealed:
                            _sync_path(self.paths.segments / entry.name)
                    self._seeds.sync()
                self._durable.write(record, sync=self._options.durable)
            except OSError as error:
                self._failed = f"a sync failed ({error}), so what is on disk is not known"
                raise
            self._durable_watermark = record.watermark

    def flush_and_seal(self) -> None:
        """`flush`, and let the segments that it covers be sealed."""
        self.flush()
        self._submit_sealing()

    def _tick(self) -> None:
        if self.writer.record.watermark > self._durable_watermark and self._failed is None:
            self.flush()
            self._seal_closed()

    def _note_error(self, error: BaseException) -> None:
        self._error = error

    def check(self) -> None:
        """Raise what the background thread ran into; refuse to write after a failed sync, or without the lock."""
        self._check_not_failed()
        try:
            self._lock.renew()
        except LockedError as refusal:
            self._failed = f"its lock was dropped and taken by another process ({refusal})"
            raise
        error, self._error = self._error, None
        if error is not None:
            self._submit_sealing()  # once more: there may be room by now
            if isinstance(error, ArrowRBError):
                raise error
            raise ArrowRBError(f"Background work failed: {error!r}") from error

    def _check_not_failed(self) -> None:
        if self._failed is not None:
            raise ReadOnlyError(f"The store takes no more rows: {self._failed}. Open it again to go on.")

    def close(self) -> None:
        """Cut running episodes, finish background work, make all durable, free the lock."""
        try:
            with self.guard:
                if self._failed is None:
                    self.writer.settle()
                    self.writer.cut(self.writer.running_lanes(), self._clock())
                    self.after_commit()
                    self._submit_sealing(at_once=True)
            self._preparing.stop(PREPARE_TIMEOUT_SECONDS)
            self._background.stop(PREPARE_TIMEOUT_SECONDS)
            if self._failed is None:
                with self.guard:
                    self.writer.close_record()
                self.flush()
        finally:
            self._seeds.close()
            self._durable.close()
            self._lock.release()


def _nothing() -> None:
    """What a thread that only works on demand does at its tick."""


def _sync_path(path: Path) -> None:
    with files.explaining(path, "opening for sync"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        files.sync_descriptor(descriptor, path)
    finally:
        os.close(descriptor)
