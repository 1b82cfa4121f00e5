"""The writing end of a shard: lock, recovery, manifest, segments coming and going, and durability.

Order of things, and what a crash in between leaves:

- a new segment: file created whole, then listed in the manifest (a crash leaves an unlisted file, removed by the next
  writer), then the commit that uses it;
- sealing: all rows made durable, tables written beside, then the manifest says sealed (a crash leaves an open
  segment without free blocks, which the next writer seals);
- flush: segments synced, then the durable record (a crash leaves the durable record before, in force);
- demotion and eviction: see `tiering`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import numpy as np

from .. import commits, files
from .. import manifest as manifests
from ..commits import CommitFile, DurableFile
from ..errors import ArrowRBError, LockedError, ReadOnlyError, WaitError
from ..interrupts import Uninterrupted
from ..manifest import Manifest
from ..retention import ROOM_BEFORE, Action, HotTier, Piece, choose_demotions, is_tight, plan
from ..schema import Schema
from ..seeds import SeedLog
from ..writer import OpenSegment, Writer
from .background import Threads
from .eviction import Eviction
from .options import WriterOptions
from .paths import ShardPaths
from .reopening import close_off, newest_time, remove_leftovers, survey
from .sealing import write_tables
from .segments import Segments
from .state import Look, check_record

PREPARE_TIMEOUT_SECONDS = 120.0
_MOST_WAITING = 4  # closed segments that wait for a sync by the clock
_MOST_DEMOTED = 4  # segments that one change of the manifest moves


class ShardWriter:
    """Owns a shard: everything that changes its files goes through here. ``guard`` serialises commits."""

    def __init__(
        self,
        paths: ShardPaths,
        schema: Schema,
        store_id: str,
        options: WriterOptions,
        clock: Callable[[], int],
        num_shards: Callable[[], int],
        *,
        visiting: bool = False,
    ) -> None:
        """Become the shard's writer; or with ``visiting`` do what is due in place of one, and let nothing go on."""
        self.paths = paths
        self.guard = threading.RLock()
        self._schema = schema
        self._store_id = store_id
        self._options = options
        self._clock = clock
        self._flush_guard = threading.Lock()
        self._room = threading.Condition()
        self._prepared: Future[OpenSegment] | None = None
        self._tight = self._working = self._making_room = False
        self._closing: dict[int, OpenSegment] = {}  # closed, not sealed yet
        self._error: BaseException | None = None
        self._failed: str | None = None
        self._durable_watermark = 0
        self.released = False
        self._lock = paths.take_lock(visiting=visiting)
        try:
            self._recover(num_shards, visiting)
            self.segments.changed = self._review
            self._eviction = Eviction(paths, store_id, self.segments, self._pieces, num_shards)
            self._evict()
            self._review()
        except BaseException:
            self._lock.release()
            raise
        self._threads = Threads(self._tick, options.sync_interval, self.note_error)
        self._threads.start()
        self._submit_work()

    # -- opening -------------------------------------------------------------------------------------------------

    def _recover(self, num_shards: Callable[[], int], visiting: bool) -> None:
        """Bring the shard's files into the state that the trusted commit record describes. Safe to repeat."""
        paths = self.paths
        listed = manifests.read(paths.manifest, paths.number)
        times_opened = listed.times_opened + (not visiting)
        manifest = replace(listed, times_opened=times_opened, sequence=listed.sequence + 1)
        visible, durable = commits.read_file(paths.visible), commits.read_file(paths.durable)
        record, unclean = commits.trusted(visible, durable, files.boot_id())
        check_record(record, listed, paths.root)
        remove_leftovers(paths, listed)
        sequence = 1 + max(each.sequence for each in (visible, durable) if each is not None)
        self.segments = Segments(
            paths,
            self._schema,
            self._store_id,
            manifest,
            limits=self._options.limits,
            durable=self._options.durable,
            check_lock=self._lock.renew,
            num_shards=num_shards,
        )
        segments, plans = survey(paths, manifest, self.segments.state.hot, record)
        # Rows beyond the record may have been seen under their ids before the power failed.
        closing = unclean or visiting
        left = {each.entry.number for each in segments if closing or self.segments.outgrows(each.entry, len(plans))}
        segments, empty = close_off(segments, plans, left)
        self.segments.open(without=empty)
        self._commits = CommitFile(paths.visible, writable=True)
        record = replace(record, sequence=sequence, boot_id=files.boot_id(), clean=False)
        self._commits.write(record)
        self._durable = DurableFile(paths.durable)
        if durable is not None and durable.clean:
            # From now on there may be rows beyond it, whose ids a restart of the machine must not give out again.
            self._durable.write(replace(durable, sequence=sequence, clean=False), sync=self._options.durable)
        self._seeds = SeedLog(paths.seeds, record.watermark)
        self.writer = Writer(self._schema, manifest.shard, self._commits, self._seeds, record, self._need_segment)
        slots = {segment.entry.number: slot for slot, segment in enumerate(segments)}
        kept = [plan for plan in plans if plan.running or not unclean]
        places = [(p.lane, slots[p.segment], p.cursor, p.stop, p.running, p.episode_id, p.step) for p in kept]
        self.writer.adopt(segments, np.array(places, np.int64).reshape(-1, 7))
        cut_time = newest_time(segments) if visiting else self._clock()
        self.writer.cut([plan.lane for plan in kept if plan.running], cut_time)
        self.writer.leave_blocks([plan.lane for plan in kept if plan.segment in left])
        if self.writer.has_closed():
            self._take_closed()

    # -- segments ------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The list of segments."""
        return self.segments.state.manifest

    @property
    def pinned_bytes(self) -> int:
        """Bytes of files that are gone, which snapshots in this process still hold."""
        return self.segments.pins.num_bytes

    def _tier(self) -> HotTier:
        return self.segments.tier(self.writer.active_lanes())

    def _pieces(self) -> list[Piece]:
        closing = dict(self._closing)  # before the state: what leaves it meanwhile is sealed there
        return self.segments.state.pieces(closing)

    def _review(self) -> None:
        """Decide anew whether writing has to wait for the hot tier."""
        with self._room:  # so that what was seen last is what stays
            self._tight = is_tight(self._pieces(), self._tier())
            self._room.notify_all()

    def wait_for_room(self) -> None:
        """Return when the hot tier has room for another segment, or background work has failed (see `check`)."""
        if not self._tight:
            return
        self._submit_work()
        with self._room:
            free = self._room.wait_for(
                lambda: not self._tight or self._error is not None or self._failed is not None, PREPARE_TIMEOUT_SECONDS
            )
        if not free:
            raise WaitError(
                f"Waited {PREPARE_TIMEOUT_SECONDS:g} s for room in the hot tier of {self.paths.segments}: segments are "
                "written faster than the disk takes them into the cold tier. Write less, or allow more by hot_bytes."
            )

    def _need_segment(self, num_lanes: int) -> OpenSegment:
        if self._prepared is None:
            segment = self.segments.create(num_lanes)
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
        self.segments.touch()
        return segment

    def after_commit(self) -> None:
        """Ask for the next segment, for sealing and eviction where it is time; by counts only.

        The caller holds ``guard``.
        """
        if self._prepared is None and self.writer.segments and self.writer.wants_segment():
            lanes = self.writer.active_lanes()
            self._prepared = self._threads.preparing.submit(lambda: self.segments.create(lanes), awaited=True)
        closed = self.writer.has_closed()
        if closed:
            with Uninterrupted():
                self._take_closed()
        if self._evict() or closed:
            self._submit_work()

    def _take_closed(self) -> None:
        closed = self.writer.take_closed()
        for segment in closed:
            self._closing[segment.entry.number] = segment
        if closed:
            self.segments.touch()

    def _evict(self) -> bool:
        """Take segments that are due out of what can be sampled; returns whether there is work in the background."""
        moved = self._eviction.obey()
        if moved:
            self._review()
        return self._eviction.choose(self.writer.record.num_transitions) or moved

    def obey(self, *, look_around: bool) -> None:
        """Do what is told to the shard since the last commit; with ``look_around`` see what checkpoints keep, too."""
        if look_around:
            self._eviction.look_around()
        due = look_around and bool(self.segments.state.leaving)
        if self.guard.acquire(blocking=False):  # else a commit is under way, which does so when it is done
            try:
                due = self._evict() or due
            finally:
                self.guard.release()
        if due:
            self._submit_work()

    def maintain(self, *, dry_run: bool) -> list[Action]:
        """Seal what is closed, then evict and demote what is due; returns what was, or with ``dry_run`` would be."""
        if not dry_run:
            self.flush()
            self._threads.sealing.run(partial(self._seal_closed, True), PREPARE_TIMEOUT_SECONDS)
        with self.guard:
            self.check()
            live = self.writer.record.num_transitions - self.segments.state.num_evicted
            below, shard = self._eviction.evict_below, self.paths.number
            actions = plan(self._pieces(), self._tier(), live, shard=shard, below=below)
            if not dry_run:
                self._evict()
        if not dry_run:
            self._threads.sealing.run(partial(self._work, True), PREPARE_TIMEOUT_SECONDS)
            self._threads.moving.run(self._make_room, PREPARE_TIMEOUT_SECONDS)
        return actions

    def wait_for_threads(self) -> None:
        """Return when what was asked of them is done; errors stay for `check`."""
        self._threads.wait(PREPARE_TIMEOUT_SECONDS)

    # -- background work -----------------------------------------------------------------------------------------

    def _submit_work(self, *, at_once: bool = False) -> None:
        self._submit_room()  # what is sealed already goes first: somebody may be waiting
        if at_once or not self._working:
            self._working = True
            self._threads.sealing.submit(partial(self._work, at_once), awaited=False)

    def _submit_room(self) -> None:
        if not self._making_room:
            self._making_room = True
            self._threads.moving.submit(self._make_room, awaited=False)

    def _work(self, at_once: bool = False) -> None:
        """Seal what is due, and let what is sealed go on."""
        self._working = False
        self._seal_closed(at_once)
        self._submit_room()

    def _make_room(self) -> None:
        """Evict and demote what is due."""
        self._making_room = False
        while self._eviction.drop_one() or self._demote_some():
            pass
        self._review()  # lanes come and go without a change of segments
        self.segments.merge_runs()

    def _demote_some(self) -> bool:
        """Move the oldest segments beyond the hot tier's bound to the cold tier; returns whether there were any."""
        chosen = choose_demotions(self._pieces(), self._tier())[:_MOST_DEMOTED]
        if chosen:
            self.segments.demote([piece.number for piece in chosen])
        return bool(chosen)

    def _seal_closed(self, at_once: bool = False) -> None:
        """Seal the closed segments whose rows are durable.

        Where syncs come by the clock they are left to it: syncing what is being written slows the writer down. Only
        when many segments wait, when the hot tier is full, or at once, this syncs for them.
        """
        waiting = sum(segment.last_ordinal > self._durable_watermark for segment in self._closing.values())
        at_once = at_once or self._options.sync_interval is None or waiting > _MOST_WAITING
        if waiting and (at_once or self._tier().exceeds(with_next=ROOM_BEFORE)):
            self.flush()
        ready = [each for each in list(self._closing.values()) if each.last_ordinal <= self._durable_watermark]
        if ready:
            self._seal(ready)

    def _seal(self, segments: Sequence[OpenSegment]) -> None:
        durable, sealed = self._options.durable, self.manifest
        for segment in segments:
            hot = self.segments.state.hot
            entry = write_tables(self.paths, self._schema, sealed, hot, segment, durable=durable)
            sealed = sealed.with_segment(entry)
        entries = [sealed.segment(segment.entry.number) for segment in segments]
        self.segments.update(lambda manifest: manifest.with_segments(entries))
        for entry in entries:
            self._closing.pop(entry.number, None)

    def keep(self, below: int) -> None:
        """Keep the rows of segments below this number, whatever retention says."""
        with self.guard:
            self.segments.keep(below)
            self.segments.touch()
            self._review()

    def mark(self) -> tuple[object, object]:
        """Two objects that are the same ones as long as `look` shows the same."""
        return self.segments.state, self.writer.record

    def look(self) -> Look:
        """What readers see; the caller holds ``guard``."""
        closing = dict(self._closing)  # before the state: what leaves it meanwhile is sealed there
        state, record, opened = self.segments.state, self.writer.record, tuple(self.writer.segments)
        return Look(
            state.version,
            record,
            record.num_transitions - state.num_evicted,
            state.manifest.evicted,
            lambda: state.views(closing, opened, leaving=False),
            lambda: state.views(closing, opened, leaving=True),
        )

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
                    self.segments.sync()
                    self._seeds.sync()
                self._durable.write(record, sync=self._options.durable)
            except OSError as error:
                self._failed = f"a sync failed ({error}), so what is on disk is not known"
                raise
            self._durable_watermark = record.watermark

    def flush_and_seal(self) -> None:
        """`flush`, and let the segments that it covers be sealed."""
        self.flush()
        self._submit_work()

    def _tick(self) -> None:
        if self.writer.record.watermark > self._durable_watermark and self._failed is None:
            self.flush()
            self._work()

    def note_error(self, error: BaseException) -> None:
        """Let the next one who writes know what a thread ran into."""
        with self._room:
            self._error = error
            self._room.notify_all()

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
            self._submit_work()  # once more: there may be room by now
            if isinstance(error, ArrowRBError):
                raise error
            raise ArrowRBError(f"Background work failed: {error!r}") from error

    def _check_not_failed(self) -> None:
        if self._failed is not None:
            raise ReadOnlyError(f"The store takes no more rows: {self._failed}. Open it again to go on.")

    def close(self) -> None:
        """Cut running episodes, finish background work, make all durable, free the lock.

        The lock is freed only when all threads have ended: they write the files that it guards. Where they do not end
        in time this raises `WaitError`, and may be called again.
        """
        with self.guard:
            if self._failed is None:
                self.writer.settle()
                self.writer.cut(self.writer.running_lanes(), self._clock())
                self.after_commit()
                self._submit_work(at_once=True)
        self._threads.stop(PREPARE_TIMEOUT_SECONDS)
        try:
            if self._failed is None:
                with self.guard:
                    self.writer.close_record()
                self.flush()
        finally:
            self.released = True
            self._seeds.close()
            self._durable.close()
            self._lock.release()
