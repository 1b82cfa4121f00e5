"""Does anything grow with the number of commits, where what is kept does not?

Commits of a few rows go into a store that holds 16,000 transitions, so that thousands of segments are moved to Parquet
and dropped. A reader in the same process samples, asks in SQL, and holds snapshots for a while. Descriptors, mappings,
memory and bytes on disk are printed at each tenth.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
import pyarrow as pa
from common import show

import arrowrb

MAX_ROWS, HOT_ROWS = 16_000, 4_000
QUERIES = (
    "SELECT avg(reward), count(*) FROM transitions WHERE step < 5",
    "SELECT count(*), avg(length) FROM episodes",
)


def make_schema() -> arrowrb.Schema:
    """CartPole's."""
    box = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    return arrowrb.Schema.from_spaces(box, gymnasium.spaces.Discrete(2))


def make_batches(rows: int, count: int = 500, length: int = 25) -> list[dict[str, np.ndarray]]:
    """Batches of one lane that go on from each other, in episodes of ``length`` steps, over and over again."""
    total = rows * count
    observation = np.random.default_rng(0).normal(size=(total + 1, 4)).astype(np.float32)
    observation[-1] = observation[0]
    whole = {
        "observation": observation[:-1],
        "next_observation": observation[1:],
        "action": np.arange(total) % 2,
        "reward": np.ones(total),
        "terminated": np.arange(1, total + 1) % length == 0,
        "truncated": np.zeros(total, np.bool_),
    }
    return [{name: each[first : first + rows] for name, each in whole.items()} for first in range(0, total, rows)]


def anonymous_mb() -> float:
    """Anonymous memory of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def measure(path: Path) -> tuple[object, ...]:
    """Descriptors, mappings, of these the store's, memory before and after malloc gave back, Arrow's, and disk."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    memory = anonymous_mb()
    ctypes.CDLL(None).malloc_trim(0)
    pa.default_memory_pool().release_unused()
    disk = sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
    return (
        len(os.listdir("/proc/self/fd")),
        maps.count("\n"),
        maps.count(str(path)),
        f"{memory:.1f}",
        f"{anonymous_mb():.1f}",
        f"{pa.total_allocated_bytes() / 1e6:.2f}",
        f"{disk / 1e6:.1f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=4, help="a commit")
    parser.add_argument("--every", type=int, default=500, help="commits between looks of the reader")
    parser.add_argument("--no-sql", action="store_true", help="the reader only samples")
    options = parser.parse_args(arguments)
    batches, rows, held = make_batches(options.rows), [], deque[object](maxlen=3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with (
            arrowrb.Store.create(path, make_schema(), hot_rows=HOT_ROWS, max_rows=MAX_ROWS) as store,
            arrowrb.Store.open(path, cache_bytes=1 << 20) as reader,
        ):
            began = time.perf_counter()
            for number in range(1, options.commits + 1):
                store.extend(batches[number % len(batches)])
                if number % options.every == 0:
                    held.append(reader._engine.snapshot())
                    reader.sample(64)
                    for query in () if options.no_sql else QUERIES:
                        reader.sql(query, threads=1).fetchall()
                if number % (options.commits // 10) == 0:
                    held.clear()
                    dropped = sum(each.evicted.num_segments for each in store._engine.manifests())
                    rate = number / (time.perf_counter() - began)
                    rows.append((f"{number:,}", f"{dropped:,}", *measure(path), f"{rate:,.0f}"))
                    print(*rows[-1], flush=True)
    heads = (
        "commits",
        "dropped",
        "descriptors",
        "mappings",
        "the store's",
        "memory",
        "trimmed",
        "Arrow's",
        "disk",
        "/s",
    )
    show(
        f"Does anything grow? {options.commits:,} commits of {options.rows} rows, of which {MAX_ROWS:,} are kept",
        heads,
        rows,
        [
            "Memory is anonymous, in MB: as it is, once malloc has given back what is free, and Arrow's part of it.",
            "The disk keeps the episodes of segments that were dropped.",
        ],
    )


if __name__ == "__main__":
    main()
