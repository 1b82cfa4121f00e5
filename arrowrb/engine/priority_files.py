"""The raw priorities of a named sampler: one mapped file a segment, beside the segments and never in them.

A file is made whole, with all its space allocated and its header durable, before it takes its name; from then on its
values are written in place, four bytes at a time. So whatever moment a process dies at, every row has a priority that
it was given, or 0: none yet. After a power failure a row may have an older one. Files of segments that are gone are
removed when the sampler notices.

A crash leaves at most: a hidden file that is not whole, or files of segments that are gone. The next holder of the
folder removes both.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..errors import ArrowRBError, CorruptError
from .sampler_folders import SamplerFolder, sampler_folders

_MAGIC: Final = b"ARRBPRIO"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8s36sIIII")  # magic, store, version, shard, segment, rows
_START: Final = 64  # of the values; before them the header's CRC-32
_NAME: Final = re.compile(r"(\d{5})-(\d{8})\.priorities")
_REMEDY: Final = "`arrowrb repair` sets it aside; its rows are new ones then."
_LARGEST: Final = "largest"
_LARGEST_KEY: Final = (1 << 32) - 1  # in place of shard and segment

Key = tuple[int, int]


def _header(store_id: str, key: Key, rows: int) -> bytes:
    body = _HEADER.pack(_MAGIC, store_id.encode(), _VERSION, *key, rows)
    return body + struct.pack("<I", zlib.crc32(body))


def name_of(key: Key) -> str:
    """The name of the file of a segment: number of the shard, and its own."""
    return f"{key[0]:05d}-{key[1]:08d}.priorities"


def key_of(name: str) -> Key | None:
    """The segment of a file by its name; None where it has another."""
    found = _NAME.fullmatch(name)
    return None if found is None else (int(found[1]), int(found[2]))


def _make(path: Path, header: bytes, size: int, *, durable: bool) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with files.explaining(path, "making a file of priorities"):
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = files.allocate(temporary, size)
        try:
            files.write_at(descriptor, header, 0)
            if durable:
                files.sync_descriptor(descriptor, path)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)


def _map(path: Path, header: bytes, count: int, dtype: type, *, writable: bool) -> NDArray[Any]:
    """The values of a file, checked to be what its header has to say."""
    size = np.dtype(dtype).itemsize
    mapping = files.Mapping(path, writable=writable, size=_START + count * size, doing="mapping priorities")
    if mapping.array(0, len(header), np.uint8).tobytes() != header:
        raise CorruptError(f"{path} is damaged: its header is not that of these priorities. {_REMEDY}")
    return mapping.array(_START, count, dtype)


def check_values(raw: NDArray[np.float32], what: object, remedy: str = _REMEDY) -> None:
    """Refuse what nobody can have given: priorities are finite, and none is below 0 but -1, for never.

    Args:
        raw: priorities.
        what: holds them.
        remedy: what to do about it.

    Raises:
        CorruptError: if there is such a one.
    """
    wrong = ~(np.isfinite(raw) & ((raw >= 0) | (raw == -1)))
    if wrong.any():
        raise CorruptError(f"{what} is damaged: row {int(wrong.argmax()):,} has a priority that is none. {remedy}")


def _largest_header(store_id: str) -> bytes:
    return _header(store_id, (_LARGEST_KEY, _LARGEST_KEY), 1)


def _checked_largest(path: Path, cell: NDArray[np.float64]) -> float:
    if not (np.isfinite(cell[0]) and cell[0] >= 0):
        raise CorruptError(f"{path} is damaged: {cell[0]} is no priority. {_REMEDY}")
    return float(cell[0])


def find_damaged(store: Path, store_id: str, rows: Mapping[Key, int]) -> Iterator[tuple[Path, str]]:
    """Files of samplers that cannot be used, and why; a sampler may be at work meanwhile.

    Args:
        store: its directory.
        store_id: which store it is.
        rows: of each segment that it has.
    """
    for folder in sampler_folders(store):
        for path in sorted(folder.iterdir()):
            key = key_of(path.name)
            try:
                if path.name == _LARGEST:
                    _checked_largest(path, _map(path, _largest_header(store_id), 1, np.float64, writable=False))
                elif key is not None and key in rows:
                    header = _header(store_id, key, rows[key])
                    check_values(_map(path, header, rows[key], np.float32, writable=False), path)
            except ArrowRBError as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # of a segment that has gone meanwhile
                    yield path, str(error)


def files_of(folder: Path) -> Iterator[Path]:
    """What a sampler keeps in its folder."""
    return (path for path in sorted(folder.iterdir()) if path.name == _LARGEST or key_of(path.name) is not None)


class PriorityFiles:
    """The raw priorities of one sampler, kept on disk."""

    def __init__(self, folder: SamplerFolder) -> None:
        """Keep them in a folder that is held."""
        self._folder = folder
        path, header = folder.path / _LARGEST, _largest_header(folder.store_id)
        if not os.path.lexists(path):
            _make(path, header, _START + 8, durable=folder.durable)
        self._cell = _map(path, header, 1, np.float64, writable=True)
        if _checked_largest(path, self._cell) == 0:
            self._cell[0] = 1.0

    @property
    def largest(self) -> float:
        """The largest raw priority so far; 1.0 when there was none."""
        return float(self._cell[0])

    @largest.setter
    def largest(self, value: float) -> None:
        self._cell[0] = value

    def take(self, key: Key, rows: int) -> NDArray[np.float32]:
        """The raw priorities of a segment's rows, float32[rows], written to disk as they are changed.

        Raises:
            CorruptError: if the file is damaged.
            FullError: if there is no room for it.
        """
        path, header = self._folder.path / name_of(key), _header(self._folder.store_id, key, rows)
        if not os.path.lexists(path):
            _make(path, header, _START + 4 * rows, durable=self._folder.durable)
        raw = _map(path, header, rows, np.float32, writable=True)
        check_values(raw, path)
        return raw

    def retain(self, keys: set[Key]) -> None:
        """Remove the files of all other segments."""
        folder = self._folder.path
        with files.explaining(folder, "removing priorities of segments that are gone"):
            for path in list(folder.iterdir()):
                key = key_of(path.name)
                if key is not None and key not in keys:
                    path.unlink()
