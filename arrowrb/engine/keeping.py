"""Which segments are kept for good, since a checkpoint says so, and how that and dropping them exclude each other.

A checkpoint is made by one process, segments are dropped by others. Each shard has a lock for that: who makes a
checkpoint takes those of all shards, from before it looks at their commits until its file is there; a writer takes that
of its shard while it drops a segment from the manifest, and looks at the checkpoints then. So whatever a checkpoint
speaks of is there when it is made, and stays if it says so. Writers do not wait for each other, nor for a checkpoint:
they try again later. One checkpoint is made at a time, by one more lock. Locks are freed by the kernel when their
holder dies.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final

from .. import checkpoints, files
from ..checkpoints import Checkpoint
from ..errors import FullError, LockedError, StoreNotFoundError
from .paths import CHECKPOINTS, ShardPaths, list_shards, shard_paths
from .patience import patiently

_PATIENCE_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.002
_SETTLED_SECONDS: Final = 0.1  # so much later another change of a folder has another time
_TRIES: Final = 5


def _lock(store: Path, name: str) -> files.Lock:
    return files.Lock(
        store / "shards" / name,
        store / "shards" / f"{name}.json",
        what=f"A checkpoint of {store} is being made, or a segment dropped,",
        remedy="Try again when it is done.",
    )


def _lock_of(paths: ShardPaths) -> files.Lock:
    return _lock(paths.root.parent.parent, f"dropping-{paths.root.name}")


def prepare(paths: ShardPaths) -> None:
    """Make the file of a shard's lock while there is room for it."""
    with contextlib.suppress(LockedError, FullError):
        _lock_of(paths).release()


@contextlib.contextmanager
def nothing_is_dropped(store: Path) -> Iterator[None]:
    """A block to make a checkpoint in: no segment of any shard is dropped for good meanwhile.

    Raises:
        LockedError: if another process makes a checkpoint, and does not come to an end.
    """
    patience = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.ExitStack() as held:
        held.callback(patiently(partial(_lock, store, "keeping"), patience, _PAUSE_SECONDS).release)
        for number in list_shards(store):
            take = partial(_lock_of, shard_paths(store, number))
            held.callback(patiently(take, patience, _PAUSE_SECONDS).release)
        yield


@contextlib.contextmanager
def _tried(take: Callable[[], files.Lock]) -> Iterator[bool]:
    try:
        lock = take()
    except (LockedError, FullError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def dropping(paths: ShardPaths) -> AbstractContextManager[bool]:
    """A block to drop a shard's segments in; False where a checkpoint is being made, or no lock can be made."""
    return _tried(partial(_lock_of, paths))


def no_checkpoint_is_made(store: Path) -> AbstractContextManager[bool]:
    """A block in which nobody makes a checkpoint; False where somebody does."""
    return _tried(partial(_lock, store, "keeping"))


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
