"""What a batch holds: its names, the columns behind each, and from which rows these are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from ..errors import ColumnError, OptionError
from ..samplers import LAST, ROW, Need, Place
from ..schema import ADDED_NAMES, Column, Schema, Tree

FLOAT64_CHOICES: Final = ("keep", "float32")
_OWN: Final = Place()
NO_PLACES: Final[Mapping[str, Place]] = {}


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of a batch: which column it reads, from which row, and as what."""

    name: str  # of the column, of its leaf where it is nested
    column: int  # place in the schema
    place: Place
    shift: int  # 1 reads the row behind: the next observation
    item_bytes: int  # in the batch
    dtype: np.dtype[Any]  # of the memory in the batch
    shape: tuple[int, ...]
    cast: bool  # float64 to float32
    bfloat16: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a batch: the outputs of its leaves and how they nest."""

    name: str
    outputs: tuple[Output, ...]
    tree: Tree | None  # None: the one output as it is


def batch_entries(
    schema: Schema,
    columns: Sequence[str] | None,
    float64: str,
    places: Mapping[str, Place] = NO_PLACES,
    own: Place = _OWN,
) -> tuple[Entry, ...]:
    """What a batch holds.

    Args:
        schema: the store's schema.
        columns: names to read; None reads all but the system columns. A name is one of a batch (``observation``,
            ``next_observation``, ``action``, ``reward``, ``terminated``, ``truncated``, an extra, ``next_<extra>``),
            a leaf of it (``observation.camera``), or a system column (``episode_id``, ``step``, ...).
        float64: ``keep``, or ``float32`` to cast float64 columns on the way.
        places: of the columns that are not read from the rows themselves.
        own: the place of all others.
    """
    if not isinstance(float64, str) or float64 not in FLOAT64_CHOICES:
        raise OptionError(f"float64 is {float64!r}, expected one of {', '.join(map(repr, FLOAT64_CHOICES))}.")
    if isinstance(columns, str):
        raise OptionError(f"columns is the string {columns!r}, expected a list of names. Write columns=[{columns!r}].")
    known = _known_entries(schema, float64, places, own)
    if columns is None:
        return tuple(known[name] for name in _default_names(schema))
    try:
        names = list(dict.fromkeys(columns))
    except TypeError:
        raise OptionError(f"columns is {columns!r}, expected a list of names, or None for all.") from None
    chosen: dict[str, Entry] = {}
    for name in names:
        if name == "row_id":
            continue  # always there
        if name not in known:
            added = f" {name!r} comes with a strategy or option that adds it." if name in ADDED_NAMES else ""
            raise ColumnError(f"Column {name!r} is unknown, expected one of {', '.join(known)}.{added}")
        chosen[name] = known[name]
        mask = _mask_of(schema, name)
        if mask is not None:
            chosen[mask] = known[mask]  # without it a missing value could not be told from 0
    return tuple(chosen.values())


def _mask_of(schema: Schema, name: str) -> str | None:
    """The flags of a nullable column, under the name that goes with it."""
    for prefix in ("", "next_"):
        mask = schema.masks.get(name.removeprefix(prefix))
        if mask is not None and name.startswith(prefix):
            return prefix + mask
    return None


def _default_names(schema: Schema) -> list[str]:
    names = ["observation", "action", "reward", "next_observation", "terminated", "truncated"]
    system = {column.name for column in schema.columns[:9]}
    leaves = {column.name for column in schema.columns if column.name.split(".")[0] in ("observation", "action")}
    for column in schema.columns:
        if column.name not in system and column.name not in leaves and column.name != "reward":
            names.append(column.name)
            if column.owner == "observation":
                names.append("next_" + column.name)
    return names


def _known_entries(schema: Schema, float64: str, places: Mapping[str, Place], own: Place) -> dict[str, Entry]:
    """Every name that a batch can hold."""
    known: dict[str, Entry] = {}
    groups = {"observation": schema.observation_tree, "action": schema.action_tree}
    leaves: dict[str, list[tuple[int, Column]]] = {name: [] for name in groups}
    singles: list[tuple[int, Column]] = []
    for place, column in enumerate(schema.columns):
        head = column.name.split(".")[0]
        (leaves[head] if head in groups else singles).append((place, column))
    for shift, prefix in ((0, ""), (1, "next_")):
        for head, tree in groups.items():
            if shift == 0 or head == "observation":
                outputs = tuple(
                    _output(place, column, shift, float64, places.get(prefix + column.name, own))
                    for place, column in leaves[head]
                )
                known[prefix + head] = Entry(prefix + head, outputs, tree)
                for (_, column), output in zip(leaves[head], outputs, strict=True):
                    known.setdefault(prefix + column.name, Entry(prefix + column.name, (output,), None))
        for place, column in singles:
            if shift == 0 or column.owner == "observation":
                name = prefix + column.name
                output = _output(place, column, shift, float64, places.get(name, own))
                known[name] = Entry(name, (output,), None)
    return known


def needed_outputs(schema: Schema, needs: Mapping[str, Need]) -> tuple[Output, ...]:
    """Columns that batches do not show, as they are stored."""
    found = []
    for name, (column, place) in needs.items():
        spec = schema.column(column)
        size, shape = spec.item_bytes * prod(place.dims), (*place.dims, *spec.shape)
        found.append(Output(name, schema.places[column], place, 0, size, spec.storage, shape, False, False))
    return tuple(found)


def _output(column: int, spec: Column, shift: int, float64: str, place: Place) -> Output:
    name = f"next_{spec.name}" if shift else spec.name
    cast = float64 == "float32" and spec.dtype == "float64"
    dtype = np.dtype("float32") if cast else spec.storage
    if spec.dtype == "bool":
        dtype = np.dtype(np.bool_)
    size = spec.num_elements * dtype.itemsize * prod(place.dims)
    shape = (*place.dims, *spec.shape)
    shift = shift if place.group in (ROW, LAST) else 0  # other groups say themselves which rows are behind
    return Output(name, column, place, shift, size, dtype, shape, cast, spec.dtype == "bfloat16")
