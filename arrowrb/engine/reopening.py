"""Looking over a shard that an earlier writer left: what its open segments hold, and where every lane left off.

Reads eight bytes a row of the open segments and a few rows of each block; never the data of sealed segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import checkpoints, files, kernels
from ..commits import Record
from ..errors import CorruptError
from ..manifest import Manifest, SegmentEntry
from ..recovery import BlockEnd, LanePlan, WaitingCopy, plan_lanes
from ..rows import End, Kind, row_id_base
from ..tiers.hot import HotSegment
from ..writer import MAX_LANES, OpenSegment
from .keeping import no_checkpoint_is_made
from .paths import ShardPaths, is_leftover
from .tables import EPISODE, KIND, LANE, ORDINAL, STEP, TIME, column_of, read_runs

_NEAR_SEGMENTS = 4  # a waiting copy lies at most so many segments after the tail that leads to it


def remove_leftovers(paths: ShardPaths, manifest: Manifest) -> None:
    """Remove files of ours that nothing lists; only the lock's holder may."""
    known = manifest.files
    _remove(path for path in paths.segments.iterdir() if path.name not in known and is_leftover(path.name))
    _remove(_temporary(paths.root))
    store = paths.root.parent.parent
    if _temporary(store / checkpoints.FOLDER):
        with no_checkpoint_is_made(store) as allowed:
            _remove(_temporary(store / checkpoints.FOLDER) if allowed else [])


def _temporary(folder: Path) -> list[Path]:
    names = list(folder.iterdir()) if folder.is_dir() else []
    return [path for path in names if path.name.startswith(".") and path.name.endswith(".tmp")]


def _remove(leftovers: Iterable[Path]) -> None:
    for path in list(leftovers):
        if not path.is_dir():
            with files.explaining(path, "removing a leftover file"):
                path.unlink(missing_ok=True)


def survey(
    paths: ShardPaths, manifest: Manifest, hot: Mapping[int, HotSegment], record: Record
) -> tuple[list[OpenSegment], list[LanePlan]]:
    """Undo rows beyond the record and see where every lane left off."""
    segments: list[OpenSegment] = []
    ends: list[BlockEnd] = []
    copies: list[WaitingCopy] = []
    for entry in manifest.segments:
        if entry.sealed or entry.tier != "hot":
            continue
        mapped = hot[entry.number]
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
    ends += _sealed_ends(paths, manifest, {copy.segment for copy in copies})
    plans = plan_lanes(ends, copies)
    plans = [plan for plan in plans if any(s.entry.number == plan.segment for s in segments)]
    reach = {s.entry.number: s.used_blocks for s in segments}
    for plan in plans:
        rows = next(s.entry.block_rows for s in segments if s.entry.number == plan.segment)
        reach[plan.segment] = max(reach[plan.segment], plan.stop // rows)
    return [replace(s, used_blocks=reach[s.entry.number]) for s in segments], plans


def close_off(
    segments: Sequence[OpenSegment], plans: Iterable[LanePlan], left: Set[int]
) -> tuple[list[OpenSegment], set[int]]:
    """Use up what is free in the segments that are ``left``; and those of them that hold nothing, which may go.

    Returns:
        The segments that stay, and the numbers of the others.
    """
    led_to = {plan.segment for plan in plans}
    empty = {each.entry.number for each in segments if not each.last_ordinal and each.entry.number in left - led_to}
    filled = [each.filled() if each.entry.number in left else each for each in segments]
    return [each for each in filled if each.entry.number not in empty], empty


def newest_time(segments: Iterable[OpenSegment]) -> int:
    """The time of the newest row that these hold, in microseconds; 0 where there is none."""
    newest = 0
    for segment in segments:
        times = segment.hot.column(TIME)[segment.hot.column(KIND) != 0]
        newest = max(newest, int(times.max(initial=0)))
    return newest


def _sealed_ends(paths: ShardPaths, manifest: Manifest, near: set[int]) -> list[BlockEnd]:
    """Ends of runs that go on elsewhere, of sealed segments shortly before these."""
    ends = []
    for entry in manifest.segments:
        if not entry.sealed or entry.runs is None:
            continue
        if not any(0 <= number - entry.number <= _NEAR_SEGMENTS for number in near):
            continue
        base = row_id_base(manifest.shard, entry.number)
        runs = read_runs(paths.segments / entry.runs.name, entry.runs, (base, base + entry.rows))
        going_on = np.flatnonzero(column_of(runs, "end") == End.CONTINUED)
        position = column_of(runs, "row_id") - base + column_of(runs, "num_rows") - 1
        step = column_of(runs, "first_step") + column_of(runs, "num_transitions")
        values = (
            column_of(runs, "lane"),
            position,
            column_of(runs, "last_ordinal"),
            column_of(runs, "episode_id"),
            step,
        )
        for lane, at, ordinal, episode, count in zip(*(each[going_on].tolist() for each in values), strict=True):
            ends.append(BlockEnd(entry.number, lane, at, at + 1, ordinal, Kind.CONTINUED, episode, count))
    return ends


def _block_ends(entry: SegmentEntry, mapped: HotSegment, fills: NDArray[np.int32]) -> list[BlockEnd]:
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


def _waiting_copies(entry: SegmentEntry, mapped: HotSegment, fills: NDArray[np.int32]) -> list[WaitingCopy]:
    """First rows of blocks without committed rows that name an episode past its first step."""
    blocks = np.flatnonzero(fills == 0)
    first = blocks * entry.block_rows
    values = [mapped.column(place)[first].tolist() for place in (LANE, EPISODE, STEP)]
    return [
        WaitingCopy(entry.number, lane, position, position + entry.block_rows, episode, step)
        for position, lane, episode, step in zip(first.tolist(), *values, strict=True)
        if step > 0
    ]
