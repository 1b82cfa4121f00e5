"""Which segments are kept for good, since a checkpoint says so, and how that and dropping them exclude each other.

A checkpoint is made by one process, segments are dropped by others. Both take a lock of the store: the one from before
it looks at the commits of the shards until its file is there, the others while they drop a segment from a manifest, and
they look at the checkpoints then. So whatever a checkpoint speaks of is there when it is made, and stays if it says so.
Who drops does not wait: it tries again later. The lock is freed by the kernel when its holder dies.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .. import checkpoints, files
from ..checkpoints import Checkpoint
from ..errors import FullError, LockedError, StoreNotFoundError
from .paths import CHECKPOINTS

_PATIENCE_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.002
_SETTLED_SECONDS: Final = 0.1  # so much later another change of a folder has another time
_TRIES: Final = 5


def _take(store: Path) -> files.Lock:
    return files.Lock(
        store / "shards" / "keeping",
        store / "shards" / "keeper.json",
        what=f"Checkpoints of {store} are being made, or segments dropped,",
        remedy="Try again when it is done.",
    )


def prepare(store: Path) -> None:
    """Make the lock's file while there is room for it."""
    with contextlib.suppress(LockedError, FullError):
        _take(store).release()


@contextlib.contextmanager
def nothing_is_dropped(store: Path) -> Iterator[None]:
    """A block in which no segment of any shard is dropped for good.

    Raises:
        LockedError: if another process makes a checkpoint, and does not come to an end.
    """
    patience = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            lock = _take(store)
            break
        except LockedError:
            if time.monotonic() > patience:
                raise
            time.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def dropping(store: Path) -> Iterator[bool]:
    """A block in which no checkpoint is made; False where one is being made just now, or no lock can be made."""
    try:
        lock = _take(store)
    except (LockedError, FullError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class Kept:
    """What the checkpoints of a store keep, read again whenever their folder has changed. Not thread-safe."""

    def __init__(self, store: Path, store_id: str) -> None:
        self._store, self._store_id = store, store_id
        self._folder = str(store / CHECKPOINTS)
        self._stamp: tuple[int, int] | None = None
        self._looked = 0.0
        self._checkpoints: list[Checkpoint] = []

    def below(self, shard: int) -> int:
        """Below which number the segments of a shard are kept."""
        marks = [mark for each in self.look() if each.keep for mark in each.marks if mark.shard == shard]
        return max((mark.next_segment for mark in marks), default=0)

    def is_new(self) -> bool:
        """Whether the checkpoints may be others than those that were read."""
        stat = self._stat()
        return stat is not None and self._is_new(stat)

    def _stat(self) -> os.stat_result | None:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self._folder)
        return None

    def _is_new(self, stat: os.stat_result) -> bool:
        same = (stat.st_mtime_ns, stat.st_ino) == self._stamp
        return not (same and self._looked > stat.st_mtime + _SETTLED_SECONDS)

    def look(self) -> list[Checkpoint]:
        """The checkpoints that there are; the same object as before where the folder is as it was."""
        stat = self._stat()
        if stat is None or not self._is_new(stat):
            return self._checkpoints
        looked = time.time()
        for left in reversed(range(_TRIES)):
            try:
                self._checkpoints = checkpoints.read_all(self._store, self._store_id)
                break
            except StoreNotFoundError:  # one was removed meanwhile
                if not left:
                    raise
        self._looked, self._stamp = looked, (stat.st_mtime_ns, stat.st_ino)
        return self._checkpoints
