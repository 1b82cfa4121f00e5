"""Verifying: everything in a store's directory is held against what is written down about it, and against itself.

A store that is damaged may not open. So this goes by the directory: it opens what can be opened, says what cannot, and
looks at all rows of the rest. What lies behind a file that cannot be read is not held against the others, so that one
damage is one problem. A live writer may go on meanwhile; what it drops is not missed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from numpy.typing import NDArray

from .. import checkpoints, files
from .. import manifest as manifests
from ..errors import ArrowRBError, StoreNotFoundError
from ..manifest import FileEntry, Manifest, SegmentEntry
from ..schema import Schema
from . import limiter_file, priority_files, sample_logs
from .checks import (
    Memory,
    Places,
    Problem,
    Rows,
    check_blocks,
    check_counts,
    check_lanes,
    check_ordinals,
    check_row_ids,
    check_rows,
    check_runs,
    check_statistics,
)
from .creating import read_store_file
from .inspecting import Inspected, inspect_shard
from .paths import STORE_FILE, find_misplaced, list_shards, shard_paths
from .snapshot import SegmentView
from .tables import read_table

_MOST_THREADS: Final = 4
_LEAST_BYTES: Final = 16 << 20  # with less, threads take longer to start than the work


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what is wrong with it.

    Attributes:
        problems: none where all is well.
        num_segments, num_rows, num_bytes: that were looked at.
    """

    problems: tuple[Problem, ...]
    num_segments: int
    num_rows: int
    num_bytes: int

    def __bool__(self) -> bool:
        """Whether all is well."""
        return not self.problems


def verify(path: Path, *, progress: Callable[[int, int], None] | None = None) -> Verified:
    """Look at everything in a store's directory.

    Args:
        path: the directory; nobody needs to have it open, and a writer may.
        progress: called with the segments that are done, and all.

    Raises:
        StoreNotFoundError: if there is no store.
    """
    files.check_platform()
    problems: list[Problem] = []
    schema, store_id, numbers = _look_at_store(path, problems)
    shards = [inspect_shard(shard_paths(path, number), schema, store_id) for number in numbers]
    total, done, num_rows, num_bytes = sum(len(shard.views) for shard in shards), 0, 0, 0
    for shard in shards:
        seen = Seen()
        problems += shard.problems
        for checked in _check_segments(shard, schema):
            problems += checked.problems
            seen.add(checked.seen)
            if checked.num_bytes is not None:
                done += 1
                num_bytes += checked.num_bytes
                if progress is not None:
                    progress(done, total)
        if shard.manifest is not None:
            problems += _check_dropped(shard, shard.manifest)
            problems += _check_whole(shard, shard.manifest, seen)
        num_rows += seen.num_rows
    for place in find_misplaced(path):
        what = f"{place} is no regular file: nobody can write. `arrowrb repair` sets it aside."
        problems.append(Problem(-1, -1, what, str(place.relative_to(path))))
    problems += _check_points(path, store_id)
    rows = {
        (shard.manifest.shard, entry.number): entry.rows
        for shard in shards
        if shard.manifest is not None
        for entry in shard.manifest.segments
    }
    if store_id:
        found = [*priority_files.find_damaged(path, store_id, rows), *sample_logs.find_damaged(path, store_id)]
        found += limiter_file.find_damaged(path, store_id)
        problems += [Problem(-1, -1, why, str(damaged.relative_to(path))) for damaged, why in found]
    return Verified(tuple(problems), total, num_rows, num_bytes)


def _check_points(path: Path, store_id: str) -> Iterator[Problem]:
    """The checkpoints, each read whole."""
    for name in checkpoints.names(path) if store_id else ():
        try:
            checkpoints.load(path, store_id, name)
        except ArrowRBError as error:
            yield Problem(-1, -1, str(error), f"{checkpoints.FOLDER}/{name}.safetensors")


def _look_at_store(path: Path, problems: list[Problem]) -> tuple[Schema | None, str, list[int]]:
    """The schema, the store's id, and the numbers of its shards."""
    schema, store_id = None, ""
    try:
        file = read_store_file(path)
        schema, store_id = file.schema, file.store_id
    except ArrowRBError as error:
        if isinstance(error, StoreNotFoundError) and not (path / "shards").is_dir():
            raise
        problems.append(Problem(-1, -1, f"{error} The rows cannot be looked at.", STORE_FILE))
    try:
        return schema, store_id, sorted({0, *list_shards(path)})
    except ArrowRBError as error:
        problems.append(Problem(-1, -1, str(error)))
        return schema, store_id, []


def _newest_gap(manifest: Manifest) -> int:
    """The newest segment that was dropped though older ones are there, which a checkpoint keeps; -1 for none."""
    numbers = sorted(entry.number for entry in manifest.segments)
    return max((number - 1 for before, number in pairwise(numbers) if number > before + 1), default=-1)


@dataclass(slots=True)
class Seen:
    """What was seen of the segments of a shard.

    Attributes:
        ordinals: of all visible rows.
        places: by number of segment.
        rows_unseen: rows of segments that are sealed, of which the ordinals could not be seen.
        unknown: whether there is a segment of which not even this is known.
    """

    ordinals: list[NDArray[Any]] = field(default_factory=list)
    places: dict[int, Places] = field(default_factory=dict)
    rows_unseen: int = 0
    num_rows: int = 0
    unknown: bool = False

    def add(self, other: Seen) -> None:
        """Take what was seen of another segment."""
        self.ordinals += other.ordinals
        self.places |= other.places
        self.rows_unseen += other.rows_unseen
        self.num_rows += other.num_rows
        self.unknown |= other.unknown

    def miss(self, entry: SegmentEntry) -> None:
        """Note a segment whose rows cannot be seen."""
        self.rows_unseen += entry.num_rows
        self.unknown |= not entry.sealed


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found out about one segment; ``num_bytes`` is None if it could not be looked at."""

    problems: list[Problem]
    seen: Seen
    num_bytes: int | None


def _check_segments(shard: Inspected, schema: Schema | None) -> Iterator[Checked]:
    """Check the segments of a shard, by several threads where they are large; yields them in order."""

    def check(entry: SegmentEntry) -> Checked:
        seen, memory = Seen(), idle.pop()
        view = shard.views.pop(entry.number, None)  # let go of when it is done
        try:
            problems = list(check_segment(shard, entry, view, schema, seen, memory))
        finally:
            idle.append(memory)
        return Checked(problems, seen, None if view is None else entry.bytes)

    entries = () if shard.manifest is None else shard.manifest.segments
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    idle = deque(Memory() for _ in range(threads))
    if sum(entry.bytes for entry in entries) < _LEAST_BYTES:
        yield from map(check, entries)
        return
    pool = ThreadPoolExecutor(threads, "arrowrb-verify")
    try:
        # The largest first, so that no thread is left alone with one of them.
        by_size = sorted(range(len(entries)), key=lambda place: -entries[place].bytes)
        checks = {place: pool.submit(check, entries[place]) for place in by_size}
        for place in range(len(entries)):
            yield checks.pop(place).result()
    finally:
        pool.shutdown(cancel_futures=True)  # where it was broken off


def check_segment(
    shard: Inspected,
    entry: SegmentEntry,
    view: SegmentView | None,
    schema: Schema | None,
    seen: Seen,
    memory: Memory,
) -> Iterator[Problem]:
    """Everything about one segment; ``seen`` takes what is needed to look at all of them together."""
    blocks = yield from _read(shard, entry, entry.blocks)
    runs = yield from _read(shard, entry, entry.runs)
    if entry.sealed and (entry.blocks is None or entry.runs is None):
        what = "The manifest lists no block or run table of it, though it is sealed."
        yield Problem(shard.paths.number, entry.number, what, shard.paths.manifest.name)
    if view is None or schema is None:
        seen.miss(entry)
        return
    rows = Rows(view, schema, 0 if shard.record is None else shard.record.watermark, memory)
    seen.num_rows += rows.used.size
    yield from rows.problems
    if rows.whole:
        seen.ordinals.append(rows.ordinals)
        seen.places[entry.number] = rows.places()
        yield from check_rows(rows)
    else:
        seen.miss(entry)
    if view.cold is not None:
        yield from check_row_ids(rows, view.cold)
        yield from check_statistics(rows, view.cold)
    if not (entry.sealed and view.closed):
        return
    yield from check_counts(rows)
    if blocks is not None and entry.blocks is not None:
        yield from check_blocks(rows, blocks, entry.blocks.name)
    if runs is not None and entry.runs is not None and not rows.bad:
        yield from check_runs(rows, runs, entry.runs.name)


def _read(shard: Inspected, entry: SegmentEntry, file: FileEntry | None) -> Generator[Problem, None, pa.Table | None]:
    """One of a segment's tables; None where it has none, or it is damaged."""
    if file is None or (file == entry.blocks and entry.number in shard.without_blocks):
        return None
    try:
        return read_table(shard.paths.segments / file.name, file)
    except ArrowRBError as error:
        if not _went(shard, error, file.name):
            yield Problem(shard.paths.number, entry.number, str(error), file.name)
    return None


def _check_dropped(shard: Inspected, manifest: Manifest) -> Iterator[Problem]:
    """The run tables that are left of dropped segments."""
    for file in manifest.evicted.runs:
        try:
            read_table(shard.paths.segments / file.name, file)
        except ArrowRBError as error:
            if not _went(shard, error, file.name):
                yield Problem(shard.paths.number, -1, str(error), file.name)


def _went(shard: Inspected, error: ArrowRBError, name: str) -> bool:
    """Whether a file is missing because a live writer has dropped it meanwhile."""
    if not isinstance(error.__cause__, FileNotFoundError):
        return False
    try:
        return name not in manifests.read(shard.paths.manifest, shard.paths.number).files
    except ArrowRBError:
        return False


def _check_whole(shard: Inspected, manifest: Manifest, seen: Seen) -> Iterator[Problem]:
    """What can be said of all segments together."""
    number = shard.paths.number
    if shard.record is None or shard.behind:
        return
    elsewhere = None if seen.unknown else manifest.evicted.num_rows + seen.rows_unseen
    for what in check_ordinals(seen.ordinals, shard.record.watermark, elsewhere):
        yield Problem(number, -1, what)
    if not seen.unknown and not seen.rows_unseen:
        for segment, row, what in check_lanes(seen.places, max([*manifest.lost, _newest_gap(manifest)])):
            yield Problem(number, segment, what, manifest.segment(segment).name, rows=(row, row + 1))
