"""How long does opening a store of a million transitions take, imports apart? Target: 0.2 s."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import fill_store, halfcheetah_schema, halfcheetah_transitions, show

import arrowrb

TARGET = 0.2


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to forget the files' pages, so that opening reads the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with fill_store(path, halfcheetah_transitions(options.rows), halfcheetah_schema()):
            pass
        seconds: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for mode in ("r", "a"):
                for name, cold in ((f'mode="{mode}"', False), (f'mode="{mode}", files not in the page cache', True)):
                    if cold:
                        drop_from_cache(path)
                    began = time.perf_counter()
                    store = arrowrb.Store.open(path, mode=mode)
                    count = len(store)
                    opened = time.perf_counter() - began
                    store.sample(256)
                    sampled = time.perf_counter() - began
                    store.close()
                    if count != options.rows:
                        raise SystemExit(f"{count:,} transitions are there, expected {options.rows:,}.")
                    seconds.setdefault(name, []).append(opened)
                    seconds.setdefault(name + ", to the first batch", []).append(sampled)
    rows = [(name, f"{np.median(v) * 1e3:.1f} ms", f"{max(v) * 1e3:.1f} ms") for name, v in seconds.items()]
    worst = max(float(np.median(v)) for name, v in seconds.items() if "batch" not in name)
    show(
        f"Opening a store of {options.rows:,} transitions",
        ("", "median", "longest"),
        rows,
        [
            f"Target {TARGET} s: {'reached' if worst <= TARGET else 'missed'}.",
            "Imports and compiled kernels were loaded before.",
        ],
    )


if __name__ == "__main__":
    main()
