"""Writers that want the same store at once, and writers that take it over from one that was killed."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

import pytest

from arrowrb.errors import LockedError
from tests.torture.workloads import Progress, check_left, committed, open_writer, write

_RACERS = 2
_WON, _REFUSED, _BROKEN = 10, 11, 1


def races(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """Two writers open one store at the same moment: one has it, the other one is refused, no row is lost."""
    store, done, alone = folder / "store", 0, 0
    open_writer(store).close()
    progress = Progress(folder / "progress")
    for _ in range(part, cases, parts):
        gate, opened = os.pipe()
        children = [_race(store, progress, gate, opened) for _ in range(_RACERS)]
        os.close(gate)
        os.close(opened)  # which lets them all go
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert set(codes) <= {_WON, _REFUSED}, codes
        assert _WON in codes
        alone += codes.count(_WON) == 1
        count = Progress.read(folder / "progress")[1]
        check_left(store, count, count)
        done += 1
    return {"cases": done, "refusals": alone}


def _race(store: Path, progress: Progress, gate: int, opened: int) -> int:
    child = os.fork()
    if child:
        return child
    code = _BROKEN
    try:
        os.close(opened)
        os.read(gate, 1)
        with open_writer(store) as writer:
            write(writer, progress, 30, 30)
            time.sleep(0.02)
        code = _WON
    except LockedError:
        code = _REFUSED
    except BaseException as error:
        print(f"racer: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def takeovers(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """A writer is refused while another one lives, and has the store within a second when that is killed."""
    seconds: list[float] = []
    open_writer(folder / "first").close()  # what is loaded once a process is not counted
    for _ in range(part, cases, parts):
        place = folder / "store"
        progress = Progress(folder / "progress")
        child = os.fork()
        if child == 0:
            try:
                write(open_writer(place), progress, 10**9, 40)
            finally:
                os._exit(1)
        while Progress.read(folder / "progress")[1] < 100:
            time.sleep(0.001)
        with pytest.raises(LockedError, match=rf"\(pid {child}\)"):
            open_writer(place)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        began = time.monotonic()
        with open_writer(place) as writer:
            seconds.append(time.monotonic() - began)
            attempted, acknowledged, _ = Progress.read(folder / "progress")
            assert acknowledged <= committed(writer) <= attempted
        check_left(place, acknowledged, attempted)
        shutil.rmtree(place)
        progress.close()
        os.unlink(folder / "progress")
    assert not seconds or statistics.median(seconds) < 1  # one may fall into a moment in which the machine is busy
    return {"cases": len(seconds), "ms at most": int(max(seconds, default=0.0) * 1000)}
