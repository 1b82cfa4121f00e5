"""The SQL of the views ``transitions`` and ``steps`` over the tables of `relations`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ..rows import Kind
from ..schema import Column, Schema
from ..tiers import cold
from .relations import BASE, POSITION, Names

_SHOWN_SYSTEM: Final = ("ordinal", "time", "lane", "episode_id", "step", "policy_version")
# Exponent bits and mantissa bits of the floats that travel as uint16.
_FLOATS: Final = {"float16": (5, 10), "bfloat16": (8, 7)}


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def source_name(view: str, shard: int | None) -> str:
    """Under which name the table of closed segments, or of a shard's open ones, is registered."""
    return f"_{view}_closed" if shard is None else f"_{view}_open_{shard}"


def cold_name(view: str) -> str:
    """Under which name the rows of cold segments are registered."""
    return f"_{view}_cold"


def kinds_of(view: str) -> tuple[Kind, ...]:
    """The kinds of the rows that a view shows."""
    return (Kind.TRANSITION,) if view == "transitions" else (Kind.TRANSITION, Kind.FINAL, Kind.CUT)


def view_sql(
    view: str, names: Names, watermarks: dict[int, int], *, closed: bool, ahead: Mapping[str, str] | None
) -> str:
    """The SELECT behind ``transitions`` or ``steps``.

    Args:
        view: which of the two.
        names: the tables' columns.
        watermarks: the watermark of each shard that has open segments.
        closed: whether there is a table of closed segments.
        ahead: where there are cold segments: from observation columns to functions of a row id that give the next
            row's value.
    """
    kinds = kinds_of(view)
    wanted = f"kind IN ({', '.join(str(int(kind)) for kind in kinds)})" if len(kinds) > 1 else f"kind = {int(kinds[0])}"
    sources = [f"SELECT * FROM {source_name(view, None)} WHERE {wanted}"] if closed else []
    sources += [
        f"SELECT * FROM {source_name(view, shard)} WHERE {wanted} AND ordinal BETWEEN 1 AND {watermark}"
        for shard, watermark in watermarks.items()
    ]
    parts = []
    if sources:
        own, behind = _reader(names, names.own), _reader(names, names.next)
        parts.append((_Source(f"{BASE} + {POSITION}", own, behind, False), f"({' UNION ALL '.join(sources)})"))
    if ahead is not None:
        parts.append((_cold_source(names.schema, ahead), cold_name(view)))
    selects = []
    for source, table in parts:
        items = _transition_items(names, source) if view == "transitions" else _step_items(names, source)
        columns = ",\n  ".join(f"{sql} AS {quote(name)}" for name, sql in _unique(items))
        selects.append(f"SELECT {columns}\nFROM {table}")
    return "\nUNION ALL\n".join(selects)


@dataclass(frozen=True)
class _Source:
    """How a view reads its columns from a table: row ids, own values and those of the row behind."""

    row_id: str
    own: Callable[[str], str]
    behind: Callable[[str], str]
    has_nulls: bool  # what a tail does not have is NULL already


def _cold_source(schema: Schema, ahead: Mapping[str, str]) -> _Source:
    """Cold files hold NULL where nothing is. The row behind is looked up by row id, for rows that are shown only."""
    columns = {column.name: column for column in schema.columns}
    files = dict(zip(columns, cold.column_names(schema.columns), strict=True))

    def own(name: str) -> str:
        return _value_sql(columns[name], quote(files[name]), floats=True)

    def behind(name: str) -> str:
        value = _value_sql(columns[name], f"{ahead[name]}({cold.ROW_ID})")
        mask = schema.masks.get(name)
        return value if mask is None else f"CASE WHEN {ahead[mask]}({cold.ROW_ID}) <> 0 THEN {value} END"

    return _Source(cold.ROW_ID, own, behind, True)


def _unique(items: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Number names that differ in case only (keys of a Dict space may): none can be told by its own name in SQL."""
    chosen = list(items)
    folded = Counter(name.casefold() for name, _ in chosen)
    taken: set[str] = {name for name, count in folded.items() if count > 1}
    for name, sql in chosen:
        given, count = name, 0
        while given.casefold() in taken:
            count += 1
            given = f"{name}_{count}"
        taken.add(given.casefold())
        yield given, sql


def _transition_items(names: Names, source: _Source) -> Iterator[tuple[str, str]]:
    """(name, SQL) of the columns of ``transitions``, in order."""
    schema, own, behind = names.schema, source.own, source.behind
    yield "row_id", source.row_id
    for name in _SHOWN_SYSTEM:
        yield name, own(name)
    observation, observation_extras = _observation_names(schema)
    action, extras = _transition_names(schema)
    for name in (*observation, *action, "reward"):
        yield name, own(name)
    for name in observation:
        yield "next_" + name, behind(name)
    for name in ("terminated", "truncated", *extras):
        yield name, own(name)
    for name in observation_extras:
        yield name, own(name)
        yield "next_" + name, behind(name)


def _step_items(names: Names, source: _Source) -> Iterator[tuple[str, str]]:
    """(name, SQL) of the columns of ``steps``, in order: NULL is what a tail does not have."""
    schema, own = names.schema, source.own
    yield "row_id", source.row_id
    yield "kind", "kind"
    for name in _SHOWN_SYSTEM:
        yield name, own(name)
    observation, observation_extras = _observation_names(schema)
    action, extras = _transition_names(schema)
    for name in observation:
        yield name, own(name)
    for name in (*action, "reward", "terminated", "truncated", *extras):
        yield name, own(name) if source.has_nulls else f"CASE WHEN kind = {int(Kind.TRANSITION)} THEN {own(name)} END"
    for name in observation_extras:
        yield name, own(name)


def _observation_names(schema: Schema) -> tuple[list[str], list[str]]:
    """The observation's leaves, and the extras beside it."""
    masks = set(schema.masks.values())
    names = [column.name for column in schema.observation_columns]
    extras = [name for name in names if name in schema.all_extras]
    return [name for name in names if name not in extras and name not in masks], extras


def _transition_names(schema: Schema) -> tuple[list[str], list[str]]:
    """The action's leaves, and the extras of transitions."""
    fixed = {"terminated", "truncated", "reward", *schema.masks.values()}
    names = [column.name for column in schema.transition_columns if column.name not in fixed]
    extras = [name for name in names if name in schema.all_extras]
    return [name for name in names if name not in extras], extras


def _reader(names: Names, plain: tuple[str, ...]) -> Callable[[str], str]:
    """From a column's name to the SQL of its value, which is NULL where a mask says so."""
    places = {column.name: place for place, column in enumerate(names.schema.columns)}

    def read(name: str) -> str:
        column = names.schema.columns[places[name]]
        value = _value_sql(column, plain[places[name]])
        mask = names.schema.masks.get(name)
        return value if mask is None else f"CASE WHEN {plain[places[mask]]} <> 0 THEN {value} END"

    return read


def _value_sql(column: Column, plain: str, *, floats: bool = False) -> str:
    """The SQL of a column's value: flags as BOOLEAN, short floats as FLOAT, all else as it lies in the table.

    ``floats``: float16 comes as FLOAT already.
    """
    if column.encoding == "binary":
        return plain
    size = column.num_elements
    if column.dtype == "bool":
        return f"CAST({plain} AS BOOLEAN[{size}])" if column.shape else f"({plain} <> 0)"
    if column.dtype in _FLOATS and not (floats and column.dtype == "float16"):
        if column.shape:
            each = f"list_transform(CAST({plain} AS USMALLINT[]), lambda bits: {_float_sql('bits', column.dtype)})"
            return f"CAST({each} AS FLOAT[{size}])"
        return _float_sql(plain, column.dtype)
    return plain


def _float_sql(bits: str, dtype: str) -> str:
    """The number that 16 bits stand for, exactly (every step is exact in DOUBLE, the result in FLOAT)."""
    exponents, mantissas = _FLOATS[dtype]
    top, low = (1 << exponents) - 1, (1 << mantissas) - 1
    bias = (top >> 1) + mantissas
    sign = f"CASE WHEN {bits} >= 32768 THEN -1e0 ELSE 1e0 END"
    exponent, mantissa = f"(({bits} >> {mantissas}) & {top})", f"({bits} & {low})"
    special = f"CASE WHEN {mantissa} = 0 THEN CAST('inf' AS DOUBLE) ELSE CAST('nan' AS DOUBLE) END"
    subnormal = f"CAST({mantissa} AS DOUBLE) * pow(2e0, {1 - bias})"
    normal = f"CAST({mantissa} + {low + 1} AS DOUBLE) * pow(2e0, CAST({exponent} AS DOUBLE) - {bias})"
    value = f"CASE {exponent} WHEN 0 THEN {subnormal} WHEN {top} THEN {special} ELSE {normal} END"
    return f"CAST(({sign}) * ({value}) AS FLOAT)"
