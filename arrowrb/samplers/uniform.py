"""Uniform draws with replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import Located, Snapshot
from ..errors import OptionError
from .strategy import Stream, generator_state


class _UniformStream:
    """Every transition of the snapshot is equally likely at each draw."""

    def __init__(self, seed: int | None) -> None:
        self._state = generator_state(seed)

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Located:
        """Choose ``count`` transitions uniformly, with replacement."""
        return snapshot.draw_uniform(self._state, count, tiers=tiers)

    def save(self) -> dict[str, Any]:
        """The generator's state."""
        return {"strategy": "uniform", "generator": self._state.copy()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state that `save` gave."""
        generator = state.get("generator")
        if state.get("strategy") != "uniform" or not isinstance(generator, np.ndarray) or generator.shape != (4,):
            raise OptionError(
                f"The sampler draws uniformly, but the state that it is to go on from is of strategy "
                f"{state.get('strategy')!r}. Make it with the strategy that it had."
            )
        self._state[:] = generator


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every transition that can be sampled is equally likely, independently at each draw."""

    def start(self, seed: int | None) -> Stream:
        """A new stream of draws."""
        return _UniformStream(seed)
