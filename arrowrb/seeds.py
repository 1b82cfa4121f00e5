"""The seeds that episodes were reset with: a small append-only file of checksummed entries beside the commits.

An entry is written before the commit that begins its episode and carries that commit's first ordinal. Entries
beyond the watermark are cut off again by recovery, as the rows are.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .files import explaining, read_file, write_at

_BODY: Final = struct.Struct("<qqqQ")
ENTRY_BYTES: Final = _BODY.size + 8


@dataclass(frozen=True, slots=True)
class SeedEntry:
    """The seed of one episode."""

    episode_id: int
    lane: int
    ordinal: int  # the first of the commit that began the episode
    seed: int


def _pack(entry: SeedEntry) -> bytes:
    body = _BODY.pack(entry.episode_id, entry.lane, entry.ordinal, entry.seed)
    return body + struct.pack("<Q", zlib.crc32(body))


def _bodies(content: bytes) -> Iterator[bytes | None]:
    """What entries hold; None where the checksum does not agree. A torn end is no entry."""
    for start in range(0, len(content) - ENTRY_BYTES + 1, ENTRY_BYTES):
        body = content[start : start + _BODY.size]
        checksum = struct.unpack_from("<Q", content, start + _BODY.size)[0]
        yield body if checksum == zlib.crc32(body) else None


def parse(content: bytes, watermark: int) -> list[SeedEntry]:
    """The valid entries up to a watermark, in the order in which they were written."""
    entries = [SeedEntry(*_BODY.unpack(body)) for body in _bodies(content) if body is not None]
    return [entry for entry in entries if 1 <= entry.ordinal <= watermark]


def examine(content: bytes) -> tuple[list[str], bool]:
    """Look at all entries: what is wrong, in words, and whether only the end is.

    A machine that stopped may leave an end that was never written; the next writer cuts it off.
    """
    num_entries, rest = divmod(len(content), ENTRY_BYTES)
    bad = [number for number, body in enumerate(_bodies(content)) if body is None]
    wrong = []
    if bad:
        which = f"Entry {bad[0]}" if len(bad) == 1 else f"{len(bad):,} entries of {bad[0]} to {bad[-1]}"
        wrong.append(f"{which} (of {num_entries:,}) cannot be read: the checksum does not agree.")
    if rest:
        wrong.append(f"It ends within an entry: {rest} bytes are left over.")
    only_the_end = not bad or bad == list(range(bad[0], num_entries))
    return wrong, only_the_end


def keep_valid(content: bytes) -> bytes:
    """A file's content without the entries that cannot be read."""
    return b"".join(_pack(SeedEntry(*_BODY.unpack(body))) for body in _bodies(content) if body is not None)


def read(path: Path, watermark: int) -> list[SeedEntry]:
    """Read the entries of a file; none where there is no file."""
    if not path.exists():
        return []
    return parse(read_file(path, "reading seeds"), watermark)


class SeedLog:
    """The writer's end of the file."""

    def __init__(self, path: Path, watermark: int) -> None:
        """Open or create the file and drop what a writer that died left beyond the watermark."""
        self._path = path
        with explaining(path, "opening seeds"):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o644)
        self.trim(watermark)

    def append(self, entries: Iterable[SeedEntry]) -> None:
        """Add entries behind the last."""
        content = b"".join(map(_pack, entries))
        with explaining(self._path, "writing seeds"):
            write_at(self._descriptor, content, self._size)
        self._size += len(content)

    def trim(self, watermark: int) -> None:
        """Cut off what lies behind the last entry up to the watermark: what never counted, or was never written whole.

        Damaged entries before it stay as they are, for `examine` to tell.
        """
        with explaining(self._path, "trimming seeds"):
            size = os.fstat(self._descriptor).st_size
            bodies = list(_bodies(os.pread(self._descriptor, size, 0)))
            entries = [None if body is None else SeedEntry(*_BODY.unpack(body)) for body in bodies]
            good = [i for i, entry in enumerate(entries) if entry is not None and 1 <= entry.ordinal <= watermark]
            self._size = (good[-1] + 1) * ENTRY_BYTES if good else 0
            if self._size != size:
                os.ftruncate(self._descriptor, self._size)

    def sync(self) -> None:
        """Make the entries durable."""
        with explaining(self._path, "syncing seeds"):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)
