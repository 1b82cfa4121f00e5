"""A real file system without any room: nothing is lost, and dropping rows makes room again."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import arrowrb
from arrowrb.engine import segments
from arrowrb.errors import FullError
from arrowrb.store import Store
from tests.crash_child import SCHEMA, rows, tiny


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of three megabytes, of which stores make small segments."""
    monkeypatch.setattr(segments, "shape_segment", tiny)
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave no room at all, for anybody."""
    with open(disk / "ballast", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    found = os.statvfs(disk)
    assert found.f_bavail == 0


def num_evicted(store: Store) -> int:
    return store._engine.writer_shard.manifest.evicted.num_segments


def settle(store: Store) -> None:
    store._engine.writer_shard.wait_for_threads()


@pytest.mark.parametrize("hot_rows", [None, 1000])
def test_rows_that_are_due_go(disk: Path, hot_rows: int | None) -> None:
    """A store at its limit goes on as far as what it drops makes room, and further when somebody else makes some."""
    number = 0
    with Store.create(disk / "store", SCHEMA, max_rows=2500, hot_rows=hot_rows, sync_interval=None) as store:
        number, dropped = write(store, number, 3500), 0
        for _ in range(8):
            settle(store)
            gone = num_evicted(store)
            fill(disk)
            number = write_while_there_is_room(store, number)
            dropped += num_evicted(store) > gone  # without any room
            check_newest(store, number)
            os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - (256 << 10))
            number = write_while_there_is_room(store, number, 300)
        assert dropped > 1
    (disk / "ballast").unlink()
    with Store.open(disk / "store", mode="a", hot_rows=hot_rows) as store:
        number = write(store, number, 2000)
        check_newest(store, number)
    assert arrowrb.verify(disk / "store")


def test_a_store_on_a_full_disk_is_opened_and_made_smaller(disk: Path) -> None:
    with Store.create(disk / "store", SCHEMA, max_rows=1000, sync_interval=None) as store:
        number = write(store, 0, 1000)
        store.checkpoint("point", keep=True)
        number = write(store, number, 2500)
        assert len(store) > 1500
    for attempt in range(3):
        fill(disk)
        with Store.open(disk / "store", mode="a", sync_interval=None) as store:
            if attempt == 1:
                store.remove_checkpoint("point")
                store.maintain()
            assert (len(store) <= 1000) == (attempt > 0)
            rewards = store.sql("SELECT reward FROM transitions ORDER BY ordinal").arrow()["reward"].to_numpy()
            assert rewards[-1] == number - 1
    (disk / "ballast").unlink()
    with Store.open(disk / "store", mode="a") as store:
        write(store, number, 2000)
    assert arrowrb.verify(disk / "store")


def write(store: Store, number: int, count: int) -> int:
    for first in range(number, number + count, 50):
        store.extend(rows(first, 50))
    return number + count


def write_while_there_is_room(store: Store, number: int, most: int = 10**9) -> int:
    """Go on until it is refused again and again; returns how far it came."""
    refused, stop = 0, number + most
    while refused < 5 and number < stop:
        try:
            number, refused = write(store, number, 50), 0
        except FullError:
            refused += 1
        settle(store)
    return number


def check_newest(store: Store, number: int) -> None:
    """The newest rows are there, up to the last one."""
    rewards = store.sql("SELECT reward FROM transitions ORDER BY ordinal").arrow()["reward"].to_numpy().astype(int)
    assert rewards.tolist() == list(range(number - len(rewards), number))
    assert len(rewards) > 1000
