"""Who collects and samples under a limiter: a slot each in its file, for others to see.

A slot is taken by one instruction that puts its owner, a process and when it was started, in the place of nobody or of
one that is dead; what it says otherwise is its owner's alone. Who dies leaves its slot as it was, so that it can still
be told who it was, until somebody takes it. Where all slots are taken by the living, who comes is not shown, and counts
and obeys all the same.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Collection, Iterator
from typing import Final

import numpy as np

from .. import files, kernels
from ..limiter import COLLECTING, SAMPLING, Participant, Side
from .limiter_file import PARTICIPANTS, SLOT_BYTES, SLOTS, LimiterFile

TOO_FEW: Final = "too few transitions for the first batch"
SAMPLING_OWES: Final = "sampling owes too much"
SAMPLING_AHEAD: Final = "sampling is ahead"
_WHY: Final = (None, SAMPLING_OWES, TOO_FEW, SAMPLING_AHEAD)
_SIDES: Final = (None, COLLECTING, SAMPLING)
_WORDS: Final = SLOT_BYTES // 8
# Words of a slot.
_OWNER, _SIDE, _ROWS, _ACTIVE, _THREAD, _SINCE, _REASON, _WAITED, _WAITS, _JOINED, _NAME = range(11)
_COUNT: Final = struct.Struct("<qqq")  # the words from _ROWS on
_START_BITS: Final = 41
_NAME_BYTES: Final = SLOT_BYTES - 8 * _NAME


def seconds_since(moment: int) -> float:
    """How long ago a moment was, in nanoseconds since the epoch."""
    return max(0, time.time_ns() - moment) / 1e9


def _owner(pid: int) -> int | None:
    """What stands for a process that runs, and for none before or after it."""
    start = files.start_of(pid)
    return None if start is None else (pid << _START_BITS) | (start & ((1 << _START_BITS) - 1))


def _is_alive(owner: int) -> bool:
    return owner > 0 and _owner(owner >> _START_BITS) == owner


def _take(file: LimiterFile, who: list[int]) -> int | None:
    """Take a slot: that of one of the same side and name who died, else a free one, else that of another dead one."""
    own, cells = _owner(os.getpid()), np.asarray(file.participants).reshape(SLOTS, _WORDS)
    if own is None:
        return None
    same = (cells[:, [_SIDE, *range(_NAME, _WORDS)]] == who).all(axis=1)
    free = cells[:, _OWNER] == 0
    for slot in np.argsort(np.where(free, 1, np.where(same, 0, 2)), kind="stable").tolist():
        owner = int(cells[slot, _OWNER])
        address = file.address + PARTICIPANTS + slot * SLOT_BYTES
        if not _is_alive(owner) and kernels.take_over(address, owner, own):
            return int(slot)
    return None


class Place:
    """A slot that this process has taken, or none where there was no room. For one thread at a time but `wait`."""

    def __init__(self, file: LimiterFile, side: Side, name: str) -> None:
        self._cells = file.participants
        self._guard = threading.Lock()
        self._waiting: dict[int, int] = {}  # since when, by thread
        told = name.encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
        words = np.frombuffer(told, np.int64)
        slot = _take(file, [_SIDES.index(side), *words.tolist()])
        if slot is None:
            self._cells = memoryview(np.zeros(_WORDS, np.int64))  # type: ignore[arg-type]
        self._owner = self._cells[(slot or 0) * _WORDS + _OWNER]
        self._at = at = (slot or 0) * _WORDS
        self._rows, self._bytes, self._offset = 0, self._cells.cast("B"), 8 * (at + _ROWS)
        cells = self._cells
        for word in range(_SIDE, _WORDS):
            cells[at + word] = 0
        cells[at + _NAME : at + _WORDS] = memoryview(words)  # type: ignore[arg-type]
        cells[at + _JOINED] = cells[at + _ACTIVE] = time.time_ns()
        cells[at + _THREAD] = threading.current_thread().ident or 0  # which `threading` knows of from now on
        cells[at + _SIDE] = _SIDES.index(side)

    def count(self, rows: int) -> None:
        """Note that it has committed or sampled."""
        self._rows += rows
        _COUNT.pack_into(self._bytes, self._offset, self._rows, time.time_ns(), threading.get_ident())

    def wait(self, why: str) -> None:
        """Note that this thread waits, from now on or still."""
        with self._guard:
            thread = threading.get_ident()
            if self._waiting.setdefault(thread, time.time_ns()) == min(self._waiting.values()):
                self._cells[self._at + _SINCE] = self._waiting[thread]
            self._cells[self._at + _REASON] = _WHY.index(why)
            self._cells[self._at + _THREAD] = thread

    def go_on(self) -> None:
        """Note that this thread does not wait any more."""
        with self._guard:
            cells, at = self._cells, self._at
            since = self._waiting.pop(threading.get_ident(), None)
            if since is None:
                return
            cells[at + _SINCE] = min(self._waiting.values(), default=0)
            cells[at + _WAITED] += max(0, time.time_ns() - since)
            cells[at + _WAITS] += 1

    def leave(self, pid: int) -> None:
        """Give the slot back, in the process that took it, if nobody has taken it for one of the dead."""
        if os.getpid() == pid and self._cells[self._at + _OWNER] == self._owner:
            self._cells[self._at + _SIDE] = 0
            self._cells[self._at + _OWNER] = 0

    def fail(self, pid: int) -> None:
        """Leave the slot as that of one who has died, in the process that took it: who is started again takes it."""
        if os.getpid() == pid and self._cells[self._at + _OWNER] == self._owner:
            self._cells[self._at + _ACTIVE] = time.time_ns()
            self._cells[self._at + _OWNER] = pid << _START_BITS  # another process of that number, long ago


def _slots(file: LimiterFile, side: Side | None = None) -> Iterator[list[int]]:
    """The slots that somebody has, or of whom it is still told."""
    cells = np.asarray(file.participants).reshape(SLOTS, _WORDS)
    chosen = cells[:, _SIDE] == _SIDES.index(side) if side else np.isin(cells[:, _SIDE], (1, 2))
    yield from cells[chosen & (cells[:, _OWNER] > 0)].tolist()


def look(file: LimiterFile) -> tuple[Participant, ...]:
    """Who collects and samples, in order of when they began; the living first."""
    told = [_participant(words) for words in _slots(file)]
    return tuple(sorted(told, key=lambda each: (not each.alive, each.joined_at, each.pid)))


def _participant(words: list[int]) -> Participant:
    alive, since = _is_alive(words[_OWNER]), words[_SINCE]
    waiting = seconds_since(since) if since > 0 and alive else None
    name = _legible(np.array(words[_NAME:], np.int64).tobytes().rstrip(b"\0"))
    reason = _WHY[words[_REASON]] if 0 <= words[_REASON] < len(_WHY) else None
    return Participant(
        side=_SIDES[words[_SIDE]] or COLLECTING,
        name=name or None,
        pid=words[_OWNER] >> _START_BITS,
        alive=alive,
        num_rows=words[_ROWS],
        joined_at=words[_JOINED] // 1000,
        active_at=words[_ACTIVE] // 1000,
        waits_for=None if waiting is None else reason,
        waiting_seconds=waiting,
        waited_seconds=words[_WAITED] / 1e9 + (waiting or 0.0),
        num_waits=words[_WAITS] + (waiting is not None),
    )


def _legible(name: bytes) -> str:
    return "".join(each if each.isprintable() else "?" for each in name.decode(errors="replace"))


def shown_name(name: str) -> str:
    """The name that a participant of this name is told of by: as much of it as a slot has room for."""
    return _legible(name.encode()[:_NAME_BYTES])


def nobody_is_left(file: LimiterFile, side: Side, *, idle: Collection[int] = ()) -> bool:
    """Whether all who could release the calling thread, which is of this side, wait on it themselves.

    So it is in a loop of one thread that commits and samples in turn. Where the other side has nobody yet, somebody
    may still come.

    Args:
        file: of the limiter.
        side: "collecting" or "sampling".
        idle: processes of the other side that do nothing now.
    """
    other: Side = SAMPLING if side == COLLECTING else COLLECTING
    others = {(words[_OWNER], words[_THREAD]) for words in _slots(file, other) if _is_alive(words[_OWNER])}
    stuck = {(words[_OWNER], words[_THREAD]) for words in _slots(file, side) if words[_SINCE] > 0}
    stuck.add((_owner(os.getpid()) or 0, threading.get_ident()))
    able = {(owner, thread) for owner, thread in others if owner >> _START_BITS not in idle}
    return bool(others or idle) and able <= stuck


def have_left(file: LimiterFile, since: int) -> bool:
    """Whether nobody collects, and nobody who did has died since a moment, in nanoseconds since the epoch.

    Of this process that goes by the threads that committed: one that has ended does not.
    """
    threads = {thread.ident for thread in threading.enumerate()}
    for words in _slots(file, COLLECTING):
        ended = words[_OWNER] >> _START_BITS == os.getpid() and words[_THREAD] not in threads
        if words[_ACTIVE] >= since if not _is_alive(words[_OWNER]) else not ended:
            return False
    return True


def waiting_pids(file: LimiterFile, side: Side) -> set[int]:
    """The processes of a side that wait now."""
    return {words[_OWNER] >> _START_BITS for words in _slots(file, side) if words[_SINCE] > 0}
