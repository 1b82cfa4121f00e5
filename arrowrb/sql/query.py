"""Running one statement over one snapshot.

All queries of a process share one locked in-memory database for each number of threads (making one takes tens of
milliseconds); each query has a cursor of its own, whose tables and views are its own.
"""

from __future__ import annotations

import contextlib
import html
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from ..engine import Engine, Snapshot
from ..errors import OptionError, QueryError, StoreError
from .ahead import Ahead, let_go, sweep
from .cold_rows import ColdRows, count_threads
from .guard import VIEWS, Statement, check, describe
from .relations import tables_of
from .summaries import build_episodes, build_segments, read_runs
from .views import cold_name, kinds_of, source_name, view_sql

if TYPE_CHECKING:
    import pandas
    import polars

_MAX_THREADS: Final = 1024
_KEPT_DATABASES: Final = 4
_HTML_ROWS: Final = 20
_INTERRUPT_SECONDS: Final = 0.05
_TRIES: Final = 20
_databases: dict[tuple[int, int | None], Any] = {}
_guard = threading.Lock()

Parameters = Sequence[Any] | Mapping[str, Any] | None


def run(
    engine: Engine,
    query: str,
    parameters: Parameters = None,
    *,
    threads: int | None = None,
) -> Query:
    """Bind one statement to what is visible now; it runs when its rows are first asked for.

    Args:
        engine: the store's engine.
        query: one SELECT, or EXPLAIN of one.
        parameters: for ``?`` (a sequence) or ``$name`` (a mapping) in it.
        threads: for this query; all cores by default.

    Raises:
        QueryError: if the statement is wrong, or does more than read.
        OptionError: if an option is.
    """
    count = _check_threads(threads)
    values = _check_parameters(parameters)
    sweep()
    cursor = _cursor(count)
    ahead: list[Ahead] = []
    try:
        statement = check(cursor, query)
        snapshot, relation = _bind_anew(engine, cursor, statement, values, ahead, count_threads(count))
    except BaseException:
        let_go(ahead)
        cursor.close()
        raise
    return Query(statement.text, snapshot, cursor, relation, ahead)


def check_condition(text: str) -> None:
    """Refuse what is no condition by itself, such as one that closes a parenthesis which is not its own.

    Raises:
        QueryError: if it is none.
    """
    cursor = _cursor(None)
    try:
        check(cursor, f"SELECT CASE WHEN (\n{text}\n) THEN 1 END")
    finally:
        cursor.close()


def _bind_anew(
    engine: Engine,
    cursor: Any,
    statement: Statement,
    values: list[Any] | dict[str, Any] | None,
    ahead: list[Ahead],
    threads: int,
) -> tuple[Snapshot, Any]:
    """Bind to a snapshot whose tables are all there: run tables of evicted segments are merged now and then."""
    for attempt in range(_TRIES):
        snapshot = engine.snapshot()
        try:
            return snapshot, _bind(engine, snapshot, cursor, statement, values, ahead, threads)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError) or attempt == _TRIES - 1:
                raise
    raise StoreError(f"{engine.path}: tables of episodes keep disappearing.")


class Query:
    """One statement over one snapshot, and its rows: they are computed once, when they are first asked for.

    It shows the store as it was when `Store.sql` was called, whatever is written, evicted or closed later, and holds
    that snapshot as long as it lives. Thread-safe.
    """

    def __init__(self, text: str, snapshot: Snapshot, cursor: Any, relation: Any, ahead: list[Ahead]) -> None:
        self._text = text
        # Functions are the database's, not the cursor's. The relation may outlive this, and needs them.
        weakref.finalize(relation, let_go, ahead)
        self._snapshot = snapshot  # pins the memory that the relation reads
        self._cursor = cursor
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

        It runs anew whenever it is read. Not to be used by several threads at once.
        """
        return self._relation

    def _rows(self) -> Any:
        """The relation over the rows, which are computed at the first call."""
        if self._held is None:
            self._held = _interruptible(self._cursor, self._relation.materialize)
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


def _check_threads(threads: object) -> int | None:
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or not 1 <= threads <= _MAX_THREADS:
        raise OptionError(
            f"threads is {threads!r}, expected a whole number of 1 to {_MAX_THREADS}. Leave it out to use all cores."
        )
    return int(threads)


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
            _forget_databases()
        raise QueryError(describe(error)) from None


def _interruptible(cursor: Any, work: Callable[[], Any]) -> Any:
    """Do DuckDB's work so that Ctrl-C stops it: its own calls look for signals in some ways of fetching only."""
    if threading.current_thread() is not threading.main_thread():
        return work()  # signals come to the main thread
    done: Future[Any] = Future()
    finished = (
        threading.Event()
    )  # not the thread's end: Ctrl-C in Thread.join takes a thread that runs for one that ended

    def call() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        finally:
            finished.set()

    threading.Thread(target=call, name="arrowrb-sql", daemon=True).start()
    try:
        while not finished.wait(_INTERRUPT_SECONDS):
            pass  # by the clock, since polars, once imported, lets waits sleep through signals
    except KeyboardInterrupt:
        cursor.interrupt()
        while not finished.wait(_INTERRUPT_SECONDS):
            cursor.interrupt()  # again, since one that comes before the first row is looked for is lost
        raise
    return done.result()


def _cursor(threads: int | None) -> Any:
    """A connection of its own to the locked database with this number of threads."""
    key = (os.getpid(), threads)  # a fork has none of its parent's threads
    with _guard:
        if key not in _databases:
            while len(_databases) >= _KEPT_DATABASES:
                del _databases[next(iter(_databases))]
            _databases[key] = _open_database(threads)
        return _databases[key].cursor()


def _forget_databases() -> None:
    """After an internal error DuckDB refuses all further work in that database."""
    with _guard:
        _databases.clear()


def _open_database(threads: int | None) -> Any:
    """An empty in-memory database that can read no file and change no setting."""
    import duckdb

    config: dict[str, Any] = {
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "temp_directory": "",  # else large sorts would write into the working folder
    }
    if threads is not None:
        config["threads"] = threads
    database = duckdb.connect(":memory:", config=config)
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _bind(
    engine: Engine,
    snapshot: Snapshot,
    cursor: Any,
    statement: Statement,
    values: list[Any] | dict[str, Any] | None,
    ahead: list[Ahead],
    threads: int,
) -> Any:
    """Register the views that a statement needs, and bind it."""
    import duckdb

    def bind() -> Any:
        return _interruptible(cursor, lambda: cursor.sql(statement.text, params=values))

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
