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
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import commits, files, kernels
from .. import manifest as manifests
from ..commits import CommitFile, DurableFile, Record
from ..errors import ArrowRBError, CorruptError, ReadOnlyError, WaitError
from ..interrupts import Uninterrupted
from ..manifest import FileEntry, SegmentEntry
from ..recovery import BlockEnd, LanePlan, WaitingCopy, plan_lanes
from ..rows import End, Kind, row_id_base
from ..schema import Schema
from ..seeds import SeedLog
from ..sizing import shape_segment
from ..tiers import hot
from ..writer import MAX_LANES, OpenSegment, Writer
from . import tables
from .background import Background
from .paths import ShardPaths, identity, is_leftover, segment_name
from .snapshot import SegmentView
from .tables import EPISODE, KIND, LANE, ORDINAL, STEP

PREPARE_TIMEOUT_SECONDS = 120.0
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
        self._background = Background("arrowrb-writer", self._tick, options.sync_interval, self._note_error)
        self._submit_seals(list(self._closing))

    # -- opening -------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Bring the shard's files into the state that the trusted commit record describes. Safe to repeat."""
        paths = self.paths
        listed = manifests.read(paths.manifest, paths.number)
        self.manifest = replace(listed, times_opened=listed.times_opened + 1, sequence=listed.sequence + 1)
        visible, durable = commits.read_file(paths.visible), commits.read_file(paths.durable)
        record, unclean = commits.trusted(visible, durable, files.boot_id())
        self._remove_leftovers()
        sequence = 1 + max(each.sequence for each in (visible, durable) if each is not None)
        self._hot = {entry.number: self._map(entry) for entry in self.manifest.segments if entry.tier == "hot"}
        segments, plans = self._survey(record)
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

    def _remove_leftovers(self) -> None:
        """Remove files of ours that nothing lists; only the lock's holder may."""
        listed = {entry.name for entry in self.manifest.segments}
        listed |= {
            file.name for entry in self.manifest.segments for file in (entry.blocks, entry.runs) if file is not None
        }
        for folder, known in ((self.paths.segments, listed), (self.paths.root, None)):
            for path in folder.iterdir():
                if known is None:
                    ours = path.name.startswith(".") and path.name.endswith(".tmp")
                else:
                    ours = path.name not in known and is_leftover(path.name)
                if ours and not path.is_dir():
                    with files.explaining(path, "removing a leftover file"):
                        path.unlink()

    def _map(self, entry: SegmentEntry) -> hot.HotSegment:
        name = identity(self._store_id, self.manifest.shard, entry.number)
        path = self.paths.segments / entry.name
        return hot.open_segment(path, self._schema, name, entry.rows, entry.bytes, writable=not entry.sealed)

    def _survey(self, record: Record) -> tuple[list[OpenSegment], list[LanePlan]]:
        """Undo rows beyond the record and see where every lane left off."""
        segments: list[OpenSegment] = []
        ends: list[BlockEnd] = []
        copies: list[WaitingCopy] = []
        for entry in self.manifest.segments:
            if entry.sealed or entry.tier != "hot":
                continue
            mapped = self._hot[entry.number]
            ordinals, kinds = int(mapped.addresses[ORDINAL]), int(mapped.addresses[KIND])
            kernels.wipe(ordinals, kinds, entry.rows, record.watermark)
            fills = np.zeros(entry.rows // entry.block_rows, np.int32)
            summary = np.zeros(4, np.int64)
            kernels.survey(ordinals, kinds, entry.block_rows, record.watermark, fills, summary)
            transitions, _, last_ordinal, used = summary.tolist()
            ends += _block_ends(entry, mapped, fills)
            copies += _waiting_copies(entry, mapped, fills)
            segments.append(OpenSegment(entry, mapped, fills, used, transitions, last_ordinal))
        for end in ends:
            if not 0 <= end.lane < MAX_LANES:
                raise CorruptError(
                    f"Segment {end.segment}, row {end.position}: lane is {end.lane}, expected 0 to {MAX_LANES - 1}. "
                    "The segment's file is damaged."
                )
        ends += self._sealed_ends({copy.segment for copy in copies})
        plans = plan_lanes(ends, copies)
        plans = [plan for plan in plans if any(s.entry.number == plan.segment for s in segments)]
        reach = {s.entry.number: s.used_blocks for s in segments}
        for plan in plans:
            rows = next(s.entry.block_rows for s in segments if s.entry.number == plan.segment)
            reach[plan.segment] = max(reach[plan.segment], plan.stop // rows)
        return [replace(s, used_blocks=reach[s.entry.number]) for s in segments], plans

    def _sealed_ends(self, near: set[int]) -> list[BlockEnd]:
        """Ends of runs that go on elsewhere, of sealed segments shortly before these."""
        ends = []
        for entry in self.manifest.segments:
            if not entry.sealed or entry.runs is None:
                continue
            if not any(0 <= number - entry.number <= _NEAR_SEGMENTS for number in near):
                continue
            runs = self._read_table(entry.runs)
            base = row_id_base(self.manifest.shard, entry.number)
            for run in runs.filter(runs["end"].to_numpy() == End.CONTINUED).to_pylist():
                position = run["row_id"] - base + run["num_rows"] - 1
                step = run["first_step"] + run["num_transitions"]
                ends.append(
                    BlockEnd(
                        entry.number,
                        run["lane"],
                        position,
                        position + 1,
                        run["last_ordinal"],
                        Kind.CONTINUED,
                        run["episode_id"],
                        step,
                    )
                )
        return ends

    def _read_table(self, file: FileEntry) -> pa.Table:
        return tables.read_table(self.paths.segments / file.name, file)

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
            lanes = self.writer.num_lanes
            self._prepared = self._background.submit(lambda: self._create_segment(lanes), awaited=True)
        if self.writer.has_closed():
            with Uninterrupted():
                self._submit_seals(self._take_closed())

    def _submit_seals(self, numbers: list[int]) -> None:
        for number in numbers:
            self._background.submit(partial(self._seal, number), awaited=False)

    def _take_closed(self) -> list[int]:
        closed = self.writer.take_closed()
        for segment in closed:
            self._closing[segment.entry.number] = segment
        if closed:
            self.layout_version += 1
        return [segment.entry.number for segment in closed]

    def _seal(self, number: int) -> None:
        segment = self._closing.get(number)
        if segment is None:
            return  # asked for again after an error, and sealed meanwhile
        if self.durable_watermark < segment.last_ordinal:
            self.flush()
        entry = self._write_tables(segment)
        self._replace_manifest(entry)
        del self._closing[number]
        self.layout_version += 1

    def _write_tables(self, segment: OpenSegment) -> SegmentEntry:
        """Write a closed segment's tables beside it; returns its entry as sealed."""
        entry, mapped = segment.entry, segment.hot
        base = row_id_base(self.manifest.shard, entry.number)
        starts = self._starts_from(entry.number)
        kinds = mapped.column(KIND)
        runs = tables.build_runs(
            self._schema, mapped.column, kinds, block_rows=entry.block_rows, base=base, starts=starts
        )
        blocks = tables.build_blocks(self._schema, mapped, segment.fills, block_rows=entry.block_rows, starts=starts)
        written = []
        for suffix, table in (("runs", runs), ("blocks", blocks)):
            content = tables.encode_table(table)
            path = self.paths.segments / f"{entry.number:08d}.{suffix}.arrow"
            files.publish(path, content, sync=self._options.durable)
            written.append(FileEntry(path.name, len(content), zlib.crc32(content)))
        times = mapped.column(tables.TIME)[kinds != 0]
        ordinals = mapped.column(ORDINAL)[kinds != 0]
        return replace(
            entry,
            sealed=True,
            num_rows=int(segment.fills.sum()),
            num_transitions=segment.num_transitions,
            first_ordinal=int(ordinals.min()) if ordinals.size else 0,
            last_ordinal=segment.last_ordinal,
            first_time=int(times.min()) if times.size else 0,
            last_time=int(times.max()) if times.size else 0,
            runs=written[0],
            blocks=written[1],
        )

    def _starts_from(self, number: int) -> tables.Starts:
        """Where episodes go on: first rows of the blocks of this segment and of those that came after it."""
        starts: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for entry in self.manifest.segments:
            if entry.number < number or entry.tier != "hot":
                continue
            base = row_id_base(self.manifest.shard, entry.number)
            if entry.sealed and entry.runs is not None:
                for run in self._read_table(entry.runs).to_pylist():
                    if (run["row_id"] - base) % entry.block_rows == 0:
                        key = run["lane"], run["episode_id"], run["first_step"]
                        starts.setdefault(key, []).append((run["first_ordinal"], run["row_id"]))
            else:
                mapped = self._hot[entry.number]
                for key, place in tables.block_starts(mapped.column, block_rows=entry.block_rows, base=base):
                    starts.setdefault(key, []).append(place)
        return starts

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

    @property
    def durable_watermark(self) -> int:
        """Rows up to this ordinal survive a power failure."""
        return self._durable_watermark

    def flush(self) -> None:
        """Make everything committed so far survive a power failure."""
        with self._flush_guard:
            self._check_not_failed()
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

    def _tick(self) -> None:
        if self.writer.record.watermark > self._durable_watermark and self._failed is None:
            self.flush()

    def _note_error(self, error: BaseException) -> None:
        self._error = error

    def check(self) -> None:
        """Raise what the background thread ran into; refuse to write after a failed sync."""
        self._check_not_failed()
        error, self._error = self._error, None
        if error is not None:
            self._submit_seals(list(self._closing))  # once more: there may be room by now
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
                    self.writer.cut(range(self.writer.num_lanes), self._clock())
                    self.after_commit()
            self._background.stop(PREPARE_TIMEOUT_SECONDS)
            if self._failed is None:
                with self.guard:
                    self.writer.close_record()
                self.flush()
        finally:
            self._seeds.close()
            self._durable.close()
            self._lock.release()


def _sync_path(path: Path) -> None:
    with files.explaining(path, "opening for sync"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        files.sync_descriptor(descriptor, path)
    finally:
        os.close(descriptor)


def _block_ends(entry: SegmentEntry, mapped: hot.HotSegment, fills: NDArray[np.int32]) -> list[BlockEnd]:
    """The last committed row of each block that has one."""
    blocks = np.flatnonzero(fills)
    last = blocks * entry.block_rows + fills[blocks] - 1
    values = [mapped.column(place)[last].tolist() for place in (LANE, ORDINAL, KIND, EPISODE, STEP)]
    return [
        BlockEnd(entry.number, lane, position, (block + 1) * entry.block_rows, ordinal, kind, episode, step)
        for block, position, lane, ordinal, kind, episode, step in zip(
            blocks.tolist(), last.tolist(), *values, strict=True
        )
    ]


def _waiting_copies(entry: SegmentEntry, mapped: hot.HotSegment, fills: NDArray[np.int32]) -> list[WaitingCopy]:
    """First rows of blocks without committed rows that name an episode past its first step."""
    blocks = np.flatnonzero(fills == 0)
    first = blocks * entry.block_rows
    values = [mapped.column(place)[first].tolist() for place in (LANE, EPISODE, STEP)]
    return [
        WaitingCopy(entry.number, lane, position, position + entry.block_rows, episode, step)
        for position, lane, episode, step in zip(first.tolist(), *values, strict=True)
        if step > 0
    ]
