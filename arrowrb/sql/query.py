"""Running one statement over one snapshot."""

from __future__ import annotations

import contextlib
import html
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from ..engine import Engine, Snapshot, read_samples
from ..errors import OptionError, QueryError, StoreError
from . import database
from .ahead import Ahead, let_go, sweep
from .cold_rows import ColdRows, count_threads
from .database import Limits, check_timeout, interruptible
from .guard import VIEWS, Statement, check, describe
from .limits import build_limiter, build_participants
from .relations import tables_of
from .summaries import build_episodes, build_segments, read_runs
from .unnamed import Columns
from .views import cold_name, kinds_of, source_name, view_sql

if TYPE_CHECKING:
    import pandas
    import polars

_HTML_ROWS: Final = 20
_TRIES: Final = 20

Parameters = Sequence[Any] | Mapping[str, Any] | None


def run(
    engine: Engine,
    query: str,
    parameters: Parameters = None,
    *,
    threads: int | None = None,
    memory_bytes: int | None = None,
    timeout: float | None = None,
) -> Query:
    """Bind one statement to what is visible now; it runs when its rows are first asked for.

    Args:
        engine: the store's engine.
        query: one SELECT, or EXPLAIN of one.
        parameters: for ``?`` (a sequence) or ``$name`` (a mapping) in it.
        threads: for this query; all cores by default.
        memory_bytes: for this query and others with the same limits; half of the machine's by default.
        timeout: seconds that binding it, and computing its rows, may each take.

    Raises:
        QueryError: if the statement is wrong, or does more than read.
        OptionError: if an option is.
        WaitError: if it takes longer than ``timeout``.
    """
    limits, seconds = Limits.checked(threads, memory_bytes), check_timeout(timeout)
    values = _check_parameters(parameters)
    sweep()
    cursor = database.cursor(limits)
    ahead: list[Ahead] = []
    try:
        statement = check(cursor, query, Columns.of(engine.schema))
        readers = count_threads(limits.threads)
        snapshot, relation = _bind_anew(engine, cursor, statement, values, ahead, readers, seconds)
    except BaseException:
        let_go(ahead)
        cursor.close()
        raise
    return Query(statement.text, snapshot, cursor, relation, ahead, seconds)


def check_condition(text: str) -> None:
    """Refuse what is no condition by itself, such as one that closes a parenthesis which is not its own.

    Raises:
        QueryError: if it is none.
    """
    cursor = database.cursor(Limits())
    try:
        check(cursor, f"SELECT 1 WHERE\n{text}\n", Columns())
        check(cursor, f"SELECT CASE WHEN (\n{text}\n) THEN 1 END", Columns())
    finally:
        cursor.close()


def _bind_anew(
    engine: Engine,
    cursor: Any,
    statement: Statement,
    values: list[Any] | dict[str, Any] | None,
    ahead: list[Ahead],
    threads: int,
    timeout: float | None,
) -> tuple[Snapshot, Any]:
    """Bind to a snapshot whose tables are all there: run tables of evicted segments are merged now and then."""
    for attempt in range(_TRIES):
        snapshot = engine.snapshot()
        try:
            return snapshot, _bind(engine, snapshot, cursor, statement, values, ahead, threads, timeout)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError) or attempt == _TRIES - 1:
                raise
    raise StoreError(f"{engine.path}: tables of episodes keep disappearing.")


class Query:
    """One statement over one snapshot, and its rows: they are computed once, when they are first asked for.

    It shows the store as it was when `Store.sql` was called, whatever is written, evicted or closed later, and holds
    that snapshot as long as it lives. Thread-safe.
    """

    def __init__(
        self, text: str, snapshot: Snapshot, cursor: Any, relation: Any, ahead: list[Ahead], timeout: float | None
    ) -> None:
        self._text = text
        # Functions are the database's, not the cursor's. The relation may outlive this, and needs them.
        weakref.finalize(relation, let_go, ahead)
        self._snapshot = snapshot  # pins the memory that the relation reads
        self._cursor, self._timeout = cursor, timeout
        self._held: Any = None
        self._unread: Iterator[tuple[Any, ...]] | None = None
        self._lock = threading.RLock()
        self._relation = relation  # last, so that it is let go last: functions go with it

    @property
    def columns(self) -> list[str]:
        """The names of the result's columns."""
        return list(self._relation.columns)

    @property
    def snapshot(self) -> Snapshot:
        """What it reads."""
        return self._snapshot

    @property
    def relation(self) -> Any:
        """The DuckDBPyRelation: filter it further, or stream it by ``.to_arrow_reader()``.

        It runs anew whenever it is read, as long as it takes. Not to be used by several threads at once.
        """
        return self._relation

    def _rows(self) -> Any:
        """The relation over the rows, which are computed at the first call."""
        if self._held is None:
            self._held = interruptible(self._cursor, self._relation.materialize, self._timeout)
        return self._held

    def df(self) -> pandas.DataFrame:
        """All rows as a pandas DataFrame."""
        with self._reading():
            return self._rows().df()

    def arrow(self) -> pa.Table:
        """All rows as an Arrow table."""
        with self._reading():
            return self._rows().to_arrow_table()

    def pl(self) -> polars.DataFrame:
        """All rows as a polars DataFrame."""
        with self._reading():
            return self._rows().pl()

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows as tuples of Python values, whatever `fetchone` has taken."""
        with self._reading():
            rows: list[tuple[Any, ...]] = self._rows().fetchall()
            return rows

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None after the last."""
        with self._reading():
            if self._unread is None:
                self._unread = iter(self._rows().fetchall())
            return next(self._unread, None)

    def show(self, *, max_rows: int | None = None, max_width: int | None = None) -> None:
        """Print the first and last rows as a table.

        Args:
            max_rows: how many rows at most.
            max_width: how many characters wide at most.
        """
        with self._reading():
            self._rows().show(max_rows=max_rows, max_width=max_width)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, _explaining():
            yield

    def __repr__(self) -> str:
        return f"Query({self._text!r}, columns: {', '.join(self.columns)}; .show(), .df(), .arrow() read it)"

    def _repr_html_(self) -> str:
        table = self.arrow()
        rows = zip(*(column.to_pylist() for column in table.slice(0, _HTML_ROWS).columns), strict=True)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in table.column_names)
        cells = ["".join(f"<td>{html.escape(_short(value))}</td>" for value in row) for row in rows]
        body = "".join(f"<tr>{each}</tr>" for each in cells)
        return f"<table><tr>{head}</tr>{body}</table><p>{table.num_rows:,} rows</p>"


def _short(value: Any) -> str:
    text = "NULL" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_parameters(parameters: object) -> list[Any] | dict[str, Any] | None:
    """Parameters as DuckDB takes them: NumPy's and torch's values become Python's."""
    if parameters is None:
        return None
    if isinstance(parameters, Mapping):
        return {str(name): _plain(value) for name, value in parameters.items()}
    if isinstance(parameters, Sequence) and not isinstance(parameters, str | bytes):
        return [_plain(value) for value in parameters]
    raise OptionError(
        f"parameters is of type {type(parameters).__name__}, expected a sequence (for ?) or a mapping (for $name). "
        "Write [value] for a single one."
    )


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) or hasattr(value, "detach") else value


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Turn DuckDB's errors into ours, and its report of Ctrl-C into what Python says."""
    import duckdb

    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.Error as error:
        if isinstance(error, duckdb.FatalException | duckdb.InternalException):
            database.forget()
        raise QueryError(describe(error)) from None


def _bind(
    engine: Engine,
    snapshot: Snapshot,
    cursor: Any,
    statement: Statement,
    values: list[Any] | dict[str, Any] | None,
    ahead: list[Ahead],
    threads: int,
    timeout: float | None,
) -> Any:
    """Register the views that a statement needs, and bind it."""
    import duckdb

    def bind() -> Any:
        return interruptible(cursor, lambda: cursor.sql(statement.text, params=values), timeout)

    with _explaining():
        for view in sorted(statement.views):
            _register(engine, snapshot, cursor, view, ahead, threads)
        try:
            return bind()
        except duckdb.CatalogException:
            missing = set(VIEWS) - statement.views
            if not missing:
                raise
            # The syntax tree did not tell of a view, or there is no such table: then the message lists them all.
            for view in sorted(missing):
                _register(engine, snapshot, cursor, view, ahead, threads)
            return bind()


def _register(engine: Engine, snapshot: Snapshot, cursor: Any, view: str, ahead: list[Ahead], threads: int) -> None:
    """Put one view of a snapshot under its name."""
    if view == "episodes":
        runs = read_runs(snapshot, engine.path)
        cursor.register(view, build_episodes(runs, engine.read_seeds(snapshot)))
        return
    if view == "segments":
        cursor.register(view, build_segments(snapshot))
        return
    if view == "samples":
        cursor.register(view, read_samples(engine.path, engine.file.store_id))
        return
    if view in ("limiter", "participants"):
        cursor.register(view, (build_limiter if view == "limiter" else build_participants)(engine.limiting.look()))
        return
    tables = tables_of(snapshot.layout)
    shows_next = view == "transitions"
    watermarks = {shard: snapshot.records[shard].watermark for shard in tables.open_shards}
    closed = tables.has_closed or not tables.views
    for shard in (*((None,) if closed else ()), *watermarks):
        cursor.register(source_name(view, shard), tables.table(ahead=shows_next, shard=shard))
    functions: dict[str, str] | None = None
    if tables.cold:
        rows = ColdRows(tables.cold, snapshot.layout.schema, kinds_of(view), threads)
        cursor.register(cold_name(view), rows.dataset())
        functions = {}
        if shows_next:
            ahead.append(Ahead(snapshot, cursor))
            functions = ahead[-1].names
    text = view_sql(view, tables.names, watermarks, closed=closed, ahead=functions)
    cursor.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {text}")
