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

_LARGE: Final = 1 << 20  # bytes
# What is small is unmapped faster than the lock of Python is let go of and waited for.
_large, _small = ctypes.CDLL(None), ctypes.PyDLL(None)
for _libc in (_large, _small):
    _libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class _Range(weakref.ref[Any]):
    """What an object holds mapped."""

    __slots__ = ("address", "size")
    address: int
    size: int


_gone: queue.SimpleQueue[_Range] = queue.SimpleQueue()
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


def num_waiting() -> int:
    """How many ranges nobody refers to any more, and are not unmapped yet."""
    return sum(mapped() is None for mapped in list(_held))


def _start() -> None:
    """Begin in this process; in one that was forked with another queue, since nobody will let go of the old one's lock.

    What is gone already is unmapped there, too; what it goes on to inherit stays until it ends.
    """
    global _gone, _served_in
    with _starting, Uninterrupted():
        if _served_in != os.getpid():
            _gone = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(_gone,), name="arrowrb-unmap", daemon=True).start()
            _served_in = os.getpid()


def _serve(gone: queue.SimpleQueue[_Range]) -> None:
    for mapped in [each for each in list(_held) if each() is None]:
        _unmap(mapped)
    while True:
        _unmap(gone.get())


def _unmap(mapped: _Range) -> None:
    if mapped in _held:
        _held.discard(mapped)
        (_large if mapped.size > _LARGE else _small).munmap(mapped.address, mapped.size)
