"""Verifying: everything that a snapshot shows is held against what is written down about it, and against itself.

Of each segment: that its files can be read; kinds against ordinals; blocks (one lane each, filled from their start) and
what follows what within them; and, where it is sealed, its counts, its block table with a checksum of every column of
every block, and its run table. Of each shard: that every ordinal up to the watermark is there once, and that each lane
goes on where a block says that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ArrowRBError
from ..rows import Kind, row_id_base
from .paths import shard_paths
from .snapshot import SegmentView, Snapshot
from .tables import (
    EPISODE,
    KIND,
    LANE,
    ORDINAL,
    STEP,
    build_runs,
    checksums,
    column_of,
    read_blocks,
    read_table,
)

_CHECKED_RUNS = ("row_id", "num_rows", "num_transitions", "episode_id", "lane", "first_step", "first_ordinal", "end")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        shard, segment: where; segment is -1 for the shard as a whole.
        what: in words.
    """

    shard: int
    segment: int
    what: str


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


def verify(
    snapshot: Snapshot,
    root: Path,
    still_there: Callable[[Any], bool],
    progress: Callable[[int, int], None] | None,
) -> Verified:
    """Look at every row of a snapshot.

    Args:
        snapshot: what is visible.
        root: the store's directory.
        still_there: whether the store has a segment, or a run table of dropped ones, now.
        progress: called with the segments that are done, and all.
    """
    views, problems, num_rows = snapshot.layout.views, [], 0
    seen: dict[int, list[NDArray[Any]]] = {}
    ends: dict[int, list[_Places]] = {}
    for slot, view in enumerate(views):
        try:
            rows = _Rows(snapshot, slot)
            seen.setdefault(view.shard, []).append(rows.ordinals[rows.used])
            ends.setdefault(view.shard, []).append(rows.places())
            num_rows += rows.used.size
            problems += [Problem(view.shard, view.entry.number, what) for what in _check_segment(rows, view, root)]
        except (ArrowRBError, pa.ArrowException) as error:
            if isinstance(error.__cause__, FileNotFoundError) and not still_there(view):
                continue  # evicted meanwhile, its tables with it; its rows are held and were looked at
            problems.append(Problem(view.shard, view.entry.number, str(error)))
        if progress is not None:
            progress(slot + 1, len(views))
    problems += _check_dropped(snapshot, root, still_there)
    for shard, record in enumerate(snapshot.records):
        found = np.sort(np.concatenate([np.zeros(0, np.int64), *seen.get(shard, [])]))
        evicted = snapshot.evicted[shard].num_rows + sum(
            view.entry.num_rows for view in snapshot.layout.leaving if view.shard == shard
        )
        whole = [*_check_ordinals(found, record.watermark, evicted), *_check_lanes(ends.get(shard, []))]
        problems += [Problem(shard, -1, what) for what in whole]
    num_bytes = sum(view.entry.bytes for view in views)
    return Verified(tuple(problems), len(views), num_rows, num_bytes)


def _check_dropped(snapshot: Snapshot, root: Path, still_there: Callable[[Any], bool]) -> Iterator[Problem]:
    """The run tables that are left of dropped segments."""
    for shard, evicted in enumerate(snapshot.evicted):
        for file in evicted.runs:
            try:
                read_table(shard_paths(root, shard).segments / file.name, file)
            except ArrowRBError as error:
                if not isinstance(error.__cause__, FileNotFoundError) or still_there(file):
                    yield Problem(shard, -1, str(error))


class _Rows:
    """The system columns of one segment, decoded once."""

    def __init__(self, snapshot: Snapshot, slot: int) -> None:
        view = snapshot.layout.views[slot]
        self.base = row_id_base(view.shard, view.entry.number)
        self.schema, self.block_rows = snapshot.layout.schema, view.entry.block_rows
        self.columns = {place: np.array(view.column(place)) for place in (ORDINAL, LANE, EPISODE, STEP)}
        self.raw_kinds = np.array(view.column(KIND))
        self.kinds = snapshot.visible_kinds(slot)
        self.ordinals = self.columns[ORDINAL]
        self.used = np.flatnonzero(self.kinds)
        self.fills = np.count_nonzero(self.kinds.reshape(-1, self.block_rows), axis=1)

    def places(self) -> _Places:
        """Where blocks begin, and which tails say that their episode goes on elsewhere."""
        first = np.flatnonzero(self.fills) * self.block_rows
        last = self.used[self.kinds[self.used] == int(Kind.CONTINUED)]
        return _Places(self._keys(first), self._keys(last), last + self.base)

    def _keys(self, positions: NDArray[np.int64]) -> list[tuple[int, int, int]]:
        columns = (self.columns[place][positions].tolist() for place in (LANE, EPISODE, STEP))
        return list(zip(*columns, strict=True))


@dataclass(frozen=True, slots=True)
class _Places:
    """(lane, episode, step) of the first rows of blocks, and of tails that lead to another block."""

    begins: list[tuple[int, int, int]]
    goes_on: list[tuple[int, int, int]]
    row_ids: NDArray[np.int64]


def _check_segment(rows: _Rows, view: SegmentView, root: Path) -> Iterator[str]:
    yield from _check_rows(rows)
    entry = view.entry
    if not (entry.sealed and view.closed) or entry.runs is None or entry.blocks is None:
        return
    counts = (rows.used.size, int(np.count_nonzero(rows.kinds == int(Kind.TRANSITION))))
    if counts != (entry.num_rows, entry.num_transitions):
        yield (
            f"It holds {counts[0]:,} rows and {counts[1]:,} transitions, the manifest says {entry.num_rows:,} and "
            f"{entry.num_transitions:,}."
        )
    ordinals = rows.ordinals[rows.used]
    if ordinals.size and (ordinals.min(), ordinals.max()) != (entry.first_ordinal, entry.last_ordinal):
        yield "Its first or last ordinal is not the manifest's."
    folder = shard_paths(root, view.shard).segments
    fills, kinds = read_blocks(folder / entry.blocks.name, entry)
    if not (np.array_equal(fills, rows.fills) and np.array_equal(kinds, rows.raw_kinds)):
        yield "Its block table counts other rows, or rows of other kinds."
    if view.cold is not None and not np.array_equal(view.cold.row_ids(), rows.used + rows.base):
        yield "Its Parquet file holds other row ids."
    yield from _check_sums(rows, view, folder)
    stored = read_table(folder / entry.runs.name, entry.runs)
    made = build_runs(rows.schema, view.column, rows.kinds, block_rows=entry.block_rows, base=rows.base, starts={})
    for name in _CHECKED_RUNS:
        if not np.array_equal(column_of(stored, name), column_of(made, name)):
            yield f"Its run table has another {name} than its rows."
            break


def _check_sums(rows: _Rows, view: SegmentView, folder: Path) -> Iterator[str]:
    if view.entry.blocks is None:
        return
    table = read_table(folder / view.entry.blocks.name, view.entry.blocks)
    sums = checksums(rows.schema, view.column, view.entry.block_rows)
    for column, found in zip(rows.schema.columns, sums, strict=True):
        bad = np.flatnonzero(column_of(table, "crc32." + column.name) != found)
        if bad.size:
            where = f"in {bad.size} blocks, first {bad[0]}"
            yield f"Column {column.name!r} has other bytes than when it was sealed, {where}."


def _check_rows(rows: _Rows) -> Iterator[str]:
    """Kinds, blocks, and what follows what."""
    used, kinds = rows.used, rows.kinds[rows.used]
    if ((kinds > int(Kind.CUT)) | (rows.ordinals[used] < 1)).any():
        yield "There are rows of an unknown kind, or without an ordinal."
    block = used // rows.block_rows
    if (used - block * rows.block_rows >= rows.fills[block]).any():
        yield "There are rows behind free ones within a block."
    lane, episode, step = (rows.columns[place] for place in (LANE, EPISODE, STEP))
    first = block * rows.block_rows
    if (lane[used] != lane[first]).any():
        yield "There are rows of several lanes in one block."
    inside = used[(used + 1 < (block + 1) * rows.block_rows) & (used + 1 < first + rows.fills[block])]
    goes_on = inside[rows.kinds[inside] == int(Kind.TRANSITION)]
    wrong = (episode[goes_on] != episode[goes_on + 1]) | (step[goes_on] + 1 != step[goes_on + 1])
    if wrong.any():
        yield f"Row {rows.base + goes_on[wrong][0]} is not followed by the next step of its episode."
    if (rows.kinds[inside] == int(Kind.CONTINUED)).any():
        yield "There is a block that goes on behind a tail which says that its episode goes on in another block."
    ordered = inside[rows.ordinals[inside] >= rows.ordinals[inside + 1]]
    if ordered.size:
        yield f"Row {rows.base + ordered[0]} came after the row behind it."
    last = used[(used == first + rows.fills[block] - 1) & (used == (block + 1) * rows.block_rows - 1)]
    if (rows.kinds[last] == int(Kind.TRANSITION)).any():
        yield "A block ends in a transition, whose next observation is nowhere."


def _check_ordinals(found: NDArray[np.int64], watermark: int, evicted: int) -> Iterator[str]:
    if found.size + evicted != watermark:
        yield f"There are {found.size:,} rows and {evicted:,} were dropped, but {watermark:,} were committed."
    if found.size and ((np.diff(found) == 0).any() or found[0] < 1 or found[-1] > watermark):
        yield "There are ordinals twice, or beyond the watermark."


def _check_lanes(places: list[_Places]) -> Iterator[str]:
    """Every tail that says so leads to a block that begins with its observation; the newest may still wait."""
    begins = {key for each in places for key in each.begins}
    lost = [row for each in places for key, row in zip(each.goes_on, each.row_ids, strict=True) if key not in begins]
    waiting = {key[0] for each in places for key in each.goes_on if key not in begins}
    if len(lost) > len(waiting):
        yield f"Row {lost[0]} says that its episode goes on in another block, and none begins so."


__all__ = ["Problem", "Verified", "verify"]
