"""What a shard is told by the coordinator of its store: a small mapped file of the shard, `orders`.

The shard's writer makes the file when it opens the shard, under its lock. The coordinator alone changes it, in place:
two checksummed slots, written in turn. States, and what a crash at each step leaves:

- no file, or one without a valid slot (also after a power failure: nothing is synced): the shard is told nothing, and
  goes by the limits of the whole store until the next look of the coordinator;
- a slot that is half written is invalid, and the other one, the orders before, in force;
- the coordinator dies: its last orders stay in force, the bounds among them, until another one looks;
- the writer dies: the next one, or the coordinator in its place, finds the orders where they were.

Segments that were told to go stay so: a reader of the file takes the highest number that it ever saw. All else is as
the newest slot says. So orders may be lost, late or given twice.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..errors import StoreError
from ..files import Mapping, publish
from ..sharing import Orders

_MAGIC: Final = b"ARBORD01"
_BODY: Final = struct.Struct("<8sqqqqqq")
_SUM: Final = struct.Struct("<I")
_SLOT_BYTES: Final = 64
FILE_BYTES: Final = 4096
_NONE: Final = -1


def _pack(sequence: int, orders: Orders) -> bytes:
    bounds = (orders.max_rows, orders.max_bytes, orders.hot_rows, orders.hot_bytes)
    body = _BODY.pack(_MAGIC, sequence, orders.evict_below, *(_NONE if bound is None else bound for bound in bounds))
    return body + _SUM.pack(zlib.crc32(body))


def _unpack(slot: bytes) -> tuple[int, Orders] | None:
    """The sequence and the orders of a slot; None where it is torn, empty or of something else."""
    body = slot[: _BODY.size]
    if _SUM.unpack_from(slot, _BODY.size)[0] != zlib.crc32(body):
        return None
    magic, sequence, below, *bounds = _BODY.unpack(body)
    if magic != _MAGIC or min(sequence, below) < 0 or min(bounds) < _NONE:
        return None
    return sequence, Orders(below, *(None if bound == _NONE else bound for bound in bounds))


def lay_out(path: Path) -> None:
    """Make the file where there is none that can be mapped. Only for who holds the shard's lock.

    Raises:
        StoreError: if a folder has its place, which `verify` names and `repair` sets aside.
    """
    try:
        Mapping(path, size=FILE_BYTES)
    except StoreError:
        publish(path, bytes(FILE_BYTES), sync=False)


class OrdersFile:
    """The mapped file of one shard; writable for the coordinator, read-only for the shard's writer."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self._mapping = Mapping(path, writable=writable, size=FILE_BYTES)
        self._bytes = memoryview(self._mapping.array(0, 2 * _SLOT_BYTES, "u1"))  # type: ignore[arg-type]
        self._content = b""
        self._sequence = 0
        self._orders: Orders | None = None
        self.read()

    def is_at(self, path: Path) -> bool:
        """Whether this is the file of that name still."""
        try:
            return os.stat(path).st_ino == self._mapping.stamp[0]
        except FileNotFoundError:
            return False

    def read(self) -> Orders | None:
        """What is said now; None where nothing was. The same object as before where nothing has changed."""
        content = bytes(self._bytes)
        if content == self._content:
            return self._orders
        self._content = content
        slots = (_unpack(content[start : start + _SLOT_BYTES]) for start in (0, _SLOT_BYTES))
        newest = max((slot for slot in slots if slot is not None), key=lambda slot: slot[0], default=None)
        if newest is not None and newest[0] > self._sequence:
            before = 0 if self._orders is None else self._orders.evict_below
            self._sequence, orders = newest
            self._orders = replace(orders, evict_below=max(before, orders.evict_below))
        return self._orders

    def write(self, orders: Orders) -> None:
        """Say this from now on; nothing where it is what is said."""
        if orders == self.read():
            return
        sequence = self._sequence + 1
        start = (sequence & 1) * _SLOT_BYTES
        slot = _pack(sequence, orders)
        self._bytes[start : start + len(slot)] = slot
        self.read()
