"""What is held against what in the rows of one segment, and of all segments of a shard. Nothing here opens files.

Of a segment: kinds against ordinals, blocks (one lane each, filled from their start) and what follows what within
them; and, where it is sealed, its counts, its block table with a checksum of every column of every block, and its run
table. Of a shard: that every ordinal up to the watermark is there once, and that each lane goes on where a block says
that it does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import kernels
from ..errors import CorruptError
from ..rows import Kind, row_id_base
from ..schema import Schema
from ..tiers.cold import ROW_ID, ColdSegment
from .snapshot import SegmentView
from .tables import EPISODE, KIND, LANE, ORDINAL, STEP, build_runs, checksums, column_of

_SYSTEM = (ORDINAL, LANE, EPISODE, STEP)
_ALIGNMENT = 64
_MOST_SPARSE = 8  # times as many numbers as there are, at most, for which a table of all is kept
_RECOMPUTED = (
    "row_id",
    "num_rows",
    "num_transitions",
    "episode_id",
    "lane",
    "first_step",
    "return",
    "first_time",
    "last_time",
    "first_ordinal",
    "last_ordinal",
    "end",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        shard, segment: where; -1 for the store, or for the shard, as a whole.
        what: in words.
        file: the file's name, where one is to blame.
        column: likewise, by its name in the schema.
        rows: first and stop of the row ids among which it is, where that is known.
    """

    shard: int
    segment: int
    what: str
    file: str = ""
    column: str = ""
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """(lane, episode, step) of the first rows of blocks, and of tails that lead to another block."""

    begins: list[tuple[int, int, int]]
    goes_on: list[tuple[int, int, int]]
    row_ids: NDArray[np.int64]


class Memory:
    """Memory for the columns of one segment after the other: to give it back and take it anew costs more than to read.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._whole = np.empty(0, np.uint8)

    def columns(self, schema: Schema, rows: int) -> list[NDArray[Any]]:
        """An array [rows, *shape] a column, with anything in it; those that were given before are given once more."""
        sizes = [-(-rows * column.item_bytes // _ALIGNMENT) * _ALIGNMENT for column in schema.columns]
        if sum(sizes) > self._whole.size:
            self._whole = np.empty(sum(sizes), np.uint8)
        arrays, first = [], 0
        for column, size in zip(schema.columns, sizes, strict=True):
            part = self._whole[first : first + rows * column.item_bytes]
            arrays.append(part.view(column.storage).reshape(rows, *column.shape))
            first += size
        return arrays


class Rows:
    """The rows of one segment, each column read once, whatever else of it cannot be.

    Attributes:
        problems: columns that cannot be read, and where.
        bad: places of the columns that cannot be read, or are known to hold other bytes.
        kinds: of the visible rows, 0 elsewhere.
        used: positions of the visible rows.
        fills: visible rows of each block.
        whole: whether all system columns could be read, without which nothing can be said of what follows what.
    """

    def __init__(self, view: SegmentView, schema: Schema, watermark: int, memory: Memory) -> None:
        self.view, self.schema, self.block_rows = view, schema, view.entry.block_rows
        self.base = row_id_base(view.shard, view.entry.number)
        self.problems: list[Problem] = []
        self.bad: set[int] = set()
        self._columns = self._read_all(memory)
        self.raw_kinds = self.column(KIND)
        self.kinds = view.visible_kinds(watermark)
        self.used = np.flatnonzero(self.kinds)
        self.fills = np.count_nonzero(self.kinds.reshape(-1, self.block_rows), axis=1)
        self.whole = self.bad.isdisjoint((*_SYSTEM, KIND))

    def column(self, place: int) -> NDArray[Any]:
        """A column, all allocated rows; zeros where it cannot be read."""
        return self._columns[place]

    def _read_all(self, memory: Memory) -> list[NDArray[Any]]:
        places = range(len(self.schema.columns))
        if self.view.cold is not None:
            with contextlib.suppress(CorruptError):  # which of them it is, is told when they are read one by one
                return self.view.cold.whole(places, into=memory.columns(self.schema, self.view.cold.rows))
        return [self._read(place) for place in places]

    def _read(self, place: int) -> NDArray[Any]:
        column, cold = self.schema.columns[place], self.view.cold
        if cold is None:
            return self.view.column(place)
        try:
            return cold.column(place)
        except CorruptError:
            self.bad.add(place)
        for group in range(cold.num_groups):
            try:
                cold.decode(group, [place])
            except CorruptError as error:
                self.problems.append(self.damaged_group(cold, group, column.name, error))
        if place == KIND:
            return cold.kinds.copy()
        return np.zeros((cold.rows, *column.shape), column.storage)

    def damaged_group(self, cold: ColdSegment, group: int, column: str, error: Exception) -> Problem:
        """A row group of which a column cannot be read."""
        first, stop = cold.positions(group)
        return self.problem(str(error), file=self.view.entry.name, column=column, rows=(first, stop))

    def problem(
        self,
        what: str,
        *,
        file: str = "",
        column: str = "",
        rows: tuple[int, int] | None = None,
        row: int | None = None,
    ) -> Problem:
        """A problem of this segment; ``rows`` and ``row`` are positions."""
        if row is not None:
            rows = row, row + 1
        ids = None if rows is None else (self.base + int(rows[0]), self.base + int(rows[1]))
        return Problem(self.view.shard, self.view.entry.number, what, file or self.view.entry.name, column, ids)

    @property
    def ordinals(self) -> NDArray[np.int64]:
        """Of the visible rows."""
        found: NDArray[np.int64] = self.column(ORDINAL)[self.used]
        return found

    def single_values(
        self, kinds: NDArray[np.uint8], span: NDArray[np.int64] | slice
    ) -> dict[int, tuple[NDArray[Any], int]]:
        """Of some rows the values that are there, and how many are missing, by place; vectors and what is bad left out.

        ``kinds`` are those of all rows. Row ids are among them, at -1.
        """
        is_transition = kinds[span] == Kind.TRANSITION
        places = {column.name: place for place, column in enumerate(self.schema.columns)}
        positions = np.arange(span.start, span.stop) if isinstance(span, slice) else span
        found: dict[int, tuple[NDArray[Any], int]] = {-1: (positions + self.base, 0)}
        for place, column in enumerate(self.schema.columns):
            mask = self.schema.masks.get(column.name)
            needed = {place} if mask is None else {place, places[mask]}
            if column.shape or not self.bad.isdisjoint(needed):
                continue
            there = is_transition if column.owner == "transition" else np.ones(is_transition.size, np.bool_)
            if mask is not None:
                there = there & (self.column(places[mask])[span] != 0)
            values = self.column(place)[span]
            num_missing = int(there.size - np.count_nonzero(there))
            found[place] = values[there] if num_missing else values, num_missing
        return found

    def places(self) -> Places:
        """Where blocks begin, and which tails say that their episode goes on elsewhere."""
        first = np.flatnonzero(self.fills) * self.block_rows
        last = self.used[self.kinds[self.used] == int(Kind.CONTINUED)]
        return Places(self._keys(first), self._keys(last), last + self.base)

    def _keys(self, positions: NDArray[np.int64]) -> list[tuple[int, int, int]]:
        columns = (self.column(place)[positions].tolist() for place in (LANE, EPISODE, STEP))
        return list(zip(*columns, strict=True))


_DISORDER: Final = (  # in the order of what the kernel finds
    "There are rows of an unknown kind, or without an ordinal",
    "There are rows behind free ones within a block",
    "There are rows of several lanes in one block",
    "A row is not followed by the next step of its episode",
    "A block goes on behind a tail which says that its episode goes on in another block",
    "A row came after the row behind it",
    "A block ends in a transition, whose next observation is nowhere",
)


def check_rows(rows: Rows) -> Iterator[Problem]:
    """Kinds, blocks, and what follows what. The system columns must be whole."""
    found = np.zeros((len(_DISORDER), 2), np.int64)
    columns = [np.ascontiguousarray(rows.column(place)) for place in (LANE, EPISODE, STEP, ORDINAL)]
    kernels.find_disorder(rows.kinds, rows.fills, *columns, rows.block_rows, found)
    for what, (first, count) in zip(_DISORDER, found.tolist(), strict=True):
        if count:
            more = f" ({count:,} times)" if count > 1 else ""
            yield rows.problem(f"{what}: row {rows.base + first}{more}.", row=first)


def check_counts(rows: Rows) -> Iterator[Problem]:
    """A sealed segment against its entry in the manifest."""
    entry = rows.view.entry
    counts = (rows.used.size, int(np.count_nonzero(rows.kinds == int(Kind.TRANSITION))))
    if counts != (entry.num_rows, entry.num_transitions):
        yield rows.problem(
            f"It holds {counts[0]:,} rows and {counts[1]:,} transitions, the manifest says {entry.num_rows:,} and "
            f"{entry.num_transitions:,}."
        )
    if ORDINAL in rows.bad:
        return
    ordinals = rows.ordinals
    if ordinals.size and (ordinals.min(), ordinals.max()) != (entry.first_ordinal, entry.last_ordinal):
        yield rows.problem("Its first or last ordinal is not the manifest's.", column="ordinal")


def check_statistics(rows: Rows, cold: ColdSegment) -> Iterator[Problem]:
    """What a cold segment's footer says of the values in its row groups."""
    for group in range(cold.num_groups):
        try:
            wrong = cold.wrong_statistics(group, rows.single_values(cold.kinds, cold.group_spans[group]))
        except CorruptError as error:
            yield rows.problem(str(error))
            return
        if wrong:
            names = [ROW_ID if place < 0 else rows.schema.columns[place].name for place in wrong]
            what = (
                f"Its footer says of row group {group} what is not so of {', '.join(names)}: queries may pass it over."
            )
            yield rows.problem(what, column=names[0], rows=cold.positions(group))


def check_row_ids(rows: Rows, cold: ColdSegment) -> Iterator[Problem]:
    """The row ids that a cold segment's file holds."""
    ids: list[NDArray[np.int64]] = []
    for group in range(cold.num_groups):
        try:
            ids.append(cold.group_row_ids(group))
        except CorruptError as error:
            yield rows.damaged_group(cold, group, ROW_ID, error)
    if len(ids) == cold.num_groups:
        found = np.concatenate([np.zeros(0, np.int64), *ids])
        if not np.array_equal(found, rows.used + rows.base):
            yield rows.problem("It holds other row ids than the manifest and its block table say.", column=ROW_ID)


def check_blocks(rows: Rows, table: pa.Table, name: str) -> Iterator[Problem]:
    """A sealed segment against its block table: what is in which block, and the bytes of all columns."""
    fills = column_of(table, "rows")
    kinds = b"".join(table["kinds"].to_pylist())
    if KIND not in rows.bad and not (np.array_equal(fills, rows.fills) and kinds == rows.raw_kinds.tobytes()):
        yield rows.problem(f"It has other rows, or rows of other kinds, than {name} counts.", column="kind")
    places = {column.name: place for place, column in enumerate(rows.schema.columns)}
    sums = checksums(rows.schema, rows.column, rows.block_rows)
    for place, (column, found) in enumerate(zip(rows.schema.columns, sums, strict=True)):
        mask = rows.schema.masks.get(column.name)
        if place in rows.bad or (mask is not None and places[mask] in rows.bad):
            continue
        bad = np.flatnonzero(column_of(table, "crc32." + column.name) != found)
        if bad.size:
            rows.bad.add(place)
            which = f"block {bad[0]}" if bad.size == 1 else f"{bad.size:,} blocks of {bad[0]} to {bad[-1]}"
            span = int(bad[0]) * rows.block_rows, (int(bad[-1]) + 1) * rows.block_rows
            what = f"Column {column.name!r} has other bytes than when it was sealed, in {which}."
            yield rows.problem(what, column=column.name, rows=span)


def check_runs(rows: Rows, table: pa.Table, name: str) -> Iterator[Problem]:
    """A sealed segment against its run table. The columns that it is made of must be whole."""
    made = build_runs(rows.schema, rows.column, rows.kinds, block_rows=rows.block_rows, base=rows.base, starts={})
    if table.schema != made.schema:
        yield rows.problem("It has other columns than a run table.", file=name)
        return
    for column in _RECOMPUTED:
        if _bytes_of(table, column) != _bytes_of(made, column):
            yield rows.problem(f"It has another {column} than the rows of {rows.view.entry.name}.", file=name)
            return


def _bytes_of(table: pa.Table, name: str) -> bytes:
    """The numbers of a column, vectors flattened: NaN is equal to itself so."""
    column = table[name]
    if pa.types.is_fixed_size_list(column.type):
        return b"".join(chunk.flatten().to_numpy().tobytes() for chunk in column.chunks)
    return column_of(table, name).tobytes()


def check_ordinals(parts: list[NDArray[np.int64]], watermark: int, elsewhere: int | None) -> Iterator[str]:
    """Every ordinal up to the watermark is there once.

    Args:
        parts: the ordinals of all rows that could be read.
        watermark: of the newest commit.
        elsewhere: rows that were dropped or cannot be read; None where that is not known.
    """
    found = np.concatenate([np.zeros(0, np.int64), *parts])
    if elsewhere is not None and found.size + elsewhere != watermark:
        yield (
            f"{watermark:,} rows were committed, but {found.size:,} are there and {elsewhere:,} were dropped or cannot "
            "be read."
        )
    if found.size and (found.min() < 1 or found.max() > watermark or not _all_differ(found)):
        yield "There are ordinals twice, or beyond the watermark."


def _all_differ(numbers: NDArray[np.int64]) -> bool:
    """Whether no number is there twice; fast where they lie close together."""
    least = int(numbers.min())
    span = int(numbers.max()) - least + 1
    if span > _MOST_SPARSE * numbers.size:
        return np.unique(numbers).size == numbers.size
    seen = np.zeros(span, np.bool_)
    seen[numbers - least] = True
    return int(np.count_nonzero(seen)) == numbers.size


def check_lanes(places: Mapping[int, Places], set_aside: int = -1) -> Iterator[tuple[int, int, str]]:
    """Every tail that says so leads to a block that begins with its observation; the newest may still wait.

    Args:
        places: by number of segment.
        set_aside: up to which number segments were set aside or dropped, to which those before may have led.

    Yields:
        Number of the segment, row id, and what is wrong.
    """
    begins = {key for each in places.values() for key in each.begins}
    lost = [
        (number, key, row)
        for number, each in places.items()
        for key, row in zip(each.goes_on, each.row_ids.tolist(), strict=True)
        if key not in begins and number > set_aside
    ]
    if len(lost) > len({key[0] for _, key, _ in lost}):
        number, _, row = lost[0]
        yield number, row, f"Row {row} says that its episode goes on in another block, and none begins so."
