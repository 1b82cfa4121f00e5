"""How much snapshots hold of files that are gone or moved."""

from __future__ import annotations

import threading
import weakref

from ..files import Mapping


class Pins:
    """Mappings that only snapshots hold from now on. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: weakref.WeakSet[Mapping] = weakref.WeakSet()

    def add(self, mapping: Mapping) -> None:
        """Remember a mapping of a file that has gone."""
        with self._guard:
            self._held.add(mapping)

    @property
    def num_bytes(self) -> int:
        """Bytes of those that are still held."""
        with self._guard:
            return sum(mapping.size for mapping in self._held)
