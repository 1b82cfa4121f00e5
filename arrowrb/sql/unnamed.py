"""Rows without names, ``(a, b)``, that hold vectors: DuckDB 2.0 ends the process when it groups by one.

Arrays of a fixed size in a struct without names are what its hash tables cannot copy; the same values in a struct with
names, ``{'a': a, 'b': b}``, are fine. Types are not known before a statement is bound, and binding may be too late, so
that this goes by names: those of the store's vector columns, and others where vectors are around.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from ..errors import QueryError
from ..schema import Schema

_UNNAMED: Final = frozenset({"row", "list_zip", "array_zip", "struct_values"})
_NUMBERS: Final = frozenset(
    {
        *("array_extract", "list_extract", "list_element", "array_length", "len", "length", "hash", "md5"),
        *("array_distance", "array_inner_product", "array_dot_product", "array_cosine_distance"),
        *("array_cosine_similarity", "array_negative_inner_product", "array_negative_dot_product"),
        *("list_sum", "list_avg", "list_min", "list_max", "list_count", "list_stddev_pop", "list_var_pop"),
        *("array_position", "list_position", "array_contains", "list_contains", "list_has", "array_has"),
        *("count", "count_star", "sum", "avg"),
    }
)
_TRUTHS: Final = frozenset({"COMPARISON", "CONJUNCTION", "BETWEEN"})
_SCALARS: Final = frozenset(
    {
        *("row_id", "kind", "ordinal", "time", "lane", "episode_id", "step", "policy_version", "terminated"),
        *("truncated", "seed", "started_at", "ended_at", "length", "ended_by", "complete", "num_runs", "shard"),
        *("segment", "tier", "state", "rows", "block_rows", "num_rows", "num_transitions", "first_ordinal"),
        *("last_ordinal", "first_time", "last_time", "bytes", "file"),
    }
)
_NUMBERED: Final = re.compile(r"_\d+$")  # names that differ in case only are numbered


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the views' columns, in small letters: arrays of a fixed size, and everything else."""

    vectors: Set[str] = frozenset()
    scalars: Set[str] = _SCALARS

    @classmethod
    def of(cls, schema: Schema) -> Columns:
        """Those of a store."""
        lists = {True: set[str](), False: set(_SCALARS)}
        for column in schema.columns:
            is_list = column.encoding == "tensor"
            lists[is_list] |= {column.name.casefold(), f"next_{column.name}".casefold()}
            if column.name == "reward":
                lists[is_list].add("return")
        return cls(lists[True], lists[False] - lists[True])

    def with_tables(self, nodes: Iterable[Mapping[str, Any]]) -> Columns:
        """And the names of tables, which stand for their rows."""
        if not self.vectors:
            return self
        tables = [node for node in nodes if node.get("type") == "BASE_TABLE"]
        names = {str(node.get(key) or "").casefold() for node in tables for key in ("table_name", "alias")}
        return Columns(self.vectors | (names - {""}), self.scalars)

    def has_vector(self, name: str | None) -> bool:
        """Whether a name is that of a vector."""
        return name is not None and (name in self.vectors or _NUMBERED.sub("", name) in self.vectors)


def refuse(nodes: Iterable[Mapping[str, Any]], columns: Columns) -> None:
    """Refuse rows without names that hold vectors, or may.

    Args:
        nodes: of the statement's syntax tree.
        columns: the views' columns.

    Raises:
        QueryError: says how to write it.
    """
    nodes = list(nodes)
    columns = columns.with_tables(nodes)
    rows = [node for node in nodes if _is_function(node, _UNNAMED)]
    if not rows or not any(_brings_vectors(node, columns) for node in nodes):
        return
    for row in rows:
        for node in _within(row.get("arguments")):
            name = _name_of(node)
            if name in columns.scalars or (name is None and not _brings_vectors(node, columns)):
                continue
            named = "a vector" if name is None else name
            raise QueryError(
                f"query puts {named} into a row without names, {row['function_name']}(...), by which DuckDB cannot "
                f"group. Name its values, as in {{'a': {name or 'observation'}, 'b': ...}}, or make lists of vectors, "
                f"as in {name or 'observation'}::FLOAT[]."
            )


def _within(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Nodes whose value a row holds: not what goes into numbers, truths and lists."""
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            if _is_number(value):
                continue
            yield value
            waiting.extend(value.values())


def _is_number(node: Mapping[str, Any]) -> bool:
    if node.get("class") == "CAST":
        return not _is_array_type(node.get("type_expr"))
    return node.get("class") in _TRUTHS or node.get("type") == "ARRAY_EXTRACT" or _is_function(node, _NUMBERS)


def _brings_vectors(node: Mapping[str, Any], columns: Columns) -> bool:
    """Whether what a node stands for may be, or hold, an array of a fixed size."""
    if node.get("type") == "STAR":
        return bool(columns.vectors)
    if node.get("class") == "CAST":
        return _is_array_type(node.get("type_expr"))
    return columns.has_vector(_name_of(node)) or _is_function(node, {"array_value"})


def _is_array_type(kind: Any) -> bool:
    """Whether a type is an array of a fixed size, or holds one."""
    if isinstance(kind, list):
        return any(_is_array_type(each) for each in kind)
    if not isinstance(kind, dict):
        return False
    if str(kind.get("type_name", "")).casefold() == "array":
        return True
    return any(_is_array_type(each) for each in kind.values())


def _name_of(node: Mapping[str, Any]) -> str | None:
    """The column that a node names, in small letters; None where it names none."""
    names = node.get("column_names")
    return str(names[-1]).casefold() if node.get("type") == "COLUMN_REF" and names else None


def _is_function(node: Mapping[str, Any], names: Set[str]) -> bool:
    return node.get("type") == "FUNCTION" and str(node.get("function_name", "")).casefold() in names
