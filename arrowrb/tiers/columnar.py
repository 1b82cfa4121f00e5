"""Between Arrow's columns and NumPy's arrays: parts and values, without copies where they can be spared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..schema import Column


def in_one_piece(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def as_slice(positions: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Positions as a slice where they adjoin, which copies nothing."""
    if positions.size and positions[-1] - positions[0] == positions.size - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


def values_of(array: pa.Array, column: Column) -> NDArray[Any]:
    """Decoded values [n, *shape], without a copy; what is NULL holds anything."""
    first, count = array.offset, len(array)
    if pa.types.is_fixed_size_list(array.type):
        first, array = first * column.num_elements + array.values.offset, array.values
    buffer = array.buffers()[1]
    if count == 0 or buffer is None:
        return np.zeros((count, *column.shape), column.storage)
    each = column.num_elements
    start = first * column.storage.itemsize
    if column.encoding == "binary":
        start = first * column.item_bytes
    return np.frombuffer(buffer, column.storage, count * each, start).reshape(count, *column.shape)
