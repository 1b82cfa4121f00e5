"""Values without what is NULL, straight out of Arrow's pages: the same as Arrow reads, and nothing out of bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowrb import kernels
from arrowrb.files import Mapping
from arrowrb.tiers import chunks
from arrowrb.tiers.decoding import Footer
from tests.plain_store import plain_batch
from tests.test_tiers import create, settle, small_segments, tiers_of

__all__ = ["small_segments"]  # a fixture


def chunk_places(metadata: pq.FileMetaData) -> tuple[np.ndarray, np.ndarray]:
    found = [metadata.row_group(group).column(0) for group in range(metadata.num_row_groups)]
    return (
        np.array([each.data_page_offset for each in found], np.int64),
        np.array([each.total_compressed_size for each in found], np.int64),
    )


def read(content: Any, metadata: pq.FileMetaData, room: int, scratch: int = 1 << 20) -> tuple[int, np.ndarray]:
    target = np.full(room, 0xAB, np.uint8)
    whole = np.frombuffer(bytes(content), np.uint8)
    filled = kernels.read_packed(whole, *chunk_places(metadata), target, np.empty(scratch, np.uint8))
    return filled, target


def write(array: pa.Array, **options: Any) -> tuple[bytes, pq.FileMetaData]:
    sink = pa.BufferOutputStream()
    table = pa.table({"x": array})
    pq.write_table(table, sink, compression="lz4", use_dictionary=False, write_page_checksum=True, **options)
    content = sink.getvalue()
    return bytes(content), pq.read_metadata(pa.BufferReader(content))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_what_arrow_reads(data: Any) -> None:
    """Noise and what repeats at every distance; NULLs anywhere; pages and groups of any size."""
    kind = data.draw(st.sampled_from([np.float32, np.float64]))
    count = data.draw(st.integers(0, 3000))
    period = data.draw(st.sampled_from([0, 1, 2, 3, 5, 17, 300]))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    values = rng.normal(size=count).astype(kind)
    if period:
        values = np.resize(rng.normal(size=period), count).astype(kind)
        values[rng.random(count) < data.draw(st.sampled_from([0, 0.01]))] = 7
    missing = rng.random(count) < data.draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
    content, metadata = write(
        pa.array(values, mask=missing),
        data_page_size=data.draw(st.sampled_from([64, 1000, 1 << 20])),
        row_group_size=max(1, data.draw(st.integers(1, 3000))),
        write_statistics=data.draw(st.booleans()),
        write_batch_size=64,
    )
    expected = values[~missing].tobytes()
    filled, target = read(content, metadata, len(expected))
    assert filled == len(expected)
    assert target.tobytes() == expected
    if expected:
        assert read(content, metadata, len(expected) - 1)[0] == -1


@pytest.mark.parametrize("period", [1, 7, 0])
def test_nothing_out_of_bounds(period: int) -> None:
    """Every kind of damage: what is behind the arrays stays as it was, and the kernel comes back."""
    rng = np.random.default_rng(1)
    values = np.resize(rng.normal(size=period), 500) if period else rng.normal(size=500)
    content, metadata = write(pa.array(values, mask=rng.random(500) < 0.1))
    firsts, sizes = chunk_places(metadata)
    refused = 0
    for _ in range(3000):
        damaged = np.frombuffer(content, np.uint8).copy()
        for at in rng.integers(int(firsts[0]), int(firsts[0] + sizes[0]), int(rng.integers(1, 4))).tolist():
            damaged[at] = rng.integers(256)
        room, scratch = np.full(5000, 0xAB, np.uint8), np.full(9000, 0xCD, np.uint8)
        filled = kernels.read_packed(damaged, firsts, sizes, room[:4000], scratch[:8000])
        assert -1 <= filled <= 4000
        assert (room[4000:] == 0xAB).all()
        assert (scratch[8000:] == 0xCD).all()
        refused += filled == -1
    assert refused > 50
    whole = np.frombuffer(content, np.uint8)
    for first, size in ((-1, 10), (0, -1), (len(content) - 5, 10), (0, len(content)), (1 << 62, 1 << 62)):
        places = np.array([first], np.int64), np.array([size], np.int64)
        assert kernels.read_packed(whole, *places, np.empty(4000, np.uint8), np.empty(8000, np.uint8)) <= 0


def test_what_is_left_to_arrow(tmp_path: Path) -> None:
    """Other encodings, codecs and types, columns without NULL, and pages that were not checked yet."""
    values = pa.array([1.0, None, 3.0] * 100)
    for options in (
        {"compression": "snappy"},
        {"compression": "none"},
        {"use_dictionary": True},
        {"column_encoding": {"x": "BYTE_STREAM_SPLIT"}},
        {"data_page_version": "2.0"},
    ):
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"x": values}), path, **{"compression": "lz4", "use_dictionary": False, **options})
        reader = chunks.Chunks(Footer(Mapping(path), pq.read_metadata(path)))
        assert reader.packed([0], "x", 200, np.dtype(np.float64)) is None
        assert reader.read([0], ["x"])[0].to_pylist() == values.to_pylist()
        assert reader.packed([0], "x", 200, np.dtype(np.float64)) is None, options
    pq.write_table(pa.table({"x": values}), path, compression="lz4", use_dictionary=False)
    reader = chunks.Chunks(Footer(Mapping(path), pq.read_metadata(path)))
    assert reader.packed([0], "x", 200, np.dtype(np.float64)) is None
    reader.read([0], ["x"])
    assert reader.packed([0], "x", 199, np.dtype(np.float64)) is None
    assert reader.packed([0], "x", 200, np.dtype(np.float32)) is None
    assert reader.packed([0], "y", 200, np.dtype(np.float64)) is None
    found = reader.packed([0], "x", 200, np.dtype(np.float64))
    assert found is not None
    assert found.tolist() == [1.0, 3.0] * 100


def test_queries_are_the_same_by_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    packed = chunks.Chunks.packed

    def spy(*arguments: Any) -> Any:
        found = packed(*arguments)
        used.append(found is not None)
        return found

    monkeypatch.setattr(chunks.Chunks, "packed", spy)
    with create(tmp_path / "hot") as hot, create(tmp_path / "cold", hot_rows=1) as cold:
        for store in (hot, cold):
            store.extend(plain_batch(1500, 3))
        settle(cold)
        assert tiers_of(cold)["cold"] > 10
        for query in (
            "SELECT min(reward), max(reward), count(*) FROM transitions",
            "SELECT reward FROM transitions ORDER BY ordinal",
            "SELECT reward, step FROM transitions WHERE step > 3 ORDER BY ordinal",
            "SELECT reward FROM transitions WHERE ordinal BETWEEN 200 AND 900 ORDER BY ordinal",
            "SELECT count(reward) FROM transitions WHERE reward > 0.5",
            "SELECT reward, kind FROM steps ORDER BY ordinal",
        ):
            expected = hot.sql(query).fetchall()
            used.clear()
            for _ in range(3):
                assert cold.sql(query).fetchall() == expected, query
            assert any(used) or "steps" in query or "reward >" in query, query
