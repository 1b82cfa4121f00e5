"""What a store is opened with: numbers of users, checked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from ..errors import OptionError
from ..retention import Limits
from ..schema import Schema

MIN_LIMIT_ROWS: Final = 1000
MIN_LIMIT_BYTES: Final = 1 << 20
_MOST_HOT_BYTES: Final = 8 << 30
_MOST_SECONDS: Final = 1_000_000
DEFAULT_CACHE_BYTES: Final = 256 << 20


def now_microseconds() -> int:
    """The clock of rows: microseconds since the epoch."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """What a writer is opened with.

    Attributes:
        sync_interval: seconds between syncs; at most so much is lost when the power fails. None never syncs by time.
        durable: whether to sync at all (temporary stores do not).
        limits: what the shard may hold.
    """

    sync_interval: float | None = 5.0
    durable: bool = True
    limits: Limits = field(default_factory=Limits)


def writer_options(
    sync_interval: float | None, hot_rows: int | None, hot_bytes: int | None, *, durable: bool = True
) -> WriterOptions:
    """Options of `Store.create` and `Store.open`, checked; without a bound the hot tier takes a part of the memory."""
    if sync_interval is not None:
        number = isinstance(sync_interval, int | float | np.number) and not isinstance(sync_interval, bool)
        if not number or not 0 < sync_interval <= _MOST_SECONDS:
            raise OptionError(
                f"sync_interval is {sync_interval!r}, expected seconds above 0 and at most {_MOST_SECONDS:,}, or None."
            )
        sync_interval = float(sync_interval)
    rows = check_limit("hot_rows", hot_rows, MIN_LIMIT_ROWS)
    num_bytes = check_limit("hot_bytes", hot_bytes, MIN_LIMIT_BYTES)
    if rows is None and num_bytes is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        num_bytes = max(min(_MOST_HOT_BYTES, memory // 4), MIN_LIMIT_BYTES)
    return WriterOptions(sync_interval, durable, Limits(hot_rows=rows, hot_bytes=num_bytes))


def check_retention(max_rows: int | None, max_bytes: int | None) -> tuple[int | None, int | None]:
    """How much a store keeps, checked."""
    return check_limit("max_rows", max_rows, MIN_LIMIT_ROWS), check_limit("max_bytes", max_bytes, MIN_LIMIT_BYTES)


def check_limit(name: str, value: Any, least: int) -> int | None:
    """A bound, or None for none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise OptionError(f"{name} is {value!r}, expected a whole number of at least {least:,}, or None.")
    return int(value)


def check_schema(value: object) -> None:
    """Refuse what is no schema."""
    if not isinstance(value, Schema):
        raise OptionError(f"schema is a {type(value).__name__}, expected a Schema. Make one with Schema.from_env(env).")


def check_path(value: Any, name: str = "path", expected: str = "the name of a folder") -> Path:
    """A path that a user gave, such as the folder of a store.

    Args:
        value: what was given.
        name: of the argument, for the message; likewise `expected`.
        expected: what it should have been.
    """
    try:
        text = os.fspath(value)
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        text = None
    if not isinstance(text, str) or "\0" in text:
        raise OptionError(f"{name} is {value!r}, expected {expected}.")
    return Path(text)


def check_cache_bytes(value: Any) -> int:
    """The size of the cache, checked."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise OptionError(f"cache_bytes is {value!r}, expected a whole number from 0 on.")
    return int(value)


class Keeping(Protocol):
    """What a checkpoint keeps beside rows."""

    def held(self) -> AbstractContextManager[Callable[[], dict[str, Any]]]:
        """Nothing of it changes meanwhile; gives what tells the states, by name."""
        ...
