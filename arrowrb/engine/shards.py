"""The shards of a store by name: each is what one process writes, and a new name makes a new one.

A shard is laid out under a hidden name and takes its number by a rename, when it is whole. So a crash in between leaves
a hidden folder, which whoever makes the next shard removes, and a folder with a number is a shard. One process at a
time makes one, by a lock; it holds that for milliseconds, and whoever comes meanwhile waits.

How many there are stands in a file that readers map and look at for each snapshot, eight bytes that a writer sets
before it commits its first row. Of a store that has no such file yet they look at the folder instead.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Final

import numpy as np

from .. import checkpoints, files
from .. import manifest as manifests
from ..errors import CorruptError, FullError, LockedError, OptionError, StoreError
from ..rows import MAX_SHARDS
from .creating import count_bytes, create_shard
from .paths import COUNT_FILE, MAKER_FILE, MAKER_LOCK, ShardPaths, list_shards, shard_paths

MAIN: Final = "main"
"""The shard that a store has from the beginning."""

_PATIENCE_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.01
_SETTLED_SECONDS: Final = 0.1  # so much later another change of a folder has another time


def own_shard(store: Path, name: str, *, durable: bool) -> int:
    """The number of the shard of this name, which is made where there is none; its writer may commit rows then.

    Args:
        store: its folder.
        name: of the shard.
        durable: whether what is made has to survive a power failure.

    Raises:
        OptionError: if it is no name.
        LockedError: if another process makes one, and does not come to an end.
    """
    number = 0 if name == MAIN else _find_or_make(store, checkpoints.check_name(name), durable=durable).number
    tell_count(store)
    return number


def _find_or_make(store: Path, name: str, *, durable: bool) -> ShardPaths:
    patience = time.monotonic() + _PATIENCE_SECONDS
    while True:
        found = _find(store, name)
        if found is not None:
            return found
        try:
            lock = files.Lock(
                store / MAKER_LOCK,
                store / MAKER_FILE,
                what=f"A shard of {store} is being made",
                remedy="Try again when it is there.",
            )
        except LockedError:
            if time.monotonic() > patience:
                raise
            time.sleep(_PAUSE_SECONDS)
            continue
        try:
            return _find(store, name) or _make(store, name, durable=durable)
        finally:
            lock.release()


def tell_count(store: Path) -> None:
    """Let readers know how many shards there are, where they do not yet."""
    path, told = store / COUNT_FILE, count_bytes(len(list_shards(store)))
    with files.explaining(path, "counting the shards"):
        try:
            descriptor = files.open_file(path, os.O_RDWR)
        except FileNotFoundError:
            with contextlib.suppress(FullError):  # readers look at the folder instead
                files.publish(path, told, sync=False)
            return
        try:
            if os.pread(descriptor, len(told), 0) != told:
                files.write_at(descriptor, told, 0)
        finally:
            os.close(descriptor)


def _find(store: Path, name: str) -> ShardPaths | None:
    for number in list_shards(store):
        paths = shard_paths(store, number)
        if manifests.read(paths.manifest, number).name == name:
            return paths
    return None


def _make(store: Path, name: str, *, durable: bool) -> ShardPaths:
    number = max(list_shards(store)) + 1
    if number >= MAX_SHARDS:
        raise OptionError(f"shard is {name!r}, which would be one more than the {MAX_SHARDS:,} that a store can have.")
    made = shard_paths(store, number)
    hidden = ShardPaths(made.root.with_name(f".{made.root.name}.tmp"))
    with files.explaining(made.root, "making a shard"):
        if hidden.root.is_dir() and not hidden.root.is_symlink():
            shutil.rmtree(hidden.root)
        create_shard(hidden, number, name, durable=durable)
        os.rename(hidden.root, made.root)
        if durable:
            files.sync_directory(made.root.parent)
    return made


class ShardCount:
    """How many shards a store has: one look at mapped memory."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._count: memoryview | None = None
        with contextlib.suppress(StoreError):  # an older store, or a file of another size
            mapped = files.Mapping(store / COUNT_FILE, size=len(count_bytes(0)))
            self._count = memoryview(mapped.array(0, 1, np.int64))  # type: ignore[arg-type]

    def told(self) -> int | None:
        """How many, as the file says; None where there is none."""
        return None if self._count is None else int(self._count[0])

    def __call__(self) -> int:
        """How many."""
        told = self.told()
        return len(list_shards(self._store)) if told is None else max(1, told)


class Following:
    """Which shards a store has, looked for again whenever there are others."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._folder = str(store / "shards")
        self._stamp = (0, 0)
        self._looked = 0.0
        self._seen = 0
        self._count = ShardCount(store)
        self.numbers: list[int] = []
        self.look()

    def look(self) -> bool:
        """Look; returns whether there are others than before."""
        count = self._count.told()
        if count is not None:
            if count == self._seen:
                return False
            self._seen = count
        else:
            stat = os.stat(self._folder)
            stamp = (stat.st_mtime_ns, stat.st_nlink)
            if stamp == self._stamp and self._looked > stat.st_mtime + _SETTLED_SECONDS:
                return False
            self._looked, self._stamp = time.time(), stamp
        before, self.numbers = self.numbers, list_shards(self._store)
        if self.numbers != list(range(len(self.numbers))) or not self.numbers:
            raise CorruptError(
                f"{self._store} has shards {self.numbers}, expected numbers from 0 on. The store is damaged."
            )
        return self.numbers != before
