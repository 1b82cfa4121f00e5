"""Footers that say what cannot be: over some of them Arrow breaks off the process, so they are refused before."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrowrb.errors import CorruptError
from arrowrb.parquet import footers, read_chunk_table, thrift
from arrowrb.parquet.thrift import BINARY, BYTE, I16, I32, I64, LIST, STRUCT

NUMBERS = (0, 1, 2, 3, 5, 7, 8, 63, 65535, -1, 1 << 31, 1 << 40, -(1 << 62))
TEXTS = (b"", b"x", b"y" * 8, b"z" * 9)
GROUPS, COLUMNS, METADATA = footers.ROW_GROUPS, footers.COLUMNS, footers.METADATA

Path = tuple[int, ...]


def make_file() -> bytes:
    table = pa.table(
        {
            "whole": pa.array([1, 2, None, 4], pa.int64()),
            "flag": [True, False, True, True],
            "small": pa.array([1, 2, 3, 4], pa.uint8()),
            "half": pa.array(np.arange(4, dtype=np.float16)),
            "list": pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32(), 2)),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="lz4", use_dictionary=["whole"], row_group_size=2)
    return sink.getvalue()


FILE = make_file()
FOOTER, END = footers.split_footer(memoryview(FILE))


def with_footer(footer: Any) -> bytes:
    content = thrift.write(footer)
    return FILE[:END] + content + len(content).to_bytes(4, "little") + footers.MAGIC


def places(kind: int, value: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Every number, text, list and structure below one, with its type."""
    if path:
        yield path, kind
    if kind == STRUCT:
        for number, (inner, each) in value.items():
            yield from places(inner, each, (*path, number))
    elif kind == LIST:
        for index, each in enumerate(value[1]):
            yield from places(value[0], each, (*path, index))


def changed(kind: int, value: Any, path: Path, change: Callable[[int, Any], Any]) -> Any:
    """A copy in which one value is another; None drops it."""
    if not path:
        return change(kind, value)
    if kind == STRUCT:
        inner, each = value[path[0]]
        new = changed(inner, each, path[1:], change)
        rest = {number: field for number, field in value.items() if number != path[0]}
        return rest if new is None else rest | {path[0]: (inner, new)}
    new = changed(value[0], value[1][path[0]], path[1:], change)
    return value[0], [*value[1][: path[0]], *([] if new is None else [new]), *value[1][path[0] + 1 :]]


def mutations() -> Iterator[bytes]:
    """Files whose footers differ in one place: what belongs to the schema, and to the first row group's chunks."""
    for path, kind in places(STRUCT, FOOTER):
        if path[0] == GROUPS and path[:3] != (GROUPS, 0, COLUMNS) and len(path) > 1:
            continue
        others: list[Any] = [None]
        if kind in (I16, I32, I64):
            others += NUMBERS
        elif kind == BYTE:
            others += [b"\xff"]
        elif kind == BINARY:
            others += TEXTS
        elif kind == LIST:
            others += ["twice", "empty"]
        for other in others:

            def change(_: int, value: Any, other: Any = other) -> Any:
                if other == "twice":
                    return value[0], value[1] * 2
                return (value[0], []) if other == "empty" else other

            yield with_footer(changed(STRUCT, FOOTER, path, change))


def table_of(content: bytes) -> bool | None:
    """Whether a file's chunks are such as can be; None where Arrow itself refuses the file."""
    try:
        metadata = pq.ParquetFile(pa.BufferReader(content)).metadata
    except (pa.ArrowException, OSError, ValueError):
        return None
    try:
        read_chunk_table(np.frombuffer(content, np.uint8), metadata)
    except CorruptError:
        return False
    return True


def ask(content: bytes) -> None:
    """Ask Arrow all that we ask of chunks."""
    metadata = pq.ParquetFile(pa.BufferReader(content)).metadata
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(place)
            try:
                found = chunk.is_stats_set and chunk.path_in_schema and chunk.statistics
                _ = found and (found.min_raw, found.max_raw, found.min, found.max, found.null_count, found.num_values)
            except (pa.ArrowException, OSError, ValueError):  # such as names that are no text
                continue


def test_what_is_told() -> None:
    """The table has what Arrow reads."""
    metadata = pq.ParquetFile(pa.BufferReader(FILE)).metadata
    table = read_chunk_table(np.frombuffer(FILE, np.uint8), metadata)
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(place)
            assert table.num_values[group, place] == chunk.num_values
            assert table.num_bytes[group, place] == chunk.total_uncompressed_size
            assert table.compressed_bytes[group, place] == chunk.total_compressed_size
            assert table.positions[group, place] == chunk.data_page_offset
            assert table.dictionaries[group, place] == (chunk.dictionary_page_offset or -1)
    assert table.codecs.tolist() == [[7] * 5] * 2
    assert table.types.tolist() == [[2, 0, 1, 7, 4]] * 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((METADATA, footers.TYPE), 1),
        ((METADATA, footers.CODEC), 65535),
        ((METADATA, footers.NUM_VALUES), -5),
        ((METADATA, footers.DATA_POSITION), 1 << 40),
        ((METADATA, footers.COMPRESSED_BYTES), (1 << 63) - 1),
        ((METADATA, 12, 5), b"short"),
        ((METADATA, 16, 3), (I64, [1, 2, 3])),
        ((METADATA, footers.TYPE), None),
        ((METADATA,), None),
    ],
)
def test_what_cannot_be_is_refused(path: Path, value: Any) -> None:
    """Each alone; by us or, sometimes, by Arrow when it opens the file."""
    whole = (GROUPS, 0, COLUMNS, 0, *path)
    assert table_of(with_footer(changed(STRUCT, FOOTER, whole, lambda *_: value))) is not True


def test_a_field_that_is_there_twice() -> None:
    """Readers might go by either."""
    chunk = FOOTER[GROUPS][1][1][0][COLUMNS][1][1][0][METADATA][1]
    metadata = thrift.write(chunk)
    twice = metadata[:-1] + bytes([4]) + b"\x02\x02" + b"\x00"  # field 1 again, by its number: INT32
    content = with_footer(changed(STRUCT, FOOTER, (GROUPS, 0, COLUMNS, 0, METADATA), lambda *_: twice))
    assert table_of(content) is not True


def test_arrow_bears_what_is_not_refused() -> None:
    """In a process of its own, since some of the others end it."""
    found = [table_of(content) for content in mutations()]
    assert found.count(False) > 300
    assert found.count(True) > 400
    run = subprocess.run([sys.executable, "-m", "tests.test_footers"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, f"{found.count(True)}\n"), run.stderr[-2000:]


if __name__ == "__main__":
    pa.set_cpu_count(1)
    borne = 0
    for mutation in mutations():
        if table_of(mutation):
            ask(mutation)
            borne += 1
    print(borne)
