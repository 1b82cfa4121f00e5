"""Processes that are killed: around every call that changes files, at any moment, and while they recover."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter as Tally
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests import faults
from tests.torture.elsewhere import Elsewhere, load_modules
from tests.torture.workloads import (
    EXTRA_ROWS,
    Progress,
    check_left,
    fork,
    live_twice,
    open_writer,
    small_segments,
    write,
)

ACTS = (faults.kill_before, faults.kill_amid, faults.kill_after)
_RECOVERY_CALLS = 25


def record_calls(folder: Path) -> list[str]:
    """The names of all calls of the workload, in order."""
    counter = faults.Counter()
    _run(folder, counter.around)
    return counter.names


def _run(folder: Path, around: Callable[..., Any]) -> None:
    folder.mkdir()
    progress = Progress(folder / "progress")
    with faults.Watch(around).installed():
        live_twice(folder / "store", progress)
    progress.close()


def around_calls(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """Killed before, amid and after calls, each kind of call first of all; every third again while it recovers."""
    assert load_modules() == 0
    elsewhere = Elsewhere()
    elsewhere(small_segments, 8, 1)
    names = elsewhere(record_calls, folder / "calls")
    first = {name: at for at, name in reversed(list(enumerate(names, 1)))}
    hits = [(at, act) for at in first.values() for act in ACTS]
    rng = np.random.default_rng(0)
    if len(hits) > cases:
        hits = [hits[i] for i in rng.permutation(len(hits))[:cases]]
    hits += [(int(rng.integers(1, len(names) + 1)), ACTS[rng.integers(3)]) for _ in range(cases - len(hits))]
    ended: Tally[str] = Tally()
    for number in range(part, cases, parts):
        at, act = hits[number]
        place = folder / str(number)
        code = fork(lambda at=at, act=act, place=place: _run(place, faults.Counter(at, act).around))
        assert code in (-signal.SIGKILL, 0), code
        ended["killed"] += code != 0
        if number % 3 == 0:
            ended["killed again in recovery"] += _kill_recovery(place / "store", 1 + number % _RECOVERY_CALLS)
        attempted, acknowledged, _ = Progress.read(place / "progress")
        elsewhere(
            partial(check_left, again=number % 2 == 0, sql=number // 2 % 4 == 0),
            place / "store",
            acknowledged,
            attempted,
        )
        shutil.rmtree(place)
        ended["cases"] += 1
    elsewhere.close()
    return {**ended, "kinds of calls": len(first)}


def _kill_recovery(store: Path, at: int) -> int:
    """Open for writing, and die at a call."""

    def job() -> None:
        with faults.Watch(faults.Counter(at, ACTS[at % 3]).around).installed():
            open_writer(store).close()

    code = fork(job)
    assert code in (-signal.SIGKILL, 0), code
    return int(code != 0)


def at_any_moment(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """SIGKILL from outside to a process that writes, moves, drops and syncs by the clock, again and again."""
    assert load_modules() == 0
    elsewhere = Elsewhere()
    for call in (small_segments, partial(elsewhere, small_segments)):
        call(16, 4)
    rng = np.random.default_rng(part)
    store, progress, found = folder / "store", folder / "progress", 0
    done = 0
    for number in range(part, cases, parts):
        if number // parts % 10 == 0:  # a new one now and then
            shutil.rmtree(store, ignore_errors=True)
            progress.unlink(missing_ok=True)
            found = 0
        child = os.fork()
        if child == 0:
            _write_on(store, progress, number)
        while Progress.read(progress)[0] == found and rng.random() < 0.98:
            time.sleep(0.001)
        time.sleep(rng.random() ** 2 * 0.12)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        attempted, acknowledged, _ = Progress.read(progress)
        look = partial(check_left, sql=number // parts % 4 == 0)
        found = elsewhere(look, store, max(acknowledged, found), max(attempted, found))
        _tell(progress, found := found + EXTRA_ROWS)  # which the check has written
        done += 1
    elsewhere.close()
    return {"cases": done}


def _tell(progress: Path, count: int) -> None:
    told = Progress(progress)
    for place in range(2):
        told.tell(place, count)
    told.close()


def _write_on(store: Path, progress: Path, seed: int) -> None:
    try:
        opened = open_writer(store, most_rows=1000, sync_interval=0.02)
        write(opened, Progress(progress), 10**9, 60, np.random.default_rng(seed))
    except BaseException as error:
        print(f"child: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)
