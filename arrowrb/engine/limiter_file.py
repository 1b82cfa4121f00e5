"""The file of a store's limiter: the rule, and the counts that it goes by, mapped by all processes that obey it.

It has one size for good. At its head is a checksummed header; then two slots for rules, which are written in turn, and
the number of the rule in force, which is written last: so a rule changes for all processes at once, and a crash in
between leaves the one before. Rules are changed under the lock of `shards`, which the kernel takes from a dead process.

Counts need no lock, and no process that dies can leave one that is in the way:

- transitions, a cell a shard: the one writer of the shard copies what its commit record says after each commit. A crash
  in between leaves the cell behind by that commit, until the shard is opened for writing again.
- sampled rows, one cell: added to by one instruction when a batch is handed out. A crash before leaves that batch out.
- who takes part: see `participants`. Nothing is decided by these cells but when to give up.

Nothing is synced but the rule: the counts survive any death of processes; after a power failure sampled rows may be
missing that were counted shortly before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np

from .. import commits, files, kernels
from ..errors import CorruptError, StoreError
from ..limiter import Limiter, Rule, SampleToInsertRatio
from ..rows import MAX_SHARDS
from .paths import LIMITER_FILE, MAKER_FILE, MAKER_LOCK, list_shards, shard_paths
from .patience import patiently

SLOTS: Final = 256  # for participants
SLOT_BYTES: Final = 128
_MAGIC: Final = b"ARRBLIMI"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8s36sI")  # magic, store, version; behind it the CRC-32
_RULE: Final = struct.Struct("<qdqddqq?7x")  # sequence, the rule's fields; likewise
_RULES: Final = 512  # where they begin, and how far they are apart
_WORDS: Final = 2048
PARTICIPANTS: Final = 4096  # where their slots begin
_INSERTS: Final = PARTICIPANTS + SLOTS * SLOT_BYTES
_BYTES: Final = _INSERTS + 8 * MAX_SHARDS
SEQUENCE, SAMPLES, NUM_SHARDS = range(3)
_MOST_INSERTS: Final = 1 << 47  # of a shard
_MOST_SAMPLES: Final = 1 << 62
_REMEDY: Final = "`arrowrb repair` sets it aside; the store has no limiter then."
_PATIENCE_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.01
_LOOKS: Final = 5


def _checked(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def _header(store_id: str) -> bytes:
    return _checked(_HEADER.pack(_MAGIC, store_id.encode(), _VERSION))


def _pack(sequence: int, rule: Rule) -> bytes:
    return _checked(
        _RULE.pack(
            sequence,
            rule.samples_per_insert,
            rule.min_size,
            rule.tolerance,
            rule.patience,
            rule.start_inserts,
            rule.start_samples,
            rule.enabled,
        )
    )


def _unpack(slot: bytes) -> tuple[int, Rule] | None:
    body = slot[: _RULE.size]
    if not any(body) or slot[_RULE.size : _RULE.size + 4] != _checked(body)[-4:]:
        return None
    sequence, *fields = _RULE.unpack(body)
    rule = Rule(*fields)
    return (sequence, rule) if sequence > 0 and rule.is_sane() else None


def _content(store_id: str, rule: Rule, inserts: Mapping[int, int], samples: int) -> bytes:
    """A file with its first rule, transitions of each shard, and sampled rows."""
    content = bytearray(_BYTES)
    for place, part in ((0, _header(store_id)), (2 * _RULES, _pack(1, rule))):
        content[place : place + len(part)] = part
    struct.pack_into("<qqq", content, _WORDS, 1, samples, max(inserts, default=0) + 1)
    for shard, count in inserts.items():
        struct.pack_into("<q", content, _INSERTS + 8 * shard, count)
    return bytes(content)


def make(store: Path, store_id: str, given: SampleToInsertRatio, *, durable: bool) -> None:
    """Give a store that has no limiter one: its balance begins with the transitions that are committed now."""
    inserts = {shard: _committed(store, shard) for shard in list_shards(store)}
    rule = Rule.begin(given, sum(inserts.values()), 0)
    files.publish(store / LIMITER_FILE, _content(store_id, rule, inserts, 0), sync=durable)


def _committed(store: Path, shard: int) -> int:
    paths = shard_paths(store, shard)
    record, _ = commits.trusted(commits.read_file(paths.visible), commits.read_file(paths.durable), files.boot_id())
    return record.num_transitions


def change(store: Path, store_id: str, limiter: Limiter, *, durable: bool) -> None:
    """Put a limiter in force, or take it off, for all processes that have the store open; None leaves it.

    Raises:
        CorruptError: if the file of the one that is there is damaged.
        LockedError: if another process is about to change it, and does not come to an end.
    """
    if limiter is None or (limiter is False and not os.path.lexists(store / LIMITER_FILE)):
        return
    with _alone(store), files.explaining(store / LIMITER_FILE, "changing the limiter"):
        if os.path.lexists(store / LIMITER_FILE):
            LimiterFile(store, store_id).change(limiter, durable=durable)
        elif limiter is not False:
            make(store, store_id, limiter, durable=durable)


@contextlib.contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Nobody else changes the limiter meanwhile, nor makes a shard."""
    what, remedy = f"The limiter of {store} is being changed", "Try again when it is done."
    take = partial(files.Lock, store / MAKER_LOCK, store / MAKER_FILE, what=what, remedy=remedy)
    lock = patiently(take, time.monotonic() + _PATIENCE_SECONDS)
    try:
        yield
    finally:
        lock.release()


def find_damaged(store: Path, store_id: str) -> Iterator[tuple[Path, str]]:
    """The file, if there is one that cannot be used, and why."""
    path = store / LIMITER_FILE
    if not os.path.lexists(path):
        return
    try:
        file, looks = LimiterFile(store, store_id), 0
        while file.has_torn_rule():  # somebody may be writing it
            looks += 1
            if looks == _LOOKS:
                yield path, f"{path} is damaged: one of its rules is invalid. {_REMEDY}"
                return
            time.sleep(_PAUSE_SECONDS)
    except StoreError as error:
        yield path, str(error)


def copy(source: Path, target: Path, store_id: str, inserts: Mapping[int, int]) -> bool:
    """Copy the limiter of a store to a copy of it that has so many transitions in each shard; whether there is one."""
    if not os.path.lexists(source / LIMITER_FILE):
        return False
    file = LimiterFile(source, store_id)
    files.publish(target / LIMITER_FILE, _content(store_id, file.rule, inserts, file.samples()))
    return True


class LimiterFile:
    """The mapped file. Thread-safe.

    Attributes:
        writable: whether this process may count in it; where the file system or its permissions refuse that, it reads.
        address: where it is mapped.
        words: int64[8], `SEQUENCE` of the rule in force, `SAMPLES`, `NUM_SHARDS`.
        counts: transitions of each shard, int64.
        participants: their slots, int64[SLOTS * 16].
    """

    def __init__(self, store: Path, store_id: str) -> None:
        """Map the limiter of a store that has one.

        Raises:
            CorruptError: if it is damaged, or of another store.
        """
        self.path, self._mapping = store / LIMITER_FILE, _map(store / LIMITER_FILE)
        self.writable, self.address = self._mapping.writable, self._mapping.address
        header = _header(store_id)
        if self._mapping.array(0, _RULES, np.uint8).tobytes() != header.ljust(_RULES, b"\0"):
            raise CorruptError(f"{self.path} is damaged, or that of another store: its header is wrong. {_REMEDY}")
        self.words = self._view(_WORDS, 8)
        self.counts = self._view(_INSERTS, MAX_SHARDS)
        self.participants = self._view(PARTICIPANTS, SLOTS * SLOT_BYTES // 8)
        self._check_counts()
        self._sequence = 0
        self._read_rule()

    def _view(self, offset: int, count: int) -> memoryview:
        return memoryview(self._mapping.array(offset, count, np.int64))  # type: ignore[arg-type]

    def _slots(self) -> list[bytes]:
        return [self._mapping.array(start, _RULES, np.uint8).tobytes() for start in (_RULES, 2 * _RULES)]

    def _read_rule(self) -> None:
        sequence = int(self.words[SEQUENCE])  # before the rules, so that a change is seen the next time
        rules = [rule for slot in self._slots() if (rule := _unpack(slot)) is not None]
        if not rules:
            raise CorruptError(f"{self.path} is damaged: it holds no valid rule. {_REMEDY}")
        self._newest, self._rule = max(rules, key=lambda each: each[0])
        self._sequence = sequence

    @property
    def rule(self) -> Rule:
        """The rule in force."""
        if self.words[SEQUENCE] != self._sequence:
            self._read_rule()
        return self._rule

    def inserts(self) -> int:
        """Transitions that were ever committed, over all shards."""
        count = self.words[NUM_SHARDS]
        return int(self.counts[0]) if count == 1 else sum(self.counts[:count])

    def samples(self) -> int:
        """Rows that were sampled."""
        return int(self.words[SAMPLES])

    def balance(self) -> tuple[int, int]:
        """Transitions and rows that there were at one moment, where these do not change too fast."""
        for _ in range(_LOOKS):
            samples = self.samples()
            inserts = self.inserts()
            if samples == self.samples():
                break
        return inserts, samples

    def count_samples(self, rows: int) -> None:
        """Add rows that are handed out."""
        kernels.add_to(self.address + _WORDS + 8 * SAMPLES, rows)

    def note_shard(self, shard: int) -> None:
        """There is this shard; only its writer may note its inserts."""
        kernels.raise_to(self.address + _WORDS + 8 * NUM_SHARDS, shard + 1)

    def note_inserts(self, shard: int, committed: int) -> None:
        """So many transitions were ever committed in a shard."""
        self.counts[shard] = committed

    def change(self, limiter: SampleToInsertRatio | Literal[False], *, durable: bool) -> None:
        """Put another rule in force; the caller holds the lock."""
        self._read_rule()
        if limiter is False:
            rule = replace(self._rule, enabled=False)
        else:
            rule = self._rule.followed_by(limiter, self.inserts(), self.samples())
        if rule == self._rule:
            return
        sequence = self._newest + 1
        slot = self._mapping.array(_RULES * (1 + (sequence & 1)), _RULES, np.uint8)
        told = _pack(sequence, rule)
        slot[: len(told)] = np.frombuffer(told, np.uint8)
        kernels.fence()
        self.words[SEQUENCE] = sequence
        if durable:
            files.sync_file(self.path)

    def _check_counts(self) -> None:
        """Refuse counts that nobody can have counted."""
        num_shards, samples, counts = self.words[NUM_SHARDS], self.samples(), np.asarray(self.counts)
        sane = ((counts >= 0) & (counts < _MOST_INSERTS)).all() and not counts[num_shards:].any()
        if not (1 <= num_shards <= MAX_SHARDS and 0 <= samples < _MOST_SAMPLES and sane):
            raise CorruptError(f"{self.path} is damaged: it counts what cannot be. {_REMEDY}")

    def has_torn_rule(self) -> bool:
        """Whether a slot holds no whole rule: one is being written, or it is damaged."""
        return any(any(slot) and _unpack(slot) is None for slot in self._slots())


def _map(path: Path) -> files.Mapping:
    try:
        return files.Mapping(path, writable=True, size=_BYTES, doing="mapping the limiter")
    except StoreError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            if isinstance(error, CorruptError):
                raise CorruptError(f"{error} {_REMEDY}") from None
            raise
    return files.Mapping(path, size=_BYTES, doing="mapping the limiter")
