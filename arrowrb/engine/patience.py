"""Waiting for a lock that somebody holds for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from ..errors import LockedError

_PAUSE_SECONDS: Final = 0.01
_T = TypeVar("_T")


def patiently(take: Callable[[], _T], until: float, pause: float = _PAUSE_SECONDS) -> _T:
    """What ``take`` returns, which is called again as long as it raises `LockedError`.

    Args:
        take: takes a lock, or opens what needs one.
        until: a moment of `time.monotonic` after which its error is raised.
        pause: seconds between calls.
    """
    while True:
        try:
            return take()
        except LockedError:
            if time.monotonic() > until:
                raise
        time.sleep(pause)
