"""A process in which stores are looked at, so that the one that forks has no threads.

Arrow and DuckDB keep threads from their first use on. A child that is forked while one of them holds a lock of its
allocator finds that lock taken for ever.
"""

from __future__ import annotations

import importlib
import multiprocessing
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from arrowrb import kernels


class Elsewhere:
    """Calls functions of modules in a process of its own, one after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns.

        Raises:
            AssertionError: with the traceback of what it raised.
        """
        self._pipe.send((function, arguments))
        value, error = self._pipe.recv()
        if error is not None:
            raise AssertionError(error)
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def load_modules() -> int:
    """Import what children need, once for all; returns how many threads that has begun."""
    for name in ("torch", "pyarrow.parquet", "safetensors.torch", "arrowrb.store"):
        importlib.import_module(name)
    for name in kernels.__all__:
        getattr(kernels, name)
    return threading.active_count() - 1


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((function(*arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
