"""Whether the statistics in a Parquet file's footer are those of its rows.

Queries pass over row groups by them, and nothing else in the file tells when they are wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def wrong_statistics(file: pq.ParquetFile, group: int) -> Iterator[str]:
    """Names of the columns of a row group whose smallest, largest or number of missing values is not what it says.

    Columns that cannot be read are passed over.
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
        whole = part.num_rows == footer.num_rows and len(set(part.column_names)) == part.num_columns
        for name, column in zip(part.column_names, part.columns, strict=True):
            if not whole or _told(chunks[name].statistics, column.type) not in (None, _found(column)):
                yield name


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


def _found(column: pa.ChunkedArray) -> tuple[object, ...]:
    """How many values are missing and there, and the smallest and the largest, but for NaN."""
    counts = column.null_count, len(column) - column.null_count
    if not pa.types.is_primitive(column.type):
        values = column.drop_null().to_pylist()
        return (*counts, min(values), max(values)) if values else counts
    # Not by Arrow's min_max, which (26.0) passes over values where there are NaN and NULL; nor by NumPy's fmin, for
    # which a signaling NaN is the smallest.
    values = column.drop_null().to_numpy()
    if values.dtype.kind == "f":
        values = values[~np.isnan(values)]
    return (*counts, values.min().item(), values.max().item()) if values.size else counts


def _told(found: pq.Statistics | None, kind: pa.DataType) -> tuple[object, ...] | None:
    """The same as the footer says it."""
    if found is None:
        return None
    counts = found.null_count if found.has_null_count else None, found.num_values
    if not found.has_min_max:
        return counts
    bounds = [found.min, found.max]
    if pa.types.is_float16(kind):  # as bytes
        bounds = [np.frombuffer(bound, np.float16).item() for bound in bounds]
    return (*counts, *bounds)
