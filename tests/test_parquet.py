"""Our pages in Parquet files: any reader reads from them what was written, and what is damaged is none of ours."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arrowrb.errors import CorruptError
from arrowrb.parquet import Lists, create, decode, encode, lists_of, thrift

OPTIONS: dict[str, Any] = {
    "compression": "lz4",
    "use_dictionary": False,
    "write_statistics": ["row_id"],
    "write_page_checksum": True,
}
NUMBERS = [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint8()]


def vector(element: pa.DataType, length: int, *, nullable: bool = False) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=nullable), length)


def make(kind: pa.DataType, rows: int, missing: float, rng: np.random.Generator) -> pa.Array:
    """Random bits, some values missing; arrays begin within their buffers, as slices do."""
    length = kind.list_size if pa.types.is_fixed_size_list(kind) else 1
    element = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    count, before = rows + 3, 3
    values = rng.integers(0, 256, count * length * element.bit_width // 8, np.uint8)
    if rng.random() < 0.5:
        values[:] = values[0]
    bits = None
    if missing:
        bits = pa.py_buffer(np.packbits(rng.random(count) >= missing, bitorder="little"))
    if element is kind:
        return pa.Array.from_buffers(kind, rows, [bits, pa.py_buffer(values)], offset=before)
    items = pa.Array.from_buffers(element, count * length, [None, pa.py_buffer(values)])
    return pa.Array.from_buffers(kind, rows, [bits], offset=before, children=[items])


def write(path: Path, batches: list[pa.RecordBatch]) -> None:
    with open(path, "wb") as file, create(file, batches[0].schema, **OPTIONS) as writer:
        for batch in batches:
            writer.write(batch)


def bits_of(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[list[bool], bytes]:
    """Which values are there, and the bits of those; for lists of any kind."""
    array = column.combine_chunks()
    there = array.is_valid().to_pylist()
    flat = array.flatten() if pa.types.is_nested(array.type) else array.drop_null()
    element = kind.value_type if pa.types.is_nested(kind) else kind
    return there, flat.cast(element).to_numpy(zero_copy_only=False).tobytes()


@st.composite
def tables(draw: st.DrawFn) -> list[pa.RecordBatch]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 7, 8, 9, 64, 1000]), min_size=1, max_size=4))
    columns = {"row_id": (pa.int64(), 0.0, False)}
    for place in range(draw(st.integers(1, 4))):
        element = draw(st.sampled_from(NUMBERS))
        length = draw(st.sampled_from([0, 1, 2, 3, 8, 17, 200]))
        missing = draw(st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.0]))
        nullable = missing > 0 or draw(st.booleans())
        kind = vector(element, length, nullable=nullable and draw(st.booleans())) if length else element
        columns[f"c{place}"] = kind, missing, nullable
    fields = [pa.field(name, kind, nullable=nullable) for name, (kind, _, nullable) in columns.items()]
    schema = pa.schema(fields, metadata={"arrowrb.segment": "x"})
    return [
        pa.RecordBatch.from_arrays([make(kind, size, lost, rng) for kind, lost, _ in columns.values()], schema=schema)
        for size in sizes
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=tables())
def test_any_reader_reads_what_was_written(tmp_path: Path, batches: list[pa.RecordBatch]) -> None:
    path, schema = tmp_path / "file.parquet", batches[0].schema
    write(path, batches)
    file, table = pq.ParquetFile(path, page_checksum_verification=True), pa.Table.from_batches(batches)
    assert file.schema_arrow.equals(schema, check_metadata=True)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [len(each) for each in batches]
    halves = {field.name for field in schema if "halffloat" in str(field.type)}  # DuckDB hands them out as floats
    readers = {
        "pyarrow": file.read(),
        "duckdb": duckdb.sql(f"FROM '{path}'").to_arrow_table(),
        "polars": pl.read_parquet(path).to_arrow(),
    }
    for name in schema.names:
        kind = schema.field(name).type
        expected = bits_of(table[name], kind)
        for reader, found in readers.items():
            if name in halves and reader != "pyarrow":
                continue
            assert bits_of(found[name], kind) == expected, (reader, name, kind)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=tables())
def test_we_read_what_was_written(tmp_path: Path, batches: list[pa.RecordBatch]) -> None:
    path, schema = tmp_path / "file.parquet", batches[0].schema
    write(path, batches)
    content, footer = np.fromfile(path, np.uint8), pq.read_metadata(path)
    for place, field in enumerate(schema):
        lists = lists_of(field)
        if lists is None:
            continue
        for group, batch in enumerate(batches):
            chunk = footer.row_group(group).column(place)
            first = chunk.data_page_offset
            found = decode(lists, content[first : first + chunk.total_compressed_size], len(batch))
            assert found is not None
            values, valid = found
            array = batch.column(place)
            there = np.array(array.is_valid(), bool)
            assert valid is None or (valid == there).all()
            assert not values[~there].any()
            assert values[there].tobytes() == array.flatten().to_numpy().tobytes()


def test_long_columns_take_several_pages() -> None:
    lists = Lists("a", 17, 64, 2)
    values = np.random.default_rng(1).integers(0, 2**60, (20_000, 17)).astype(np.uint64)
    valid = np.arange(20_000) % 1000 != 999
    pages = list(encode(lists, values, valid))
    assert len(pages) == 3
    content = np.frombuffer(b"".join(part for page in pages for part in (page.header, bytes(page.body))), np.uint8)
    found = decode(lists, content, 20_000)
    assert found is not None
    assert (found[1] == valid).all()
    assert (found[0][valid] == values[valid]).all()
    for rows in (19_999, 20_001, 0):
        assert decode(lists, content, rows) is None


def test_the_footer_is_arrows_own(tmp_path: Path) -> None:
    """It says of each column what Arrow would say, where that does not depend on how it is compressed."""
    kinds = {"row_id": pa.int64(), "v": vector(pa.float32(), 3), "w": vector(pa.float64(), 2), "n": pa.int32()}
    schema = pa.schema([pa.field(name, kind, metadata={"dtype": name}) for name, kind in kinds.items()], {"a": "b"})
    rng = np.random.default_rng(0)
    batches = [
        pa.RecordBatch.from_arrays([make(kind, 50, 0.2, rng) for kind in kinds.values()], schema=schema) for _ in "ab"
    ]
    write(tmp_path / "ours", batches)
    with pq.ParquetWriter(
        tmp_path / "arrows",
        schema,
        **OPTIONS,
        column_encoding=dict.fromkeys(("v.list.element", "w.list.element"), "BYTE_STREAM_SPLIT"),
    ) as writer:
        for batch in batches:
            writer.write_batch(batch)
    ours, arrows = (pq.ParquetFile(tmp_path / name) for name in ("ours", "arrows"))
    assert ours.schema_arrow.equals(arrows.schema_arrow, check_metadata=True)
    assert ours.schema.equals(arrows.schema)
    assert ours.metadata.metadata == arrows.metadata.metadata
    for group in range(2):
        one, other = (file.metadata.row_group(group) for file in (ours, arrows))
        assert (one.num_rows, one.num_columns) == (other.num_rows, other.num_columns)
        chunks = [one.column(place) for place in range(4)]
        assert one.total_byte_size == sum(chunk.total_uncompressed_size for chunk in chunks)
        for place, chunk in enumerate(chunks):
            expected = other.column(place)
            for name in ("path_in_schema", "physical_type", "num_values", "compression", "statistics"):
                assert getattr(chunk, name) == getattr(expected, name), name
            assert set(chunk.encodings) == set(expected.encodings)


def one_page(rows: int = 40, missing: float = 0.2) -> tuple[Lists, np.ndarray, bytearray]:
    lists, rng = Lists("a", 3, 32, 2), np.random.default_rng(3)
    values = rng.integers(0, 2**32, (rows, 3)).astype(np.uint32)
    (page,) = encode(lists, values, rng.random(rows) >= missing)
    return lists, values, bytearray(page.header + bytes(page.body))


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_a_wrong_bit_is_found(missing: float) -> None:
    lists, _, content = one_page(missing=missing)
    assert decode(lists, np.frombuffer(content, np.uint8), 40) is not None
    for at in range(len(content)):
        for bit in (1, 0x10, 0x80):
            damaged = bytearray(content)
            damaged[at] ^= bit
            assert decode(lists, np.frombuffer(damaged, np.uint8), 40) is None, (at, bit)
        assert decode(lists, np.frombuffer(content[:at], np.uint8), 40) is None, at


def repack(content: bytearray, body: bytes | None = None, **changes: int) -> bytes:
    """The page with another body or header, and a checksum that fits."""
    header, begin = thrift.read(memoryview(content))
    page = pa.Codec("lz4_raw").decompress(bytes(content[begin:]), header[2][1], asbytes=True) if body is None else body
    packed = pa.Codec("lz4_raw").compress(page, asbytes=True)
    crc = zlib.crc32(packed)
    header |= {2: (thrift.I32, len(page)), 3: (thrift.I32, len(packed)), 4: (thrift.I32, crc - ((crc >> 31) << 32))}
    if "num_values" in changes:
        header[5][1][1] = (thrift.I32, changes["num_values"])
    if "size" in changes:
        header[2] = (thrift.I32, changes["size"])
    return thrift.write(header) + packed


def test_pages_made_to_harm_are_none_of_ours() -> None:
    lists, _, content = one_page()
    header, begin = thrift.read(memoryview(content))
    size, num_values = header[2][1], header[5][1][1][1]
    page = pa.Codec("lz4_raw").decompress(bytes(content[begin:]), size, asbytes=True)
    whole = repack(content)
    found = decode(lists, np.frombuffer(whole, np.uint8), 40)
    assert found is not None
    assert found[1] is not None
    harmful = [repack(content, num_values=number) for number in (0, 1, -1, num_values - 1, num_values + 1, 2**31 - 1)]
    harmful += [repack(content, size=number) for number in (0, 1, size - 1, size + 1, 2**31 - 1)]
    harmful += [
        repack(content, page[:-1]),
        repack(content, page + b"\0"),
        repack(content, b""),
        repack(content, b"abc"),
    ]
    for at in range(size - 4 * 3 * int(found[1].sum())):  # the levels, and sizes before them
        for value in (0, 1, 2, 3, 0x7F, 0x80, 0xFF):
            if page[at] != value:
                harmful.append(repack(content, page[:at] + bytes([value]) + page[at + 1 :]))
    for each in harmful:
        assert decode(lists, np.frombuffer(each, np.uint8), 40) is None
    for rows in (0, 39, 41, 1 << 20):
        assert decode(lists, np.frombuffer(whole, np.uint8), rows) is None


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), rows=st.integers(0, 50))
def test_noise_is_none_of_ours(content: bytes, rows: int) -> None:
    assert decode(Lists("a", 3, 32, 2), np.frombuffer(content, np.uint8), rows) is None


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=100))
def test_thrift_reads_noise_in_bounds(content: bytes) -> None:
    try:
        _, size = thrift.read(memoryview(content))
    except CorruptError:
        return
    assert 0 < size <= len(content)


@pytest.mark.parametrize("begin", [b"\x1c", b"\x19\x1c", b"\x18" + b"\xff" * 20, b"\x15" + b"\xff" * 20])
def test_thrift_refuses_what_is_deep_or_long(begin: bytes) -> None:
    with pytest.raises(CorruptError):
        thrift.read(memoryview(begin * 5000))
