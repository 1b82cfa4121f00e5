"""Which arrays a column takes: its own dtype, the recorded cast, and conversions that lose nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from arrowrb.errors import ColumnError
from arrowrb.schema.columns import DTYPES, Column


def coerce(column: Column, values: np.ndarray, name: str, *, weak: bool = False) -> np.ndarray:
    """Bring values to a column's storage dtype, without losing a bit.

    Taken are the column's own dtype; the dtype it casts from; integers of another width whose values fit;
    flags for 0 and 1 and back; narrower floats; and for bfloat16 its bits as uint16 or int16. A float is
    never narrowed without a recorded cast.

    Args:
        column: The column.
        values: `[n, *shape]`.
        name: What messages call the column.
        weak: The values came as Python numbers, which have no dtype of their own: any numbers that the column
            holds exactly are taken.

    Returns:
        A C-contiguous, aligned array `[n, *shape]` of the storage dtype. It may be `values` or a view of it.

    Raises:
        ColumnError: If the shape or dtype differ, or a value does not fit.
    """
    if values.ndim == 0 or values.shape[1:] != column.shape:
        raise ColumnError(_shape_message(column, values.shape, name))
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if column.dtype == "bfloat16":
        converted = _bfloat16(column, values, name, weak)
    elif column.dtype == "bool":
        converted = _flags(column, values, name)
    elif values.dtype == column.storage:
        converted = values
    elif values.dtype.kind == "V":  # also the dtypes that other packages add
        raise dtype_error(column, values.dtype, name)
    elif column.storage.kind in "iu":
        converted = _integers(column, values, name)
    else:
        converted = _floats(column, values, name, weak)
    if converted.flags.c_contiguous and converted.flags.aligned:
        return converted
    return np.array(converted, order="C")


def _shape_message(column: Column, shape: tuple[int, ...], name: str) -> str:
    expected = ", ".join(["n", *map(str, column.shape)])
    if shape[1:] == (*column.shape, 1):
        remedy = "Remove the last axis, for example with [..., 0]."
    elif shape == column.shape and shape:
        remedy = "The first axis counts rows: add it with [None], or use add() for one row."
    else:
        remedy = "Create a store with this schema, or fix the values."
    return f"Column '{name}' has shape {shape}, expected [{expected}]. {remedy}"


def dtype_error(column: Column, got: Any, name: str) -> ColumnError:
    """The error for a dtype that a column does not take."""
    expected = column.dtype if column.cast_from is None else f"{column.dtype} or {column.cast_from}"
    if str(got) == "float64" and column.dtype == "float32":
        remedy = "Use .astype('float32'); a space of float64 is cast by a schema made with float64='float32'."
    elif str(got) not in DTYPES:
        remedy = f"Convert it to {column.dtype}."
    else:
        remedy = f"Convert it to {column.dtype}, or create a store whose schema has {got}."
    return ColumnError(f"Column '{name}' has dtype {got}, expected {expected}. {remedy}")


def _misfit(column: Column, values: np.ndarray, name: str, first_bad: int) -> ColumnError:
    value = values.reshape(-1)[first_bad]
    return ColumnError(
        f"Column '{name}' has the value {value!s}, expected values that {column.dtype} holds exactly. "
        f"Fix the value, or create a store whose schema has a wider dtype."
    )


def _flags(column: Column, values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.bool_:
        return np.ascontiguousarray(values).view(np.uint8)
    if values.dtype.kind not in "iu":
        raise dtype_error(column, values.dtype, name)
    good = (values == 0) | (values == 1)
    if not good.all():
        raise _misfit(column, values, name, int(np.argmin(good)))
    return values.astype(np.uint8, copy=False)


def _integers(column: Column, values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind not in "biu":
        raise dtype_error(column, values.dtype, name)
    if values.dtype.kind != "b" and values.size:
        info = np.iinfo(column.storage)
        if int(values.min()) < info.min or int(values.max()) > info.max:
            bad = [int(index) for index in (values.argmin(), values.argmax())]
            below = int(values.min()) < info.min
            raise _misfit(column, values, name, bad[0] if below else bad[1])
    return values.astype(column.storage)


def _floats(column: Column, values: np.ndarray, name: str, weak: bool) -> np.ndarray:
    source = values.dtype
    if weak and source.kind in "biu":
        # Every integer up to 2 ** (mantissa bits + 1) is a float; beyond that some are not.
        limit = 2 ** (np.finfo(column.cast_from or column.storage).nmant + 1)
        good = (values <= limit) if source.kind != "i" else (values >= -limit) & (values <= limit)
        if source.kind != "b" and not good.all():
            raise _misfit(column, values, name, int(np.argmin(good)))
        return values.astype(column.storage)
    if source.kind != "f":
        raise dtype_error(column, source, name)
    if source.name == column.cast_from or source.itemsize < column.storage.itemsize:
        # The cast was asked for: what is too large becomes infinite, as IEEE 754 says.
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(column.storage)
    if not weak:
        raise dtype_error(column, source, name)
    with np.errstate(over="ignore", under="ignore"):
        converted = values.astype(column.storage)
    good = (converted == values) | np.isnan(values)
    if not good.all():
        bad = _misfit(column, values, name, int(np.argmin(good)))
        raise ColumnError(f"{bad} float64='float32' in the schema records a cast.")
    return converted


def _bfloat16(column: Column, values: np.ndarray, name: str, weak: bool) -> np.ndarray:
    if weak:
        if values.dtype.kind not in "biuf":
            raise dtype_error(column, values.dtype, name)
        values = values.astype(np.float64) if values.dtype.kind == "b" else values
        with np.errstate(over="ignore", under="ignore"):
            single = values.astype(np.float32)
        bits = single.view(np.uint32)
        # A NaN keeps its payload in the upper half; a number must have nothing in the lower one.
        good = ((single == values) & (bits & 0xFFFF == 0)) | np.isnan(values)
        if not good.all():
            raise _misfit(column, values, name, int(np.argmin(good)))
        return (bits >> 16).astype(np.uint16)
    # ml_dtypes' bfloat16 is known by its name; that package need not be installed.
    if values.dtype.name != "bfloat16" and values.dtype not in (np.uint16, np.int16):
        raise dtype_error(column, values.dtype, name)
    return np.ascontiguousarray(values).view(np.uint16)
