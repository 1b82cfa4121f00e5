"""Power failures: images of a disk that lost what was not synced, opened on a machine that restarted."""

from __future__ import annotations

import os
import shutil
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from arrowrb import files
from tests import faults
from tests.torture.workloads import Progress, check_left, live_twice

_CALLS, _IMAGES = 400, 40  # about as many as one run has boundaries, and images
_BOUNDARIES = ("fsync", "fdatasync", "rename", "unlink")


def images(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """Images that are taken at the boundaries of syncs, with any part of what was not synced by then."""
    rng, counts, round_ = np.random.default_rng(part), Tally[str](), part
    while counts["cases"] < len(range(part, cases, parts)):
        most = len(range(part, cases, parts)) - counts["cases"]
        taken = _take(folder, most, rng, round_)
        counts["cases"] += len(taken)
        counts["stores"] += _check(taken)
        round_ += parts
    return dict(counts)


def _take(folder: Path, most: int, rng: np.random.Generator, seed: int) -> list[tuple[Path, int, int]]:
    """Images of one run of the workload, with how many rows were synced and attempted by then."""
    store, told = folder / "store", folder / "progress"
    progress, disk = Progress(told), faults.Disk(store)
    taken: list[tuple[Path, int, int]] = []
    calls, every = 0, max(1, _CALLS // min(most, _IMAGES))

    def around(call: str, path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        nonlocal calls
        if not path.startswith(str(store)):
            return do(*arguments)
        if call in _BOUNDARIES and store.exists() and len(taken) < min(most, _IMAGES):
            calls += 1
            if calls % every == seed % every:
                _, _, synced = Progress.read(told)  # what is acknowledged while the image is made may be in it
                image = folder / f"image-{len(taken)}"
                disk.image(image, rng)
                taken.append((image, synced, Progress.read(told)[0]))
        return disk.around(call, path, do, arguments)

    with faults.Watch(around).installed():
        live_twice(store, progress, seed)
    shutil.rmtree(store)
    progress.close()
    told.unlink()
    disk.forget()
    return taken


def _check(taken: list[tuple[Path, int, int]]) -> int:
    stores, boot = 0, os.urandom(16)
    with mock.patch.object(files, "boot_id", return_value=boot):
        for number, (path, synced, attempted) in enumerate(taken):
            if (path / "store.json").exists() or synced:
                check_left(path, synced, attempted, sql=number % 4 == 0)
                stores += 1
            shutil.rmtree(path)
    return stores
