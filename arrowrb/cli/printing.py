"""Results on stdout: tables for people, JSON and CSV for programs."""

from __future__ import annotations

import base64
import contextlib
import csv
import datetime
import decimal
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from arrowrb.limiter import LimiterInfo

if TYPE_CHECKING:
    import pyarrow as pa

    from arrowrb.engine import Action, Repaired, Verified
    from arrowrb.info import StoreInfo

_WIDEST_CELL = 60
_ROWS_AT_ONCE = 1000
_UNLIMITED_WIDTH = 10_000


def print_info(described: StoreInfo, form: str, *, header: bool = True) -> None:
    """Counts and bytes of a store; JSON is one line, CSV one row."""
    if form == "table":
        table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for label, value in described.rows():
            table.add_row(label, Text(value))
        make_console().print(table)
        return
    values = asdict(described)
    del values["columns"]
    if form == "json":
        print(json.dumps(plain(values), allow_nan=False))
        return
    limiter = values.pop("limiter") or {}
    for name in LimiterInfo.__slots__:
        if name != "participants":
            values[f"limiter_{name}"] = limiter.get(name)
    values["checkpoints"] = " ".join(point.name for point in described.checkpoints)
    values["writers"] = " ".join(f"{each.name}={each.pid if each.alive else ''}" for each in described.writers)
    for state, count in values.pop("num_segments").items():
        values[f"num_segments_{state}"] = count
    _write_csv(list(values), [list(values.values())], header=header)


def print_columns(columns: Iterable[tuple[str, str, tuple[int, ...]]], form: str) -> None:
    """Name, dtype and shape of each column of a schema."""
    names = ["name", "dtype", "shape"]
    if form == "table":
        make_console().print(_table(names, [[name, dtype, str(shape)] for name, dtype, shape in columns], set()))
    elif form == "json":
        _write_json(dict(zip(names, row, strict=True)) for row in columns)
    else:
        _write_csv(names, [[name, dtype, list(shape)] for name, dtype, shape in columns])


def print_actions(actions: Iterable[Action], form: str) -> None:
    """What was done, or would be, with each segment."""
    names = ["action", "shard", "segment", "transitions", "bytes"]
    rows = [[each.kind, each.shard, each.segment, each.num_transitions, each.num_bytes] for each in actions]
    if form == "table":
        make_console().print(_table(names, rows, {1, 2, 3, 4}))
    elif form == "json":
        _write_json(dict(zip(names, row, strict=True)) for row in rows)
    else:
        _write_csv(names, rows)


def print_problems(found: Verified, form: str) -> None:
    """What is wrong with a store, or that nothing is."""
    names = ["shard", "segment", "file", "column", "first_row_id", "stop_row_id", "problem"]
    rows: list[list[Any]] = [
        [each.shard, each.segment, each.file, each.column, *(each.rows or (None, None)), each.what]
        for each in found.problems
    ]
    if form == "json":
        _write_json(dict(zip(names, row, strict=True)) for row in rows)
    elif form == "csv":
        _write_csv(names, rows)
    else:
        for shard, segment, file, column, first, stop, what in rows:
            where = [f"shard {shard}"] if shard >= 0 else []
            where += [f"segment {segment}"] if segment >= 0 else []
            where += [file] if file else []
            where += [f"column {column}"] if column else []
            where += [f"row ids {first} to {stop - 1}"] if first is not None else []
            print(", ".join(where) + ": " + what if where else what)
        told = f"{found.num_rows:,} rows in {found.num_segments} segments, {found.num_bytes:,} bytes"
        print(f"{told}: {'all is well' if found else _problems(len(rows))}.")


def print_repaired(done: Repaired, form: str) -> None:
    """What a repair set aside, and how the store is now."""
    names = ["shard", "segment", "file", "num_rows", "num_transitions", "first_ordinal", "last_ordinal", "reason"]
    rows = [list(astuple(each)) for each in done.lost]
    if form == "json":
        _write_json(dict(zip(names, row, strict=True)) for row in rows)
    elif form == "csv":
        _write_csv(names, rows)
    else:
        if rows:
            make_console().print(_table(names, rows, {0, 1, 3, 4, 5, 6}))
        if done.aside is None and not done.problems:
            print("All is well: nothing was done.")
            return
        aside = "" if done.aside is None else f" What was damaged is in {done.aside}."
        print(f"{_problems(len(done.problems))}, {done.num_transitions_lost:,} transitions lost.{aside}")
        print("All is well now." if done.after else f"Left: {_problems(len(done.after.problems))}, see arrowrb verify.")


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal; yields what to call with how much is done, and of how much."""
    columns = (BarColumn(), TextColumn("{task.completed:,} of {task.total:,} " + what), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=1)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_result(result: pa.Table, form: str, limit: int) -> None:
    """The rows of a query.

    Args:
        result: all rows.
        form: table, json (a list of objects; NaN and infinities are null, binary is base64) or csv.
        limit: rows that a table shows; 0 shows all.
    """
    names = result.schema.names
    if form == "json":
        _write_json(dict(zip(names, row, strict=True)) for row in _rows(result))
    elif form == "csv":
        _write_csv(names, _rows(result))
    else:
        shown = result if limit == 0 else result.slice(0, limit)
        right = {i for i, each in enumerate(result.schema) if _is_number(str(each.type))}
        console = make_console()
        console.print(_table(names, _rows(shown), right))
        if shown.num_rows < result.num_rows:
            print(f"{shown.num_rows:,} of {result.num_rows:,} rows are shown; --limit 0 shows all.", file=sys.stderr)


def make_console() -> Console:
    """On stdout: as wide as the terminal; where there is none, as wide as the table needs."""
    return _Console(width=None if sys.stdout.isatty() else _UNLIMITED_WIDTH, soft_wrap=not sys.stdout.isatty())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, as for what is printed otherwise."""
        raise BrokenPipeError


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]], right: set[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(names):
        table.add_column(Text(name), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(value: Any) -> Text:
    if value is None:
        return Text("NULL", style="dim")
    if isinstance(value, bool):
        return Text(str(value).lower())
    if isinstance(value, float):
        return Text(f"{value:.7g}")
    if isinstance(value, list | dict):
        value = json.dumps(_rounded(plain(value)), ensure_ascii=False)
    if isinstance(value, bytes):
        value = value.hex(" ")
    text = str(value)
    if "\n" in text:
        return Text(text)  # a plan of EXPLAIN
    return Text(text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 1] + "…")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _is_number(arrow_type: str) -> bool:
    return arrow_type.startswith(("int", "uint", "float", "double", "half", "decimal"))


def _rows(result: pa.Table) -> Iterator[list[Any]]:
    """Rows as Python values, some at a time."""
    for batch in result.to_batches(max_chunksize=_ROWS_AT_ONCE):
        columns = [_values(column) for column in batch.columns]
        if columns:
            yield from map(list, zip(*columns, strict=True))


def _values(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):  # dates and times that Python cannot hold, such as infinity
        values = column.cast("int64" if "timestamp" in str(column.type) else "int32").to_pylist()
    return values


def plain(value: Any) -> Any:
    """A value as JSON can say it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _write_json(objects: Iterable[dict[str, Any]]) -> None:
    """A list with one object a line."""
    write, before = sys.stdout.write, "[\n"
    for each in objects:
        write(before + json.dumps(plain(each), allow_nan=False))
        before = ",\n"
    write("[]\n" if before == "[\n" else "\n]\n")


def _write_csv(names: Sequence[str], rows: Iterable[Sequence[Any]], *, header: bool = True) -> None:
    """Numbers as Python writes them, so that floats read back the same; nested values are JSON, NULL is empty."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(names)
    for row in rows:
        writer.writerow(map(_csv_cell, row))


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(plain(value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return "" if value is None else plain(value)


def _problems(count: int) -> str:
    return f"{count:,} problem{'' if count == 1 else 's'}"
