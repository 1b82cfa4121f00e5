"""Statistics in Parquet's footers: right ones are found right whatever the values, and wrong ones are found."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowrb.parquet import footers, thrift
from arrowrb.tiers.statistics import wrong_statistics

NUM_ROWS = 40
TYPES = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
)


def write(path: Path, columns: dict[str, pa.Array]) -> None:
    pq.write_table(pa.table(columns), path, use_dictionary=False, row_group_size=NUM_ROWS // 2)


def wrong_ones(path: Path) -> list[list[int]]:
    """Of each row group, the columns whose statistics do not agree with what Arrow reads."""
    wrong = []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            columns = file.read_row_group(group).columns
            leaves = {at: (each.drop_null().to_numpy(), each.null_count) for at, each in enumerate(columns)}
            wrong.append(list(wrong_statistics(file.metadata.row_group(group), leaves)))
    return wrong


def column(kind: str, content: bytes, missing: list[bool]) -> pa.Array:
    values = np.frombuffer(content, np.uint8) % 2 == 1 if kind == "bool" else np.frombuffer(content, kind)
    return pa.array(np.resize(values, NUM_ROWS), mask=np.array(missing))


@settings(deadline=None)
@given(data=st.data())
def test_what_arrow_writes_is_right(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Of all types: NaN and infinities, zeros of both signs, NULLs."""
    path = tmp_path_factory.mktemp("right") / "file.parquet"
    flags = st.lists(st.booleans(), min_size=NUM_ROWS, max_size=NUM_ROWS)
    content = st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\xff" * 32, bytes(31) + b"\x80"])
    columns = {kind: column(kind, data.draw(content), data.draw(flags)) for kind in TYPES}
    write(path, columns)
    assert wrong_ones(path) == [[], []]


@pytest.mark.parametrize("field", [3, 5, 6], ids=["missing values", "largest", "smallest"])
@pytest.mark.parametrize("kind", TYPES)
def test_wrong_ones_are_found(tmp_path: Path, kind: str, field: int) -> None:
    path = tmp_path / "file.parquet"
    values = pa.array([True] * NUM_ROWS if kind == "bool" else np.arange(3, 3 + NUM_ROWS).astype(kind))
    write(path, {"other": pa.array(np.arange(NUM_ROWS)), "value": values})
    content = path.read_bytes()
    footer, end = footers.split_footer(memoryview(content))
    chunk = footer[footers.ROW_GROUPS][1][1][1][footers.COLUMNS][1][1][1]
    statistics = chunk[footers.METADATA][1][12][1]
    kept, old = statistics[field]
    statistics[field] = (kept, old + 1 if field == 3 else bytes([old[0] ^ 1]) + old[1:])
    encoded = thrift.write(footer)
    path.write_bytes(content[:end] + encoded + len(encoded).to_bytes(4, "little") + b"PAR1")
    assert wrong_ones(path) == [[], [1]]
