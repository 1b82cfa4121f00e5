"""What stores do while misfortune strikes, and what must hold of a store that was left behind.

Every row is a function of its number (see `crash_child`), so that each one that is recovered is checked.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import arrowrb
from arrowrb import manifest as manifests
from arrowrb import retention
from arrowrb.engine import Engine, WriterOptions, create_store, read_samples, segments, tables
from arrowrb.retention import Limits
from arrowrb.rows import Kind, row_id_base
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.crash_child import LANES, SCHEMA, check_rows, rows

MOST_ROWS = 120  # that are kept
HOT_SEGMENTS = 5
EXTRA_ROWS = 30
_REWARD = [column.name for column in SCHEMA.columns].index("reward")
_STUCK_SECONDS = 60  # longer than any child works
_segment_rows = 0


def small_segments(block_rows: int, blocks: int, hot: int = HOT_SEGMENTS) -> None:
    """Segments of so many blocks for each lane, of which few are hot, so that they come and go all the time."""
    global _segment_rows
    _segment_rows = block_rows * blocks * LANES

    def shape(**_: Any) -> SegmentShape:
        return SegmentShape(_segment_rows, block_rows)

    segments.shape_segment = shape
    retention.LEAST_HOT_SEGMENTS = hot  # type: ignore[misc]


class Progress:
    """How many rows were attempted, acknowledged and synced, told across a kill."""

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


def open_writer(path: Path, *, most_rows: int | None = MOST_ROWS, sync_interval: float | None = None) -> Store:
    """Create or open, with limits so small that segments are sealed, moved and dropped all the time."""
    if not (path / "store.json").exists():
        create_store(path, SCHEMA, max_rows=most_rows)
    return Store(Engine(path, writable=True, options=WriterOptions(sync_interval, limits=Limits(hot_rows=1))))


def settle(store: Store) -> None:
    """Let the threads finish, so that what they do comes in order; errors stay for the next call."""
    writer = store._engine.writer_shard
    if writer is not None:
        writer.wait_for_threads()


def committed(store: Store) -> int:
    """Transitions that were ever committed."""
    return int(store._engine.snapshot().records[0].num_transitions)


def learner(store: Store) -> arrowrb.Sampler:
    """A sampler that keeps priorities and a log in files."""
    return store.sampler(arrowrb.Prioritized(), batch_size=8, seed=1, name="learner", log=True)


def priorities_of(numbers: np.ndarray) -> np.ndarray:
    """What rows are given, by their numbers."""
    return 2.0 + numbers % 7


def check_priorities(store: Store, ids: np.ndarray, numbers: np.ndarray) -> None:
    """That each row which is there has the priority that it was given, or that of a new one."""
    sampler = learner(store)
    if not len(store):
        return
    sampler.sample()
    raw = sampler.state_dict()["stream"]["priorities"]["raw"]
    kept = np.array([raw[f"{each >> 48}-{each >> 24 & 0xFFFFFF}"][each & 0xFFFFFF] for each in ids.tolist()])
    assert np.isin(kept[kept != priorities_of(numbers)], [1.0, *range(2, 9)]).all()


def check_log(store: Store, *, sql: bool) -> None:
    """That each batch in it is whole."""
    if sql:
        sizes = store.sql("SELECT count(*), max(place) + 1, count(weight) FROM samples GROUP BY batch").fetchall()
        assert set(sizes) <= {(8, 8, 8)}
        return
    found = read_samples(store.path, store._engine.file.store_id)
    assert found["weight"].null_count == 0
    _, batch, size = np.unique(found["batch"].to_numpy(), return_inverse=True, return_counts=True)
    places = np.zeros((size.size, 8), np.int64)
    np.add.at(places, (batch, found["place"].to_numpy()), 1)
    assert (size == 8).all()
    assert (places == 1).all()


def write(
    store: Store,
    progress: Progress,
    count: int,
    batch: int,
    rng: np.random.Generator | None = None,
    sampler: arrowrb.Sampler | None = None,
) -> int:
    """Write so many rows in batches, of up to the given size with ``rng``; returns how many there ever were.

    With a sampler, they are given priorities, and drawn.
    """
    number = committed(store)
    stop = number + count
    while number < stop:
        size = batch if rng is None else int(rng.integers(20, batch))
        progress.tell(0, number + size)
        ids = store.extend(rows(number, size))
        number += size
        progress.tell(1, number)
        if sampler is not None:
            sampler.update(ids, priority=priorities_of(np.arange(number - size, number)))
            sampler.sample()
            progress.tell(3, number)
        if rng is not None and rng.random() < 0.3:
            store.flush()
            progress.tell(2, number)
        settle(store)
    return number


# -- workloads -------------------------------------------------------------------------------------------------------


def live_twice(path: Path, progress: Progress, seed: int = 0, count: int = 150) -> None:
    """All that a writer does, and once more after opening again."""
    rng = np.random.default_rng(seed)
    for part in range(2):
        with open_writer(path) as store:
            number = write(store, progress, count, 60, rng, learner(store))
            store.checkpoint("point", state=number)
            progress.tell(2, number)
            if part:
                copy_elsewhere(store)


def copy_elsewhere(store: Store) -> None:
    copy = store.path.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    store.backup(copy)


def name_points(path: Path, progress: Progress) -> None:
    """Points that keep rows, are replaced and removed, with a sampler's state and tensors."""
    import torch

    with open_writer(path) as store:
        number = write(store, progress, 60, 60)
        sampler = learner(store)
        for keep in (True, False):
            next(sampler)
            store.checkpoint("point", tensors={"weight": torch.arange(50)}, state=number, keep=keep)
            progress.tell(2, number)
            store.checkpoint("other", state=number, keep=True)
            number = write(store, progress, 60, 60, sampler=sampler)
            store.remove_checkpoint("other")


def give_out(path: Path, progress: Progress) -> None:
    """Data sets out of a store, and a copy beside it."""
    with open_writer(path) as store:
        write(store, progress, 150, 60)
        target = store.path.with_name("out")
        shutil.rmtree(target, ignore_errors=True)
        store.export(target, rows="steps")
        copy_elsewhere(store)


def die_once(path: Path, progress: Progress) -> None:
    """The beginning of `come_back`: a writer that dies."""

    def job() -> None:
        write(open_writer(path), progress, 150, 50)
        os._exit(0)

    assert fork(job) == 0


def come_back(path: Path, progress: Progress) -> None:
    """Recovery from a writer that died, a little of all that a writer does, and another store that begins."""
    with open_writer(path) as store:
        number = write(store, progress, 25, 25)
        store.checkpoint("point", state=number)
    open_writer(path.with_name("other")).close()


def damage(path: Path, progress: Progress) -> None:
    """The beginning of `mend`: no row is lost, but it does not open."""
    die_once(path, progress)
    manifest = manifests.read(path / "shards" / "00000" / "manifest.json", 0)
    for entry in manifest.segments[1:4]:
        for table in (entry.blocks, entry.runs):
            if table is not None:
                (path / "shards" / "00000" / "segments" / table.name).unlink()


def mend(path: Path, _: Progress) -> None:
    """Repair."""
    assert arrowrb.repair(path).after


@dataclass(frozen=True)
class Workload:
    """What a store does.

    Attributes:
        run: does it, and tells how far it is.
        begin: what is done before, undisturbed.
        mends: whether it has to be done to the end before the store opens.
    """

    run: Callable[[Path, Progress], None]
    begin: Callable[[Path, Progress], None] | None = None
    mends: bool = False

    def place(self, folder: Path) -> tuple[Path, Progress]:
        """A folder with a store as `begin` leaves it, which is done once."""
        first = folder.with_name(f"first, {self.begin.__name__ if self.begin else None}")
        if self.begin is None:
            folder.mkdir(parents=True)
        else:
            if not first.exists():
                first.mkdir(parents=True)
                self.begin(first / "store", Progress(first / "progress"))
            shutil.copytree(first, folder)
        return folder / "store", Progress(folder / "progress")


WORKLOADS = {
    "life, death and recovery": Workload(come_back, die_once),
    "named points": Workload(name_points),
    "export and backup": Workload(give_out),
    "repair": Workload(mend, damage, mends=True),
    "two lives": Workload(partial(live_twice, count=50)),
}


# -- what must hold --------------------------------------------------------------------------------------------------


def read_numbers(store: Store, *, sql: bool) -> tuple[np.ndarray, np.ndarray]:
    """The row ids and the numbers of all transitions: as SQL shows them, or, which is faster, as the segments do."""
    if sql:
        found = store.sql("SELECT row_id, reward FROM transitions ORDER BY ordinal").arrow()
        return found["row_id"].to_numpy(), found["reward"].to_numpy().astype(np.int64)
    ids = read_ids(store)
    snapshot = store._engine.snapshot()
    ordinals, numbers = snapshot.read(snapshot.locate(ids), [(tables.ORDINAL, 0), (_REWARD, 0)]).values()
    order = np.argsort(ordinals)
    return ids[order], numbers[order].astype(np.int64)


def read_ids(store: Store) -> np.ndarray:
    """The row ids of all transitions, in order."""
    snapshot = store._engine.snapshot()
    ids = [np.empty(0, np.int64)]
    for slot, view in enumerate(snapshot.layout.views):
        positions = np.flatnonzero(snapshot.visible_kinds(slot) == Kind.TRANSITION)
        ids.append(row_id_base(view.shard, view.entry.number) + positions)
    return np.concatenate(ids)


def check(store: Store, *, sql: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """That the rows which are there are the newest ones, each as it was written; returns `read_numbers`."""
    total = committed(store)
    ids, numbers = read_numbers(store, sql=sql)
    assert len(ids) == len(store), (len(ids), len(store))
    if len(ids):
        newest = np.sort(numbers)[2 * _segment_rows :]  # rows of several lanes come and go by segments
        assert np.array_equal(newest, np.arange(total - len(newest), total))
        assert len(np.unique(numbers)) == len(numbers)
        assert numbers.max() == total - 1
        check_rows(store.gather(ids), numbers)
    return ids, numbers


def check_left(path: Path, low: int, high: int, *, again: bool = True, reader: bool = True, sql: bool = True) -> int:
    """A store that was left behind, as readers and the next writer see it; returns the rows that were recovered.

    Afterwards there are `EXTRA_ROWS` more. ``again`` opens once more for writing: nothing is different then.
    ``reader`` looks at all rows before a writer does, else only at how many there are. ``sql``: rows and batches are
    looked at by SQL, else as they lie in files, which is several times as fast.
    """
    if not (path / "store.json").exists():
        assert low == 0
        open_writer(path).close()  # what create left half made is completed
    with Store.open(path) as before:
        seen = committed(before)
        if reader:
            check(before, sql=sql)
        assert low <= seen <= high, (low, seen, high)
    if again:
        with open_writer(path) as writer:
            assert committed(writer) == seen
            check(writer, sql=sql)
    with open_writer(path) as writer:
        assert committed(writer) == seen
        writer.extend(rows(seen, EXTRA_ROWS))
        settle(writer)
        assert committed(writer) == seen + EXTRA_ROWS
        check_priorities(writer, *check(writer, sql=sql))
        check_log(writer, sql=sql)
        for point in writer.checkpoints():
            if point.name == "point":
                assert writer.restore(point.name)[1] == point.num_transitions
    found = arrowrb.verify(path)
    assert found, found.problems
    return seen


def fork(job: Callable[[], None]) -> int:
    """Run a job in a child; returns how it ended. The parent must have no threads that write."""
    child = os.fork()
    if child == 0:
        code = 1
        faulthandler.dump_traceback_later(_STUCK_SECONDS)  # where all threads are
        try:
            job()
            code = 0
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
