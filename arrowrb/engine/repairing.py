"""Repairing: what is intact is kept, what is damaged is set aside, and what was lost is told.

Nothing is deleted: damaged files are moved to ``damaged/<time>`` within the store. In this order, under the writer's
lock: files are moved, the commit records are written anew where they cannot be trusted, and the manifest last. A crash
in between leaves a store that does not open yet, which the next repair goes on with.

- A segment whose rows are damaged is set aside; its run table stays, if it is intact, so that its episodes are known.
- A segment whose tables are damaged gets new ones from its rows.
- A manifest that cannot be read is made anew from the files that there are.
- What is no file, but lies in the place of a lock or of another file that writers make where there is none, is moved.
- A commit that cannot be read is found by the ordinals of the rows: all of them up to the first that is missing.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from .. import checkpoints, commits, files, seeds
from .. import manifest as manifests
from ..commits import Record
from ..errors import ArrowRBError, CorruptError
from ..manifest import Evicted, Manifest, SegmentEntry
from ..rows import Kind
from ..schema import Schema
from ..writer import OpenSegment
from .checks import Memory, Problem
from .creating import StoreFile, read_store_file
from .inspecting import Inspected, inspect_shard
from .paths import LIMITER_FILE, SAMPLERS, SPARE_STORE_FILE, STORE_FILE, ShardPaths, find_misplaced, shard_paths
from .rebuilding import find_commit, rebuild_manifest
from .sealing import write_tables
from .tables import read_table
from .verifying import Seen, Verified, check_segment, verify

_SHARD: Final = re.compile(r"\d{5}")


@dataclass(frozen=True, slots=True)
class Lost:
    """A segment whose rows are not part of the store any more.

    Attributes:
        shard, segment: which it is.
        file: its file's name, now below the folder of what was set aside.
        num_rows, num_transitions: that it held; None where that is not known.
        first_ordinal, last_ordinal: of these; likewise.
        reason: what is wrong with it.
    """

    shard: int
    segment: int
    file: str
    num_rows: int | None
    num_transitions: int | None
    first_ordinal: int | None
    last_ordinal: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair found and did.

    Attributes:
        problems: that there were.
        lost: segments that were set aside.
        num_transitions_lost: that could be sampled before, and cannot any more.
        aside: the folder of what was set aside; None where nothing was.
        after: the store as it is now: true where all is well.
    """

    problems: tuple[Problem, ...]
    lost: tuple[Lost, ...]
    num_transitions_lost: int
    aside: Path | None
    after: Verified


class _Aside:
    """The folder that takes what is damaged."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._folder = store / "damaged" / time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.used = False

    @property
    def folder(self) -> Path | None:
        return self._folder if self.used else None

    def move(self, path: Path) -> None:
        """Set a file aside."""
        target = self._make_room(path)
        if target is not None:
            os.rename(path, target)
            files.sync_directory(target.parent)
            files.sync_directory(path.parent)

    def keep(self, path: Path) -> None:
        """Keep a file that is about to be replaced."""
        target = self._make_room(path)
        if target is not None:
            os.link(path, target, follow_symlinks=False)
            files.sync_directory(target.parent)

    def _make_room(self, path: Path) -> Path | None:
        if not os.path.lexists(path):
            return None
        target, number = self._folder / path.relative_to(self._store), 0
        while os.path.lexists(target):
            number += 1
            target = target.with_name(f"{path.name}.{number}")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.used = True
        return target

    def report(self, lost: list[Lost], problems: tuple[Problem, ...]) -> None:
        """Say in the folder what it is about."""
        if self.used:
            text = {"problems": [asdict(each) for each in problems], "lost": [asdict(each) for each in lost]}
            files.publish(self._folder / "report.json", json.dumps(text, indent=1).encode())


def repair(path: Path) -> Repaired:
    """Set aside what is damaged of a store, so that the rest opens; see the module.

    Raises:
        StoreNotFoundError: if there is no store.
        LockedError: if a process has it open for writing.
        CorruptError: if nothing says what its columns are.
    """
    before = verify(path)
    if before:
        return Repaired((), (), 0, None, before)
    aside, lost = _Aside(path), list[Lost]()
    num_lost = 0
    with files.explaining(path, "repairing the store"):
        file = _repair_store_file(path, aside)
        for place in find_misplaced(path):  # first: locks are among these
            aside.move(place)
        for folder in sorted((path / "shards").iterdir()):
            if _SHARD.fullmatch(folder.name):
                paths = shard_paths(path, int(folder.name))
                paths.segments.mkdir(exist_ok=True)
                lock = paths.take_lock()
                try:
                    num_lost += _repair_shard(paths, file, aside, lost)
                finally:
                    lock.release()
        for name in checkpoints.names(path):
            try:
                checkpoints.load(path, file.store_id, name)
            except CorruptError:
                aside.move(checkpoints.path_of(path, name))
        for problem in before.problems:
            if problem.file.startswith(f"{SAMPLERS}/") or problem.file == LIMITER_FILE:
                aside.move(path / problem.file)
        aside.report(lost, before.problems)
    return Repaired(before.problems, tuple(lost), num_lost, aside.folder, verify(path))


def _repair_store_file(path: Path, aside: _Aside) -> StoreFile:
    try:
        return read_store_file(path)
    except ArrowRBError as error:
        try:
            file = read_store_file(path, SPARE_STORE_FILE)
        except ArrowRBError:
            raise CorruptError(
                f"{path} cannot be repaired: neither {STORE_FILE} nor its copy can be read, and nothing else says what "
                f"its columns are. ({error})"
            ) from error
    aside.move(path / STORE_FILE)
    files.publish(path / STORE_FILE, files.read_file(path / SPARE_STORE_FILE, "copying"))
    return file


def _repair_shard(paths: ShardPaths, file: StoreFile, aside: _Aside, lost: list[Lost]) -> int:
    """Repair one shard; returns the transitions that were lost."""
    known = _repair_manifest(paths, file, aside, lost)
    shard = inspect_shard(paths, file.schema, file.store_id)
    manifest = shard.manifest
    if manifest is None:
        raise CorruptError(f"{paths.manifest} was made anew and cannot be read. Is the disk failing?")
    record = _repair_records(shard, aside)
    if record is not shard.record:
        shard = inspect_shard(paths, file.schema, file.store_id)
    _repair_seeds(shard, aside)
    kept: list[SegmentEntry] = []
    evicted = _repair_dropped(paths, manifest.evicted, aside)
    gone = list(manifest.lost)
    for entry in reversed(manifest.segments):  # later ones first: earlier ones refer to them
        problems = list(_problems_of(shard, entry, file.schema))
        tables = {each.name for each in (entry.blocks, entry.runs) if each is not None}
        bad_tables = {each.file for each in problems} & tables
        if entry.number not in shard.views or any(each.file not in tables for each in problems):
            lost.append(_describe(paths.number, entry, problems))
            gone.append(entry.number)
            evicted = _set_aside(paths, entry, bad_tables, evicted, aside)
        elif bad_tables:
            for name in tables:
                aside.move(paths.segments / name)
            rest = replace(manifest, segments=tuple(reversed(kept)))
            kept.append(_without_tables(entry) if entry.tier == "hot" else _new_tables(shard, entry, rest, file.schema))
        else:
            kept.append(entry)
    segments = tuple(reversed(kept))
    num_rows, num_transitions = _count(shard, segments, record)
    missing = sum(each.num_transitions or 0 for each in lost if each.shard == paths.number)
    if known:  # how many there were; else retention's part is not known
        missing = record.num_transitions - num_transitions - manifest.evicted.num_transitions
    evicted = replace(
        evicted,
        num_rows=max(record.watermark - num_rows, 0),
        num_transitions=max(record.num_transitions - num_transitions, 0),
        last_ordinal=min(evicted.last_ordinal, record.watermark),
    )
    changed = replace(
        manifest,
        segments=segments,
        evicted=evicted,
        lost=tuple(sorted(set(gone))),
        sequence=manifest.sequence + 1,
    )
    files.sync_directory(paths.segments)
    manifests.write(paths.manifest, changed)
    return max(missing, 0)


def _repair_manifest(paths: ShardPaths, file: StoreFile, aside: _Aside, lost: list[Lost]) -> bool:
    """Make the manifest anew where it cannot be read; returns whether it could be."""
    try:
        manifests.read(paths.manifest, paths.number)
    except CorruptError:
        pass
    except ArrowRBError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    else:
        return True
    manifest, unusable = rebuild_manifest(paths, file.schema, file.store_id)
    for path, reason in unusable:
        lost.append(Lost(paths.number, int(path.name[:8]), path.name, None, None, None, None, reason))
        aside.move(path)
    paths.orders.unlink(missing_ok=True)  # numbers of segments may be others than those that it speaks of
    aside.keep(paths.manifest)
    manifests.write(paths.manifest, manifest)
    return False


def _repair_records(shard: Inspected, aside: _Aside) -> Record:
    """The newest commit; both files are written anew where one of them is damaged."""
    paths = shard.paths
    names = {paths.visible.name, paths.durable.name}
    if shard.record is not None and not any(each.file in names for each in shard.problems):
        return shard.record
    record = shard.record
    if record is None or shard.behind:
        record = find_commit(shard)
    elif record.boot_id == files.boot_id():
        # The newest slot may be the damaged one. A row's ordinal is written last, so that rows beyond are whole.
        record = max(record, find_commit(shard), key=lambda each: each.watermark)
    record = replace(record, sequence=record.sequence + 2, boot_id=files.boot_id(), clean=True)
    for path in (paths.visible, paths.durable):
        aside.keep(path)
        commits.create_file(path, replace(record, sequence=record.sequence - 1), record, sync=True)
    return record


def _repair_seeds(shard: Inspected, aside: _Aside) -> None:
    path = shard.paths.seeds
    if any(each.file == path.name for each in shard.problems):
        content = files.read_file(path, "reading seeds") if path.is_file() and not path.is_symlink() else b""
        aside.keep(path)
        files.publish(path, seeds.keep_valid(content))


def _repair_dropped(paths: ShardPaths, evicted: Evicted, aside: _Aside) -> Evicted:
    """Run tables of dropped segments; those that are damaged are set aside."""
    runs = []
    for file in evicted.runs:
        try:
            read_table(paths.segments / file.name, file)
            runs.append(file)
        except ArrowRBError:
            aside.move(paths.segments / file.name)
    return replace(evicted, runs=tuple(runs))


def _problems_of(shard: Inspected, entry: SegmentEntry, schema: Schema) -> Iterator[Problem]:
    yield from (each for each in shard.problems if each.segment == entry.number)
    yield from check_segment(shard, entry, shard.views.get(entry.number), schema, Seen(), Memory())


def _describe(shard: int, entry: SegmentEntry, problems: list[Problem]) -> Lost:
    reason = problems[0].what if problems else "It cannot be opened."
    if not entry.sealed:
        return Lost(shard, entry.number, entry.name, None, None, None, None, reason)
    counts = entry.num_rows, entry.num_transitions, entry.first_ordinal, entry.last_ordinal
    return Lost(shard, entry.number, entry.name, *counts, reason)


def _set_aside(
    paths: ShardPaths, entry: SegmentEntry, bad_tables: set[str], evicted: Evicted, aside: _Aside
) -> Evicted:
    """Move a segment's files; its run table stays, as that of a segment that was dropped."""
    aside.move(paths.segments / entry.name)
    if entry.blocks is not None:
        aside.move(paths.segments / entry.blocks.name)
    runs = entry.runs
    if runs is not None and runs.name in bad_tables:
        aside.move(paths.segments / runs.name)
        runs = None
    dropped = evicted.with_segment(replace(entry, runs=None))
    # Oldest first; segments are gone through from the newest.
    return dropped if runs is None else replace(dropped, runs=_in_order((*evicted.runs, runs)))


def _in_order(runs: tuple[manifests.FileEntry, ...]) -> tuple[manifests.FileEntry, ...]:
    return tuple(sorted(runs, key=lambda file: file.name))


def _without_tables(entry: SegmentEntry) -> SegmentEntry:
    """As it was before it was sealed: the next writer seals it anew."""
    return SegmentEntry(
        entry.number, entry.rows, entry.block_rows, "hot", entry.name, entry.bytes, unknown=entry.unknown
    )


def _new_tables(shard: Inspected, entry: SegmentEntry, rest: Manifest, schema: Schema) -> SegmentEntry:
    """New tables of a cold segment from its rows, as if it had stayed hot."""
    view = shard.views[entry.number]
    if view.cold is None:
        raise CorruptError(f"Segment {entry.name} is not in the cold tier, as the manifest says.")
    mapped = view.cold.in_memory()
    kinds = view.visible_kinds(entry.last_ordinal)
    fills = np.count_nonzero(kinds.reshape(-1, entry.block_rows), axis=1).astype(np.int32)
    transitions = int(np.count_nonzero(kinds == Kind.TRANSITION))
    opened = OpenSegment(replace(entry, sealed=False), mapped, fills, fills.size, transitions, entry.last_ordinal)
    others = {number: each.in_hot for number, each in shard.views.items() if each.hot is not None}
    listed = rest.with_segment(opened.entry)
    made = write_tables(shard.paths, schema, listed, {**others, entry.number: mapped}, opened, durable=True)
    return replace(entry, blocks=made.blocks, runs=made.runs)


def _count(shard: Inspected, segments: tuple[SegmentEntry, ...], record: Record) -> tuple[int, int]:
    """Rows and transitions of the segments that stay."""
    num_rows = num_transitions = 0
    for entry in segments:
        if entry.sealed:
            num_rows, num_transitions = num_rows + entry.num_rows, num_transitions + entry.num_transitions
        else:
            view = replace(shard.views[entry.number], closed=False)
            kinds = view.visible_kinds(record.watermark)
            num_rows += int(np.count_nonzero(kinds))
            num_transitions += int(np.count_nonzero(kinds == Kind.TRANSITION))
    return num_rows, num_transitions
