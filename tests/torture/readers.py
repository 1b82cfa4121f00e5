"""Readers in processes of their own, beside a writer that seals, moves and drops what they read."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

import arrowrb
from arrowrb.errors import EmptyError
from arrowrb.store import Store
from tests.crash_child import check_rows, rows
from tests.torture.workloads import Progress, committed, fork, open_writer, small_segments

READERS = 4
_KEPT, _BATCH = 40_000, 1000


def following(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """A writer of so many rows, and readers that follow it: counts never go back, each row is what was written."""
    small_segments(64, 8)
    store, progress = folder / "store", Progress(folder / "progress")
    open_writer(store, most_rows=_KEPT).close()
    children = [_start(store, folder / f"looks-{number}", folder / "progress", number) for number in range(READERS)]
    count = len(range(part, cases, parts))
    assert fork(lambda: _write(store, progress, count)) == 0
    progress.tell(2, 1)  # the end
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * READERS, codes
    looks = [Progress.read(folder / f"looks-{number}")[:2] for number in range(READERS)]
    found = arrowrb.verify(store)
    assert found, found.problems
    return {"cases": count, "looks": sum(each[0] for each in looks), "rows checked": sum(each[1] for each in looks)}


def _write(store: Path, progress: Progress, count: int) -> None:
    with open_writer(store, sync_interval=0.5) as opened:
        for first in range(0, count, _BATCH):
            size = min(_BATCH, count - first)
            opened.extend(rows(first, size))
            progress.tell(0, first + size)


def _start(store: Path, looks: Path, written: Path, seed: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            _follow(store, Progress(looks), written, np.random.default_rng(seed))
            os._exit(0)
        except BaseException as error:
            print(f"reader: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    return child


def _follow(path: Path, looks: Progress, written: Path, rng: np.random.Generator) -> None:
    """Look until the writer has ended, and once more."""
    last, looked, checked, ended = 0, 0, 0, False
    held: tuple[int, arrowrb.Query] | None = None
    with Store.open(path) as reader:
        while not ended:
            acknowledged, _, end = Progress.read(written)
            ended = bool(end)
            total = committed(reader)
            assert total >= max(last, acknowledged), (total, last, acknowledged)
            last = total
            try:
                batch = reader.sample(256)
            except EmptyError:
                time.sleep(0.001)
                continue
            check_rows(batch, batch["reward"].numpy().astype(np.int64))
            looked, checked = looked + 1, checked + 256
            if held is not None and rng.random() < 0.1:
                checked += _check_held(*held)
                held = None
            elif held is None and rng.random() < 0.1:
                held = (total, reader.sql("SELECT reward, crc, observation[2] AS place FROM transitions"))
            looks.tell(0, looked)
            looks.tell(1, checked)
        if held is not None:
            _check_held(*held)


def _check_held(total: int, query: arrowrb.Query) -> int:
    """What was pinned is there, whole, though the writer may have dropped all of it."""
    table = query.arrow()
    numbers = np.sort(table["reward"].to_numpy().astype(np.int64))
    assert numbers.size
    assert np.array_equal(numbers, np.arange(numbers[0], numbers[0] + numbers.size))
    assert numbers[-1] >= total - 1
    sample = table.slice(table.num_rows // 2, 200)
    expected = [rows(int(number), 1) for number in sample["reward"].to_pylist()]
    assert sample["crc"].to_pylist() == [int(each["crc"][0]) for each in expected]
    assert sample["place"].to_pylist() == [float(each["observation"][0, 1]) for each in expected]
    return 200
