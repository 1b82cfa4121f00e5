"""Commit records: the moment rows become visible (and, by a second record, durable).

A record is fixed-size and checksummed, in two slots that are written in turn; a reader keeps the newest valid one
and never goes back. The *visible* record is a mapped file that the writer changes with every commit; it survives the
death of the process, and opening trusts it while the machine has not restarted. The *durable* record is written
and synced only after the segments that it speaks of; it is what opening trusts after a restart.

A crash while a slot is written leaves that slot invalid and the other one, the commit before, in force.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import CorruptError
from .files import Mapping, explaining, open_file, publish, write_at
from .files import read_file as read

MAGIC: Final = b"ARBCMT01"
_BODY: Final = struct.Struct("<8sQqqqqq16s?7x")
_SLOT_BYTES: Final = 512
FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Record:
    """One commit: everything with an ordinal of 1 to ``watermark`` exists."""

    sequence: int = 0
    watermark: int = 0
    num_transitions: int = 0  # ever committed, the evicted ones included
    num_episodes: int = 0  # begun
    next_episode: int = 0
    num_breaks: int = 0  # external rows whose bits did not agree with the row before
    boot_id: bytes = bytes(16)
    clean: bool = False  # the writer closed the store after this commit; nothing lies beyond it


def pack(record: Record) -> bytes:
    """The bytes of one slot, checksum last."""
    body = _BODY.pack(
        MAGIC,
        record.sequence,
        record.watermark,
        record.num_transitions,
        record.num_episodes,
        record.next_episode,
        record.num_breaks,
        record.boot_id,
        record.clean,
    )
    return body + struct.pack("<I", zlib.crc32(body))


def unpack(slot: bytes) -> Record | None:
    """The record of a slot, or None where it is torn, empty or of something else."""
    body, checksum = slot[: _BODY.size], slot[_BODY.size : _BODY.size + 4]
    if len(checksum) < 4 or struct.unpack("<I", checksum)[0] != zlib.crc32(body):
        return None
    magic, *fields = _BODY.unpack(body)
    record = Record(*fields)
    counts = (record.watermark, record.num_transitions, record.num_episodes, record.next_episode, record.num_breaks)
    if magic != MAGIC or min(counts) < 0 or record.num_transitions > record.watermark:
        return None
    return record


def newest(content: bytes) -> Record | None:
    """The newest valid record of a commit file's content."""
    slots = (unpack(content[start : start + _SLOT_BYTES]) for start in (0, _SLOT_BYTES))
    return max((record for record in slots if record is not None), key=lambda r: r.sequence, default=None)


def trusted(visible: Record | None, durable: Record | None, boot_id: bytes) -> tuple[Record, bool]:
    """Which record opening goes by, and whether the machine may have lost rows beyond it.

    The visible one counts only while the machine has not restarted since it was written; the durable one is the
    floor in any case (it was visible once).
    """
    if visible is not None and visible.boot_id == boot_id:
        if durable is not None and durable.sequence > visible.sequence:
            return durable, True
        return visible, False
    if durable is None:
        raise CorruptError("Neither commit record is valid: the store's commits cannot be read.")
    return durable, not durable.clean


def _place(record: Record) -> int:
    return (record.sequence & 1) * _SLOT_BYTES


def create_file(path: Path, *records: Record, sync: bool) -> None:
    """Publish a commit file that holds one record, or two with sequences that follow each other."""
    content = bytearray(FILE_BYTES)
    for record in records:
        slot = pack(record)
        content[_place(record) : _place(record) + len(slot)] = slot
    publish(path, bytes(content), sync=sync)


class CommitFile:
    """The mapped visible record of one shard; writable in its one writer, read-only everywhere else."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self._mapping = Mapping(path, writable=writable, size=FILE_BYTES)
        self._bytes = memoryview(self._mapping.array(0, FILE_BYTES, "u1"))  # type: ignore[arg-type]
        self._newest: Record | None = None
        self._content = b""

    def write(self, record: Record) -> None:
        """Make a commit visible. The caller has finished (and fenced) all rows up to its watermark."""
        slot = pack(record)
        start = _place(record)
        self._bytes[start : start + len(slot)] = slot

    def read(self) -> Record | None:
        """The newest commit seen so far; never goes back. None if there has been no valid one."""
        content = bytes(self._bytes[: 2 * _SLOT_BYTES])
        if content == self._content:
            return self._newest
        self._content = content
        seen = newest(content)
        if seen is not None and (self._newest is None or seen.sequence > self._newest.sequence):
            self._newest = seen
        return self._newest


def read_newest(file: CommitFile, durable: Path, boot_id: bytes) -> Record:
    """The newest commit that can be trusted, as a reader sees it who follows a writer."""
    visible = file.read()
    if visible is not None and visible.boot_id == boot_id:
        return visible
    return trusted(visible, read_file(durable), boot_id)[0]


class DurableFile:
    """The durable record of one shard, written by ``pwrite`` and synced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with explaining(path, "opening the durable record"):
            self._descriptor = open_file(path, os.O_RDWR)
            content = os.pread(self._descriptor, 2 * _SLOT_BYTES, 0)
        first, second = (unpack(content[start : start + _SLOT_BYTES]) for start in (0, _SLOT_BYTES))
        newest_is_first = first is not None and (second is None or first.sequence > second.sequence)
        self._next = _SLOT_BYTES if newest_is_first else 0

    def write(self, record: Record, *, sync: bool = True) -> None:
        """Write and sync a record whose rows are durable already, over the older of the two slots.

        Sequences have gaps here (not every commit is synced), so the slots alternate by themselves.
        """
        with explaining(self._path, "writing the durable record"):
            write_at(self._descriptor, pack(record), self._next)
            if sync:
                os.fdatasync(self._descriptor)
        self._next = _SLOT_BYTES - self._next

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


def examine(content: bytes) -> tuple[Record | None, list[str]]:
    """Look at a whole commit file: the newest valid record, and what is wrong with the file, in words.

    A slot that was never written is not wrong by itself; see `has_empty_slot`.
    """
    wrong = []
    if len(content) != FILE_BYTES:
        wrong.append(f"It has {len(content):,} bytes, expected {FILE_BYTES:,}.")
    records = []
    for slot in (0, 1):
        part = content[slot * _SLOT_BYTES : (slot + 1) * _SLOT_BYTES]
        record = unpack(part)
        records.append(record)
        if record is None and any(part):
            wrong.append(f"Slot {slot} holds no valid record: it was damaged, or never written to the end.")
        if record is not None and any(part[_BODY.size + 4 :]):
            wrong.append(f"There are foreign bytes behind the record in slot {slot}.")
    if any(content[2 * _SLOT_BYTES :]):
        wrong.append("There are foreign bytes behind its two slots.")
    if records == [None, None] and not wrong:
        wrong.append("Neither slot holds a valid record.")
    return newest(content), wrong


def has_empty_slot(content: bytes) -> bool:
    """Whether a slot is all zeros: as it is created, until the store is first opened for writing."""
    return any(not any(content[start : start + _SLOT_BYTES]) for start in (0, _SLOT_BYTES))


def read_file(path: Path) -> Record | None:
    """The newest valid record of a commit file, read once."""
    return newest(read(path, "reading commit records", most=1 << 20)[: 2 * _SLOT_BYTES])
