"""Children of the crash tests: single-threaded zygotes that fork writers of rows which are a function of their number.

Commands on stdin, one a line: ``write <store> <progress> <seed> <rows>``. A child tells in the progress file how many
rows it has attempted and how many were acknowledged by `extend`. The zygote prints its pid, then how it ended.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from gymnasium import spaces

from arrowrb import kernels
from arrowrb.engine import Engine, WriterOptions, segments
from arrowrb.retention import Limits
from arrowrb.schema import Extra, Schema
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store

LANES, LENGTH = 3, 7
SCHEMA = Schema.from_spaces(
    spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Discrete(5), extras={"crc": Extra("int64")}
)


def rows(first: int, count: int) -> dict:
    """Rows first to first + count: lanes in turn, episodes of `LENGTH` steps."""
    return rows_at(np.arange(first, first + count))


def rows_at(number: np.ndarray) -> dict:
    """Rows by their numbers."""
    place = number // LANES
    lane = number % LANES

    def observation(place):
        return np.stack([lane, place, lane * 1000 + place % 1000, number * 0], axis=1).astype(np.float32)

    crc = [zlib.crc32(struct.pack("<qq", each, each % LANES)) for each in number.tolist()]
    return {
        "observation": observation(place),
        "next_observation": observation(place + 1),
        "action": number % 5,
        "reward": number.astype(np.float64),
        "terminated": place % LENGTH == LENGTH - 1,
        "truncated": place % (5 * LENGTH) == LENGTH - 1,
        "crc": np.array(crc, np.int64),
        "lane": lane,
    }


def check_rows(batch: dict, numbers: np.ndarray) -> None:
    """That a gathered batch holds these rows, bit for bit."""
    for name, expected in rows_at(numbers).items():
        if name != "lane":
            found = batch[name].numpy()
            assert found.tobytes() == expected.astype(found.dtype).tobytes(), name


def tiny(*, num_lanes: int, **_) -> SegmentShape:
    """Small segments, so that many are prepared, closed and sealed."""
    return SegmentShape(16 * 8 * max(num_lanes, LANES), 16)


def write(store: str, progress: str, seed: int, most: int) -> None:
    """Go on with a store until killed, or until so many rows are there; then close it."""
    rng = np.random.default_rng(seed)
    descriptor = os.open(progress, os.O_RDWR | os.O_CREAT)
    segments.shape_segment = tiny
    if not Path(store, "store.json").exists():
        Store.create(store, SCHEMA).close()
    limits = Limits(hot_rows=seed % 2 or None)  # a hot tier of eight segments, or of all
    with Store(Engine(Path(store), writable=True, options=WriterOptions(0.02, limits=limits))) as opened:
        number = len(opened)
        while number < most:
            count = int(rng.integers(1, 40))
            os.pwrite(descriptor, struct.pack("<q", number + count), 0)
            opened.extend(rows(number, count))
            number += count
            os.pwrite(descriptor, struct.pack("<q", number), 8)


def main() -> None:
    """Fork a writer a command."""
    for name in ("ingest", "survey", "fence"):
        getattr(kernels, name)
    print("ready", flush=True)
    for line in sys.stdin:
        _, store, progress, seed, most = line.split()
        child = os.fork()
        if child == 0:
            try:
                write(store, progress, int(seed), int(most))
                os._exit(0)
            except BaseException as error:
                print(f"error {error!r}", flush=True)
                os._exit(1)
        print(child, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
