"""How much snapshots hold of files that are gone or moved."""

from __future__ import annotations

import weakref

from ..files import Mapping


class Pins:
    """Mappings that only snapshots hold from now on."""

    def __init__(self) -> None:
        self._held: list[weakref.ref[Mapping]] = []

    def add(self, mapping: Mapping) -> None:
        """Remember a mapping of a file that is about to go."""
        self._held.append(weakref.ref(mapping))

    @property
    def num_bytes(self) -> int:
        """Bytes of those that are still held."""
        alive = [(ref, mapping) for ref in self._held if (mapping := ref()) is not None]
        self._held = [ref for ref, _ in alive]
        return sum(mapping.size for _, mapping in alive)
