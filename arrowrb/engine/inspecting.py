"""What can be opened of a shard's directory, and what is wrong with the rest. Changes nothing, takes no lock.

A writer may be at work meanwhile: where a file is missing that the manifest lists, and the manifest has changed since,
all is looked at once more, as a reader would.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from .. import commits, files, seeds
from .. import manifest as manifests
from ..commits import Record
from ..errors import ArrowRBError, CorruptError
from ..manifest import Manifest, SegmentEntry
from ..rows import row_id_base
from ..schema import Schema
from ..tiers import cold, hot
from .checks import Problem
from .paths import ShardPaths, identity
from .snapshot import SegmentView
from .tables import read_blocks
from .tiering import map_cold

_TRIES = 20
_LOOKS = 5  # at a small file that is written in place, in which a writer may be just now
_PAUSE_SECONDS = 0.01


@dataclass(slots=True)
class Inspected:
    """A shard as far as it can be opened.

    Attributes:
        paths: its files.
        manifest, record: None where they cannot be read.
        views: the segments that could be mapped, by number.
        without_blocks: numbers of segments whose block table is known to be damaged.
        problems: what was found.
        gone: whether a file was missing.
        behind: whether the commit records are older than the manifest.
    """

    paths: ShardPaths
    manifest: Manifest | None = None
    record: Record | None = None
    views: dict[int, SegmentView] = field(default_factory=dict)
    without_blocks: set[int] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    gone: bool = False
    behind: bool = False

    def add(self, what: object, file: str = "", segment: int = -1) -> None:
        """Note a problem."""
        self.problems.append(Problem(self.paths.number, segment, str(what), file))

    def miss(self, error: Exception, file: str, segment: int) -> None:
        """Note a file of a segment that cannot be used."""
        self.gone |= isinstance(error.__cause__, FileNotFoundError)
        self.add(error, file, segment)


def inspect_shard(paths: ShardPaths, schema: Schema | None, store_id: str) -> Inspected:
    """Open what can be opened of a shard. Without a schema that is no segment."""
    for _ in range(_TRIES):
        held = _hold(paths.manifest)
        shard = _inspect_once(paths, schema, store_id)
        if not (shard.gone or shard.behind):
            break
        time.sleep(_PAUSE_SECONDS)
        if not _is_replaced(paths.manifest, held):
            break  # nobody is at work: it is so
    return shard


def _hold(path: Path) -> files.Mapping | None:
    """A mapping of the manifest, so that its inode is given to no other; None where it cannot be read."""
    try:
        return files.Mapping(path)
    except ArrowRBError:
        return None


def _is_replaced(path: Path, held: files.Mapping | None) -> bool:
    """Whether a file is another by now."""
    try:
        return held is not None and files.stamp_of(os.stat(path)) != held.stamp
    except OSError:
        return True


def _inspect_once(paths: ShardPaths, schema: Schema | None, store_id: str) -> Inspected:
    shard = Inspected(paths)
    stopped = _look_at_records(shard)
    _look_at_seeds(shard, stopped)
    try:
        shard.manifest = manifests.read(paths.manifest, paths.number)
    except ArrowRBError as error:
        shard.add(f"{error} Which segments there are is not known.", paths.manifest.name)
        return shard
    if shard.record is not None and shard.record.watermark < shard.manifest.reach:
        shard.behind = True
        shard.add(
            f"The newest valid commit knows of {shard.record.watermark:,} rows, but rows up to "
            f"{shard.manifest.reach:,} were moved or dropped: newer commits are lost.",
            paths.visible.name,
        )
    if schema is not None:
        for entry in shard.manifest.segments:
            _open_segment(shard, schema, store_id, entry)
    return shard


def _look(shard: Inspected, path: Path, doing: str, examine: Callable[[bytes], list[str]]) -> None:
    """Note what is wrong with a small file: what stays so when it is looked at again."""
    wrong: list[str] = []
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE_SECONDS)
        try:
            wrong = examine(files.read_file(path, doing))
        except ArrowRBError as error:
            wrong = [str(error)]
            break
        if not wrong:
            return
    shard.add(" ".join(wrong), path.name)


def _look_at_records(shard: Inspected) -> bool:
    """Look at both commit files; returns whether the machine stopped while a writer was at work."""
    paths, before = shard.paths, len(shard.problems)
    records: dict[Path, Record | None] = {}

    def examine(path: Path, content: bytes) -> list[str]:
        records[path], wrong = commits.examine(content)
        newest, durable = records[path], records.get(paths.durable)
        if newest is None or newest.sequence <= 1 or not commits.has_empty_slot(content):
            return wrong
        # Both slots are in use from the first opening for writing on, but where the machine restarted before one of
        # the visible record's reached the disk: then its newest record is the one after the durable one.
        if path == paths.durable or durable is None or newest.sequence != durable.sequence + 1:
            wrong.append("One of its slots is empty, though both were written.")
        return wrong

    for path in (paths.durable, paths.visible):  # in this order: the visible one is never behind
        _look(shard, path, "reading commit records", partial(examine, path))
    visible, durable = records.get(paths.visible), records.get(paths.durable)
    try:
        shard.record, unclean = commits.trusted(visible, durable, files.boot_id())
    except CorruptError as error:
        shard.add(f"{error} Which rows exist is not known.", paths.durable.name)
        return False
    restarted = visible is not None and visible.boot_id != files.boot_id()
    if len(shard.problems) == before and unclean and not restarted:
        shard.add("It is older than the durable record: commits are lost.", paths.visible.name)
    return unclean and restarted


def _look_at_seeds(shard: Inspected, stopped: bool) -> None:
    path = shard.paths.seeds
    if shard.record is not None and shard.record.watermark == 0 and not path.exists():
        return  # never opened for writing

    def examine(content: bytes) -> list[str]:
        wrong, only_the_end = seeds.examine(content)
        return [] if only_the_end and stopped else wrong

    _look(shard, path, "reading seeds", examine)


def _open_segment(shard: Inspected, schema: Schema, store_id: str, entry: SegmentEntry) -> None:
    """Map a segment's file, or say why not."""
    paths, number = shard.paths, shard.paths.number
    name, path = identity(store_id, number, entry.number), paths.segments / entry.name
    try:
        if entry.tier == "cold":
            shard.views[entry.number] = _open_cold(shard, schema, store_id, entry)
        else:
            mapped = hot.open_segment(path, schema, name, entry.rows, entry.bytes)
            hot.check_beginning(mapped)
            closed = entry.sealed and shard.record is not None and entry.last_ordinal <= shard.record.watermark
            shard.views[entry.number] = SegmentView(number, entry, closed, False, hot=mapped)
    except ArrowRBError as error:
        shard.miss(error, entry.name, entry.number)


def _open_cold(shard: Inspected, schema: Schema, store_id: str, entry: SegmentEntry) -> SegmentView:
    """A cold segment. Where its block table is lost, its rows are still known by what their file holds."""
    paths, table = shard.paths, "" if entry.blocks is None else entry.blocks.name
    try:
        fills, kinds = read_blocks(paths.segments / table, entry)
    except ArrowRBError as error:
        shard.miss(error, table, entry.number)
        shard.without_blocks.add(entry.number)
        base = row_id_base(paths.number, entry.number)
        kinds = cold.read_kinds(paths.segments / entry.name, entry.bytes, entry.rows, base)
        fills = np.count_nonzero(kinds.reshape(-1, entry.block_rows), axis=1)
    segment = map_cold(paths, schema, store_id, entry, fills, kinds)
    return SegmentView(paths.number, entry, True, False, cold=segment)
