"""Moving a sealed segment from the hot tier to the cold one, and what eviction leaves of a segment.

Order of things, and what a crash in between leaves:

- demotion: the Parquet file is written beside under a temporary name, synced and read back (a crash leaves a temporary
  file, removed by the next writer); renamed (an unlisted file, likewise); the manifest says cold (the hot file is
  unlisted now, and removed likewise); the hot file is unlinked;
- eviction: the manifest drops the segment and keeps its run table (its other files are unlisted now, and removed
  likewise); the files are unlinked;
- merging run tables of evicted segments: the merged one is published, the manifest lists it instead, the others are
  unlinked.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..errors import CorruptError
from ..manifest import FileEntry, SegmentEntry
from ..rows import row_id_base
from ..schema import Schema
from ..tiers import cold_writing
from ..tiers.cold import ColdSegment
from ..tiers.hot import HotSegment
from .paths import ShardPaths, cold_name, identity, merged_name
from .tables import encode_table, join_runs, read_blocks, read_runs

_FOOTER_END: Final = 8  # its length, and the magic bytes


def demote(
    paths: ShardPaths, schema: Schema, store_id: str, entry: SegmentEntry, hot: HotSegment, *, durable: bool
) -> tuple[SegmentEntry, ColdSegment]:
    """Write a sealed segment's cold file; returns its entry as cold, and the file mapped."""
    path = paths.segments / cold_name(entry.number)
    name = identity(store_id, paths.number, entry.number)
    size = cold_writing.write(path, schema, name, hot, row_id_base(paths.number, entry.number), sync=durable)
    changed = replace(entry, tier="cold", name=path.name, bytes=size)
    segment = open_cold(paths, schema, store_id, changed)
    return replace(changed, footer_crc32=sum_footer(segment)), segment


def open_cold(paths: ShardPaths, schema: Schema, store_id: str, entry: SegmentEntry) -> ColdSegment:
    """Map a cold segment and its block table."""
    blocks = "" if entry.blocks is None else entry.blocks.name
    fills, kinds = read_blocks(paths.segments / blocks, entry)
    return map_cold(paths, schema, store_id, entry, fills, kinds)


def map_cold(
    paths: ShardPaths,
    schema: Schema,
    store_id: str,
    entry: SegmentEntry,
    fills: NDArray[np.int64],
    kinds: NDArray[np.uint8],
) -> ColdSegment:
    """Map a cold segment whose blocks and kinds are known."""
    segment = ColdSegment(
        paths.segments / entry.name,
        schema,
        identity(store_id, paths.number, entry.number),
        entry.bytes,
        block_rows=entry.block_rows,
        fills=fills,
        kinds=kinds,
    )
    if entry.footer_crc32 not in (None, sum_footer(segment)):
        raise CorruptError(f"Segment {entry.name} is damaged: the checksum of its footer does not agree.")
    return segment


def sum_footer(segment: ColdSegment) -> int:
    """The checksum of a cold segment's file from its footer on: of all that pages do not have one of their own for."""
    mapping = segment.mapping
    whole = mapping.array(0, mapping.size, np.uint8)
    length = int.from_bytes(whole[-_FOOTER_END:][:4].tobytes(), "little")
    return zlib.crc32(whole[max(0, mapping.size - _FOOTER_END - length) :].data)


def remove_files(paths: ShardPaths, names: Sequence[str]) -> None:
    """Unlink files that the manifest does not list any more; snapshots keep what they have mapped."""
    for name in names:
        path = paths.segments / name
        with files.explaining(path, "removing a file"):
            path.unlink(missing_ok=True)


def merge_runs(paths: ShardPaths, runs: Sequence[FileEntry], *, durable: bool) -> tuple[FileEntry, ...]:
    """Merge the newest run tables of evicted segments with those before that are no more than twice as large.

    So the tables stay few (their sizes grow in proportion), and each run is written again a few times only.

    Returns:
        The tables as they should be listed; the same as given where there is nothing to merge.
    """
    first, size = len(runs) - 1, runs[-1].bytes if runs else 0
    while first > 0 and runs[first - 1].bytes <= 2 * size:
        first -= 1
        size += runs[first].bytes
    chosen = runs[first:]
    if len(chosen) < 2:
        return tuple(runs)
    whole = join_runs(read_runs(paths.segments / file.name, file, None) for file in chosen)
    content = encode_table(whole.combine_chunks(), compression="zstd")
    name = merged_name(chosen[0].name, chosen[-1].name)
    files.publish(paths.segments / name, content, sync=durable, sync_name=False)
    return (*runs[:first], FileEntry(name, len(content), zlib.crc32(content)))
