"""Uniform draws with replacement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..engine import Snapshot
from .reading import Drawn
from .sources import Choose, Rows, all_rows
from .strategy import Stream, check_generator, generator_state


class _UniformStream:
    """Every row that may be drawn is equally likely at each draw, unless they are weighted."""

    extra_columns: tuple[str, ...] = ()

    def __init__(self, seed: int | None, rows: Rows) -> None:
        self._state = generator_state(seed)
        self._rows = rows

    @property
    def joins(self) -> bool:
        """Whether one draw of many rows is the same as several of fewer."""
        return self._rows.joins

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """Choose ``count`` transitions, with replacement."""
        return Drawn(self._rows.draw(snapshot, self._state, count, tiers=tiers))

    def save(self, snapshot: Snapshot) -> dict[str, Any]:  # noqa: ARG002
        """The generator's state, and that of the rows."""
        return {"strategy": "uniform", "generator": self._state.copy(), "rows": self._rows.save()}

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:  # noqa: ARG002
        """Go on from a state that `save` gave."""
        generator = check_generator(state, "uniform", "uniformly")
        self._rows.load(state.get("rows"))
        self._state[:] = generator


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every transition that can be sampled is equally likely, independently at each draw."""

    def start(self, seed: int | None) -> Stream:
        """A new stream of draws."""
        return _UniformStream(seed, all_rows(None))

    def start_from(self, seed: int | None, choose: Choose) -> Stream:
        """A new stream of draws of chosen rows."""
        return _UniformStream(seed, choose(None))
