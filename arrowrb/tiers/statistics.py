"""Whether the statistics in a Parquet file's footer are those of its rows.

Queries pass over row groups by them, and nothing else in the file tells when they are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray


def wrong_statistics(group: pq.RowGroupMetaData, leaves: Mapping[int, tuple[NDArray[Any], int]]) -> Iterator[int]:
    """Leaves of a row group whose smallest, largest or number of missing values is not what it says.

    Args:
        group: what the footer says.
        leaves: of some of them, by their places, the values that are there, and how many are missing.
    """
    for place, (values, num_missing) in leaves.items():
        chunk = group.column(place)
        if chunk.is_stats_set and _told(chunk.statistics, values.dtype) != (num_missing, *_found(values)):
            yield place


def _found(values: NDArray[Any]) -> tuple[Any, ...]:
    """How many values there are, the smallest and the largest, but for NaN."""
    count = values.size
    if values.dtype.kind == "f":  # NumPy's fmin would do, but takes a signaling NaN for the smallest
        missing = np.isnan(values)
        values = values[~missing] if missing.any() else values
    return (count, values.min().item(), values.max().item()) if values.size else (count,)


def _told(found: pq.Statistics, kind: np.dtype[Any]) -> tuple[Any, ...]:
    """How many are missing, and the same as the footer says it."""
    counts = found.null_count if found.has_null_count else None, found.num_values
    if not found.has_min_max:
        return counts
    bounds = [found.min, found.max]
    if kind == np.float16:  # as bytes
        bounds = [np.frombuffer(bound, np.float16).item() for bound in bounds]
    return (*counts, *bounds)
