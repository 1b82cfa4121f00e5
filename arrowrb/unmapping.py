"""Memory is unmapped in a thread of its own, once nobody refers to it any more.

That of a large segment takes milliseconds, which whoever happens to let go of it last should not wait for. And a Ctrl-C
that falls into a function which Python runs because an object goes is printed and forgotten: here none runs, since the
callback of the reference is the queue's own `put`.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import weakref
from typing import Any, Final

from .interrupts import Uninterrupted

_libc: Final = ctypes.CDLL(None)
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class _Range(weakref.ref[Any]):
    """What an object holds mapped."""

    __slots__ = ("address", "size")
    address: int
    size: int


_gone: Final[queue.SimpleQueue[_Range]] = queue.SimpleQueue()
_held: Final[set[_Range]] = set()
_starting: Final = threading.Lock()
_served_in = 0  # the process in which the thread runs


def unmap_with(owner: object, address: int, size: int) -> None:
    """Unmap a range of memory when an object has gone; not at the end of the process, which does so itself."""
    if _served_in != os.getpid():
        _start()
    mapped = _Range(owner, _gone.put)
    mapped.address, mapped.size = address, size
    _held.add(mapped)


def _start() -> None:
    global _served_in
    with _starting, Uninterrupted():
        if _served_in != os.getpid():
            threading.Thread(target=_serve, name="arrowrb-unmap", daemon=True).start()
            _served_in = os.getpid()


def _serve() -> None:
    while True:
        mapped = _gone.get()
        _libc.munmap(mapped.address, mapped.size)
        _held.discard(mapped)
