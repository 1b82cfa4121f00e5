"""Real processes that are killed at random moments: no row is lost, torn or made up, and the store goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from arrowrb import files
from arrowrb.engine import segments
from arrowrb.errors import FullError, LockedError, ReadOnlyError, StoreError
from arrowrb.store import Store
from tests.crash_child import SCHEMA, check_rows, rows, tiny


class Zygote:
    """Starts writers cheaply, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("crash_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def start(self, store: Path, progress: Path, seed: int, most: int) -> int:
        self.process.stdin.write(f"write {store} {progress} {seed} {most}\n")
        self.process.stdin.flush()
        return int(self.line())

    def ended(self) -> int:
        line = self.line()
        assert line.startswith("ended"), line
        return int(line.split()[1])

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote()
    yield zygote
    zygote.stop()


def read_progress(path: Path) -> tuple[int, int]:
    content = (path.read_bytes() if path.exists() else b"").ljust(16, b"\0")
    return struct.unpack("<qq", content[:16])


def contents(store):
    """(ordinal, row id, kind) of every visible row, in order."""
    snapshot = store._engine.snapshot()
    found = []
    for slot, view in enumerate(snapshot.layout.views):
        kinds = snapshot.visible_kinds(slot)
        places = np.flatnonzero(kinds)
        ids = places + (view.shard << 48 | view.entry.number << 24)
        ordinals = snapshot.column(slot, 0)[places]
        found.append(np.stack([ordinals, ids, kinds[places]], axis=1))
    everything = np.concatenate(found) if found else np.zeros((0, 3), np.int64)
    return everything[np.argsort(everything[:, 0])]


def check_store(store, *, closed):
    """All rows are there in order; with ``closed`` every episode has a tail. Returns how many transitions."""
    table = contents(store)
    assert table[:, 0].tolist() == list(range(1, len(table) + 1))
    ids = table[table[:, 2] == 1, 1]
    assert len(ids) == len(store)
    check_rows(store.gather(ids), np.arange(len(ids)))
    if closed:
        assert set((ids + 1).tolist()) <= set(table[:, 1].tolist())
    return len(ids)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(tmp_path, zygote, seed, monkeypatch):
    monkeypatch.setattr(segments, "shape_segment", tiny)
    rng = np.random.default_rng(seed)
    store, progress, found = tmp_path / "store", tmp_path / "progress", 0
    for attempt in range(9):
        child = zygote.start(store, progress, seed * 100 + attempt, found + 4000)
        while read_progress(progress)[0] == 0 and not (store / "store.json").exists():
            time.sleep(0.001)
        time.sleep(rng.random() ** 2 * 0.12)
        os.kill(child, signal.SIGKILL)
        assert zygote.ended() in (-signal.SIGKILL, 0)
        attempted, acknowledged = read_progress(progress)
        with Store.open(store) as reader:
            seen = check_store(reader, closed=False)
            assert max(acknowledged, found) <= seen <= max(attempted, found)
        if attempt % 3 == 2:
            before = None
            for _ in range(2):  # opening again changes nothing
                with Store.open(store, mode="a", sync_interval=None) as writer:
                    assert check_store(writer, closed=True) == seen
                    after = contents(writer)
                    if before is not None:
                        assert after.tolist() == before.tolist()
                    before = after
        found = seen
    child = zygote.start(store, progress, 1, found + 300)
    assert zygote.ended() == 0
    with Store.open(store) as reader:
        assert check_store(reader, closed=True) >= found + 300
        tiers = {entry.tier for manifest in reader._engine.manifests() for entry in manifest.segments}
        assert "hot" in tiers
        folder = store / "shards" / "00000" / "segments"
        listed = set().union(*(manifest.files for manifest in reader._engine.manifests()))
        assert {path.name for path in folder.iterdir()} == listed  # nothing is left over


def test_second_writer_and_takeover(tmp_path, zygote):
    store, progress = tmp_path / "store", tmp_path / "progress"
    child = zygote.start(store, progress, 1, 10**9)
    try:
        while read_progress(progress)[1] == 0:
            time.sleep(0.002)
        with pytest.raises(LockedError, match=rf"\(pid {child}\)"):
            Store.open(store, mode="a")
        with Store.open(store) as reader:
            assert reader.info().writer_pid == child
    finally:
        os.kill(child, signal.SIGKILL)
        zygote.ended()
    with Store.open(store, mode="a") as writer:
        assert writer.info().writer_pid == os.getpid()
        with pytest.raises(LockedError, match=rf"this process \(pid {os.getpid()}\)"):
            Store.open(store, mode="a")
        count = check_store(writer, closed=True)
        writer.extend(rows(count, 10))
    with Store.open(store) as reader:
        assert reader.info().writer_pid is None
        assert check_store(reader, closed=True) == count + 10


def test_reader_follows_a_live_writer(tmp_path, zygote):
    """Counts never go back, nothing is missing, every row is whole, through sealing."""
    store, progress = tmp_path / "store", tmp_path / "progress"
    total = 6000
    zygote.start(store, progress, 7, total)
    while not (store / "store.json").exists():
        time.sleep(0.001)
    last, looks = 0, 0
    with Store.open(store) as reader:
        while last < total:
            acknowledged = read_progress(progress)[1]
            snapshot = reader._engine.snapshot()
            count = snapshot.num_transitions
            assert count >= max(last, acknowledged)
            if count:
                batch = reader.sample(200)
                numbers, first = np.unique(batch["reward"].numpy().astype(np.int64), return_index=True)
                check_rows({name: column[first] for name, column in batch.items()}, numbers)
            last, looks = count, looks + 1
        assert zygote.ended() == 0
        assert check_store(reader, closed=True) >= total
    assert looks > 3


# -- power failures ----------------------------------------------------------------------------------------------


@pytest.fixture
def other_boot(monkeypatch):
    """Restart the machine: as far as can be told, with all of the page cache written."""

    def restart():
        number = os.urandom(16)
        monkeypatch.setattr(files, "boot_id", lambda: number)

    return restart


def copy_live(store: Store, to: Path) -> Path:
    """What a power failure leaves when every page happened to reach the disk."""
    writer = store._engine.writer_shard
    writer.wait_for_threads()  # a folder that changes while it is copied is no moment's
    shutil.copytree(store.path, to, ignore=shutil.ignore_patterns("lock", "writer.json"))
    return to


def test_power_failure(tmp_path, other_boot, monkeypatch):
    monkeypatch.setattr(segments, "shape_segment", tiny)
    path, given = tmp_path / "0", set()
    store = Store.create(path, SCHEMA, sync_interval=None)
    number = 0
    for round_ in range(1, 6):
        number = len(store)
        given |= set(store.extend(rows(number, 50)).tolist())
        store.flush()
        lost = set(store.extend(rows(number + 50, 37)).tolist())
        given |= lost
        path = copy_live(store, tmp_path / str(round_))
        store.close()
        other_boot()
        with Store.open(path) as reader:
            assert check_store(reader, closed=False) == number + 50
        store = Store.open(path, mode="a", sync_interval=None)
        assert check_store(store, closed=True) == number + 50
        again = set(store.extend(rows(number + 50, 20)).tolist())
        assert not again & given
        given |= again
        sealed = [entry for entry in store._engine.writer_shard.manifest.segments if entry.sealed]
        assert all(entry.last_ordinal for entry in sealed), "segments that hold nothing go, and are not sealed"
    store.close()


def test_power_failure_after_reopening(tmp_path, other_boot):
    """Closed in order, opened again, written to, never synced: the ids that were seen are not given out again."""
    path = tmp_path / "store"
    with Store.create(path, SCHEMA) as store:
        store.extend(rows(0, 50))
    store = Store.open(path, mode="a", sync_interval=None)
    seen = set(store.extend(rows(50, 50)).tolist())
    lost = copy_live(store, tmp_path / "lost")
    store.close()
    other_boot()
    with Store.open(lost, mode="a", sync_interval=None) as store:
        assert check_store(store, closed=True) == 50
        assert not seen & set(store.extend(rows(50, 50)).tolist())


def test_clean_close_survives_a_restart(tmp_path, other_boot):
    path = tmp_path / "store"
    with Store.create(path, SCHEMA, sync_interval=None) as store:
        first = store.extend(rows(0, 100))
        segments = store.info().num_segments
    for _ in range(3):
        other_boot()
        with Store.open(path) as reader:
            assert check_store(reader, closed=True) == 100
        with Store.open(path, mode="a", sync_interval=None) as store:
            assert check_store(store, closed=True) == 100
            assert store.info().num_segments == segments  # what is free is used, nothing is closed off
    assert first.size == 100


def test_failed_sync_is_final(tmp_path, monkeypatch):
    path = tmp_path / "store"
    store = Store.create(path, SCHEMA, sync_interval=None)
    store.extend(rows(0, 20))
    real = os.fdatasync

    def broken(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(StoreError, match="syncing"):
        store.flush()
    monkeypatch.setattr(os, "fdatasync", real)
    with pytest.raises(ReadOnlyError, match="takes no more rows"):
        store.extend(rows(20, 5))
    assert len(store) == 20
    store.close()
    with Store.open(path, mode="a") as store:
        assert check_store(store, closed=True) == 20


def test_interrupted_flush_is_not_a_failed_sync(tmp_path, monkeypatch):
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        store.extend(rows(0, 20))
        real = os.fdatasync

        def interrupted(descriptor):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fdatasync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.flush()
        monkeypatch.setattr(os, "fdatasync", real)
        store.extend(rows(20, 5))
        store.flush()


# -- a full disk -------------------------------------------------------------------------------------------------


def test_full_disk(tmp_path, monkeypatch):
    """Segments that cannot be allocated: an exception, nothing lost, and it goes on when there is room."""
    monkeypatch.setattr(segments, "shape_segment", tiny)
    real, full = os.posix_fallocate, []

    def allocate(descriptor, offset, size):
        if full:
            raise OSError(28, "No space left on device")
        real(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        number = 0
        for _ in range(4):
            full.append(True)
            with pytest.raises(FullError, match="No room left"):  # noqa: PT012
                for _ in range(100):
                    store.extend(rows(number, 25))
                    number += 25
            assert check_store(store, closed=False) == number
            with pytest.raises(FullError):
                store.extend(rows(number, 500))
            full.clear()
            store.extend(rows(number, 500))
            number += 500
    with Store.open(tmp_path / "store") as reader:
        assert check_store(reader, closed=True) == number


def test_sealing_is_tried_again(tmp_path, monkeypatch):
    """A segment whose tables found no room is sealed once there is some."""
    monkeypatch.setattr(segments, "shape_segment", tiny)
    real, full = files.publish, [True]

    def publish(path, content, **options):
        if full and ".runs." in path.name:
            raise FullError(28, "No room left", str(path))
        real(path, content, **options)

    monkeypatch.setattr(files, "publish", publish)
    number = 0
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        while number < 1500:
            with contextlib.suppress(FullError):  # told by the next call, which does nothing
                store.extend(rows(number, 25))
                number += 25
        assert store.info().num_segments["sealed"] == 0
        full.clear()
        for _ in range(20):
            with contextlib.suppress(FullError):
                store.extend(rows(number, 25))
                number += 25
            store._engine.writer_shard.wait_for_threads()
        assert store.info().num_segments["sealed"] >= 4
        assert check_store(store, closed=False) == number


def test_full_small_file_system(tmp_path):
    """A real file system without room, where the machine lets us mount one."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        store = Store.create(place / "store", SCHEMA, sync_interval=None)
        number = 0
        with pytest.raises(FullError):  # noqa: PT012
            for _ in range(10_000):
                store.extend(rows(number, 100))
                number += 100
        assert number > 1000
        assert check_store(store, closed=False) == number
        subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
        for _ in range(5):  # what the background thread could not do is told once
            try:
                store.extend(rows(number, 100))
                number += 100
            except FullError:
                continue
        store.extend(rows(number, 100))
        number += 100
        store.close()
        with Store.open(place / "store", mode="a") as store:
            assert check_store(store, closed=True) == number
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
