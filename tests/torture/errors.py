"""Calls that fail, one after another, once and from then on; and disks that are full at every size."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter as Tally
from pathlib import Path

import numpy as np

from arrowrb.errors import ArrowRBError, FullError
from tests import faults
from tests.torture.workloads import WORKLOADS, Progress, check_left, committed, open_writer, settle, write

_LEAST_KIB, _MOST_KIB = 16, 700  # of disks that are too small for the work


def failing_calls(folder: Path, workloads: int, part: int, parts: int) -> dict[str, int]:
    """Each call of the first so many workloads fails in each way, until the work goes through untouched."""
    counts: Tally[str] = Tally(workloads=workloads if part == 0 else 0)
    for name in list(WORKLOADS)[:workloads]:
        for error in faults.ERRORS:
            for forever in (False, True):
                at = 1 + part
                while _fail(folder / "case", name, faults.Failing(at, faults.ERRORS[error], forever=forever)):
                    counts["cases"] += 1
                    at += parts
    return dict(counts)


def _fail(folder: Path, name: str, failing: faults.Failing) -> bool:
    """Do the work with a call that fails; returns whether there was one.

    Whatever is raised is an error of ours. What was acknowledged is there afterwards.
    """
    store, progress = WORKLOADS[name].place(folder)
    try:
        with faults.Watch(failing.around).installed():
            WORKLOADS[name].run(store, progress)
    except ArrowRBError:
        pass
    except OSError as error:
        raise AssertionError(f"{error!r} is not an error of ours") from error
    attempted, acknowledged, _ = Progress.read(folder / "progress")
    progress.close()
    if WORKLOADS[name].mends:
        WORKLOADS[name].run(store, progress)
    turn = failing.at // 2 % 8  # one part has every other call
    check_left(store, acknowledged, attempted, again=False, reader=turn % 4 == 0, sql=turn in (0, 1))
    shutil.rmtree(folder)
    return failing.count >= failing.at


def full_disks(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """Disks of many sizes: what was committed when there was no more room is there, and goes on when there is.

    A file system of that size where the machine lets us mount one, else a budget of bytes.
    """
    counts: Tally[str] = Tally()
    for number in range(part, cases, parts):
        size = _LEAST_KIB + (_MOST_KIB - _LEAST_KIB) * number // max(1, cases - 1)
        place = folder / "disk"
        place.mkdir()
        mounted = _mount(place, f"size={size}k")
        counts["cases"] += 1
        counts["real file systems"] += mounted
        progress = Progress(folder / "progress")
        try:
            if mounted:
                _work_on_full_disk(place, progress)
                assert _mount(place, "remount,size=64m")
            else:
                with faults.Watch(faults.Budget(size << 10).around).installed():
                    _work_on_full_disk(place, progress)
            attempted, acknowledged, _ = Progress.read(folder / "progress")
            check_left(place / "store", acknowledged, attempted, sql=number // parts % 2 == 0)
            _go_on(place / "store")
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(place)], check=True)
        progress.close()
        os.unlink(folder / "progress")
        shutil.rmtree(place)
    return dict(counts)


def _mount(place: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _work_on_full_disk(place: Path, progress: Progress) -> None:
    """Write, export and name points until each is refused several times; whatever is committed stays readable."""
    store = None
    for _ in range(8):
        try:
            if store is None:
                store = open_writer(place / "store", most_rows=None)
            write(store, progress, 5000, 90, np.random.default_rng(0))
        except FullError:
            pass
        try:
            if store is not None:
                settle(store)
                shutil.rmtree(place / "out", ignore_errors=True)
                store.export(place / "out")
                store.checkpoint("point", state=committed(store))
        except FullError:
            assert not (place / "out").exists() or any((place / "out").glob("*.parquet"))
    if store is not None:
        try:
            store.close()
        except FullError:  # told once
            store.close()


def _go_on(store: Path) -> None:
    with open_writer(store, most_rows=None) as opened:
        before = committed(opened)
        progress = Progress(store.with_name("progress"))
        assert write(opened, progress, 200, 90) >= before + 200
        progress.close()
