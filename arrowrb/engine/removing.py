"""Removing a store that was temporary."""

from __future__ import annotations

import contextlib
import os
import shutil

from ..errors import ClosedError
from .engine import Engine


def remove_store(engine: Engine, owner: int) -> None:
    """Close a temporary store and remove its folder; only in the process that made it."""
    if os.getpid() != owner:
        return  # a forked child that ends must not take its parent's store with it
    with contextlib.suppress(ClosedError):
        engine.close()
    shutil.rmtree(engine.path, ignore_errors=True)
