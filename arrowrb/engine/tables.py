"""Block and run tables: what sealing knows for good about a segment, so that nothing has to search its rows.

*Blocks*: lane, committed rows, row id of the lane's next block (-1: none), the rows' kinds (by which rows are drawn
when they lie in Parquet), and a CRC-32 of each column's bytes.
*Runs*: one row a run of an episode, with its return, times, end and continuation. A segment's runs outlive its rows.
Both are small Arrow IPC files beside the segment; their own checksums stand in the manifest.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import files, kernels
from ..errors import CorruptError
from ..manifest import FileEntry, SegmentEntry
from ..rows import End, Kind
from ..schema import Schema
from ..tiers.decoding import READING_ERRORS, plainly
from ..tiers.hot import HotSegment
from .runs import Runs, find_runs

# Places of the system columns.
ORDINAL, TIME, EPISODE, LANE, STEP, POLICY, KIND, TERMINATED, TRUNCATED = range(9)
_SMALL_BYTES = 64 << 10
_WAITING = 1 << 62  # later than every ordinal


Starts = Mapping[tuple[int, int, int], Sequence[tuple[int, int]]]
"""(lane, episode id, step) of the first rows of blocks -> their (ordinal, row id); ordinal 0 waits as a copy.

There may be several of one key where ids were given more than once.
"""


def follow(starts: Starts, key: tuple[int, int, int], ordinal: int) -> int:
    """The row id at which the episode goes on behind a tail of this ordinal, or -1: the first that came after it."""
    places = starts.get(key, ())
    later = [(first or _WAITING, row_id) for first, row_id in places if first == 0 or first > ordinal]
    return min(later)[1] if later else -1


_BEFORE_RETURN: Final = (
    pa.field("row_id", pa.int64(), nullable=False),
    pa.field("num_rows", pa.int64(), nullable=False),
    pa.field("num_transitions", pa.int64(), nullable=False),
    pa.field("episode_id", pa.int64(), nullable=False),
    pa.field("lane", pa.int32(), nullable=False),
    pa.field("first_step", pa.int64(), nullable=False),
)
_BEHIND_RETURN: Final = (
    pa.field("first_time", pa.int64(), nullable=False),
    pa.field("last_time", pa.int64(), nullable=False),
    pa.field("first_ordinal", pa.int64(), nullable=False),
    pa.field("last_ordinal", pa.int64(), nullable=False),
    pa.field("end", pa.uint8(), nullable=False),
    pa.field("continuation", pa.int64(), nullable=False),
)


def runs_schema(schema: Schema) -> pa.Schema:
    """The columns of a run table. ``return`` is a list where rewards are vectors."""
    reward = schema.column("reward")
    value = pa.float64() if not reward.shape else pa.list_(pa.float64(), reward.num_elements)
    return pa.schema([*_BEFORE_RETURN, pa.field("return", value, nullable=False), *_BEHIND_RETURN])


def build_runs(
    schema: Schema,
    column: Callable[[int], NDArray[Any]],
    kinds: NDArray[np.uint8],
    *,
    block_rows: int,
    base: int,
    starts: Starts,
) -> pa.Table:
    """The run table of one segment.

    Args:
        schema: the store's schema.
        column: a segment's column by its place in the schema.
        kinds: kinds of the rows, 0 where a row is not visible.
        block_rows: rows in a block.
        base: row id of the segment's first row.
        starts: where episodes go on in other blocks.
    """
    episodes, steps, lanes = column(EPISODE), column(STEP), column(LANE)
    times, ordinals = column(TIME), column(ORDINAL)
    runs = find_runs(kinds, episodes, steps, column(TERMINATED), column(TRUNCATED), block_rows)
    last = runs.first + runs.num_rows - 1
    continuation = np.full(runs.first.size, -1, np.int64)
    going_on = np.flatnonzero(runs.end == int(End.CONTINUED))
    keys = zip(*(values[last[going_on]].tolist() for values in (lanes, episodes, steps, ordinals)), strict=True)
    for i, (lane, episode, step, ordinal) in zip(going_on.tolist(), keys, strict=True):
        continuation[i] = follow(starts, (lane, episode, step), ordinal)
    arrays = [
        runs.first + base,
        runs.num_rows,
        runs.num_transitions,
        episodes[runs.first],
        lanes[runs.first],
        runs.first_step,
        _returns(schema, column, runs),
        times[runs.first],
        times[last],
        ordinals[runs.first],
        ordinals[last],
        runs.end.astype(np.uint8),
        continuation,
    ]
    columns = [each if isinstance(each, pa.Array) else _array(each) for each in arrays]
    return pa.Table.from_arrays(columns, schema=runs_schema(schema))


def _returns(schema: Schema, column: Callable[[int], NDArray[Any]], runs: Runs) -> pa.Array:
    """Sums of rewards in float64, one a run."""
    place = [each.name for each in schema.columns].index("reward")
    spec = schema.columns[place]
    rewards = column(place).reshape(-1, spec.num_elements)
    if spec.dtype == "bfloat16":
        rewards = (rewards.astype(np.uint32) << 16).view(np.float32)
    sums = np.zeros((runs.first.size, spec.num_elements), np.float64)
    some = runs.num_transitions > 0
    if some.any():
        # A tail's reward is zero bytes (it was never written), so that whole runs can be summed.
        stop = runs.first + runs.num_transitions
        edges = np.stack([runs.first[some], stop[some]], axis=1).ravel()
        padded = np.concatenate([rewards, np.zeros((1, spec.num_elements), rewards.dtype)])
        with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs, NaN
            sums[some] = np.add.reduceat(padded, edges, axis=0, dtype=np.float64)[::2]
    if not spec.shape:
        return _array(sums[:, 0])
    return pa.FixedSizeListArray.from_arrays(_array(sums.ravel()), spec.num_elements)


def block_starts(
    column: Callable[[int], NDArray[Any]], *, block_rows: int, base: int
) -> list[tuple[tuple[int, int, int], tuple[int, int]]]:
    """((lane, episode, step), (ordinal, row id)) of the first row of every block, copies that still wait included."""
    first = np.arange(0, column(LANE).size, block_rows)
    keys = zip(*(column(place)[first].tolist() for place in (LANE, EPISODE, STEP)), strict=True)
    return list(zip(keys, zip(column(ORDINAL)[first].tolist(), (first + base).tolist(), strict=True), strict=True))


def build_blocks(
    schema: Schema,
    hot: HotSegment,
    fills: NDArray[np.int32],
    *,
    block_rows: int,
    starts: Starts,
) -> pa.Table:
    """The block table of a closed segment."""
    count = hot.rows // block_rows
    rows = np.zeros(count, np.int64)
    rows[: fills.size] = fills
    lanes, kinds = hot.column(LANE), hot.column(KIND)
    episodes, steps, ordinals = hot.column(EPISODE), hot.column(STEP), hot.column(ORDINAL)
    next_block = np.full(count, -1, np.int64)
    used = np.flatnonzero(rows)
    last = used * block_rows + rows[used] - 1
    going_on = np.flatnonzero(kinds[last] == int(Kind.CONTINUED))
    columns = (lanes, episodes, steps, ordinals)
    keys = zip(*(column[last[going_on]].tolist() for column in columns), strict=True)
    for block, (lane_of, episode, step, ordinal) in zip(used[going_on].tolist(), keys, strict=True):
        next_block[block] = follow(starts, (lane_of, episode, step), ordinal)
    lane = np.where(rows > 0, lanes[::block_rows], -1).astype(np.int32)
    table: dict[str, pa.Array] = {"lane": _array(lane), "rows": _array(rows), "next_block": _array(next_block)}
    kind_bytes = pa.py_buffer(np.ascontiguousarray(kinds))
    table["kinds"] = pa.Array.from_buffers(pa.binary(block_rows), count, [None, kind_bytes])
    sums = checksums(schema, hot.column, block_rows)
    table |= {"crc32." + column.name: _array(values) for column, values in zip(schema.columns, sums, strict=True)}
    return pa.Table.from_arrays(list(table.values()), names=list(table))


def read_blocks(path: Path, entry: SegmentEntry) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """From a block table: the blocks' committed rows, int64[blocks], and the rows' kinds, uint8[rows].

    The kinds of a large table are a view of its mapping, which they keep alive. Those of a small one are a copy: there
    may be many small ones, and a process may have 65,530 mappings.
    """
    if entry.blocks is None:
        raise CorruptError(f"{path.name} is missing in the manifest, though its segment is sealed.")
    small = entry.blocks.bytes <= _SMALL_BYTES
    table = read_table(path, entry.blocks) if small else _map_table(path, entry.blocks)
    try:
        fills, kinds = column_of(table, "rows"), table["kinds"].chunk(0)
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise CorruptError(f"{path.name} is damaged: {error}.") from None
    blocks = entry.rows // entry.block_rows
    bad = fills.size != blocks or kinds.type != pa.binary(entry.block_rows) or kinds.offset or kinds.null_count
    if bad or len(kinds) != blocks or (fills < 0).any() or (fills > entry.block_rows).any():
        raise CorruptError(f"{path.name} is damaged: it does not describe its segment.")
    whole = np.frombuffer(kinds.buffers()[1], np.uint8, entry.rows)
    num_rows, num_transitions = np.count_nonzero(whole), np.count_nonzero(whole == Kind.TRANSITION)
    bad = num_rows != entry.num_rows or num_transitions != entry.num_transitions or fills.sum() != num_rows
    if bad or whole.max() > max(Kind):
        raise CorruptError(f"{path.name} is damaged: its blocks and kinds do not agree.")
    return (fills.copy(), whole.copy()) if small else (fills, whole)


def _map_table(path: Path, file: FileEntry) -> pa.Table:
    """A table over a mapping of its file, which it keeps alive."""
    mapping = files.Mapping(path, size=file.bytes)
    return _checked(path, file, pa.foreign_buffer(mapping.address, mapping.size, base=mapping))


def checksums(schema: Schema, column: Callable[[int], NDArray[Any]], block_rows: int) -> NDArray[np.uint32]:
    """CRC-32 of each block's bytes of each column, uint32[columns, blocks].

    Rows without a commit, what tails do not have, and extras that are missing count as zeros: there the hot tier may
    hold what an interrupted commit left. So both tiers agree.
    """
    arrays = [np.ascontiguousarray(column(place)) for place in range(len(schema.columns))]
    addresses = [array.__array_interface__["data"][0] for array in arrays]
    places = {each.name: place for place, each in enumerate(schema.columns)}
    rows = [
        (address, each.item_bytes, each.owner == "transition", addresses[places[mask]] if mask is not None else 0)
        for each, address in zip(schema.columns, addresses, strict=True)
        for mask in [schema.masks.get(each.name)]
    ]
    kinds = np.array(arrays[KIND])
    sums = np.zeros((len(arrays), kinds.size // block_rows), np.uint32)
    columns, scratch = np.array(rows, np.int64), np.empty(16, np.uint8)
    kernels.checksum_blocks(columns, kinds, block_rows, kernels.CRC_TABLE, scratch, sums)
    return sums


def _array(values: NDArray[Any]) -> pa.Array:
    """An Arrow array over NumPy's memory. Not by `pa.array`: its first call imports pandas, which takes a second."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, pa.py_buffer(values)])


def column_of(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of numbers of a table as NumPy, without a copy where it lies in one piece.

    Raises:
        CorruptError: if there is no such column.
    """
    place = table.schema.get_field_index(name)  # none where there are several, too
    if place < 0:
        raise CorruptError(f"A table has no column {name!r}, but {', '.join(table.column_names)}. It is damaged.")
    column = table.column(place)
    dtype = column.type.to_pandas_dtype()
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * chunk.type.byte_width)
        for chunk in column.chunks
        if len(chunk)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])


def encode_table(table: pa.Table, *, compression: str | None = None) -> bytes:
    """An Arrow IPC file of a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decode_table(content: Any, name: str) -> pa.Table:
    """Read what `encode_table` wrote; ``content`` is bytes or an Arrow buffer, of the file of that name.

    Raises:
        CorruptError: if it is something else, or its columns are shorter than they say.
    """
    try:
        table = pa.ipc.open_file(pa.py_buffer(content) if isinstance(content, bytes) else content).read_all()
        table.validate()
    except READING_ERRORS as error:
        raise CorruptError(f"{name} is damaged: {plainly(error)}.") from None
    return table


def read_table(path: Path, file: FileEntry) -> pa.Table:
    """Read a table that the manifest lists, and check it against its size and checksum."""
    return _checked(path, file, files.read_file(path, "reading a table", most=file.bytes))


def read_runs(path: Path, file: FileEntry, span: tuple[int, int] | None) -> pa.Table:
    """Read a run table.

    Args:
        path: its file.
        file: what the manifest says of it.
        span: row ids of the segment from the first to behind the last; None where its rows are gone.

    Raises:
        CorruptError: if it has other columns, or runs that do not lie in the segment one after the other.
    """
    table = read_table(path, file)
    place = len(_BEFORE_RETURN)
    fields = [field for at, field in enumerate(table.schema) if at != place]
    if fields != [*_BEFORE_RETURN, *_BEHIND_RETURN] or any(column.null_count for column in table.columns):
        raise CorruptError(f"{path.name} is damaged: it has other columns than a run table.")
    first, count, transitions = (column_of(table, name) for name in ("row_id", "num_rows", "num_transitions"))
    right = (count > 0) & (transitions >= 0) & (transitions <= count)
    if span is not None:
        right &= (first >= span[0]) & (first < span[1]) & (count <= span[1] - first)
        right[1:] &= first[1:] - first[:-1] >= count[:-1]
    if not right.all():
        raise CorruptError(f"{path.name} is damaged: its runs are not those of a segment. Run `arrowrb verify`.")
    return table


def join_runs(parts: Iterable[pa.Table]) -> pa.Table:
    """Run tables of one store in one.

    Raises:
        CorruptError: if their returns are of different types.
    """
    try:
        return pa.concat_tables(parts)
    except pa.ArrowInvalid as error:
        raise CorruptError(f"The run tables do not fit together: {plainly(error)}. Run `arrowrb verify`.") from None


def _checked(path: Path, file: FileEntry, content: Any) -> pa.Table:
    if len(content) != file.bytes or zlib.crc32(content) != file.crc32:
        raise CorruptError(f"{path.name} is damaged: its size or checksum is not what the manifest says.")
    return decode_table(content, path.name)
