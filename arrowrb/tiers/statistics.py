"""Whether the statistics in a Parquet file's footer are those of its rows.

Queries pass over row groups by them, and nothing else in the file tells when they are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def wrong_statistics(file: pq.ParquetFile, group: int) -> Iterator[str]:
    """Names of the columns of a row group whose smallest, largest or number of missing values is not what it says.

    They are made once more, by writing the column: so they are compared as they are stored, whatever the type. A column
    that cannot be read is passed over.
    """
    footer = file.metadata.row_group(group)
    for place in range(footer.num_columns):
        try:
            chunk = footer.column(place)
            name = chunk.path_in_schema
        except (pa.ArrowException, ValueError) as error:  # a name that is no text
            yield f"column {place} ({error})"
            continue
        if not chunk.is_stats_set or "." in name:
            continue
        try:
            column = file.read_row_group(group, columns=[name], use_threads=False)
        except (pa.ArrowException, OSError):
            continue
        if column.num_columns != 1 or column.num_rows != footer.num_rows or _told(chunk) != _told(_write(column)):
            yield name


def _write(table: pa.Table) -> Any:
    """The footer's entry of a table of one column."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, row_group_size=max(table.num_rows, 1))
    return pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0).column(0)


def _told(chunk: Any) -> tuple[object, ...]:
    found = chunk.statistics
    if found is None:
        return ()
    bounds = (found.min_raw, found.max_raw) if found.has_min_max else ()
    return (found.null_count if found.has_null_count else None, found.num_values, repr(bounds))
