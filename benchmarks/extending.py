"""How many rows a second does `Store.extend` take, in batches of 1,000 HalfCheetah-sized transitions?

Each round adds one batch; the yardstick copies the same batch into preallocated NumPy arrays. Target: 3 million a
second. The sustained rate counts everything from the first batch to the last, waits for new segments included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import halfcheetah_schema, halfcheetah_transitions, microseconds, show, spread

import arrowrb

BATCH_ROWS = 1_000
TARGET = 3e6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--path", type=Path, help="a folder on the disk to measure (default: the temporary one)")
    options = parser.parse_args(arguments)
    transitions = halfcheetah_transitions(min(options.rows, 1_000_000))
    arrays = [np.zeros_like(array) for array in vars(transitions).values()]
    num_batches = options.rows // BATCH_ROWS
    ours, copies = np.empty(num_batches), np.empty(num_batches)
    with (
        tempfile.TemporaryDirectory(dir=options.path) as folder,
        arrowrb.Store.create(Path(folder) / "store", halfcheetah_schema()) as store,
    ):
        for index in range(num_batches):
            first = index * BATCH_ROWS % transitions.num_rows
            batch = transitions.part(first, first + BATCH_ROWS)
            began = time.perf_counter()
            store.extend(batch)
            between = time.perf_counter()
            for array, values in zip(arrays, batch.values(), strict=True):
                array[first : first + BATCH_ROWS] = values
            ours[index], copies[index] = between - began, time.perf_counter() - between
        began = time.perf_counter()
        store.flush()
        flushed = time.perf_counter() - began
        if len(store) != num_batches * BATCH_ROWS:
            raise SystemExit(f"{len(store):,} transitions are there, expected {num_batches * BATCH_ROWS:,}.")
    rows = [
        (
            name,
            f"{BATCH_ROWS / np.median(values) / 1e6:.2f} M/s",
            f"{BATCH_ROWS * num_batches / values.sum() / 1e6:.2f} M/s",
            microseconds(values),
            spread(values),
            f"{values.max() * 1e3:.1f} ms",
        )
        for name, values in (("arrowrb, extend", ours), ("NumPy, copy into arrays", copies))
    ]
    rate = BATCH_ROWS / np.median(ours)
    show(
        f"Extend: {num_batches:,} batches of {BATCH_ROWS:,} rows",
        ("", "rows, by median", "rows, sustained", "a batch", "10 to 90 %", "longest"),
        rows,
        [
            f"Target {TARGET / 1e6:g} M/s: {'reached' if rate >= TARGET else 'missed'} by the median.",
            f"The flush at the end took {flushed:.2f} s and is not counted; syncs in the background are.",
        ],
    )


if __name__ == "__main__":
    main()
