"""Row groups that were encoded apart make the file that one writer would have written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrowrb.errors import CorruptError
from arrowrb.export.stitching import MAGIC, Stitched

VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False), 3)


def some_batch(rows: int, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    values = pa.array(rng.standard_normal(rows * 3).astype(np.float32))
    arrays = {
        "number": pa.array(rng.integers(-5, 5, rows)),
        "vector": pa.FixedSizeListArray.from_arrays(values, type=VECTOR),
        "flag": pa.array(rng.random(rows) < 0.5),
        "maybe": pa.array(rng.standard_normal(rows), mask=rng.random(rows) < 0.3),
        "text": pa.array([f"{number} times" for number in rng.integers(0, 9, rows)], pa.string()),
        "bytes": pa.array([rng.bytes(7) for _ in range(rows)], pa.binary(7)),
    }
    # More columns than a short list of Thrift has elements.
    arrays |= {f"column {number}": pa.array(rng.integers(0, 1 << 40, rows)) for number in range(20)}
    fields = [pa.field(name, array.type) for name, array in arrays.items()]
    return pa.RecordBatch.from_arrays(list(arrays.values()), schema=pa.schema(fields, metadata={"a": "b" * 300}))


def encode(batches: list[pa.RecordBatch], options: dict[str, Any]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, batches[0].schema, **options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd", "write_page_checksum": True},
        {"compression": "none", "use_dictionary": False, "data_page_size": 64},
        {"compression": "lz4", "write_statistics": ["number"], "column_encoding": {"maybe": "BYTE_STREAM_SPLIT"}},
    ],
)
@pytest.mark.parametrize("sizes", [[0], [100], [100, 0, 3, 200], [9] * 40])
def test_the_file_is_that_of_one_writer(options: dict[str, Any], sizes: list[int]) -> None:
    options = {"use_dictionary": ["text"]} | options
    batches = [some_batch(size, seed) for seed, size in enumerate(sizes)]
    stitched, file = Stitched(), bytearray(MAGIC)
    for batch in batches:
        assert stitched.position == len(file)
        file += stitched.add(memoryview(encode([batch], options)))
    file += stitched.finish()
    assert file == encode(batches, options).to_pybytes()
    assert pq.read_table(pa.BufferReader(bytes(file))).equals(pa.Table.from_batches(batches))


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"xxxx\0\0\0\0PAR1"])
def test_what_is_no_parquet_file_is_refused(damage: bytes) -> None:
    with pytest.raises(CorruptError, match="no Parquet file"):
        Stitched().add(memoryview(damage))
