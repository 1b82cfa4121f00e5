"""The locked in-memory databases of DuckDB that queries run in, and how their work is interrupted.

All queries of a process share one database for each number of threads and limit of memory (making one takes tens of
milliseconds); each query has a cursor of its own, whose tables and views are its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import OptionError, WaitError
from ..interrupts import Uninterrupted

_MAX_THREADS: Final = 1024
_MEMORY_SHARE: Final = 0.5  # of the machine's: the rest is for who trains beside it
_KEPT_DATABASES: Final = 4
_INTERRUPT_SECONDS: Final = 0.05
_databases: dict[tuple[int, Limits], Any] = {}
_guard = threading.Lock()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may use.

    Attributes:
        threads: how many; all cores by default.
        memory_bytes: most memory; half of the machine's by default.
    """

    threads: int | None = None
    memory_bytes: int | None = None

    @classmethod
    def checked(cls, threads: Any, memory_bytes: Any) -> Limits:
        """From a caller's arguments.

        Raises:
            OptionError: if one of them is out of range.
        """
        if threads is not None and not (_is_whole(threads) and 1 <= threads <= _MAX_THREADS):
            raise OptionError(
                f"threads is {threads!r}, expected a whole number of 1 to {_MAX_THREADS}. "
                "Leave it out to use all cores."
            )
        if memory_bytes is not None and not (_is_whole(memory_bytes) and memory_bytes >= 1 << 20):
            raise OptionError(
                f"memory_bytes is {memory_bytes!r}, expected a whole number of at least {1 << 20:,}. "
                "Leave it out to allow half of the machine's memory."
            )
        return cls(None if threads is None else int(threads), None if memory_bytes is None else int(memory_bytes))


def check_timeout(timeout: Any) -> float | None:
    """Seconds from a caller's argument.

    Raises:
        OptionError: if it is no positive number.
    """
    if timeout is None:
        return None
    number = isinstance(timeout, int | float | np.integer | np.floating) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < float("inf"):
        raise OptionError(
            f"timeout is {timeout!r}, expected a positive number of seconds. Leave it out to wait as long as it takes."
        )
    return float(timeout)


def _is_whole(value: Any) -> Any:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def cursor(limits: Limits) -> Any:
    """A connection of its own to the locked database with these limits."""
    key = (os.getpid(), limits)  # a fork has none of its parent's threads
    with _guard:
        if key not in _databases:
            while len(_databases) >= _KEPT_DATABASES:
                del _databases[next(iter(_databases))]
            _databases[key] = _open(limits)
        return _databases[key].cursor()


def forget() -> None:
    """Use these databases no more: after an internal error DuckDB refuses all further work in them."""
    with _guard:
        _databases.clear()


def _open(limits: Limits) -> Any:
    """An empty database that can read no file and change no setting."""
    import duckdb

    memory = limits.memory_bytes or int(_machine_memory() * _MEMORY_SHARE)
    config: dict[str, Any] = {
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "memory_limit": f"{memory}B",
        "temp_directory": _folder(),
    }
    if limits.threads is not None:
        config["threads"] = limits.threads
    database = duckdb.connect(":memory:", config=config)
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _machine_memory() -> int:
    """Bytes of memory that this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path("/sys/fs/cgroup", name).read_text()))
    return total


def _folder() -> str:
    """Where sorts and joins go that do not fit the memory: DuckDB makes the folder when it has to, and removes it.

    Empty where there is no place for it: then such a query runs out of memory, and says so.
    """
    try:
        return os.path.join(tempfile.gettempdir(), f"arrowrb-sql-{os.getpid()}-{secrets.token_hex(8)}")
    except OSError:
        return ""


def interruptible(cursor: Any, work: Callable[[], Any], timeout: float | None = None) -> Any:
    """Do DuckDB's work so that Ctrl-C stops it: its own calls look for signals in some ways of fetching only.

    Raises:
        WaitError: if it takes longer than ``timeout`` seconds.
    """
    if timeout is None and threading.current_thread() is not threading.main_thread():
        return work()  # signals come to the main thread
    done: Future[Any] = Future()
    # Not the thread's end: Ctrl-C in Thread.join takes a thread that runs for one that ended.
    finished = threading.Event()

    def call() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        finally:
            finished.set()

    thread = threading.Thread(target=call, name="arrowrb-sql", daemon=True)
    until = float("inf") if timeout is None else time.monotonic() + timeout
    try:
        with Uninterrupted():  # it would go on by itself, and the cursor be in use
            thread.start()
        while not finished.wait(min(_INTERRUPT_SECONDS, max(0.0, until - time.monotonic()))):
            # By the clock, since polars, once imported, lets waits sleep through signals.
            if time.monotonic() >= until:
                raise WaitError(f"The query took longer than timeout={timeout} seconds. Ask for less, or allow more.")
    except (KeyboardInterrupt, WaitError):
        while thread.ident is not None and not finished.is_set():
            cursor.interrupt()  # again and again, since one that comes before the first row is looked for is lost
            finished.wait(_INTERRUPT_SECONDS)
        raise
    return done.result()
