"""The schema of Parquet files that do not say theirs: Box spaces, without bounds, of the types and shapes in them.

Where bounds matter (a Discrete action), the environment knows better: give its schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import ColumnError, SchemaError
from ..schema import Extra, Schema, check_shape, dtype_name
from .sources import Names, ParquetSource, Place


def infer(source: ParquetSource, columns: Names, extras: Mapping[str, Any]) -> Schema:
    """A schema that holds what is in the files, from their types and first rows.

    Args:
        source: the files.
        columns: the caller's names.
        extras: further columns to keep: name -> dtype, (dtype, shape) or Extra, or None for what they are.

    Raises:
        ColumnError: if there is no observation, action or reward, or of a type that cannot be stored.
    """
    from gymnasium import spaces

    def space(root: str) -> Any:
        whole = source.find(root, columns)
        if whole is not None:
            return within(root, _kind(source, whole))
        names = [name for name in (*columns, *source.schema.names) if name.startswith(root + ".")]
        names = [name for name in names if columns.get(name, name) is not None]
        if not names:
            raise source.lacks(root)
        return _nest({name[len(root) + 1 :]: leaf(name) for name in dict.fromkeys(names)})

    def within(name: str, kind: pa.DataType | None) -> Any:
        if kind is not None and pa.types.is_struct(kind):
            return spaces.Dict({field.name: within(f"{name}.{field.name}", field.type) for field in kind})
        return leaf(name)

    def leaf(name: str) -> Any:
        dtype, shape = _type_of(source, name, columns)
        if dtype == "bfloat16":
            raise ColumnError(f"Column {name!r} is of bfloat16, which no space of Gymnasium has. Give the schema.")
        number = np.dtype(dtype)
        if number.kind == "f":
            return spaces.Box(-np.inf, np.inf, shape, number.type)
        if number.kind == "b":
            return spaces.Box(0, 1, shape, np.bool_)
        bounds = np.iinfo(number)
        return spaces.Box(bounds.min, bounds.max, shape, number.type)

    observation, action = space("observation"), space("action")
    if source.find("reward", columns) is None:
        raise source.lacks("reward")
    kept: dict[str, Any] = {}
    for name, declared in extras.items():
        if declared is None:
            dtype, shape = _type_of(source, name, columns)
            kept[name] = Extra(dtype, shape, nullable=True)
        else:
            kept[name] = declared
    reward = _type_of(source, "reward", columns)
    return Schema.from_spaces(observation, action, extras=kept, reward=reward)


def _nest(leaves: Mapping[str, Any]) -> Any:
    """A Dict space; dots in names nest."""
    from gymnasium import spaces

    parts: dict[str, Any] = {}
    for name, space in leaves.items():
        head, dot, rest = name.partition(".")
        known = parts.setdefault(head, {} if dot else space)
        if isinstance(known, dict) != bool(dot):
            raise ColumnError(f"There are columns {head!r} and {name!r}: one is within the other. Name one of them.")
        if dot:
            known[rest] = space
    return spaces.Dict({key: _nest(part) if isinstance(part, dict) else part for key, part in parts.items()})


def _kind(source: ParquetSource, place: Place) -> pa.DataType | None:
    """The Arrow type of a column; None where it is made of several."""
    if place.is_vector:
        return None
    top, *rest = place.paths[0]
    kind = source.schema.field(top).type
    for name in rest:
        kind = kind.field(name).type
    return kind


def _type_of(source: ParquetSource, name: str, columns: Names) -> tuple[str, tuple[int, ...]]:
    """The dtype and shape of a column: as its metadata say, else as its type and first value do."""
    place = source.find(name, columns)
    if place is None:
        raise source.lacks(name)
    if not place.is_vector and len(place.paths[0]) == 1:
        told = _told(source.schema.field(place.paths[0][0]))
        if told is not None:
            return told
    tables = (table for path in source.files for table in source.tables(path, {name: place}, 64))
    table = next((table for table in tables if table.num_rows), None)
    array = pa.nulls(0, _kind(source, place) or pa.float64()) if table is None else table.column(0).combine_chunks()
    items = array.drop_null()
    if isinstance(array.type, pa.FixedShapeTensorType):
        return _dtype(array.type.value_type, name), tuple(array.type.shape)
    if isinstance(items, pa.ExtensionArray):
        items = items.storage
    types, shape = pa.types, []
    while types.is_list(items.type) or types.is_large_list(items.type) or types.is_fixed_size_list(items.type):
        count, within = len(items), items.flatten()
        if types.is_fixed_size_list(items.type):
            shape.append(items.type.list_size)
        elif not count:
            raise ColumnError(f"Column {name!r} is of lists, and there is none to tell their length. Give the schema.")
        elif len(within) % count:
            raise ColumnError(f"Column {name!r} has lists of unequal length, expected the same in every row.")
        else:
            shape.append(len(within) // count)
        items = within
    return _dtype(items.type, name), tuple(shape)


def _told(field: pa.Field) -> tuple[str, tuple[int, ...]] | None:
    metadata = field.metadata or {}
    if b"dtype" not in metadata or b"shape" not in metadata:
        return None
    place = f"Column {field.name!r}, by its metadata,"
    try:
        shape, dtype = json.loads(metadata[b"shape"]), metadata[b"dtype"].decode()
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{place} has a dtype or shape that says nothing: {error}.") from None
    dtype = dtype_name(dtype, place)
    return dtype, check_shape(shape, dtype, place)


def _dtype(kind: pa.DataType, name: str) -> str:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()).name)
    raise ColumnError(
        f"Column {name!r} is of type {kind}, expected numbers or lists of numbers. For bytes, give the schema: it says "
        "their dtype and shape."
    )
