"""Sequences: neighbouring steps of an episode, or of a lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..engine import Located, Snapshot
from ..errors import EmptyError, OptionError
from ..schema import Schema
from .chains import Chains
from .reading import ROW, Columns, Drawn, Place, Reading
from .starts import Starts
from .strategy import check_generator, generator_state

OVER: Final = ("starts", "episodes")
_MOST_STEPS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sequences:
    """Draw sequences of neighbouring steps, independently and with replacement.

    The tensors of a batch are [batch_size, length, *shape], ``row_id`` too. It has two more: ``is_first``,
    bool[batch_size, length], true where a step is the first of its episode, and unless ``strict``, ``mask``, likewise,
    false where there is no step any more: all values are zero there, and ``row_id`` is -1.

    Strict sequences have ``length`` steps of one episode: they begin at its steps 0 to len - length, both included, and
    episodes that are shorter are never drawn. Others begin at every step, and end with the episode. The end of a
    sequence is not the end of an episode: that is what ``terminated`` and ``truncated`` say.

    Attributes:
        length: steps of a sequence.
        over: draws are uniform over all ``"starts"``, so that a long episode is drawn more often; or over
            ``"episodes"``, then over the starts of the one drawn.
        strict: only sequences with all their steps.
        across_episodes: go on with the next episode of the lane where one ends, as IMPALA and DreamerV3 do; strict
            sequences then begin wherever the lane has ``length`` steps.
    """

    length: int
    over: str = "starts"
    strict: bool = True
    across_episodes: bool = False

    def __post_init__(self) -> None:
        length = self.length
        if isinstance(length, bool) or not isinstance(length, int | np.integer) or not 1 <= length <= _MOST_STEPS:
            raise OptionError(f"length is {length!r}, expected a whole number of 1 to {_MOST_STEPS:,}.")
        if self.over not in OVER:
            raise OptionError(f'over is {self.over!r}, expected "starts" or "episodes".')
        for name in ("strict", "across_episodes"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected True or False.")
        if self.across_episodes and self.over == "episodes":
            raise OptionError('over is "episodes", but across_episodes goes beyond them. Draw over "starts".')

    def start(self, seed: int | None) -> SequencesStream:
        """A new stream of draws."""
        return SequencesStream(self, seed)


class SequencesStream:
    """Draws of first steps, and how the others are read."""

    extra_columns: tuple[str, ...] = ()

    def __init__(self, strategy: Sequences, seed: int | None) -> None:
        self._strategy = strategy
        self._state = generator_state(seed)
        self.chains = Chains()
        # Every transition begins a sequence that may be shorter.
        least = strategy.length if strategy.strict and not strategy.across_episodes else 1
        self._starts = Starts(least, self.chains)
        self.view = SequenceView(int(strategy.length), strict=strategy.strict, across=strategy.across_episodes)

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """Choose the first steps of ``count`` sequences."""
        if self._strategy.across_episodes and self._strategy.strict:
            return Drawn(self._draw_across(snapshot, count, tiers))
        if self._strategy.strict or self._strategy.over == "episodes":
            by_episode, hot_only = self._strategy.over == "episodes", tiers == "hot"
            rows = self._starts.draw(snapshot, self._state, count, by_episode=by_episode, hot_only=hot_only)
            if rows is None:
                raise self._nothing(snapshot)
            return Drawn(rows)
        return Drawn(snapshot.draw_uniform(self._state, count, tiers=tiers))

    def _draw_across(self, snapshot: Snapshot, count: int, tiers: str) -> Located:
        """Steps behind which their lanes have enough others: nearly all, so that the rest is drawn anew."""
        found: list[Located] = []
        have, misses = 0, 0
        while have < count:
            rows = snapshot.draw_uniform(self._state, count, tiers=tiers)
            steps = self.chains.forward(snapshot, rows, self._strategy.length, across=True)
            right = np.flatnonzero(steps.counts == self._strategy.length)[: count - have]
            found.append(Located(*(getattr(rows, name)[right] for name in ("slots", "positions", "row_ids"))))
            have += right.size
            misses = 0 if right.size else misses + 1
            if misses == _MOST_MISSES:
                raise self._nothing(snapshot)
        return Located(
            *(np.concatenate([getattr(each, name) for each in found]) for name in ("slots", "positions", "row_ids"))
        )

    def _nothing(self, snapshot: Snapshot) -> EmptyError:
        if snapshot.num_transitions == 0:
            return EmptyError("There is no transition to sample: the store is empty. Collect or extend first.")
        where = "lane" if self._strategy.across_episodes else "episode"
        return EmptyError(
            f"No {where} has {self._strategy.length} steps (that can be drawn) in a row. Collect more, or draw shorter "
            "sequences, or with strict=False."
        )

    def save(self, snapshot: Snapshot) -> dict[str, Any]:  # noqa: ARG002
        """The generator's state."""
        return {"strategy": "sequences", "generator": self._state.copy()}

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:  # noqa: ARG002
        """Go on from a state that `save` gave."""
        self._state[:] = check_generator(state, "sequences", "sequences")


_MOST_MISSES: Final = 1000


@dataclass(frozen=True, slots=True)
class SequenceView:
    """How sequences are read from their first steps."""

    length: int
    strict: bool
    across: bool

    @property
    def plain(self) -> bool:
        """Sequences have other rows than their first."""
        return False

    @property
    def computed(self) -> tuple[str, ...]:
        """All columns are read."""
        return ()

    def places(self, schema: Schema) -> dict[str, Place]:  # noqa: ARG002
        """All columns are read from the steps."""
        return {}

    @property
    def needs(self) -> Mapping[str, Place]:
        """Steps are counted from 0 in an episode."""
        return {"step": Place(ROW, self.length)}

    def read(self, snapshot: Snapshot, chains: Chains, drawn: Drawn, schema: Schema) -> Reading:  # noqa: ARG002
        """The steps of the sequences that begin at these rows."""
        steps = chains.forward(snapshot, drawn.rows, self.length, across=self.across)
        every = steps.rows()
        if self.strict:
            return Reading({ROW: every}, finish=_find_first)
        mask = np.arange(self.length) < steps.counts[:, None]
        beyond = ~mask.ravel()
        every.row_ids[beyond] = -1
        return Reading({ROW: every}, {"mask": mask}, {ROW: beyond}, finish=partial(_find_first, mask=mask))


def _find_first(needed: Columns, mask: NDArray[np.bool_] | None = None) -> Columns:
    """Which steps are the first of their episodes."""
    is_first = needed["step"] == 0
    return {"is_first": is_first if mask is None else is_first & mask}
