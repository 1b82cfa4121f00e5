"""What must not lose a row, done often: `python -m tests.torture` prints a table; the tests do each a few times.

Every row is a function of its number (see `crash_child`), so that each one that is recovered is checked.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from crash_child import LANES, SCHEMA, check_rows, rows

import arrowrb
from arrowrb import files
from arrowrb.engine import Engine, WriterOptions, create_store, segments
from arrowrb.errors import ArrowRBError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests import faults

BLOCK_ROWS, SEGMENT_ROWS = 8, 8 * 4 * LANES
_CALLS = 700  # about as many as the workload of `failing_calls` makes
MOST_ROWS = 1200  # that are kept; the hot tier takes eight segments


def shape(**_: Any) -> SegmentShape:
    """Small segments, so that there are many."""
    return SegmentShape(SEGMENT_ROWS, BLOCK_ROWS)


class Progress:
    """How many rows were attempted and acknowledged, told across a kill."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        self._write = os.pwrite

    def tell(self, place: int, value: int) -> None:
        self._write(self._descriptor, struct.pack("<q", value), 8 * place)

    def close(self) -> None:
        os.close(self._descriptor)

    @staticmethod
    def read(path: Path) -> tuple[int, int, int]:
        content = (path.read_bytes() if path.exists() else b"").ljust(24, b"\0")
        attempted, acknowledged, synced = struct.unpack("<qqq", content[:24])
        return attempted, acknowledged, synced


def open_writer(path: Path) -> Store:
    """Small limits, so that segments are sealed, moved and dropped all the time."""
    if not (path / "store.json").exists():
        create_store(path, SCHEMA, max_rows=MOST_ROWS)
    return Store(Engine(path, writable=True, options=WriterOptions(None, limits=Limits(hot_rows=1))))


def settle(store: Store) -> None:
    """Let the threads finish, so that what they do comes in order; errors stay for the next call."""
    writer = store._engine.writer_shard
    if writer is not None:
        writer.wait_for_threads()


def work(path: Path, progress: Progress, count: int, seed: int = 0) -> None:
    """Create or go on, write, move, drop, sync, name a point, copy, close, open again."""
    rng = np.random.default_rng(seed)
    for part in range(2):
        with open_writer(path) as store:
            number = committed(store)
            stop = number + count
            while number < stop:
                size = int(rng.integers(20, 90))
                progress.tell(0, number + size)
                store.extend(rows(number, size))
                number += size
                progress.tell(1, number)
                if rng.random() < 0.3:
                    store.flush()
                    progress.tell(2, number)
                settle(store)
            store.checkpoint("point", state=number)
            progress.tell(2, number)
            if part:
                copy = path.with_name("copy")
                shutil.rmtree(copy, ignore_errors=True)
                store.backup(copy)


def committed(store: Store) -> int:
    """Transitions that were ever committed."""
    return int(store._engine.snapshot().records[0].num_transitions)


def check(store: Store) -> int:
    """That the rows which are there are the newest ones, each as it was written; returns how many there ever were."""
    total = committed(store)
    ids = store.sql("SELECT row_id FROM transitions ORDER BY ordinal").arrow()["row_id"].to_numpy()
    assert len(ids) == len(store), (len(ids), len(store))
    numbers = store.gather(ids, columns=["reward"])["reward"].numpy().astype(np.int64) if len(ids) else ids
    assert set(range(max(0, total - len(ids)), total)) == set(numbers.tolist()) or len(ids) == 0
    order = np.argsort(numbers)
    if len(ids):
        check_rows(store.gather(ids[order]), numbers[order])
    return total


def check_left(path: Path, low: int, high: int, *, verified: bool = True) -> int:
    """A store that was left behind, as readers and the next writer see it; returns the rows that were recovered."""
    if not (path / "store.json").exists():
        assert low == 0
        with open_writer(path) as store:  # what create left half made is completed
            return check(store)
    with Store.open(path) as reader:
        seen = check(reader)
        assert low <= seen <= high, (low, seen, high)
    for _ in range(2):
        with open_writer(path) as writer:
            assert check(writer) == seen
    with open_writer(path) as writer:
        writer.extend(rows(seen, 60))
        settle(writer)
        assert check(writer) == seen + 60
        for point in writer.checkpoints():
            assert writer.restore(point.name)[1] == point.num_transitions
    if verified:
        found = arrowrb.verify(path)
        assert found, found.problems
    return seen


def fork(job: Callable[[], None]) -> int:
    """Run a job in a child; returns how it ended. The parent must have no threads that write."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job()
            code = 0
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_child(folder: Path, around: Callable[..., Any] | None, count: int = 800, seed: int = 0) -> int:
    def job() -> None:
        watch = faults.Watch()
        progress = Progress(folder / "progress")
        if around is not None:
            watch.around = around
        with watch.installed():
            work(folder / "store", progress, count, seed)

    return fork(job)


# -- killed ----------------------------------------------------------------------------------------------------------


def record_calls(folder: Path) -> list[str]:
    """The names of all calls of the workload, in order."""
    counter, progress = faults.Counter(), Progress(folder / "progress")
    watch = faults.Watch()
    watch.around = counter.around
    with watch.installed():
        work(folder / "store", progress, 800)
    progress.close()
    return counter.names


def killed_at_calls(folder: Path, cases: int, seed: int = 0) -> dict[str, int]:
    """Killed before, amid and after calls, each kind of call first of all."""
    names = record_calls(folder / "0" if (folder / "0").mkdir() is None else folder)
    rng = np.random.default_rng(seed)
    first = {name: at for at, name in reversed(list(enumerate(names, 1)))}
    hits = [(at, act) for at in first.values() for act in (faults.kill_before, faults.kill_amid, faults.kill_after)]
    while len(hits) < cases:
        act = (faults.kill_before, faults.kill_amid, faults.kill_after)[int(rng.integers(3))]
        hits.append((int(rng.integers(1, len(names) + 1)), act))
    if len(hits) > cases:
        hits = [hits[i] for i in rng.permutation(len(hits))[:cases]]
    ended: Tally[int] = Tally()
    for number, (at, act) in enumerate(hits, 1):
        place = folder / str(number)
        place.mkdir()
        ended[run_child(place, faults.Counter(at, act).around)] += 1
        attempted, acknowledged, _ = Progress.read(place / "progress")
        check_left(place / "store", acknowledged, attempted)
        shutil.rmtree(place)
    return {"cases": len(hits), "kinds of calls": len(first), "killed": ended[-9], "ended before": ended[0]}


# -- errors ----------------------------------------------------------------------------------------------------------


def work_through_errors(path: Path, progress: Progress, watch: faults.Watch, failing: faults.Failing) -> bool:
    """The workload with a call that fails; returns whether it went through untouched.

    Whatever is raised is an error of ours. What was acknowledged stays readable here, and is there afterwards.
    """
    watch.around = failing.around
    try:
        with watch.installed():
            work(path, progress, 400)
    except ArrowRBError:
        pass
    except OSError as error:
        raise AssertionError(f"{error!r} is not an error of ours") from error
    return failing.failed == 0


def failing_calls(folder: Path, cases: int) -> dict[str, int]:
    """Calls of a workload fail in turn, in each way, once and from then on, until it goes through untouched."""
    counts: Tally[str] = Tally()
    step = max(1, _CALLS * 2 * len(faults.ERRORS) // cases)
    for name in faults.ERRORS:
        for forever in (False, True):
            at = 1
            while True:
                place = folder / f"{name}-{forever}-{at}"
                place.mkdir()
                progress, watch = Progress(place / "progress"), faults.Watch()
                failing = faults.Failing(at, faults.ERRORS[name], forever=forever)
                untouched = work_through_errors(place / "store", progress, watch, failing)
                attempted, acknowledged, _ = Progress.read(place / "progress")
                progress.close()
                check_left(place / "store", acknowledged, attempted)
                shutil.rmtree(place)
                counts["cases"] += 1
                if untouched and failing.count < at:
                    break
                at += step
    return dict(counts)


# -- power -----------------------------------------------------------------------------------------------------------


def power_failures(folder: Path, cases: int, seed: int = 0) -> dict[str, int]:
    """Images of a disk that lost what was not synced, taken at syncs, opened on a machine that restarted."""
    rng, made, opened = np.random.default_rng(seed), 0, 0
    every = max(1, 2500 // cases)
    images: list[tuple[Path, int, int]] = []
    store, progress_file = folder / "store", folder / "progress"
    progress, disk, watch = Progress(progress_file), faults.Disk(folder / "store"), faults.Watch()
    syncs = 0

    def around(call: str, path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        nonlocal syncs, made
        inside = path.startswith(str(store))
        if inside and call in ("fsync", "fdatasync", "rename", "unlink"):
            syncs += 1
            if syncs % every == 0 and made < cases and store.exists():
                made += 1
                _, _, synced = Progress.read(progress_file)  # what is acknowledged while the image is made may be in it
                disk.image(folder / f"image-{made}", rng)
                attempted, _, _ = Progress.read(progress_file)
                images.append((folder / f"image-{made}", synced, attempted))
        return disk.around(call, path, do, arguments) if inside else do(*arguments)

    watch.around = around
    round_ = 0
    while made < cases:
        with watch.installed():
            work(store, progress, 900, seed + round_)
        round_ += 1
        opened += _check_images(images)
        images.clear()
        shutil.rmtree(store)
        progress.close()
        progress_file.unlink()
        progress = Progress(progress_file)
        disk.forget()
    return {"cases": made, "opened": opened}


def _check_images(images: list[tuple[Path, int, int]]) -> int:
    opened = 0
    boot = os.urandom(16)
    with mock.patch.object(files, "boot_id", return_value=boot):
        for path, synced, attempted in images:
            if (path / "store.json").exists() or synced:
                check_left(path, synced, attempted)
                opened += 1
            shutil.rmtree(path)
    return opened


TORTURES: dict[str, tuple[Callable[[Path, int], dict[str, int]], int]] = {
    "killed before, amid and after calls": (killed_at_calls, 2000),
    "calls that fail": (failing_calls, _CALLS * 2 * len(faults.ERRORS)),
    "power failures": (power_failures, 1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    segments.shape_segment = shape
    for name, (job, count) in TORTURES.items():
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = job(Path(folder), max(1, int(count * options.scale)))
        told = ", ".join(f"{value:,} {key}" for key, value in found.items())
        print(f"{name:<40}{told:<70}{time.perf_counter() - began:>8.0f} s", flush=True)


if __name__ == "__main__":
    main()
