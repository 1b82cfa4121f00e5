"""Whether the statistics in a Parquet file's footer are those of its rows.

Queries pass over row groups by them, and nothing else in the file tells when they are wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def wrong_statistics(file: pq.ParquetFile, group: int) -> Iterator[str]:
    """Names of the columns of a row group whose smallest, largest or number of missing values is not what it says.

    They are made once more, by writing the columns: so they are compared as they are stored, whatever the type. Columns
    that cannot be read are passed over.
    """
    footer = file.metadata.row_group(group)
    chunks: dict[str, Any] = {}
    for place in range(footer.num_columns):
        try:
            chunk = footer.column(place)
            name = chunk.path_in_schema
        except (pa.ArrowException, ValueError) as error:  # a name that is no text
            yield f"column {place} ({error})"
            continue
        if chunk.is_stats_set and "." not in name:
            chunks[name] = chunk
    for part in _read(file, group, list(chunks)):
        made = _write(part)
        whole = part.num_rows == footer.num_rows and len(made) == part.num_columns  # no name twice
        yield from (name for name, chunk in made.items() if not whole or _told(chunk) != _told(chunks[name]))


def _read(file: pq.ParquetFile, group: int, names: list[str]) -> Iterator[pa.Table]:
    """Columns of a row group, one by one where they cannot be read together: then it is not told which cannot."""
    with contextlib.suppress(pa.ArrowException, OSError):
        whole = file.read_row_group(group, columns=names, use_threads=False)
        if whole.column_names == names:
            yield whole
            return
    for name in names:
        with contextlib.suppress(pa.ArrowException, OSError):
            yield file.read_row_group(group, columns=[name], use_threads=False)


def _write(table: pa.Table) -> dict[str, Any]:
    """The footer's entries of a table's columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, row_group_size=max(table.num_rows, 1))
    footer = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0)
    return {name: footer.column(place) for place, name in enumerate(table.column_names)}


def _told(chunk: Any) -> tuple[object, ...]:
    found = chunk.statistics
    if found is None:
        return ()
    bounds = (found.min_raw, found.max_raw) if found.has_min_max else ()
    return (found.null_count if found.has_null_count else None, found.num_values, repr(bounds))
