"""What do the promises cost? Checksums and commits, verifying, and each position of the dial of durability.

Targets: checksums and commits take at most 10 % of a sustained `extend`; a commit takes 10 us at most, whatever the
number of lanes; `verify` reads 1 GB a second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from common import Transitions, fill_store, halfcheetah_schema, halfcheetah_transitions, show
from numpy.typing import NDArray

import arrowrb
from arrowrb.commits import CommitFile
from arrowrb.engine import tables

BATCH_ROWS = 1_000
SHARE, COMMIT_MICROSECONDS, VERIFY_BYTES = 0.10, 10.0, 1e9
DIAL: dict[str, tuple[float | None, bool]] = {
    "sync_interval=None: when it is closed, or flushed": (None, False),
    "sync_interval=5, the default": (5.0, False),
    "sync_interval=1": (1.0, False),
    "sync_interval=0.1": (0.1, False),
    "flush() after each batch of 1,000": (None, True),
}


def write(
    folder: Path, transitions: Transitions, rows: int, interval: float | None = 5.0, *, flush: bool = False
) -> float:
    """Rows a second, from the first batch until all is on disk."""
    began = time.perf_counter()
    with arrowrb.Store.create(folder / "store", halfcheetah_schema(), sync_interval=interval) as store:
        for first in range(0, rows, BATCH_ROWS):
            at = first % transitions.num_rows
            store.extend(transitions.part(at, at + BATCH_ROWS))
            if flush:
                store.flush()
    return rows / (time.perf_counter() - began)


def no_checksums(schema: arrowrb.Schema, column: Callable[[int], NDArray[Any]], block_rows: int) -> NDArray[np.uint32]:
    """Instead of `tables.checksums`."""
    return np.zeros((len(schema.columns), len(column(0)) // block_rows), np.uint32)


def measure_checksums(rows: int, rounds: int) -> None:
    transitions = halfcheetah_transitions(min(rows, 1_000_000))
    real = tables.checksums
    rates: dict[str, list[float]] = {"with checksums": [], "without": []}
    for _ in range(rounds + 1):
        for name, found in rates.items():
            with (
                tempfile.TemporaryDirectory() as folder,
                mock.patch.object(tables, "checksums", real if name == "with checksums" else no_checksums),
            ):
                found.append(write(Path(folder), transitions, rows))
    medians = {name: float(np.median(found[1:])) for name, found in rates.items()}
    share = 1 - medians["with checksums"] / medians["without"]
    show(
        f"Extend of {rows:,} rows, until all is on disk",
        ("", "rows a second"),
        [(name, f"{rate:,.0f}") for name, rate in medians.items()],
        [f"Checksums take {share:.1%}. Target {SHARE:.0%}: {'reached' if share <= SHARE else 'missed'}."],
    )


def measure_commits(rounds: int) -> None:
    rows, worst = [], 0.0
    write_record = CommitFile.write
    for lanes in (1, 64, 4096):
        transitions = halfcheetah_transitions(lanes)
        seconds: list[float] = []

        def timed(file: CommitFile, record: object, seconds: list[float] = seconds) -> None:
            began = time.perf_counter()
            write_record(file, record)  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - began)

        whole = []
        with (
            tempfile.TemporaryDirectory() as folder,
            arrowrb.Store.create(Path(folder) / "store", halfcheetah_schema()) as store,
            mock.patch.object(CommitFile, "write", timed),
        ):
            lane, batch = np.arange(lanes), transitions.part(0, lanes)
            for _ in range(rounds):
                began = time.perf_counter()
                store.extend(batch, lane=lane, contiguous=False)
                whole.append(time.perf_counter() - began)
        commit, extend = float(np.median(seconds)) * 1e6, float(np.median(whole)) * 1e6
        worst = max(worst, commit)
        rows.append((f"{lanes:,} lanes", f"{commit:.1f} us", f"{extend:,.0f} us"))
    show(
        "A commit: its record made visible, within an extend of a row a lane",
        ("", "commit", "extend"),
        rows,
        [f"Target {COMMIT_MICROSECONDS:g} us: {'reached' if worst <= COMMIT_MICROSECONDS else 'missed'}."],
    )


def measure_verify(rows: int, rounds: int) -> None:
    transitions = halfcheetah_transitions(rows)
    results, slowest = [], float("inf")
    with tempfile.TemporaryDirectory() as folder:
        for name, hot_rows in (("hot", None), ("most of it in Parquet", 10_000)):
            path = Path(folder) / name
            with fill_store(path, transitions, halfcheetah_schema()):
                pass
            if hot_rows is not None:
                with arrowrb.Store.open(path, mode="a", hot_rows=hot_rows) as store:
                    store.maintain()
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            seconds = []
            for _ in range(rounds):
                began = time.perf_counter()
                if not arrowrb.verify(path):
                    raise SystemExit("The store is damaged.")
                seconds.append(time.perf_counter() - began)
            rate = size / float(np.median(seconds))
            slowest = min(slowest, rate)
            results.append((name, f"{size / 1e6:,.0f} MB", f"{rate / 1e9:.2f} GB/s"))
    show(
        f"Verifying {rows:,} rows",
        ("", "on disk", "read and checked"),
        results,
        [f"Target {VERIFY_BYTES / 1e9:g} GB/s: {'reached' if slowest >= VERIFY_BYTES else 'missed'}."],
    )


def measure_dial(rows: int, rounds: int) -> None:
    transitions = halfcheetah_transitions(min(rows, 1_000_000))
    rates: dict[str, list[float]] = {name: [] for name in DIAL}
    for _ in range(rounds):
        for name, (interval, flush) in DIAL.items():
            with tempfile.TemporaryDirectory() as folder:
                rates[name].append(write(Path(folder), transitions, rows, interval, flush=flush))
    show(
        f"The dial of durability: extend of {rows:,} rows, until all is on disk",
        ("rows are synced", "rows a second"),
        [(name, f"{np.median(found):,.0f}") for name, found in rates.items()],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    measure_commits(200 * options.rounds)
    measure_verify(options.rows, options.rounds)
    measure_checksums(options.rows, options.rounds)
    measure_dial(options.rows, options.rounds)


if __name__ == "__main__":
    main()
