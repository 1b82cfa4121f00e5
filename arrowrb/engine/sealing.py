"""Sealing: what a closed segment's manifest entry says of it, and its tables."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .. import files
from ..manifest import FileEntry, Manifest, SegmentEntry
from ..rows import row_id_base
from ..schema import Schema
from ..tiers.hot import HotSegment
from ..writer import OpenSegment
from .paths import ShardPaths
from .tables import (
    KIND,
    ORDINAL,
    TIME,
    Starts,
    block_starts,
    build_blocks,
    build_runs,
    column_of,
    encode_table,
    read_runs,
)


def write_tables(
    paths: ShardPaths,
    schema: Schema,
    manifest: Manifest,
    hot: Mapping[int, HotSegment],
    segment: OpenSegment,
    *,
    durable: bool,
) -> SegmentEntry:
    """Write a closed segment's tables beside it, whose names are to be synced; returns its entry as sealed."""
    entry, mapped = segment.entry, segment.hot
    base = row_id_base(manifest.shard, entry.number)
    starts = _starts_from(paths, manifest, hot, entry.number)
    kinds = mapped.column(KIND)
    runs = build_runs(schema, mapped.column, kinds, block_rows=entry.block_rows, base=base, starts=starts)
    blocks = build_blocks(schema, mapped, segment.fills, block_rows=entry.block_rows, starts=starts)
    written = []
    for suffix, table in (("runs", runs), ("blocks", blocks)):
        content = encode_table(table)
        path = paths.segments / f"{entry.number:08d}.{suffix}.arrow"
        files.publish(path, content, sync=durable, sync_name=False)
        written.append(FileEntry(path.name, len(content), zlib.crc32(content)))
    times = mapped.column(TIME)[kinds != 0]
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


def _starts_from(paths: ShardPaths, manifest: Manifest, hot: Mapping[int, HotSegment], number: int) -> Starts:
    """Where episodes go on: first rows of the blocks of this segment and of those that came after it."""
    starts: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for entry in manifest.segments:
        if entry.number < number:
            continue
        base = row_id_base(manifest.shard, entry.number)
        if entry.sealed and entry.runs is not None:
            runs = read_runs(paths.segments / entry.runs.name, entry.runs, (base, base + entry.rows))
            first = np.flatnonzero((column_of(runs, "row_id") - base) % entry.block_rows == 0)
            names = ("lane", "episode_id", "first_step", "first_ordinal", "row_id")
            for lane, episode, step, ordinal, row_id in zip(
                *(column_of(runs, name)[first].tolist() for name in names), strict=True
            ):
                starts.setdefault((lane, episode, step), []).append((ordinal, row_id))
        else:
            mapped = hot[entry.number]
            for key, place in block_starts(mapped.column, block_rows=entry.block_rows, base=base):
                starts.setdefault(key, []).append(place)
    return starts
