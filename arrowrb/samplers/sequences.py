"""Sequences: neighbouring steps of an episode, or of a lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..engine import Located, Snapshot
from ..errors import EmptyError, OptionError
from .chains import Chains
from .reading import Drawn
from .searching import draw_fitting_rows
from .sequence_views import SequenceView
from .sources import AllRows, Beginnings, Choose, Listed, Rows, Source, nothing_to_draw
from .starts import Starts
from .strategy import check_generator, generator_state

OVER: Final = ("starts", "episodes")
ALIGNMENTS: Final = ("departure", "arrival")
_MOST_STEPS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sequences:
    """Draw sequences of neighbouring steps, independently and with replacement.

    The tensors of a batch are [batch_size, steps, *shape], ``row_id`` too; there are ``burn_in`` + ``length`` steps,
    and one more with ``bootstrap``. It has others: ``start_row_id``, int64[batch_size], the row by which a sequence was
    drawn; ``is_first``, bool[batch_size, steps], true where a step is the first of its episode; and unless all steps
    are always there, ``mask``, likewise, false where there is none: all values are zero there, and ``row_id`` is -1.

    Strict sequences have ``length`` steps of one episode: they begin at its steps 0 to len - length, both included, and
    episodes that are shorter are never drawn, which `Sampler.info` counts. Others begin at every step, and end with the
    episode. The end of a sequence is not the end of an episode: that is what ``terminated`` and ``truncated`` say.

    Attributes:
        length: steps of a sequence.
        over: draws are uniform over all ``"starts"``, so that a long episode is drawn more often; or over
            ``"episodes"``, then over the starts of the one drawn.
        strict: only sequences with all their steps.
        across_episodes: go on with the next episode of the lane where one ends, as IMPALA and DreamerV3 do; strict
            sequences then begin wherever the lane has ``length`` steps.
        period: begin only at steps 0, ``period``, 2 ``period`` and so on of an episode.
        burn_in: so many steps before the start come first, as far as the episode has them (Kapturowski et al. 2019,
            R2D2); ``is_burn_in``, bool[batch_size, steps], is true there. Where there are fewer, the sequence begins
            at the first step of the tensors all the same, and ends earlier.
        bootstrap: a further step behind the last one, for its observation, from which values are bootstrapped; its
            action and reward are zero, its ``row_id`` is -1, and ``mask`` is false. The steps to learn from are those
            of ``mask & ~is_burn_in``.
        tails: a final observation is a step of its own, as in DreamerV3 and RLDS: its action and reward are zero, and
            two more flags, bool[batch_size, steps], tell of it: ``is_last``, and ``is_terminal`` if the episode has
            terminated. It counts as one of ``length``, but no sequence begins with it. The last observation of an
            episode that was cut is such a step, too: ``is_last`` and not ``is_terminal``.
        reward_alignment: ``"departure"``: a step has the reward that its action led to; ``"arrival"``: that which came
            with its observation, 0 at the first step of an episode. The last reward of an episode then comes with its
            tail. ``reward.valid``, bool[batch_size, steps], is false where that which came is not there any more.
        first_only: columns that are read of the first step alone, [batch_size, *shape]: the state of a recurrent
            policy, of which a sequence needs no other.
    """

    length: int
    over: str = "starts"
    strict: bool = True
    across_episodes: bool = False
    period: int = 1
    burn_in: int = 0
    bootstrap: bool = False
    tails: bool = False
    reward_alignment: str = "departure"
    first_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("period", 1), ("burn_in", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= _MOST_STEPS:
                raise OptionError(f"{name} is {value!r}, expected a whole number of {least} to {_MOST_STEPS:,}.")
        for name, values in (("over", OVER), ("reward_alignment", ALIGNMENTS)):
            if getattr(self, name) not in values:
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(map(repr, values))}.")
        for name in ("strict", "across_episodes", "bootstrap", "tails"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected True or False.")
        names: Any = self.first_only
        several = isinstance(names, tuple | list | set | frozenset)
        if not several or not all(isinstance(name, str) for name in names):
            raise OptionError(f"first_only is {names!r}, expected names of columns, such as ('state',).")
        object.__setattr__(self, "first_only", tuple(names))
        if self.across_episodes and self.over == "episodes":
            raise OptionError('over is "episodes", but across_episodes goes beyond them. Draw over "starts".')
        if self.tails and self.strict and not self.across_episodes:
            raise OptionError("tails ends some sequences early. Draw with strict=False, or with across_episodes=True.")
        if self.period > 1 and (self.across_episodes or self.over == "episodes"):
            raise OptionError('period counts the steps of an episode. Draw over "starts", without across_episodes.')

    @property
    def least(self) -> int:
        """How many transitions an episode has from a start on."""
        if not self.strict or self.across_episodes:
            return 1
        return self.length

    def start(self, seed: int | None) -> SequencesStream:
        """A new stream of draws."""
        return SequencesStream(self, seed)

    def start_from(self, seed: int | None, choose: Choose) -> SequencesStream:
        """A new stream of draws that begin with chosen rows.

        Raises:
            OptionError: if they are drawn over episodes.
        """
        if self.over == "episodes":
            raise OptionError('over is "episodes", but only starts can be chosen. Draw over "starts".')
        return SequencesStream(self, seed, choose)


def beginnings(sequences: Sequences, chains: Chains) -> Source | None:
    """Where sequences may begin; None: at all transitions."""
    if sequences.least == 1 and sequences.period == 1:
        return None
    return Beginnings(sequences.least, sequences.period, chains)


def count_short(sequences: Sequences, chains: Chains, snapshot: Snapshot) -> int:
    """How many episodes of a snapshot have no start of a sequence."""
    if sequences.least == 1:
        return 0
    every, enough = (Starts(length, chains).count(snapshot, by_episode=True) for length in (1, sequences.least))
    return every - enough


class SequencesStream:
    """Draws of first steps, and how the others are read."""

    extra_columns: tuple[str, ...] = ()

    def __init__(self, strategy: Sequences, seed: int | None, choose: Choose | None = None) -> None:
        self._strategy = strategy
        self._state = generator_state(seed)
        self.chains = Chains()
        self.view = SequenceView.of(strategy)
        self._starts: Starts | None = None  # counts of them: less memory than a list
        self._rows: Rows = AllRows()
        if choose is not None or strategy.period > 1:
            self._rows = (choose or self._listed)(beginnings(strategy, self.chains))
        elif strategy.over == "episodes" or strategy.least > 1:
            self._starts = Starts(strategy.least, self.chains)

    @property
    def joins(self) -> bool:
        """Whether one draw of many rows is the same as several of fewer."""
        if self._strategy.across_episodes and self._strategy.strict:
            return False
        return self._starts is not None or self._rows.joins

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """Choose the first steps of ``count`` sequences."""
        if self._strategy.across_episodes and self._strategy.strict:
            return self._draw_across(snapshot, count, tiers)
        if self._starts is None:
            return Drawn(self._rows.draw(snapshot, self._state, count, tiers=tiers))
        by_episode, hot_only = self._strategy.over == "episodes", tiers == "hot"
        rows = self._starts.draw(snapshot, self._state, count, by_episode=by_episode, hot_only=hot_only)
        if rows is None:
            raise self._nothing(snapshot)
        return Drawn(rows)

    def _draw_across(self, snapshot: Snapshot, count: int, tiers: str) -> Drawn:
        """Steps behind which their lanes have enough others: nearly all, so that the rest is drawn anew."""

        def fitting(rows: Located) -> Drawn:
            steps = self.chains.forward(snapshot, rows, strategy.length, across=True, tails=strategy.tails)
            return Drawn(rows).part(np.flatnonzero(steps.counts == strategy.length))

        strategy = self._strategy
        drawn = draw_fitting_rows(self._rows, fitting, snapshot, self._state, count, tiers=tiers)
        if drawn is None:
            raise self._nothing(snapshot)
        return drawn

    def count_short(self, snapshot: Snapshot) -> int:
        """How many episodes are too short for any."""
        return count_short(self._strategy, self.chains, snapshot)

    def _listed(self, own: Source | None) -> Rows:
        return Listed(own, self._why()) if own is not None else AllRows()

    def _why(self) -> str:
        where = "lane" if self._strategy.across_episodes else "episode"
        return (
            f"No {where} has {self._strategy.length} steps (that can be drawn) in a row. Collect more, or draw shorter "
            "sequences, or with strict=False."
        )

    def _nothing(self, snapshot: Snapshot) -> EmptyError:
        return nothing_to_draw(snapshot, self._why())

    def save(self, snapshot: Snapshot) -> dict[str, Any]:  # noqa: ARG002
        """The generator's state, and that of the rows."""
        return {"strategy": "sequences", "generator": self._state.copy(), "rows": self._rows.save()}

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:  # noqa: ARG002
        """Go on from a state that `save` gave."""
        generator = check_generator(state, "sequences", "sequences")
        self._rows.load(state.get("rows"))
        self._state[:] = generator
