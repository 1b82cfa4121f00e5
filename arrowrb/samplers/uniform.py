"""Uniform draws with replacement."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine import Located, Snapshot
from .strategy import Stream, generator_state


class _UniformStream:
    """Every transition of the snapshot is equally likely at each draw."""

    def __init__(self, seed: int | None) -> None:
        self._state = generator_state(seed)

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Located:
        """Choose ``count`` transitions uniformly, with replacement."""
        return snapshot.draw_uniform(self._state, count, tiers=tiers)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every transition that can be sampled is equally likely, independently at each draw."""

    def start(self, seed: int | None) -> Stream:
        """A new stream of draws."""
        return _UniformStream(seed)
