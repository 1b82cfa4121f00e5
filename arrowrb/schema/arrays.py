"""One column <-> Arrow arrays, bit for bit, without copies where the layouts agree."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from arrowrb.errors import ColumnError
from arrowrb.schema.coerce import coerce, dtype_error
from arrowrb.schema.columns import Column


def column_array(
    column: Column, values: np.ndarray, *, batch: bool = True, valid: np.ndarray | None = None
) -> pa.Array:
    """The Arrow array of a column's values; it shares their memory.

    Only the scalar flags of batches are copied: they are packed to bits.

    Args:
        column: The column.
        values: `[n, *shape]` of the storage dtype (flags may be bool). Must not change while the array lives.
        batch: The type of record batches instead of files.
        valid: Flags `[n]`; rows where it is zero are null. Given for nullable extras in batches.

    Raises:
        ColumnError: If dtype or shape are not the column's.
    """
    values = coerce(column, values, column.name)
    num_rows = len(values)
    bitmap = None if valid is None else _pack(valid)
    nulls = 0 if valid is None else num_rows - int(np.count_nonzero(valid))
    arrow_type = column.batch_arrow_type if batch else column.arrow_type
    if pa.types.is_boolean(arrow_type):
        return pa.Array.from_buffers(arrow_type, num_rows, [bitmap, _pack(values)], nulls)
    body = pa.py_buffer(values)
    if column.encoding != "tensor":
        return pa.Array.from_buffers(arrow_type, num_rows, [bitmap, body], nulls)
    items = pa.Array.from_buffers(arrow_type.value_type, values.size, [None, body], 0)
    lists = pa.list_(arrow_type.value_type, column.num_elements)
    storage = pa.Array.from_buffers(lists, num_rows, [bitmap], nulls, children=[items])
    return pa.ExtensionArray.from_storage(arrow_type, storage)


def _pack(flags: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def column_numpy(column: Column, array: pa.Array | pa.ChunkedArray, name: str | None = None) -> np.ndarray:
    """A column's values `[n, *shape]` of the storage dtype, from any Arrow array that holds them.

    The result is read-only where it shares the array's memory.

    Raises:
        ColumnError: If type or shape are not the column's, or there are nulls.
    """
    called = column.name if name is None else name
    values, valid = arrow_values(column, array, called)
    if valid is not None:
        raise nulls_error(called, len(valid) - int(np.count_nonzero(valid)))
    return coerce(column, values, called)


def nulls_error(name: str, count: int) -> ColumnError:
    """The error for nulls where none are allowed."""
    return ColumnError(
        f"Column '{name}' has {count} nulls, expected none. "
        f"Fill them, or declare a nullable extra: Extra(dtype, nullable=True)."
    )


def arrow_values(column: Column, array: pa.Array | pa.ChunkedArray, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """An Arrow array as NumPy in its own dtype, and which rows are not null.

    Returns:
        Values `[n, *shape]`, zero in null rows, and bool `[n]` or None where there are no nulls.

    Raises:
        ColumnError: If the type cannot hold the column, lists are of unequal length, or an element is null.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
        if isinstance(array, pa.ChunkedArray):  # what combine_chunks makes of no chunks in some versions
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_null(array.type):
        return np.zeros((len(array), *column.shape), column.storage), np.zeros(len(array), np.bool_)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    axes: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    if isinstance(array.type, pa.FixedShapeTensorType):
        # Never to_numpy_ndarray(): it ignores the offset of the child array and returns other rows.
        shape, axes = tuple(array.type.shape), _permutation(array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.null_count == 0:
        return _dense(column, array, name, shape, axes), None
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    dense = _dense(column, array.drop_null(), name, shape, axes)
    values = np.zeros((len(valid), *dense.shape[1:]), dense.dtype)
    values[valid] = dense
    return values, valid


def _permutation(arrow_type: pa.FixedShapeTensorType) -> tuple[int, ...] | None:
    permutation = arrow_type.permutation
    if permutation is None or list(permutation) == list(range(len(permutation))):
        return None
    return tuple(permutation)


def _dense(
    column: Column,
    array: pa.Array,
    name: str,
    shape: tuple[int, ...] | None,
    axes: tuple[int, ...] | None,
) -> np.ndarray:
    values = _elements(column, array, name)
    num_rows = len(array)
    if shape is not None:
        values = values.reshape(num_rows, *shape)
        if axes is not None:
            values = values.transpose(0, *(axis + 1 for axis in axes))
    elif values.ndim == 2 and len(column.shape) > 1 and values.shape[1] == column.num_elements:
        values = values.reshape(num_rows, *column.shape)
    elif num_rows == 0 and column.shape:
        values = values.reshape(0, *column.shape)
    return values


def _elements(column: Column, array: pa.Array, name: str) -> np.ndarray:
    """The values of an array without nulls, lists as further axes."""
    arrow_type = array.type
    types = pa.types
    if types.is_fixed_size_list(arrow_type) or types.is_list(arrow_type) or types.is_large_list(arrow_type):
        child = array.flatten()
        if (len(array) and len(child) % len(array)) or not _equal_lengths(array):
            raise ColumnError(f"Column '{name}' has lists of unequal length, expected [{_sizes(column)}] each.")
        if child.null_count:
            raise ColumnError(
                f"Column '{name}' has {child.null_count} null elements inside rows, expected none. Fill them."
            )
        inner = _elements(column, child, name)
        size = len(child) // len(array) if len(array) else column.num_elements
        return inner.reshape(len(array), size, *inner.shape[1:])
    if types.is_fixed_size_binary(arrow_type) or types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
        return _binary_items(column, array, name)
    if types.is_boolean(arrow_type):
        return np.asarray(array.to_numpy(zero_copy_only=False), np.bool_)
    if not (types.is_integer(arrow_type) or types.is_floating(arrow_type)):
        raise dtype_error(column, arrow_type, name)
    dtype = np.dtype(arrow_type.to_pandas_dtype())
    return _from_buffer(array.buffers()[1], dtype, len(array), array.offset)


def _sizes(column: Column) -> str:
    return ", ".join(map(str, column.shape)) or "no list"


def _equal_lengths(array: pa.Array) -> bool:
    if pa.types.is_fixed_size_list(array.type) or len(array) == 0:
        return True
    lengths = np.diff(array.offsets.to_numpy())
    return bool((lengths == lengths[0]).all())


def _from_buffer(buffer: pa.Buffer | None, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
    if buffer is None or count == 0:
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, count, offset * dtype.itemsize)


def _binary_items(column: Column, array: pa.Array, name: str) -> np.ndarray:
    """Rows given as their raw bytes."""
    num_rows, width = len(array), column.item_bytes
    buffers = array.buffers()
    if pa.types.is_fixed_size_binary(array.type):
        widths, body, first = {array.type.byte_width}, buffers[1], array.offset * width
    else:
        wide = pa.types.is_large_binary(array.type)
        dtype = np.dtype("int64" if wide else "int32")
        offsets = _from_buffer(buffers[1], dtype, num_rows + 1, array.offset) if num_rows else np.zeros(1, dtype)
        widths, body, first = set(np.diff(offsets).tolist()), buffers[2], int(offsets[0])
    if num_rows and widths != {width}:
        raise ColumnError(
            f"Column '{name}' has rows of {sorted(widths)[:8]} bytes, expected {width} "
            f"({column.dtype}, shape {column.shape})."
        )
    return (
        _from_buffer(body, np.dtype(np.uint8), num_rows * width, first)
        .view(column.storage)
        .reshape(num_rows, *column.shape)
    )
