"""Values as environments and policies return them -> the bytes of one column, checked and copied.

A value is taken as it is where it has the column's dtype (or the one that a recorded cast starts from). Otherwise
it must convert without loss, with one exception: Python numbers have no width of their own, and rewards, actions
and entries of `info` have the width that the schema declares, so their floats are rounded to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowrb.errors import ColumnError, EnvironmentFault
from arrowrb.schema import Column
from arrowrb.schema.coerce import coerce

_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Cell:
    """What one column takes.

    Attributes:
        column: The column.
        direct: The dtype that values are expected to have.
        free: The dtypes that are copied without a look at the values.
        rounds: Whether floats of any width are rounded to the column's.
        shape: The shape of what arrives in one step.
    """

    column: Column
    direct: np.dtype[Any]
    free: tuple[np.dtype[Any], ...]
    rounds: bool
    shape: tuple[int, ...]

    @classmethod
    def of(cls, column: Column, num_lanes: int | None = None, *, rounds: bool = False) -> Cell:
        """The cell of a column, of values with an axis of lanes or without."""
        logical = column.cast_from or column.dtype
        direct = column.storage if logical == "bfloat16" else np.dtype(logical)
        free = [direct]
        if rounds and column.storage.kind == "f":
            free += [np.dtype(name) for name in _FLOATS if np.can_cast(name, column.storage, "safe")]
        shape = column.shape if num_lanes is None else (num_lanes, *column.shape)
        return cls(column, direct, tuple(dict.fromkeys(free)), rounds, shape)

    @property
    def name(self) -> str:
        """The column's name."""
        return self.column.name

    def put(self, rows: NDArray[Any], t: int, value: Any) -> None:
        """Copy what arrived in one step into row `t` of `[steps, *shape]`.

        Raises:
            ColumnError: If the shape differs, or the dtype does not convert without loss.
        """
        if type(value) is np.ndarray and value.shape == self.shape and value.dtype in self.free:
            rows[t] = value
        else:
            rows[t] = self.convert(value, self.shape)

    def write(self, target: NDArray[Any], value: Any) -> None:
        """Copy a value into `target`, of the shape of one value or with an axis of lanes before it.

        Raises:
            ColumnError: As `put`.
        """
        if type(value) is np.ndarray and value.shape == target.shape and value.dtype in self.free:
            target[...] = value
        else:
            target[...] = self.convert(value, target.shape)

    def convert(self, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """A value as an array of this shape that can be assigned to the storage dtype.

        Raises:
            ColumnError: As `put`.
        """
        column = self.column
        if hasattr(value, "detach"):
            value = tensor_array(value)
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ColumnError(
                f"'{self.name}' is no array: {error}. Expected shape {shape}, dtype {column.dtype}."
            ) from error
        if array.shape != shape:
            raise ColumnError(f"'{self.name}' has shape {array.shape}, expected {shape}, dtype {column.dtype}.")
        if array.dtype == self.direct:
            return array
        weak = not isinstance(value, np.ndarray | np.generic)
        if array.dtype.kind == "f" and (self.rounds or weak):
            array = _round(column, array)
            if array.dtype == column.storage:
                return array
        # Integers that a float column holds exactly are welcome whatever their width.
        exact = weak or array.dtype.kind in "biu"
        rows = coerce(column, array if len(shape) > len(column.shape) else array[None], self.name, weak=exact)
        return rows.reshape(shape)


def _round(column: Column, floats: NDArray[Any]) -> NDArray[Any]:
    """Floats in a column's width; whole numbers as integers where it holds integers or flags."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if column.dtype == "bfloat16":
            return _bfloat16_bits(floats.astype(np.float32))
        if column.storage.kind == "f":
            return floats.astype(column.storage)
        whole = floats.astype(np.int64)
    return whole if np.array_equal(whole, floats) else floats


def _bfloat16_bits(floats: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of float32 values rounded to bfloat16, to nearest, ties to even."""
    bits = np.asarray(floats).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)  # rounding must not carry a NaN into infinity
    return np.asarray(np.where(np.isnan(floats), quiet, rounded)).astype(np.uint16)


def tensor_array(tensor: Any) -> NDArray[Any]:
    """A torch tensor on any device as an array; bfloat16 as its bits (uint16)."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        bits: NDArray[Any] = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        return bits
    array: NDArray[Any] = tensor.numpy()
    return array


def find_info(info: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """An entry of info and its mask of lanes, None where absent. A dotted name reaches into nested dicts."""
    if name in info:
        return info[name], info.get("_" + name)
    head, dot, rest = name.partition(".")
    inner = info.get(head) if dot else None
    return find_info(inner, rest) if isinstance(inner, Mapping) else (None, None)


def write_info(target: NDArray[Any], valid: NDArray[Any] | None, cell: Cell, info: Mapping[str, Any]) -> None:
    """Copy an entry of a single environment's info, or mark it as missing.

    Raises:
        ColumnError: If the entry does not fit the column.
        EnvironmentFault: If it is missing and the column is not nullable.
    """
    value = find_info(info, cell.name)[0]
    if value is None:
        if valid is None:
            raise _missing(cell)
        target[...] = 0
        valid[...] = 0
        return
    cell.write(target, value)
    if valid is not None:
        valid[...] = 1


def write_lane_info(
    target: NDArray[Any],
    valid: NDArray[Any] | None,
    cell: Cell,
    info: Mapping[str, Any],
    *,
    lanes: NDArray[np.bool_],
    merged: bool,
) -> None:
    """Copy an entry of a vector environment's info for some lanes; a lane without its mask bit lacks it.

    Args:
        target: `[lanes, *shape]`.
        valid: The flags of a nullable column.
        cell: The column.
        info: The vector environment's info.
        lanes: Which lanes to write; the others stay as they are.
        merged: Whether Gymnasium merged one dict per lane into an array that has the type of the first value.

    Raises:
        ColumnError: If an entry does not fit the column.
        EnvironmentFault: If one is missing and the column is not nullable, or the merge has lost values.
    """
    value, mask = find_info(info, cell.name)
    present = np.zeros(lanes.shape, np.bool_) if value is None or mask is None else np.asarray(mask, np.bool_) & lanes
    if present.any():
        array = value if isinstance(value, np.ndarray) else _object_array(value)
        if array.dtype == object:
            present &= np.array([item is not None for item in array])
            for lane in np.flatnonzero(present):
                target[lane] = cell.convert(array[lane], cell.column.shape)
        else:
            if merged and _rank(array.dtype.kind) < _rank(cell.direct.kind):
                raise EnvironmentFault(
                    f"info['{cell.name}'] arrived with dtype {array.dtype}, expected {cell.direct}. Gymnasium gives "
                    f"the merged array the type of the first lane's value, so other lanes may have lost theirs. "
                    f"Return {cell.direct} in every lane, or let the Collector make the environments."
                )
            chosen = array[present]
            target[present] = cell.convert(chosen, (chosen.shape[0], *cell.column.shape))
    missing = lanes & ~present
    if missing.any():
        if valid is None:
            raise _missing(cell)
        target[missing] = 0
    if valid is not None:
        valid[lanes] = present[lanes]


def _rank(kind: str) -> int:
    return {"b": 0, "i": 1, "u": 1, "f": 2}.get(kind, 3)


def _object_array(values: Any) -> NDArray[Any]:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _missing(cell: Cell) -> EnvironmentFault:
    return EnvironmentFault(
        f"info['{cell.name}'] is missing, expected a value with every observation. "
        f"Declare it nullable, or return it from reset and step."
    )
