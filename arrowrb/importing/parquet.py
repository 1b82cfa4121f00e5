"""Parquet files into a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ..errors import ColumnError, OptionError
from ..schema import Column, Rows, Schema, column_values, encode_batch
from ..store import Store
from .filling import Behind, Filler, Imported, Progress, check_progress, chunk_rows, filling
from .inference import infer
from .order import FLAGS, Order
from .sources import Names, ParquetSource, Place
from .steps import Joined, Successors

FINALS: Final = ("drop", "repeat")
_ABOUT_ROWS: Final = ("lane", "episode_id", "step", "time", "policy_version")
_NUMBERS: Final = ("lane", "episode_id", "step")
_ROOTS: Final = ("observation", "next_observation", "action")


def import_parquet(
    source: Any,
    target: Any,
    *,
    columns: Names | None = None,
    extras: Mapping[str, Any] | Iterable[str] = (),
    schema: Schema | None = None,
    final: str = "drop",
    hot_rows: int | None = None,
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Add what Parquet files hold to a store: an export of arrowrb, or files of anybody's whose columns are named.

    Rows must lie in the order of each episode, and all of an episode before the next of its lane. They hold
    ``next_observation``, or one observation each: then the next one is that of the row behind, in the same
    ``episode_id``, or without that up to where ``terminated`` or ``truncated`` is set, or the file ends. A row whose
    reward or action is NULL is an episode's final observation. What contradicts this is refused: an id that comes
    again, rows behind an end, steps that go back.

    Args:
        source: a file, a folder (``*.parquet`` at any depth), a pattern with ``*``, or a list of those.
        target: a `Store` that is open for writing, or the path of a new one, which appears when it is whole.
        columns: where a column has another name in the files: ``{"observation": "obs", "terminated": "done"}``. A dot
            reaches into a struct; a list of several columns of numbers makes one vector. Names are those of a
            batch: observation, next_observation, action (and leaves, ``observation.camera``), reward, terminated,
            truncated, extras, lane, episode_id, step, time (timestamps, or integer microseconds since the epoch) and
            policy_version; None for a column that is not to be taken. Other columns of the files are left out.
        extras: of a new store without schema: further columns to keep, or name -> dtype, (dtype, shape) or Extra.
        schema: of a new store. By default that of an export, or one that is read off the files: Box spaces without
            bounds.
        final: what becomes of a transition whose next observation is nowhere: ``"drop"`` leaves it out (and
            `Imported` counts it), ``"repeat"`` takes its own observation for it.
        hot_rows: of a new store, see `Store.create`; likewise `max_rows`.
        max_rows: see `Store.create`.
        progress: called with the rows that are read, and all.

    Raises:
        ColumnError: if a column is missing, or does not fit the schema, or rows are not in order.
        OptionError: if ``extras`` are given where the schema is there already.
        StoreExistsError: if there is something at the path of a new store.
        CorruptError: if a file is damaged.
    """
    check_progress(progress)
    if not isinstance(final, str) or final not in FINALS:
        raise OptionError(f"final is {final!r}, expected one of {', '.join(map(repr, FINALS))}.")
    files, named, kept = ParquetSource(source), check_columns(columns), check_extras(extras)
    described = files.described()
    if kept and (schema is not None or described is not None or isinstance(target, Store)):
        raise OptionError(
            f"extras has {next(iter(kept))!r}, but the schema is there already: that of the store, of an export, or "
            "one that is given. Leave extras out, or give a schema that has them."
        )

    def make_schema() -> Schema:
        return schema or described or infer(files, named, kept)

    limits = {"hot_rows": hot_rows, "max_rows": max_rows}
    with filling(target, make_schema, limits, exact=schema is not None) as (store, path):
        plan = _plan(files, store.schema, named)
        order = Order(follows=plan.follows, trusted=described is not None)
        successors = Successors(plan.observations, final) if plan.follows else None
        with Filler(store, files.num_rows, progress) as filler:
            for file in files.files:
                for table in files.tables(file, plan.places, chunk_rows(store.schema)):
                    told = plan.tell_episodes(table)
                    order.check(told, file)
                    if successors is None:
                        filler.add(plan.encode(told))
                    else:
                        _add(plan, successors.feed(told), filler)
                    filler.tell(table.num_rows)
                if not plan.is_numbered:  # nothing says that the next file goes on with this one's episodes
                    _finish(plan, successors, filler)
                    filler.cut()
            _finish(plan, successors, filler)
        left_out = 0 if successors is None else successors.num_left_out
        if left_out and not filler.num_transitions:
            raise _nothing_follows(left_out, order)
        return Imported(path, filler.num_transitions, left_out)


def _finish(plan: _Plan, successors: Successors | None, filler: Filler) -> None:
    """What waits for a row behind gets none."""
    rest = None if successors is None else successors.finish()
    if rest is not None:
        _add(plan, rest, filler)


def _add(plan: _Plan, joined: Joined, filler: Filler) -> None:
    rows = plan.encode(joined.transitions)  # which refuses what is no time
    times = None if joined.time is None else _microseconds(joined.time).to_numpy().astype(np.int64)
    filler.add(rows, behind=Behind(joined.is_tail, times))


def _nothing_follows(count: int, order: Order) -> ColumnError:
    """The error for steps none of which has a next observation."""
    why = "Each row is an episode of its own. Is episode_id the right column?"
    if order.gap is not None:
        why = (
            f"The first that is missing: {order.gap}. Where steps count something else, leave them out: "
            "columns={'step': None}, or --column step= on the command line."
        )
    return ColumnError(
        f"None of the {count:,} transitions has a next observation, expected that in the row behind. {why}"
    )


def check_columns(columns: Any) -> Names:
    """The caller's names, checked."""
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise OptionError(f"columns is {columns!r}, expected a dict from names of the store to names in the files.")
    for name, given in columns.items():
        parts = [given] if isinstance(given, str) else given
        good = isinstance(parts, list | tuple) and parts and all(isinstance(part, str) for part in parts)
        if not isinstance(name, str) or not (good or given is None):
            raise OptionError(f"columns has {name!r}: {given!r}, expected a name, a list of names, or None for none.")
    return dict(columns)


def check_extras(extras: Any) -> Mapping[str, Any]:
    """Extras by name; None where the files say what they are."""
    if isinstance(extras, Mapping):
        names, given = list(extras), dict(extras)
    else:
        names = list(extras) if isinstance(extras, list | tuple | set | frozenset) else [extras]
        given = {}
    for name in names:
        if not isinstance(name, str):
            raise OptionError(f"extras is {extras!r}, expected names of columns, or a dict from names to dtypes.")
    return given or dict.fromkeys(names)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which columns are read, and how they become rows.

    Attributes:
        schema: of the store.
        places: name in the store -> where it is in the files.
        observations: the names that have a ``next_`` one.
        follows: whether next observations are those of the rows behind.
        is_numbered: whether there are episode ids.
    """

    schema: Schema
    places: Mapping[str, Place]
    observations: tuple[str, ...]
    follows: bool

    @property
    def is_numbered(self) -> bool:
        return "episode_id" in self.places

    def tell_episodes(self, table: pa.Table) -> pa.Table:
        """What tells episodes apart as integers and booleans, whatever the files hold it as."""
        for name in (*_NUMBERS, *FLAGS):
            if name in self.places:
                index = table.column_names.index(name)
                column = table.column(index)
                told = _as_flags(column, name) if name in FLAGS else _as_integers(column, name)
                table = table.set_column(index, name, told)
        return table

    def encode(self, table: pa.Table) -> Rows:
        """Rows of a table of transitions."""
        by_name = {column.name: column for column in self.schema.columns}
        batch: dict[str, Any] = {}
        for name in table.column_names:
            column = by_name.get(name) or by_name[name.removeprefix("next_")]
            batch[name] = _fitted(column, table.column(name), name)
        for name in FLAGS:
            batch.setdefault(name, np.zeros(table.num_rows, np.bool_))
        return encode_batch(self.schema, batch)


def _plan(files: ParquetSource, schema: Schema, columns: Names) -> _Plan:
    masks = set(schema.masks.values())
    observations = tuple(column.name for column in schema.observation_columns if column.name not in masks)
    nexts = tuple("next_" + name for name in observations)
    outcome = tuple(column.name for column in schema.transition_columns if column.name not in masks)
    known = {*observations, *nexts, *outcome, *_ABOUT_ROWS, *_ROOTS}
    for name in columns:
        if name not in known:
            raise ColumnError(f"columns names {name!r}, which is no column of the store: {', '.join(sorted(known))}.")
    found = {name: files.find(name, columns) for name in (*observations, *nexts, *outcome, *_ABOUT_ROWS)}
    places = {name: place for name, place in found.items() if place is not None}
    optional = {*FLAGS, *_ABOUT_ROWS, *schema.masks, *("next_" + name for name in schema.masks)}
    lacking = [name for name in observations if name not in places and name not in optional]
    lacking += [name for name in outcome if name not in places and name not in optional]
    there = [name for name in nexts if name in places]
    absent = [name for name in nexts if name not in places and name not in optional]
    if there and absent:
        lacking += absent
    if lacking:
        raise files.lacks(lacking[0])
    if not {"episode_id", *FLAGS} & set(places):
        raise ColumnError(
            "There is no terminated, truncated or episode_id, so that nothing says where episodes end. Name one of "
            "them: columns={'terminated': ...}, or --column terminated=... on the command line."
        )
    return _Plan(schema, places, tuple(name for name in observations if name in places), bool(absent))


def _as_integers(array: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Lanes, episodes and steps; floats where they are whole (data frames make such of integers)."""
    import pyarrow.compute as pc

    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ColumnError(f"Column {name!r} is of type {kind}, expected integers. Number them first.")
    if array.null_count:
        raise ColumnError(f"Column {name!r} has {array.null_count} nulls, expected none. Fill them.")
    try:
        return pc.cast(array, pa.int64())
    except pa.ArrowInvalid as error:
        raise ColumnError(f"Column {name!r} of type {kind} holds what is no int64: {error}.") from None


def _as_flags(array: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Ends of episodes: booleans, or numbers that are 0 or 1. NULL stays, for final observations."""
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_boolean(kind):
        return array
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ColumnError(f"Column {name!r} is of type {kind}, expected booleans, or numbers that are 0 or 1.")
    numbers = pc.cast(array, pa.float64(), safe=False)
    if pc.any(pc.and_(pc.not_equal(numbers, 0.0), pc.not_equal(numbers, 1.0))).as_py():
        raise ColumnError(f"Column {name!r} of type {kind} has other values than 0 and 1, expected flags.")
    return pc.not_equal(numbers, 0.0)


def _fitted(column: Column, array: pa.ChunkedArray, name: str) -> Any:
    """A column as `encode_batch` takes it: times in microseconds; flags and short floats that are wider in files."""
    kind = array.type
    if name == "time":
        return _microseconds(array)
    if column.dtype == "bool" and not column.shape and pa.types.is_floating(kind):
        return _as_flags(array, name)
    if column.dtype == "bfloat16":
        return _short_floats(column, array, name)
    return array


def _microseconds(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times; timestamps as whole microseconds, what is no time as it is."""
    import pyarrow.compute as pc

    if not pa.types.is_timestamp(array.type):
        return array
    try:
        return pc.cast(pc.cast(array, pa.timestamp("us")), pa.int64())
    except pa.ArrowInvalid as error:
        raise ColumnError(f"Column 'time' of type {array.type} has no whole microseconds: {error}.") from None


def _short_floats(column: Column, array: pa.ChunkedArray, name: str) -> Any:
    """float32 values that bfloat16 holds exactly, as an export of it has them, as the bits of those."""
    wide = Column(column.name, "float32", column.shape, column.owner)
    leaf = array.type
    while pa.types.is_list(leaf) or pa.types.is_large_list(leaf) or pa.types.is_fixed_size_list(leaf):
        leaf = leaf.value_type
    if not pa.types.is_float32(leaf):
        return array
    values, valid = column_values(wide, array, name)
    bits = np.ascontiguousarray(values).view(np.uint32)
    if (bits & 0xFFFF).any():
        raise ColumnError(f"Column {name!r} has values that bfloat16 does not hold exactly. Round them first.")
    short = (bits >> 16).astype(np.uint16)
    if valid is None:
        return short
    mask = np.broadcast_to(~valid.reshape(-1, *[1] * (short.ndim - 1)), short.shape)
    return np.ma.MaskedArray(short, mask)
