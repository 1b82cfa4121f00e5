"""The engine: the one shared mutable core behind a store. It owns the shards and hands out snapshots."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checkpoints, files, seeds
from ..checkpoints import Checkpoint, Content, Mark
from ..commits import Record
from ..errors import ClosedError, OptionError, ReadOnlyError, UsageError
from ..events import Events
from ..interrupts import Uninterrupted
from ..limiter import Limiter
from ..manifest import Manifest
from ..network import check_local
from ..retention import Action
from ..rows import SHARD_SHIFT
from ..seeds import SeedEntry
from ..writer import MAX_LANES
from .coordinator import Survey
from .creating import read_store_file
from .keeping import nothing_is_dropped
from .limiting import Limiting, limit
from .options import DEFAULT_CACHE_BYTES, Keeping, WriterOptions, now_microseconds
from .paths import shard_paths
from .reading import GroupCache
from .rounds import Rounds, begin_rounds
from .sample_logs import Logged, read_batch
from .sampler_folders import SamplerFolder
from .shard_reader import ShardReader
from .shard_writer import ShardWriter
from .shards import MAIN, Following, ShardCount, own_shard
from .snapshot import Layout, Snapshot
from .state import same_objects
from .visits import after_visits

_BREAK_SHARE = 0.05
_BREAKS_MIN_ROWS = 1000


class Engine:
    """Shards, and snapshots over them. Thread-safe: commits are serialised, snapshots are immutable."""

    def __init__(
        self,
        path: Path,
        *,
        writable: bool,
        options: WriterOptions | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        clock: Callable[[], int] = now_microseconds,
        at: str | Sequence[Mark] | None = None,
        shard: str = MAIN,
        limiter: Limiter = None,
    ) -> None:
        files.check_platform()
        self.path = path
        self.file = read_store_file(path)
        self.schema = self.file.schema
        self.clock = clock
        self.closed = False
        self._pid = self._here = os.getpid()  # the process that opened it, and the one that this copy is in
        self._guard = threading.RLock()
        self._claimed: set[int] = set()
        self._claims: Counter[int] = Counter()
        self._layout: tuple[tuple[int, ...], Layout] | None = None
        self._snapshot: Snapshot | None = None
        self._marks: list[object] = []
        self._folders: weakref.WeakSet[SamplerFolder] = weakref.WeakSet()
        self._warned = False
        self.cache = GroupCache(cache_bytes)
        self.writer_shard: ShardWriter | None = None
        self._rounds: Rounds | None = None
        self._at = checkpoints.read(path, self.file.store_id, at).marks if isinstance(at, str) else at
        options = options or WriterOptions()
        if writable:
            check_local(path)
        own = own_shard(path, shard, durable=options.durable) if writable else 0
        self._following = Following(path)
        numbers = self._following.numbers
        self.options = options
        self._limits = replace(options.limits, max_rows=self.file.max_rows, max_bytes=self.file.max_bytes)
        self._readers = self._follow([number for number in numbers if not (writable and number == own)])
        self.limiting = Limiting(path, self.file.store_id, is_past=self._at is not None)
        if writable:
            options = replace(options, limits=self._limits)
            after_visits(shard_paths(path, own), partial(self._open_own, own, options, limiter))

    def _open_own(self, own: int, options: WriterOptions, limiter: Limiter) -> None:
        self._rounds = rounds = begin_rounds(self.path, own, self.file, options, self.clock)
        self.writer_shard = rounds.shard
        self._guard = rounds.shard.guard
        try:
            self.limiting = limit(self.path, self.file.store_id, rounds.shard, limiter, durable=options.durable)
        except BaseException:
            rounds.stop()
            raise

    def _follow(self, numbers: Sequence[int]) -> list[ShardReader]:
        marks = {mark.shard: mark for mark in self._at or ()}
        readers = []
        for number in numbers:
            until = None if self._at is None else marks.get(number, Mark.of(number, Record(), 0))
            readers.append(ShardReader(shard_paths(self.path, number), self.schema, self.file.store_id, until))
        return readers

    # -- writing -------------------------------------------------------------------------------------------------

    def _own(self) -> ShardWriter:
        self.check_open()
        if self.writer_shard is None:
            raise ReadOnlyError(f'{self.path} was opened with mode="r". Open it with mode="a" to write.')
        if os.getpid() != self._pid:
            raise ReadOnlyError(
                f"Process {os.getpid()} was forked from the writer {self._pid}, which alone may write. "
                "Start processes by spawn, and open the store in them."
            )
        return self.writer_shard

    def check_writable(self) -> None:
        """Refuse to write to what is closed, was opened for reading, or belongs to the parent process."""
        self._own()

    def wait_to_commit(self) -> None:
        """Return when the limiter allows another commit, or raise `WaitError`; for callers that hold nothing."""
        self.limiting.wait_to_commit()

    def ingest(self, events: Events) -> NDArray[np.int64]:
        """Commit transitions: all or none. Returns their row ids, int64[n], in order of the events."""
        shard = self._own()
        shard.wait_for_room()  # before the guard, so that others can read meanwhile
        with shard.guard:
            shard.check()
            row_ids = shard.writer.ingest(events)
            self.limiting.note(shard.writer.record.num_transitions)
            shard.after_commit()
        self._warn_of_breaks(shard.writer.record)
        return row_ids

    def ingest_external(self, events: Events) -> NDArray[np.int64]:
        """Like `ingest`, for rows that no recorder made: they must keep off the lanes that recorders hold."""
        if self._claimed:
            self.check_lanes(np.unique(events.lane).tolist())
        return self.ingest(events)

    def check_lanes(self, lanes: Iterable[int]) -> None:
        """Refuse lanes that recorders hold."""
        taken = self._claimed.intersection(lanes)
        if taken:
            free = next(lane for lane in itertools.count() if lane not in self._claimed)
            raise UsageError(
                f"Lane {min(taken)} belongs to a recorder or collector that is at work. "
                f"Give another one, such as lane={free}."
            )

    def cut(self, lanes: Sequence[int], time: int | None = None) -> None:
        """Abandon the running episodes of these lanes; ``time`` in microseconds, None: now."""
        shard = self._own()
        with shard.guard:
            shard.writer.cut(lanes, self.clock() if time is None else time)
            shard.after_commit()

    def note_seeds(self, pairs: Sequence[tuple[int, int | None]]) -> None:
        """What the episodes that begin next on these lanes were reset with: (lane, seed), None without a seed."""
        shard = self._own()
        with shard.guard:
            shard.writer.note_seeds(pairs)

    def claim_lanes(self, count: int, first: int | None = None) -> int:
        """Reserve ``count`` neighbouring lanes for one recorder; the lowest free ones unless ``first`` says."""
        shard = self._own()
        with shard.guard:
            starts = itertools.count() if first is None else [first]
            for start in starts:
                wanted = range(start, start + count)
                if wanted.stop > MAX_LANES:
                    break
                if self._claimed.isdisjoint(wanted):
                    self._claimed.update(wanted)
                    self._claims.update(wanted)
                    return start
        raise OptionError(
            f"num_envs asks for {count:,} neighbouring lanes{'' if first is None else f' from {first} on'}, expected "
            f"what is free of {MAX_LANES:,}. Close the recorder that holds them, or ask for fewer or others."
        )

    def times_claimed(self, lane: int) -> int:
        """How often a lane was reserved since the store was opened."""
        return self._claims[lane]

    def release_lanes(self, first: int, count: int) -> None:
        """Give lanes back; their running episodes are cut."""
        try:
            if not self.closed:
                self.cut(range(first, first + count))
        finally:
            self._claimed.difference_update(range(first, first + count))

    def _warn_of_breaks(self, record: Record) -> None:
        rows = record.num_transitions
        if not self._warned and rows >= _BREAKS_MIN_ROWS and record.num_breaks > _BREAK_SHARE * rows:
            self._warned = True
            warnings.warn(
                f"{record.num_breaks:,} of {rows:,} rows do not go on where the row of their lane before them ended: "
                "each begins an episode of its own and costs two rows. Give lane=, episode_id and step, or "
                "contiguous=False if the rows are independent.",
                stacklevel=5,
            )

    def prepare_shard(self, name: str) -> None:
        """Make the shard of this name where there is none, for another process to write."""
        own_shard(self.path, name, durable=self.options.durable)

    def flush(self) -> None:
        """Make everything committed so far survive a power failure."""
        self._own().flush_and_seal()

    def maintain(self, *, dry_run: bool) -> list[Action]:
        """Do what is due with segments, or only say what: that needs no writer, and changes nothing."""
        self.check_open()
        if dry_run and (self.writer_shard is None or ShardCount(self.path)() > 1):
            return Survey(self.path, self.file, self._limits).plan()
        self._own()
        return [] if self._rounds is None else self._rounds.maintain(dry_run=dry_run)

    # -- points --------------------------------------------------------------------------------------------------

    def checkpoint(self, name: str, keep: bool, tensors: Any, state: Any, samplers: Keeping) -> Checkpoint:
        """Name the newest commit; see `Store.checkpoint`.

        In this order: the commit is taken, with the samplers' states; its rows are made durable; the file is
        published. A crash in between leaves the checkpoint of that name that was there before, or none.

        Args:
            name: its name.
            keep: whether retention keeps its rows.
            tensors: of the caller; likewise `state`.
            state: see `tensors`.
            samplers: gives the states of samplers by name, at that commit.
        """
        shard = self._own()
        with nothing_is_dropped(self.path):
            self.snapshot()  # the newest commits of others
            with samplers.held() as states, shard.guard:  # in this order: a sampler that draws takes a snapshot
                shard.check()
                marks = [Mark.of(shard.paths.number, shard.writer.record, shard.manifest.next_segment)]
                marks += [Mark.of(each.paths.number, each.record, each.manifest.next_segment) for each in self._readers]
                if keep:
                    shard.keep(max(marks[0].next_segment, shard.segments.limits.keep_below))
                content = Content(states(), tensors, state)
            try:
                shard.flush()
                ordered = tuple(sorted(marks, key=lambda mark: mark.shard))
                return checkpoints.write(self.path, self.file.store_id, name, ordered, keep, content)
            finally:
                self._keep_what_is_said()

    def remove_checkpoint(self, name: str) -> None:
        """Forget a point; its rows are subject to retention again."""
        self._own()
        checkpoints.remove(self.path, name)
        self._keep_what_is_said()

    def _keep_what_is_said(self) -> None:
        shard = self._own()
        shard.keep(checkpoints.keep_below(self.path, self.file.store_id, shard.paths.number))

    @property
    def times_opened(self) -> int:
        """How often the own shard has been opened for writing, this time included."""
        return self._own().manifest.times_opened

    @property
    def shard(self) -> int:
        """The number of the own shard."""
        return self._own().manifest.shard

    # -- reading -------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Refuse to go on after `close`."""
        if self.closed:
            raise ClosedError(f"The store {self.path} is closed. Open it again.")

    def snapshot(self) -> Snapshot:
        """What is visible now. Cheap where nothing has changed."""
        self.check_open()
        if os.getpid() != self._here:
            self._start_anew()
        with self._guard:
            if self._following.look():
                known = {shard.paths.number for shard in self._shards()}
                self._readers += self._follow([each for each in self._following.numbers if each not in known])
            for reader in self._readers:
                reader.refresh()
            shards = self._shards()
            marks = [each for shard in shards for each in shard.mark()]
            if same_objects(self._marks, marks) and self._snapshot is not None:
                return self._snapshot  # nothing has changed: the way of most draws
            self._marks = marks
            looks = [shard.look() for shard in sorted(shards, key=lambda shard: shard.paths.root)]
            versions = tuple(look.version for look in looks)
            records = tuple(look.record for look in looks)
            last = self._snapshot
            if last is not None and self._layout is not None and self._layout[0] == versions:
                if last.layout is self._layout[1] and last.records == records:
                    return last
            else:
                views = [view for look in looks for view in look.views()]
                leaving = [view for look in looks for view in look.leaving()]
                self._layout = (versions, Layout(self.schema, views, self.cache, leaving))
            layout = self._layout[1]
            count = sum(look.num_transitions for look in looks)
            evicted = tuple(look.evicted for look in looks)
            self._snapshot = Snapshot(layout, records, count, evicted, layout.copy_live())
            return self._snapshot

    def _start_anew(self) -> None:
        """In a forked child: follow the parent through its files, since its locks and memory may be in mid-commit."""
        self._here = os.getpid()
        self._guard = threading.RLock()
        self._layout = self._snapshot = None
        self.cache = GroupCache(self.cache.limit)
        self._following = Following(self.path)
        self._readers = self._follow(self._following.numbers)

    def manifests(self) -> list[Manifest]:
        """The manifests of all shards, as last seen."""
        own = [self.writer_shard.manifest] if self.writer_shard is not None and self._here == self._pid else []
        return sorted([*own, *(reader.manifest for reader in self._readers)], key=lambda each: each.shard)

    @property
    def pinned_bytes(self) -> int:
        """Bytes of files that are gone or moved, which snapshots in this process still hold."""
        return sum(shard.pinned_bytes for shard in self._shards())

    def _shards(self) -> list[ShardReader | ShardWriter]:
        """All shards, the own one as its writer sees it; a forked child has none of its own."""
        shards: list[ShardReader | ShardWriter] = [*self._readers]
        if self.writer_shard is not None and self._here == self._pid:
            shards.append(self.writer_shard)
        return shards

    def writer_pid(self) -> int | None:
        """The process that has the store open for writing, as far as can be seen from here."""
        if self.writer_shard is not None:
            return self._pid
        holders = [holder for reader in self._readers if (holder := reader.holder()) is not None]
        return holders[0].pid if holders else None

    def read_seeds(self, snapshot: Snapshot) -> list[SeedEntry]:
        """The seeds of all episodes that were reset with one."""
        return [
            entry
            for shard, record in enumerate(snapshot.records)
            for entry in seeds.read(shard_paths(self.path, shard).seeds, record.watermark)
        ]

    def sampler_folder(self, name: str) -> SamplerFolder | None:
        """What belongs to the sampler of this name; None for a store as it was at a checkpoint.

        Raises:
            LockedError: if a sampler of this name is at work, here or in another process.
        """
        self.check_open()
        if self._at is not None:
            return None
        check_local(self.path)
        made = SamplerFolder(self.path, self.file.store_id, name, durable=self.options.durable)
        self._folders.add(made)
        return made

    def logged_batch(self, sampler: str, number: int) -> tuple[Logged, Snapshot]:
        """A batch out of a sampler's log, and what it was drawn from, as far as that is still there.

        Raises:
            RowError: if the log has no such batch.
        """
        self.check_open()
        logged = read_batch(self.path, self.file.store_id, sampler, number)
        shards, first = np.unique(logged.row_ids >> SHARD_SHIFT, return_index=True)
        marks = zip(shards.tolist(), logged.watermarks[first].tolist(), strict=True)
        at = [Mark.at(shard, watermark) for shard, watermark in marks]
        with contextlib.closing(Engine(self.path, writable=False, at=at)) as engine:
            return logged, engine.snapshot()

    def close(self) -> None:
        """Close the store; snapshots that are held stay readable. Does nothing when called again.

        Ctrl-C waits until it is done. Where a wait for background work ends without it, call again.
        """
        with Uninterrupted():
            with self._guard:
                self.closed = True
                self._snapshot = None
                self._layout = None
            self.limiting.close()
            for folder in list(self._folders):
                folder.close()
            shard = self.writer_shard
            if shard is not None and not shard.released and os.getpid() == self._pid:
                if self._rounds is not None:
                    self._rounds.stop()
                shard.close()
