"""What the files of a shard tell where its manifest or its commits cannot be read."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import files
from ..commits import Record
from ..errors import ArrowRBError, CorruptError
from ..manifest import Evicted, FileEntry, Manifest, SegmentEntry
from ..rows import Kind, first_episode
from ..schema import Schema
from ..tiers import hot
from .inspecting import Inspected
from .paths import ShardPaths, cold_name, identity, segment_name
from .tables import EPISODE, ORDINAL, TIME, column_of, decode_table
from .tiering import map_cold

_SEGMENT: Final = re.compile(r"(\d{8})\.(arrow|parquet)")
_RUNS: Final = re.compile(r"(\d{8})(?:-(\d{8}))?\.runs\.arrow")
_BEHIND: Final = 1 << 20  # what a manifest counts that is lost: beyond all that was given


def rebuild_manifest(paths: ShardPaths, schema: Schema, store_id: str) -> tuple[Manifest, list[tuple[Path, str]]]:
    """A manifest of the segments that the shard's folder holds, and the files that cannot be part of it, with why.

    Hot segments are listed as open ones, whose rows are looked at by the next writer. What retention had dropped is
    known by run tables only.
    """
    names = sorted(path.name for path in paths.segments.iterdir())
    numbers = sorted({int(found[1]) for name in names if (found := _SEGMENT.fullmatch(name))})
    entries: list[SegmentEntry] = []
    unusable: list[tuple[Path, str]] = []
    for number in numbers:
        for name, look in ((cold_name(number), _cold_entry), (segment_name(number), _hot_entry)):
            if name not in names or (entries and entries[-1].number == number):
                continue
            try:
                entries.append(look(paths, schema, store_id, number))
            except ArrowRBError as error:
                unusable.append((paths.segments / name, str(error)))
    listed = {file.name for entry in entries for file in (entry.blocks, entry.runs) if file is not None}
    runs, last = _dropped(paths, [name for name in names if name not in listed], {entry.number for entry in entries})
    manifest = Manifest(
        paths.number,
        "main" if paths.number == 0 else f"shard-{paths.number}",
        sequence=_BEHIND,
        times_opened=int(time.time()),  # generators that are seeded by it must not begin as they did before
        next_segment=max([last, *numbers], default=-1) + 1,
        segments=tuple(entries),
        evicted=Evicted(runs=tuple(runs)),
    )
    return manifest, unusable


def _hot_entry(paths: ShardPaths, schema: Schema, store_id: str, number: int) -> SegmentEntry:
    path = paths.segments / segment_name(number)
    _, rows, block_rows, size = hot.read_shape(path)
    hot.open_segment(path, schema, identity(store_id, paths.number, number), rows, size)
    return SegmentEntry(number, rows, block_rows, "hot", path.name, size)


def _cold_entry(paths: ShardPaths, schema: Schema, store_id: str, number: int) -> SegmentEntry:
    """A cold segment by its file and its tables."""
    path = paths.segments / cold_name(number)
    blocks, table = _read_table(paths.segments / f"{number:08d}.blocks.arrow")
    runs, _ = _read_table(paths.segments / f"{number:08d}.runs.arrow")
    try:
        kinds = table["kinds"].combine_chunks()
        whole = np.frombuffer(b"".join(kinds.to_pylist()), np.uint8)
        fills, block_rows = column_of(table, "rows").copy(), int(kinds.type.byte_width)
    except (pa.ArrowException, KeyError, AttributeError, TypeError) as error:
        raise CorruptError(f"{blocks.name} is no block table: {error!r}.") from None
    size = path.stat().st_size
    counts = int(np.count_nonzero(whole)), int(np.count_nonzero(whole == int(Kind.TRANSITION)))
    entry = SegmentEntry(
        number, whole.size, block_rows, "cold", path.name, size, True, *counts, blocks=blocks, runs=runs
    )
    segment = map_cold(paths, schema, store_id, entry, fills, whole)
    used = np.flatnonzero(whole)
    ordinals, times = segment.column(ORDINAL)[used], segment.column(TIME)[used]
    if not used.size:
        return entry
    return replace(
        entry,
        first_ordinal=int(ordinals.min()),
        last_ordinal=int(ordinals.max()),
        first_time=int(times.min()),
        last_time=int(times.max()),
    )


def _read_table(path: Path) -> tuple[FileEntry, pa.Table]:
    content = files.read_file(path, "reading a table")
    return FileEntry(path.name, len(content), zlib.crc32(content)), decode_table(content, path.name)


def _dropped(paths: ShardPaths, names: list[str], there: set[int]) -> tuple[list[FileEntry], int]:
    """Run tables of segments that are not there any more, and the highest number that one speaks of."""
    spans: list[tuple[int, int, str]] = []
    for name in names:
        found = _RUNS.fullmatch(name)
        if found:
            spans.append((int(found[1]), int(found[2] or found[1]), name))
    chosen: list[FileEntry] = []
    last, covered = -1, -1
    for first, stop, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        if first in there or stop <= covered:
            continue  # its segment is there, or a merged table holds it
        try:
            chosen.append(_read_table(paths.segments / name)[0])
        except ArrowRBError:
            continue
        covered, last = stop, max(last, stop)
    return chosen, last


def find_commit(shard: Inspected) -> Record:
    """The newest commit, by the rows: ordinals that follow on what is sealed, up to the first that is missing."""
    manifest = shard.manifest
    if manifest is None:
        raise CorruptError(f"{shard.paths.root} has no manifest.")
    sealed = [entry.last_ordinal for entry in manifest.segments if entry.sealed]
    beyond = np.sort(np.concatenate([np.zeros(0, np.int64), *_open_ordinals(shard)]))
    watermark = max([manifest.evicted.last_ordinal, *sealed], default=0)
    if watermark == 0 and beyond.size:
        watermark = int(beyond[0]) - 1
    beyond = np.unique(beyond[beyond > watermark])
    if beyond.size:
        gaps = np.flatnonzero(np.diff(beyond, prepend=watermark) != 1)
        count = int(gaps[0]) if gaps.size else beyond.size
        watermark = int(beyond[count - 1]) if count else watermark
    transitions, next_episode = 0, first_episode(shard.paths.number)
    for entry in manifest.segments:
        view = shard.views.get(entry.number)
        if view is None:
            transitions += entry.num_transitions
            continue
        kinds = view.visible_kinds(watermark)
        transitions += int(np.count_nonzero(kinds == int(Kind.TRANSITION)))
        if kinds.any():
            next_episode = max(next_episode, int(view.column(EPISODE)[kinds != 0].max()) + 1)
    for file in manifest.evicted.runs:
        try:
            _, runs = _read_table(shard.paths.segments / file.name)
        except ArrowRBError:
            continue
        transitions += 0 if manifest.evicted.num_transitions else int(column_of(runs, "num_transitions").sum())
        next_episode = max(next_episode, int(column_of(runs, "episode_id").max(initial=-1)) + 1)
    total = min(transitions + manifest.evicted.num_transitions, watermark)
    return Record(_BEHIND << 20, watermark, total, next_episode, next_episode)


def _open_ordinals(shard: Inspected) -> Iterator[NDArray[np.int64]]:
    for view in shard.views.values():
        if not view.entry.sealed:
            ordinals = view.column(ORDINAL)
            yield ordinals[ordinals > 0]
