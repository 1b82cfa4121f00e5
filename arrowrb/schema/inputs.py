"""One column of a user's batch, of any kind, as NumPy: arrays, torch tensors, Arrow arrays, lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from arrowrb.errors import ColumnError
from arrowrb.schema.arrays import arrow_values
from arrowrb.schema.coerce import coerce, dtype_error
from arrowrb.schema.columns import Column


def column_values(column: Column, value: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A column's values in storage dtype, and which rows are not null.

    Torch tensors, masked arrays and whatever has `__array__` are known by what they can do; none is imported.

    Returns:
        C-contiguous `[n, *shape]`, zero where null (it may share the value's memory); and bool `[n]`, or None
        if there are no nulls.

    Raises:
        ColumnError: If the value does not hold the column.
    """
    weak = False
    valid: np.ndarray | None = None
    if isinstance(value, pa.Array | pa.ChunkedArray):
        values, valid = arrow_values(column, value, name)
    elif hasattr(value, "detach"):
        values = _tensor_values(value, name)
    elif isinstance(value, np.ma.MaskedArray):
        values, valid = _masked_values(value, name)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        values = value
    elif isinstance(value, list | tuple | range | np.ndarray):
        values, valid = _list_values(column, value, name)
        weak = True
    elif hasattr(value, "__array__"):
        values = np.asarray(value)
        if values.dtype == object:
            values, valid = _list_values(column, values, name)
            weak = True
    else:
        raise ColumnError(
            f"Column '{name}' is of type {type(value).__name__}, expected an array, tensor or list with one "
            f"entry a row. Use add() for a single row."
        )
    if values.ndim == 0:
        raise ColumnError(f"Column '{name}' is a single value, expected one entry a row. Use add() for a single row.")
    return coerce(column, values, name, weak=weak), valid


def _tensor_values(tensor: Any, name: str) -> np.ndarray:
    tensor = tensor.detach().cpu()
    try:
        if str(tensor.dtype) == "torch.bfloat16":
            import torch

            # NumPy has no bfloat16: take the bits.
            return np.asarray(tensor.contiguous().view(torch.int16).numpy())
        return np.asarray(tensor.numpy())
    except (RuntimeError, TypeError) as error:
        raise ColumnError(f"Column '{name}' is a tensor that NumPy cannot read: {error}") from error


def _masked_values(value: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    mask = np.ma.getmaskarray(value)
    if not mask.any():
        return np.asarray(value.data), None
    rows = mask.reshape(len(mask), -1)
    if not np.array_equal(rows.any(axis=1), rows.all(axis=1)):
        raise ColumnError(f"Column '{name}' has rows that are masked in part, expected whole rows. Fill the elements.")
    return np.asarray(value.filled(np.zeros((), value.dtype))), ~rows[:, 0]


def _list_values(column: Column, items: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    rows = [_plain(item) for item in items]
    valid: np.ndarray | None = None
    if any(row is None for row in rows):
        valid = np.array([row is not None for row in rows])
        filling: Any = np.zeros(column.shape, np.uint8).tolist()
        rows = [filling if row is None else row for row in rows]
    if not rows:
        return np.zeros((0, *column.shape), column.storage), None
    try:
        values = np.asarray(rows)
    except (ValueError, OverflowError) as error:
        raise ColumnError(
            f"Column '{name}' has rows of unequal shape, expected {column.shape} each. Fix the rows."
        ) from error
    if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
        raise dtype_error(column, values.dtype, name)
    return values, valid


def _plain(item: Any) -> Any:
    return item.detach().cpu().numpy() if hasattr(item, "detach") else item
