"""Room on the disk that is set aside for the next manifest, so that rows can be dropped where there is no other.

States: the file is there, all of its blocks allocated; or it is not, because it was spent, or because there was no
room for it. A crash leaves one of these. Nothing reads it, and who copies a store may leave it out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .. import files
from ..errors import FullError

_LEAST_BYTES: Final = 64 << 10


class Reserve:
    """The file that holds the room; of a shard's one writer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size if path.exists() else 0

    def fill(self, wanted: int) -> None:
        """Set room aside for a file of so many bytes, twice over; where there is none, the next call tries again."""
        size = max(_LEAST_BYTES, 2 * wanted)
        if self._size >= size:
            return
        size *= 2  # so that a file that grows is followed seldom
        with contextlib.suppress(FullError):
            self.release()
            os.close(files.allocate(self._path, size))
            self._size = size

    def release(self) -> None:
        """Give the room to whoever writes next."""
        with files.explaining(self._path, "giving room free"):
            self._path.unlink(missing_ok=True)
        self._size = 0

    def spend_on(self, write: Callable[[], None]) -> None:
        """Write something; in the room that is set aside, where there is no other.

        Raises:
            FullError: if there is none at all.
        """
        try:
            write()
        except FullError:
            self.release()
            write()
