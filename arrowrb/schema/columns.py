"""Columns: what one physical column of a segment file is called, holds, and looks like in Arrow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from arrowrb.errors import SchemaError

# Logical dtype -> (dtype of the bytes in files, Arrow type of one element in files). Flags are whole bytes
# because bitmaps tear under concurrent writes; NumPy has no bfloat16, so its bits travel as uint16.
_DTYPES: dict[str, tuple[np.dtype[Any], pa.DataType]] = {
    "bool": (np.dtype("uint8"), pa.uint8()),
    "int8": (np.dtype("int8"), pa.int8()),
    "int16": (np.dtype("int16"), pa.int16()),
    "int32": (np.dtype("int32"), pa.int32()),
    "int64": (np.dtype("int64"), pa.int64()),
    "uint8": (np.dtype("uint8"), pa.uint8()),
    "uint16": (np.dtype("uint16"), pa.uint16()),
    "uint32": (np.dtype("uint32"), pa.uint32()),
    "uint64": (np.dtype("uint64"), pa.uint64()),
    "float16": (np.dtype("float16"), pa.float16()),
    "float32": (np.dtype("float32"), pa.float32()),
    "float64": (np.dtype("float64"), pa.float64()),
    "bfloat16": (np.dtype("uint16"), pa.uint16()),
}
DTYPES: tuple[str, ...] = tuple(_DTYPES)
OWNERS = ("observation", "transition")

# Arrow counts the bytes of a fixed-size item in a signed 32-bit integer.
MAX_ITEM_BYTES = 2**31 - 1
MAX_DIMENSIONS = 32
MAX_COLUMNS = 4096
MAX_NAME_LENGTH = 1024
# Beyond this many elements a list column is slow in Parquet and its child array nears 2^31 values.
MAX_TENSOR_ELEMENTS = 1024

VALID_SUFFIX = ".valid"


@dataclass(frozen=True, slots=True)
class Column:
    """One physical column of a segment file.

    Attributes:
        name: The name in files, for example `observation.camera`.
        dtype: The logical dtype: a NumPy name, or `bfloat16`.
        shape: The shape of one row's value; `()` is a scalar.
        owner: `row` (system columns), `observation` (also kept in tails) or `transition`.
        cast_from: The dtype of the values that are cast to `dtype` on the way in, or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    owner: str
    cast_from: str | None = None

    @property
    def storage(self) -> np.dtype[Any]:
        """The dtype of the bytes in files: uint8 for bool, uint16 for bfloat16, else the dtype itself."""
        return _DTYPES[self.dtype][0]

    @property
    def num_elements(self) -> int:
        """How many elements one row's value has."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """The bytes of one row's value."""
        return math.prod(self.shape) * self.storage.itemsize

    @property
    def encoding(self) -> str:
        """`primitive`, `tensor` (fixed_shape_tensor) or `binary` (fixed_size_binary)."""
        if not self.shape:
            return "primitive"
        if self.dtype == "uint8" or self.num_elements > MAX_TENSOR_ELEMENTS:
            return "binary"
        return "tensor"

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type in files."""
        element = _DTYPES[self.dtype][1]
        encoding = self.encoding
        if encoding == "primitive":
            return element
        if encoding == "binary":
            return pa.binary(self.item_bytes)
        return pa.fixed_shape_tensor(element, self.shape)

    @property
    def batch_arrow_type(self) -> pa.DataType:
        """The Arrow type in record batches: as in files, but scalar flags are Arrow booleans."""
        if self.dtype == "bool" and not self.shape:
            return pa.bool_()
        return self.arrow_type

    def field(self, *, batch: bool = False, name: str | None = None, nullable: bool = False) -> pa.Field:
        """The Arrow field, with `dtype` and `shape` (JSON) in its metadata.

        Args:
            batch: The field of a record batch instead of a file's.
            name: Another name, for example `next_observation`.
            nullable: Whether the field may hold nulls; in files none does.
        """
        metadata = {"dtype": self.dtype, "shape": json.dumps(list(self.shape))}
        arrow_type = self.batch_arrow_type if batch else self.arrow_type
        return pa.field(self.name if name is None else name, arrow_type, nullable=nullable, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Extra:
    """A column beside the six of a transition.

    Attributes:
        dtype: A NumPy dtype name or `bfloat16`.
        shape: The shape of one row's value.
        owner: `transition` (log_prob, info of the step) or `observation` (known together with the
            observation: an action mask, a recurrent state; kept in tails and served as `next_<name>` too).
        nullable: Whether a row may lack it.

    Raises:
        SchemaError: If the dtype, shape or owner cannot be stored.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    owner: str = "transition"
    nullable: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype, "extra"))
        object.__setattr__(self, "shape", check_shape(self.shape, self.dtype, "extra"))
        if self.owner not in OWNERS:
            raise SchemaError(
                f"An extra's owner is {self.owner!r}, expected one of {OWNERS}. Give owner='transition', or "
                f"owner='observation' for what is known together with the observation."
            )
        if not isinstance(self.nullable, bool):
            raise SchemaError(f"An extra's nullable is {self.nullable!r}, expected True or False.")


def _row(name: str, dtype: str) -> Column:
    return Column(name, dtype, (), "row")


SYSTEM_COLUMNS: tuple[Column, ...] = (
    _row("ordinal", "int64"),
    _row("time", "int64"),
    _row("episode_id", "int64"),
    _row("lane", "int32"),
    _row("step", "int32"),
    _row("policy_version", "int32"),
    _row("kind", "uint8"),
    Column("terminated", "bool", (), "transition"),
    Column("truncated", "bool", (), "transition"),
)

# What batches, SQL and samplers put beside the columns: an extra of that name could not be told from it.
_ADDED_BEFORE = frozenset({"num_steps", "discount", "weight", "mask", "is_first", "is_last", "is_terminal"})
RESERVED_NAMES = (
    frozenset({column.name for column in SYSTEM_COLUMNS})
    | {"observation", "action", "reward", "next_observation", "row_id"}
    | _ADDED_BEFORE
)
# What samplers put there, too; stores that were made before may have extras of these names.
_ADDED_SINCE = frozenset({"start_row_id", "is_burn_in", "length", "relabelled", "return_to_go", "run_end", "source"})
ADDED_NAMES = _ADDED_BEFORE | _ADDED_SINCE
_PAD_SUFFIX = "_is_pad"
_RESERVED_PREFIXES = ("observation.", "action.", "reward.", "next_observation.")


def dtype_name(dtype: Any, place: str) -> str:
    """The logical name of a dtype given as a name, a type or a NumPy dtype.

    Raises:
        SchemaError: If it cannot be stored; the message names the place.
    """
    # Text must be a name as it is: NumPy reads far more into a string (structures, byte orders, old aliases).
    if isinstance(dtype, str):
        parsed = np.dtype(dtype if dtype in _DTYPES and dtype != "bfloat16" else object)
        if dtype == "bfloat16":
            return dtype
    else:
        try:
            parsed = np.dtype(object if dtype is None else dtype)
        except (TypeError, ValueError):
            parsed = np.dtype(object)
    if parsed.name not in _DTYPES or not parsed.isnative:
        raise SchemaError(
            f"{place} has dtype {dtype!s}, expected one of {', '.join(DTYPES)} in native byte order. "
            f"Convert it, for example with a wrapper of the environment."
        )
    return parsed.name


def check_shape(shape: Any, dtype: str, place: str) -> tuple[int, ...]:
    """A shape as a tuple of Python integers.

    Raises:
        SchemaError: If it is not a shape, has no elements, or has too many dimensions or bytes.
    """
    if not isinstance(shape, tuple | list):
        raise SchemaError(f"{place} has shape {shape!r}, expected a tuple of positive integers.")
    if len(shape) > MAX_DIMENSIONS:
        raise SchemaError(f"{place} has {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}.")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise SchemaError(
                f"{place} has shape {tuple(shape)!r}, expected positive integers. "
                f"A value without elements cannot be stored: leave it out."
            )
    checked = tuple(int(size) for size in shape)
    item_bytes = math.prod(checked) * _DTYPES[dtype][0].itemsize
    if item_bytes > MAX_ITEM_BYTES:
        raise SchemaError(
            f"{place} has {item_bytes} bytes a row (shape {checked}, dtype {dtype}), expected at most {MAX_ITEM_BYTES}."
        )
    return checked


def check_name(name: Any, place: str) -> str:
    """A name that Arrow, Parquet and SQL can carry: UTF-8, not empty, without control characters.

    Raises:
        SchemaError: If it is none.
    """
    if not isinstance(name, str):
        raise SchemaError(f"{place} has the name {name!r} of type {type(name).__name__}, expected a string.")
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise SchemaError(f"{place} has a name of {len(name)} characters, expected 1 to {MAX_NAME_LENGTH}.")
    # isprintable() is also false for lone surrogates, which have no UTF-8.
    if not name.isprintable():
        raise SchemaError(f"{place} has the name {name!r}, expected printable characters only.")
    return name


def check_new_names(names: Iterable[str]) -> None:
    """Refuse extras of a new store whose names samplers use in batches.

    Raises:
        SchemaError: Naming the first.
    """
    for name in names:
        folded = name.casefold() if isinstance(name, str) else ""
        if folded in _ADDED_SINCE or folded.endswith(_PAD_SUFFIX):
            raise SchemaError(
                f"Extra {name!r} has a name that samplers use in batches, expected none of "
                f"{', '.join(sorted(_ADDED_SINCE))}, nor one that ends in {_PAD_SUFFIX!r}. Choose another name."
            )


def check_extra_names(owners: Iterable[tuple[str, str]]) -> None:
    """Refuse extras whose names are reserved or clash, also when only the case differs (SQL ignores case).

    Args:
        owners: Pairs of name and owner.

    Raises:
        SchemaError: Naming the first clash.
    """
    seen: dict[str, str] = {}
    for name, owner in owners:
        check_name(name, f"Extra {name!r}")
        folded = name.casefold()
        if folded in RESERVED_NAMES or folded.startswith(_RESERVED_PREFIXES):
            raise SchemaError(
                f"Extra {name!r} has a name that arrowrb uses itself, expected none of "
                f"{', '.join(sorted(RESERVED_NAMES))}. Choose another name."
            )
        if folded.endswith(VALID_SUFFIX):
            raise SchemaError(f"Extra {name!r} ends in {VALID_SUFFIX!r}, which is kept for nullable extras. Rename it.")
        served = (folded, f"next_{folded}") if owner == "observation" else (folded,)
        for one in served:
            if one in seen or one in RESERVED_NAMES:
                raise SchemaError(
                    f"Extra {name!r} is served as {one!r}, which clashes with {seen.get(one, one)!r} "
                    f"(names are compared without regard to case). Choose another name."
                )
            seen[one] = name
