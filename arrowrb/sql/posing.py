"""Questions of samplers: which transitions meet a condition, and what weights a query gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..engine import Engine
from ..engine.tables import ORDINAL
from ..errors import QueryError, RowError
from ..rows import SHARD_SHIFT
from . import database
from .guard import nodes
from .query import check_condition, run

_CLOCKS: Final = {"current_timestamp", "current_time", "localtime", "localtimestamp"}  # words of the language


class Posing:
    """Puts questions to a store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def condition(self, text: str) -> Condition:
        """Which transitions meet a condition.

        Raises:
            QueryError: if it is none.
        """
        return Condition(self._engine, text)

    def weighting(self, text: str) -> Weighting:
        """The rows and weights of a query.

        Raises:
            QueryError: if it has no columns ``row_id`` and ``weight``.
        """
        return Weighting(self._engine, text)


class Condition:
    """Transitions that meet a condition.

    Attributes:
        text: the condition.
        steady: what it says of a row never changes: it goes by nothing else than the row.
    """

    def __init__(self, engine: Engine, text: str) -> None:
        check_condition(text)
        self._engine = engine
        self.text = text
        self.steady = _is_steady(text)
        run(engine, self._query("false"))  # unknown columns are told now

    def _query(self, bounds: str) -> str:
        return f"SELECT row_id FROM transitions WHERE ({bounds}) AND (\n{self.text}\n)"

    def ask(self, since: Sequence[int], until: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Row ids of those with ordinals in these bounds, which are excluded and included; the weights are 1."""
        row_ids = _numbers(run(self._engine, self._query(_bounds(since, until))).arrow(), "row_id", np.int64)
        return row_ids, np.ones(row_ids.size, np.float64)


class Weighting:
    """Rows and weights of a query, which is asked as a whole.

    Attributes:
        text: the query.
    """

    steady = False

    def __init__(self, engine: Engine, text: str) -> None:
        self._engine = engine
        self.text = text
        columns = run(engine, text).columns
        missing = [name for name in ("row_id", "weight") if name not in columns]
        if missing:
            raise QueryError(f"The query gives columns {columns}, expected row_id and weight. Add {missing[0]}.")

    def ask(
        self,
        since: Sequence[int],  # noqa: ARG002
        until: Sequence[int],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Row ids and weights of those with ordinals up to ``until``; the query sees newer rows, too.

        Raises:
            QueryError: if it names what is no transition.
        """
        table = run(self._engine, self.text).arrow()
        row_ids, weights = _numbers(table, "row_id", np.int64), _numbers(table, "weight", np.float64)
        snapshot = self._engine.snapshot()  # has all that the query saw, but for what went since
        try:
            there = snapshot.find(row_ids)
        except RowError as error:
            raise QueryError(f"The query gives a weight to what is drawn by nobody. {error}") from None
        most = np.zeros(len(snapshot.records), np.int64)
        most[: len(until)] = until
        old = snapshot.read(there, [(ORDINAL, 0)])[ORDINAL, 0] <= most[there.row_ids >> SHARD_SHIFT]
        named = np.isin(row_ids, there.row_ids[old])
        return row_ids[named], weights[named]


def _bounds(since: Sequence[int], until: Sequence[int]) -> str:
    """Rows by ordinal, which each shard counts for itself."""
    spans = [f"ordinal > {first} AND ordinal <= {last}" for first, last in zip(since, until, strict=True)]
    if len(spans) <= 1:
        return spans[0] if spans else "false"
    return " OR ".join(f"(row_id >> {SHARD_SHIFT} = {shard} AND {span})" for shard, span in enumerate(spans))


def _numbers(table: pa.Table, name: str, dtype: Any) -> NDArray[Any]:
    """A column without gaps, as an array that may be written to."""
    column = table[name]
    if column.null_count:
        raise QueryError(f"The query gives {column.null_count:,} rows of which {name} is NULL. Leave them out.")
    try:
        return np.array(pc.cast(column, pa.from_numpy_dtype(dtype)).to_numpy(), dtype)
    except pa.ArrowInvalid as error:
        raise QueryError(f"{name} is {column.type}, expected numbers ({error}).") from None


def _is_steady(text: str) -> bool:
    """Whether an expression holds no subquery, no window, and no function that answers anew each time."""
    cursor = database.cursor(database.Limits())
    try:
        tree = json.loads(cursor.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{text}\n)"]).fetchall()[0][0])
        found = list(nodes(tree))
        if any(node.get("class") in ("SUBQUERY", "WINDOW") for node in found):
            return False
        names = {str(node["function_name"]).casefold() for node in found if node.get("class") == "FUNCTION"}
        names |= {str(name).casefold() for node in found if node.get("class") == "COLUMN_REF" for name in _names(node)}
        if names & _CLOCKS:
            return False
        unsteady = cursor.execute(
            "SELECT count(*) FROM duckdb_functions() WHERE list_contains(?, lower(function_name)) "
            "AND coalesce(stability, 'CONSISTENT') <> 'CONSISTENT'",
            [sorted(names)],
        ).fetchall()[0][0]
        return not unsteady
    finally:
        cursor.close()


def _names(node: Mapping[str, Any]) -> list[Any]:
    """``current_timestamp`` and the like look as columns do."""
    names = node.get("column_names")
    return names if isinstance(names, list) else []
