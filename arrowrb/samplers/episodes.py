"""Whole episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..engine.tables import STEP
from ..errors import OptionError
from ..schema import Column, Schema
from .chains import Chains
from .reading import REWARD, ROW, AnyView, Columns, Drawn, Need, Place, Reading
from .returns import RETURN, as_numbers, as_stored
from .searching import all_transitions, draw_fitting
from .sources import nothing_to_draw
from .starts import Starts
from .stepwise import StepwiseView
from .strategy import check_generator, generator_state
from .views import View


@dataclass(frozen=True, slots=True)
class Episodes:
    """Draw whole episodes uniformly, independently and with replacement.

    The tensors of a batch are [batch_size, longest, *shape], padded with zeros at the end, with ``mask``,
    bool[batch_size, longest], false where there is no step any more (``row_id`` is -1 there); or packed,
    [steps, *shape], one episode behind the other. ``length``, int64[batch_size], is how many steps each has, and
    ``is_first`` true where a step is the first of its episode.

    Attributes:
        complete: only episodes that have ended, and of which retention has dropped nothing; else also those that are
            running, were cut, or have lost their beginning, as far as they are there.
        packed: lay them end to end, without padding.
    """

    complete: bool = True
    packed: bool = False

    def __post_init__(self) -> None:
        for name in ("complete", "packed"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected True or False.")

    def start(self, seed: int | None) -> EpisodesStream:
        """A new stream of draws."""
        return EpisodesStream(self, seed)


class EpisodesStream:
    """Draws of episodes: their first steps that are there, and how many follow."""

    extra_columns: tuple[str, ...] = ()

    def __init__(self, strategy: Episodes, seed: int | None) -> None:
        self._strategy = strategy
        self._state = generator_state(seed)
        self.chains = Chains()
        self._starts = Starts(1, self.chains)
        self.view = EpisodesView(padded=not strategy.packed)

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """Choose ``count`` episodes; of those in the cold tier ``tiers`` "hot" leaves out all that ended there."""

        def trial(missing: int) -> Drawn | None:
            rows = self._starts.draw(snapshot, self._state, missing, by_episode=True, hot_only=tiers == "hot")
            return None if rows is None else self._bound(snapshot, rows)

        def every() -> Iterator[Drawn]:
            for rows in all_transitions(snapshot, tiers=tiers):
                newest = np.flatnonzero(self.chains.forward(snapshot, rows, 2).counts == 1)
                yield self._bound(snapshot, Drawn(rows).part(newest).rows)

        drawn = draw_fitting(self._state, count, trial, every)
        if drawn is None:
            raise nothing_to_draw(snapshot, "There is no episode that has ended and is whole. Use complete=False.")
        return drawn

    def _bound(self, snapshot: Snapshot, rows: Located) -> Drawn:
        """The first steps of the episodes of rows, with how many follow; only whole ones, where that is asked for."""
        lengths, ended = np.empty(rows.slots.size, np.int64), np.empty(rows.slots.size, np.bool_)
        kernels.bound_episodes(self.chains.world(snapshot), rows.slots, rows.positions, rows.row_ids, lengths, ended)
        found = Drawn(rows, hidden={"length": lengths})
        if self._strategy.complete:
            found = found.part(np.flatnonzero(ended & (snapshot.read(rows, [(STEP, 0)])[STEP, 0] == 0)))
        return found

    def save(self, snapshot: Snapshot) -> dict[str, Any]:  # noqa: ARG002
        """The generator's state."""
        return {"strategy": "episodes", "generator": self._state.copy()}

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:  # noqa: ARG002
        """Go on from a state that `save` gave."""
        self._state[:] = check_generator(state, "episodes", "whole episodes")


@dataclass(frozen=True, slots=True)
class EpisodesView:
    """All steps of episodes, one behind the other."""

    padded: bool
    return_to_go: float | None = None
    plain = False
    history = 0
    ragged = True
    computed: tuple[str, ...] = ()
    length = None

    def combined(self, view: View) -> AnyView:
        """With options of transitions, at each step."""
        return StepwiseView.of(replace(self, return_to_go=view.return_to_go), view)

    @property
    def needs(self) -> Mapping[str, Need]:
        """Steps are counted from 0 in an episode."""
        names = ["step"] if self.return_to_go is None else ["step", REWARD]
        return {name: Need(name, Place()) for name in names}

    def places(self, schema: Schema) -> dict[str, Place]:  # noqa: ARG002
        """All columns are read from the steps."""
        return {}

    def read(self, snapshot: Snapshot, chains: Chains, drawn: Drawn, schema: Schema) -> Reading:
        """The steps of the episodes that begin at these rows."""
        lengths = drawn.hidden["length"]
        steps = chains.forward(snapshot, drawn.rows, int(lengths.max()))
        there = np.flatnonzero(np.arange(steps.places.shape[2]) < lengths[:, None])
        every = steps.rows()
        rows = Located(every.slots[there], every.positions[there], every.row_ids[there])
        finish = partial(self._finish, schema.column(REWARD), np.cumsum(lengths) - 1)
        return Reading({ROW: rows}, {"length": lengths}, finish=finish)

    def _finish(self, reward: Column, ends: NDArray[np.int64], needed: Columns) -> Columns:
        """Which steps are the first of their episodes, and the returns to go.

        Args:
            reward: the column.
            ends: the last steps of the episodes.
            needed: what was read.
        """
        columns: dict[str, NDArray[Any]] = {"is_first": needed["step"] == 0}
        if self.return_to_go is not None:
            values = np.ascontiguousarray(as_numbers(reward, needed[REWARD][None]))
            acts, follows = np.ones((2, *values.shape[:2]), np.bool_)
            follows[0, ends] = False
            sums = np.empty_like(values)
            kernels.sum_backwards(values, acts, follows, self.return_to_go, values[:, -1].copy(), sums)
            columns[RETURN] = as_stored(reward, sums[0])
        return columns
