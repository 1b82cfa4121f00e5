"""Visits: what is due in a shard that has no writer is done by the coordinator, in the place of one.

A visitor says so in a file of the store, takes the shard's lock, recovers the shard as any new writer would, closes off
what is open, so that all of it may age and go, does what the shard was told, and closes it. A crash at any step leaves
what that of a writer would, and a file that names a dead process, which counts for nothing.

A writer that comes meanwhile waits for the lock; where nobody says that it is a visit, it is refused at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from .. import files
from ..errors import LockedError, WaitError
from ..interrupts import Uninterrupted
from ..schema import Schema
from .options import WriterOptions
from .paths import ShardPaths
from .shard_writer import ShardWriter

_PATIENCE_SECONDS: Final = 120.0
_PAUSE_SECONDS: Final = 0.01
_LEAST_TRIES: Final = 4  # a visit says that it ends a moment before its lock is free


def visit(
    paths: ShardPaths, schema: Schema, store_id: str, options: WriterOptions, num_shards: Callable[[], int]
) -> None:
    """Do what is due in a shard that has no writer; nothing where one has come."""
    said = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    files.publish(paths.visit, json.dumps(said).encode(), sync=False)
    options = replace(options, sync_interval=None)
    try:
        with contextlib.suppress(LockedError):
            shard = ShardWriter(paths, schema, store_id, options, _no_time, num_shards, visiting=True)
            while not shard.released:  # its threads write files that the lock guards, however slow the disk is
                with contextlib.suppress(WaitError):
                    shard.close()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(paths.visit)


def _no_time() -> int:
    """A visit cuts nothing at a time of its own."""
    return 0


def after_visits(paths: ShardPaths, open_shard: Callable[[], None]) -> None:
    """Open a shard for writing, once a visit that is under way has ended. Ctrl-C waits while it is opened.

    Raises:
        LockedError: if the shard has a writer, or the visit does not end.
    """
    patience, tries = time.monotonic() + _PATIENCE_SECONDS, 0
    while True:
        try:
            with Uninterrupted():
                return open_shard()
        except LockedError:
            tries += 1
            visitor = files.read_holder(paths.visit)
            visited = visitor is not None and files.is_alive(visitor.pid) and time.monotonic() < patience
            if not visited and tries >= _LEAST_TRIES:
                raise
        time.sleep(_PAUSE_SECONDS)
