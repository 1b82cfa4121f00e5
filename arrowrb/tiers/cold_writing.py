"""Moving a segment into the cold tier: its rows are encoded, read back and compared before the file gets its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import kernels, parquet
from ..errors import CorruptError
from ..files import Mapping, publishing
from ..parquet.bitmaps import pack_bits
from ..rows import Kind
from ..schema import Schema
from .cold import KIND, ROW_ID, column_names, file_schema, group_rows
from .columnar import as_slice
from .decoding import Groups, open_file
from .hot import HotSegment

_EVEN: Final = ("lane", "policy_version", "kind")  # hardly change from row to row
_FEW: Final = ("episode_id", "terminated", "truncated")  # take few values in a row group, and are asked for often


def write(path: Path, schema: Schema, identity: str, hot: HotSegment, base: int, *, sync: bool) -> int:
    """Write a sealed hot segment as Parquet, read it back and compare, then give it its name; returns its size.

    With ``sync`` the content is durable; the name is when the directory has been synced.

    Raises:
        CorruptError: if what was read back differs.
    """
    columns = [hot.column(place) for place in range(len(schema.columns))]
    positions = np.flatnonzero(columns[KIND])
    fields = file_schema(schema, identity)
    size = 0

    def verify(temporary: Path) -> None:
        nonlocal size
        mapping = Mapping(temporary)
        size = mapping.size
        _compare(mapping, schema, fields, columns, positions)

    rows = group_rows(schema)
    with (
        publishing(path, sync=sync, sync_name=False, verify=verify) as file,
        parquet.create(
            file,
            fields,
            compression="lz4",
            use_dictionary=list(_FEW),
            column_encoding={leaf: kind for leaf, kind in encodings(fields).items() if leaf not in _FEW},
            write_statistics=[ROW_ID, *_scalars(schema)],
            write_page_checksum=True,
        ) as writer,
    ):
        for first in range(0, max(positions.size, 1), rows):
            writer.write(_batch(schema, fields, columns, base, positions[first : first + rows]))
    return size


def _scalars(schema: Schema) -> list[str]:
    names = column_names(schema.columns)
    return [name for name, column in zip(names, schema.columns, strict=True) if not column.shape]


def encodings(fields: pa.Schema) -> dict[str, str]:
    """By leaf: floats of vectors by the bytes of equal weight together, integers by their differences.

    Others are as they are: single floats too, which are read by queries more than they take room.
    """
    chosen = {}
    for field in fields:
        kind, leaf = field.type, field.name
        is_vector = pa.types.is_fixed_size_list(kind)
        if is_vector:
            kind, leaf = kind.value_type, leaf + ".list.element"
        if is_vector and (pa.types.is_float32(kind) or pa.types.is_float64(kind)):  # DuckDB reads no float16 so
            chosen[leaf] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(kind) and leaf not in _EVEN:
            chosen[leaf] = "DELTA_BINARY_PACKED"
    return chosen


def _batch(
    schema: Schema, fields: pa.Schema, hot: Sequence[NDArray[Any]], base: int, positions: NDArray[np.int64]
) -> pa.RecordBatch:
    """Some rows of a hot segment, by its columns, as they lie in the file."""
    count, span = positions.size, as_slice(positions)
    arrays = [pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(positions + base)])]
    for place, (column, valid) in enumerate(zip(schema.columns, _validity(schema, hot, span), strict=True)):
        content = pa.py_buffer(np.ascontiguousarray(hot[place][span]))
        kind, bits = fields.field(place + 1).type, None if valid is None else pack_bits(valid)
        if pa.types.is_fixed_size_list(kind):
            items = pa.Array.from_buffers(kind.value_type, count * column.num_elements, [None, content])
            arrays.append(pa.Array.from_buffers(kind, count, [bits], children=[items]))
        else:
            arrays.append(pa.Array.from_buffers(kind, count, [bits, content]))
    return pa.RecordBatch.from_arrays(arrays, schema=fields)


def _validity(
    schema: Schema, hot: Sequence[NDArray[Any]], span: NDArray[np.int64] | slice
) -> Iterator[NDArray[np.bool_] | None]:
    """For each column, which of some rows have a value of it; None: all."""
    kept = hot[KIND][span] == Kind.TRANSITION
    places = {column.name: place for place, column in enumerate(schema.columns)}
    for column in schema.columns:
        valid = kept if column.owner == "transition" else None
        if column.name in schema.masks:
            flags = hot[places[schema.masks[column.name]]][span] != 0
            valid = flags if valid is None else flags & valid
        yield None if valid is None or valid.all() else valid


def _compare(
    mapping: Mapping, schema: Schema, fields: pa.Schema, hot: Sequence[NDArray[Any]], positions: NDArray[np.int64]
) -> None:
    """Refuse a file that does not hold what the hot segment holds, bit for bit."""
    name, rows = mapping.path.name, group_rows(schema)
    file = Groups(mapping, open_file(mapping, name), schema.columns, fields)
    if file.footer.metadata.num_rows != positions.size:
        raise CorruptError(f"{name} holds {file.footer.metadata.num_rows:,} rows, expected {positions.size:,}.")
    places = range(len(schema.columns))
    for group in range(file.footer.metadata.num_row_groups):
        span = as_slice(positions[group * rows : (group + 1) * rows])
        every = zip(places, file.read(group, places, valid=places), _validity(schema, hot, span), strict=True)
        for place, (found, there), valid in every:
            expected = np.ascontiguousarray(hot[place][span])
            if not _same(np.ascontiguousarray(found), there, expected, valid):
                raise CorruptError(
                    f"Column {schema.columns[place].name!r} was not read back from {name} as it was written. The disk "
                    "may be failing; the segment stays in the hot tier."
                )


def _same(
    found: NDArray[Any], there: NDArray[np.bool_] | None, expected: NDArray[Any], valid: NDArray[np.bool_] | None
) -> bool:
    """Whether values are the expected ones, as bytes, wherever some are expected."""
    if there is None or valid is None:
        return there is valid and pa.py_buffer(found).equals(pa.py_buffer(expected))
    if not np.array_equal(there, valid):
        return False
    one, other = (each.__array_interface__["data"][0] for each in (found, expected))
    return bool(kernels.same_items(one, other, found.nbytes // max(valid.size, 1), valid.view(np.uint8)))
