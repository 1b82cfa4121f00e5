"""Uniform draws with replacement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..engine import Snapshot
from .reading import Drawn
from .strategy import Stream, check_generator, generator_state


class _UniformStream:
    """Every transition of the snapshot is equally likely at each draw."""

    extra_columns: tuple[str, ...] = ()

    def __init__(self, seed: int | None) -> None:
        self._state = generator_state(seed)

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """Choose ``count`` transitions uniformly, with replacement."""
        return Drawn(snapshot.draw_uniform(self._state, count, tiers=tiers))

    def save(self, snapshot: Snapshot) -> dict[str, Any]:  # noqa: ARG002
        """The generator's state."""
        return {"strategy": "uniform", "generator": self._state.copy()}

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:  # noqa: ARG002
        """Go on from a state that `save` gave."""
        self._state[:] = check_generator(state, "uniform", "uniformly")


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every transition that can be sampled is equally likely, independently at each draw."""

    def start(self, seed: int | None) -> Stream:
        """A new stream of draws."""
        return _UniformStream(seed)
