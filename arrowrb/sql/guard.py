"""Which statements may run: one SELECT, or EXPLAIN of one, that calls nothing that reads files or hides SQL.

DuckDB itself is locked (no files, no settings); this comes before it, so that nothing depends on one lock alone, and
so that the error says what to do. The statement's syntax tree also tells which views it reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import QueryError
from . import unnamed

VIEWS: Final = ("transitions", "steps", "episodes", "segments", "samples", "limiter", "participants")
REMEDY: Final = f"Write one SELECT (or EXPLAIN) over {', '.join(VIEWS[:-1])} or {VIEWS[-1]}."

_QUERY_NODES: Final = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_TABLE_FUNCTIONS: Final = frozenset(
    {
        *("range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree", "summary"),
        *("histogram", "histogram_values", "query_table", "test_all_types", "pg_timezone_names"),
        *("pragma_version", "pragma_table_info", "pragma_show", "pragma_collations", "pragma_platform"),
    }
)
_CATALOGS: Final = ("duckdb_", "pragma_", "pg_", "sqlite_")
_GAP: Final = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_EXPLAIN: Final = re.compile(rf"{_GAP}explain\b{_GAP}(?P<analyze>analy[sz]e\b)?", re.IGNORECASE | re.DOTALL)
_TRACEBACK: Final = ". Detail: Python exception:"  # of an error of ours, which DuckDB reports with it
_OPTIONS: Final = re.compile(rf"{_GAP}(?P<options>\(\s*(?:analy[sz]e|format)\b[^()]*\))", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that may run.

    Attributes:
        text: its SQL.
        views: those of `VIEWS` that it may read.
    """

    text: str
    views: frozenset[str]


def check(cursor: Any, query: object, columns: unnamed.Columns) -> Statement:
    """Refuse all but one statement that only reads.

    Args:
        cursor: a DuckDB connection that parses.
        query: the statement.
        columns: those of the views.

    Raises:
        QueryError: if it is something else; says what.
    """
    if not isinstance(query, str):
        raise QueryError(f"query is of type {type(query).__name__}, expected SQL as a string. {REMEDY}")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise QueryError(f"query has characters that are no text: {error.reason}. {REMEDY}") from None
    kind, text = _parse(cursor, query)
    if kind == "SELECT":
        return Statement(text, _views_of(cursor, text, columns))
    if kind != "EXPLAIN":
        raise QueryError(f"query is a {kind} statement, expected SELECT or EXPLAIN: SQL only reads a store. {REMEDY}")
    prefix, body = _explained(cursor, text)
    # What runs is put together again from what was checked, however the original was commented.
    return Statement(f"{prefix} {body}", _views_of(cursor, body, columns))


def _parse(cursor: Any, query: str) -> tuple[str, str]:
    """The kind and the text of the one statement."""
    import duckdb

    try:
        statements = cursor.extract_statements(query)
    except duckdb.Error as error:
        raise QueryError(describe(error)) from None
    if len(statements) != 1:
        raise QueryError(f"query holds {len(statements)} statements, expected one. {REMEDY}")
    kind = str(statements[0].type.name).upper()
    if kind == "MULTI":  # PIVOT without IN, which first makes a type out of what it finds
        raise QueryError("query is a PIVOT that does not say its values, expected PIVOT ... ON column IN (...).")
    return kind, str(statements[0].query)


def _explained(cursor: Any, text: str) -> tuple[str, str]:
    """EXPLAIN with its options, and the SELECT that it explains."""
    match = _EXPLAIN.match(text)
    if match is not None:
        prefix = "EXPLAIN ANALYZE" if match["analyze"] else "EXPLAIN"
        rest = text[match.end() :]
        options = _OPTIONS.match(rest)
        if options is not None:
            prefix, rest = f"{prefix} {options['options']}", rest[options.end() :]
        try:
            kind, body = _parse(cursor, rest)
        except QueryError:
            kind, body = "", ""
        if kind == "SELECT":
            return prefix, body
    raise QueryError(f"query explains something that is no SELECT, expected EXPLAIN SELECT .... {REMEDY}")


def _views_of(cursor: Any, text: str, columns: unnamed.Columns) -> frozenset[str]:
    """Walk the syntax tree: refuse what does not belong into a SELECT, and collect the views."""
    try:
        tree = json.loads(cursor.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0])
    except RecursionError:
        raise QueryError(f"query is nested too deeply. {REMEDY}") from None
    if tree.get("error"):
        raise QueryError(f"query cannot be checked: {tree.get('error_message')}. {REMEDY}")
    unnamed.refuse(nodes(tree), columns)
    views: set[str] = set()
    for node in nodes(tree):
        kind = node.get("type")
        if not isinstance(kind, str):
            continue
        if kind.endswith("_NODE") and kind not in _QUERY_NODES:
            verb = kind.split("_")[0]
            raise QueryError(f"query holds {verb}, expected only SELECT: SQL only reads a store. {REMEDY}")
        if kind == "TABLE_FUNCTION":
            views |= _views_of_function(node)
        elif kind == "BASE_TABLE":
            views |= _views_of_table(node)
        elif kind == "SHOW_REF" and node.get("table_name"):
            name = str(node["table_name"]).strip('"').casefold()
            views |= {name} if name in VIEWS else set(VIEWS)
    return frozenset(views)


def nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """All objects of a syntax tree."""
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _views_of_function(node: Mapping[str, Any]) -> set[str]:
    function = node.get("function")
    name = str(function.get("function_name", "")).casefold() if isinstance(function, dict) else ""
    if name not in _TABLE_FUNCTIONS and not name.startswith("duckdb_"):
        raise QueryError(
            f"query calls {name}(...) as a table, expected one of {', '.join(sorted(_TABLE_FUNCTIONS))}: files and "
            f"other sources cannot be read here. {REMEDY}"
        )
    named_inside = name.startswith(_CATALOGS) or name in ("query_table", "histogram", "histogram_values", "summary")
    return set(VIEWS) if named_inside else set()


def _views_of_table(node: Mapping[str, Any]) -> set[str]:
    name = str(node.get("table_name", "")).casefold()
    if name in VIEWS:
        return {name}
    schema = str(node.get("schema_name", "")).casefold()
    listing = name.startswith(_CATALOGS) or schema in ("information_schema", "pg_catalog")
    return set(VIEWS) if listing else set()


def describe(error: BaseException) -> str:
    """DuckDB's message, its first lines, and what to do, unless they are about values and columns."""
    message = str(error).partition(_TRACEBACK)[0]
    lines = [line.rstrip() for line in message.splitlines() if line.strip()][:6]
    if lines[0].startswith("Out of Memory Error"):  # its remedies are settings, which are locked
        return f"{lines[0].rstrip('.')}. Allow more by memory_bytes=, use fewer threads=, or ask for less."
    text = "\n".join(lines)
    if text.startswith(("Binder Error", "Conversion Error", "Invalid Input Error", "Out of Range Error")):
        return text
    return f"{text}\n{REMEDY}" if len(lines) > 1 else f"{text.rstrip('.')}. {REMEDY}"
