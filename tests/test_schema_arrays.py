"""NumPy -> Arrow -> NumPy, bit for bit: every dtype, NaN payloads, slices, offsets, other layouts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from arrowrb.errors import ColumnError
from arrowrb.schema import Column, column_array, column_numpy
from arrowrb.schema.columns import DTYPES

SHAPES = [(), (1,), (3,), (2, 3), (2, 1, 2), (1100,)]


def random_values(column, count=12, seed=0):
    """Random bits, so NaN with all payloads too; flags are 0 and 1."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, count * column.item_bytes, dtype=np.uint8)
    if column.dtype == "bool":
        raw &= 1
    return raw.view(column.storage).reshape(count, *column.shape)


def same(one, two):
    assert one.dtype == two.dtype
    assert one.shape == two.shape
    assert one.tobytes() == two.tobytes()
    assert one.flags.c_contiguous
    assert one.flags.aligned


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(dtype, shape):
    column = Column("x", dtype, shape, "transition")
    values = random_values(column)
    for batch in (False, True):
        array = column_array(column, values, batch=batch)
        array.validate(full=True)
        assert array.type == (column.batch_arrow_type if batch else column.arrow_type)
        same(column_numpy(column, array), values)
        for first, stop in ((3, 9), (1, 1), (11, 12), (0, 0)):
            same(column_numpy(column, array.slice(first, stop - first)), values[first:stop])
        chunked = pa.chunked_array([array.slice(2, 4), array.slice(0, 0), array.slice(7)], array.type)
        same(column_numpy(column, chunked), np.concatenate([values[2:6], values[7:]]))
        same(column_numpy(column, chunked.slice(3)), np.concatenate([values[5:6], values[7:]]))
        same(column_numpy(column, pa.chunked_array([], array.type)), values[:0])
        table = pa.Table.from_batches([pa.record_batch([array], schema=pa.schema([column.field(batch=batch)]))])
        same(column_numpy(column, table.slice(5)["x"]), values[5:])


def test_memory_is_shared():
    for column in (
        Column("x", "float32", (), "transition"),
        Column("x", "float32", (3,), "transition"),
        Column("x", "uint8", (3,), "transition"),
        Column("x", "bool", (3,), "transition"),
    ):
        values = random_values(column)
        back = column_numpy(column, column_array(column, values))
        assert np.shares_memory(back, values)
    column = Column("x", "bool", (), "transition")
    values = random_values(column)
    assert np.shares_memory(column_numpy(column, column_array(column, values, batch=False)), values)


def test_arrays_of_other_layouts():
    column = Column("x", "int16", (3,), "transition")
    values = np.arange(36, dtype=np.int16).reshape(12, 3)
    for laid in (np.asfortranarray(values), values[::-1], np.broadcast_to(values[:1], (12, 3))):
        same(column_numpy(column, column_array(column, laid)), np.ascontiguousarray(laid))
    flags = np.array([True, False, True])
    assert column_array(Column("x", "bool", (), "transition"), flags).to_pylist() == [True, False, True]


def test_child_arrays_with_an_offset():
    flat = pa.array(np.arange(30, dtype=np.float32))
    column = Column("x", "float32", (3,), "transition")
    lists = pa.FixedSizeListArray.from_arrays(flat[6:], 3)
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (3,)), lists)
    expected = np.arange(6, 30, dtype=np.float32).reshape(8, 3)
    same(column_numpy(column, lists), expected)
    same(column_numpy(column, tensors), expected)
    same(column_numpy(column, tensors.slice(2, 3)), expected[2:5])


def test_lists_are_taken_for_tensors():
    column = Column("x", "int32", (2, 3), "transition")
    values = np.arange(24, dtype=np.int32).reshape(4, 2, 3)
    flat = pa.array(values.reshape(4, 6).tolist(), pa.list_(pa.int32(), 6))
    nested = pa.array(values.tolist(), pa.list_(pa.list_(pa.int32(), 3), 2))
    loose = pa.array(values.tolist(), pa.list_(pa.large_list(pa.int32())))
    for array in (flat, nested, loose, pa.array(values.reshape(4, 6).tolist(), pa.list_(pa.int32()))):
        same(column_numpy(column, array), values)
        same(column_numpy(column, array.slice(1, 2)), values[1:3])
        same(column_numpy(column, array.slice(0, 0)), values[:0])
    items = [row.tobytes() for row in values]
    for kind in (pa.binary(24), pa.binary(), pa.large_binary()):
        array = pa.array(items, kind)
        same(column_numpy(column, array), values)
        same(column_numpy(column, array.slice(3)), values[3:])
    same(column_numpy(column, pa.array(items, pa.binary()).dictionary_encode()), values)
    scalar = Column("x", "int32", (), "transition")
    same(column_numpy(scalar, pa.array([5, 6, 5]).dictionary_encode().slice(1)), np.array([6, 5], np.int32))


def test_tensors_with_a_permutation():
    values = np.arange(24, dtype=np.int64).reshape(4, 2, 3)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6)
    kind = pa.fixed_shape_tensor(pa.int64(), (2, 3), permutation=(1, 0))
    array = pa.ExtensionArray.from_storage(kind, storage)
    column = Column("x", "int64", (3, 2), "transition")
    same(column_numpy(column, array), np.ascontiguousarray(values.transpose(0, 2, 1)))


def test_validity_becomes_nulls():
    valid = np.array([1, 0, 1, 1], np.uint8)
    for dtype, shape in (("float32", ()), ("float32", (2,)), ("uint8", (2,)), ("bool", ())):
        column = Column("x", dtype, shape, "transition")
        array = column_array(column, random_values(column, 4), valid=valid)
        array.validate(full=True)
        assert array.null_count == 1
        assert [one is None for one in array.to_pylist()] == [False, True, False, False]
        with pytest.raises(ColumnError, match="'x' has 1 nulls, expected none"):
            column_numpy(column, array)


@pytest.mark.parametrize(
    ("dtype", "shape", "array", "message"),
    [
        ("float32", (), pa.array([1.0]), "dtype float64, expected float32"),
        ("float32", (), pa.array(["a"]), "dtype string"),
        ("float32", (2,), pa.array([1.0], pa.float32()), r"shape \(1,\), expected \[n, 2\]"),
        ("float32", (2,), pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32())), "unequal length"),
        ("float32", (2,), pa.array([[1.0, 2.0, 3.0], [1.0]], pa.list_(pa.float32())), "unequal length"),
        ("float32", (2,), pa.array([[1.0, None]], pa.list_(pa.float32(), 2)), "null elements"),
        ("float32", (2,), pa.array([b"1234"], pa.binary(4)), r"rows of \[4\] bytes, expected 8"),
        ("float32", (2,), pa.array([b"1234", b"12345678"]), "bytes, expected 8"),
        ("float32", (), pa.array([{"a": 1}]), "dtype struct"),
        ("float32", (3, 2), pa.array([[[1.0] * 3] * 2], pa.list_(pa.list_(pa.float32(), 3), 2)), "shape"),
        ("uint8", (), pa.array([256]), "value 256"),
        ("bool", (), pa.array([2]), "value 2"),
        ("bool", (2,), pa.array([b"\0\2"], pa.binary(2)), "value 2"),
        ("bfloat16", (), pa.array([1.0], pa.float32()), "dtype float32, expected bfloat16"),
    ],
)
def test_errors(dtype, shape, array, message):
    with pytest.raises(ColumnError, match=f"'x'.*{message}"):
        column_numpy(Column("x", dtype, shape, "transition"), array)


def test_a_tensor_of_another_shape_is_not_reshaped():
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6.0)), 6)
    array = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float64(), (2, 3)), values)
    with pytest.raises(ColumnError, match="expected"):
        column_numpy(Column("x", "float64", (3, 2), "transition"), array)


def test_column_array_refuses_other_arrays():
    column = Column("x", "float32", (2,), "transition")
    for values in (np.zeros((3, 2)), np.zeros((3, 1), np.float32), np.zeros(2, np.float32)):
        with pytest.raises(ColumnError, match="'x'"):
            column_array(column, values)
