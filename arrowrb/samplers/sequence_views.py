"""How sequences are read: their steps from a first one on, what warms up before it, and what ends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..errors import ColumnError, OptionError
from ..schema import Column, Schema
from .chains import Chains, Steps
from .reading import OBSERVED, REWARD, ROW, AnyView, Columns, Drawn, Need, Place, Reading
from .returns import RETURN, as_numbers, as_stored, returns_to_go, widened
from .stepwise import StepwiseView
from .views import View

if TYPE_CHECKING:
    from .sequences import Sequences

ARRIVED: Final = "arrived"  # the group of the rows whose rewards came with the observations
FIRST: Final = "first"  # of the first ones
TOLD: Final = "told"  # of the rows that say which step it is: all steps, final observations included
_TOLD: Final = ("lane", "episode_id", "step", "time")
_NO_COLUMNS: Final[Columns] = {}


@dataclass(frozen=True, slots=True)
class SequenceView:
    """How sequences are read from their starts; see `Sequences` for the options."""

    steps: int
    strict: bool
    across: bool
    burn_in: int
    bootstrap: bool
    tails: bool
    arrival: bool
    first_only: tuple[str, ...]
    return_to_go: float | None = None

    @classmethod
    def of(cls, sequences: Sequences) -> SequenceView:
        """That of a strategy."""
        return cls(
            int(sequences.burn_in + sequences.length),
            sequences.strict,
            sequences.across_episodes,
            int(sequences.burn_in),
            sequences.bootstrap,
            sequences.tails,
            sequences.reward_alignment == "arrival",
            sequences.first_only,
        )

    def combined(self, view: View) -> AnyView:
        """With options of transitions, at each step."""
        if view.windows and (self.tails or self.bootstrap):
            raise OptionError(
                "windows are beside transitions, but tails and bootstrap add steps that are none. Leave one out."
            )
        if view.n_step is not None and self.arrival:
            raise OptionError("n_step sums rewards that actions led to. Leave out reward_alignment='arrival'.")
        return StepwiseView.of(replace(self, return_to_go=view.return_to_go), view)

    @property
    def history(self) -> int:
        """What warms up, and the reward that came with the first observation."""
        return self.burn_in + self.arrival

    @property
    def ragged(self) -> bool:
        """A row stands for a fixed number."""
        return False

    @property
    def padded(self) -> bool:
        """Not ragged."""
        return False

    @property
    def plain(self) -> bool:
        """Sequences have other rows than their first."""
        return False

    @property
    def computed(self) -> tuple[str, ...]:
        """Rewards that are shifted."""
        return (REWARD,) if self.arrival else ()

    @property
    def length(self) -> int:
        """Steps of the tensors."""
        return self.steps + self.bootstrap

    @property
    def needs(self) -> Mapping[str, Need]:
        """Steps are counted from 0 in an episode; a tail goes by how the step before it ended."""
        names = ["step"]
        if self.tails:
            names.append("terminated")
        if self.arrival:
            names.append("episode_id")
        if self.return_to_go is not None:
            names += [REWARD, "episode_id"]
        needs = {name: Need(name, Place(ROW, (self.length,))) for name in names}
        if self.arrival:
            needs[ARRIVED] = Need(REWARD, Place(ARRIVED, (self.length,)))
        return needs

    @property
    def _simple(self) -> bool:
        """Whether all steps are transitions, and all are there."""
        return self.strict and not self.burn_in and not self.bootstrap and not self.tails

    @property
    def _plain_steps(self) -> bool:
        """Whether the steps are read as they are."""
        return self._simple and not self.arrival and not self.first_only and self.return_to_go is None

    @property
    def _whole(self) -> bool:
        """Whether all steps are always there."""
        return self.strict and not self.burn_in and not self.bootstrap

    def places(self, schema: Schema) -> dict[str, Place]:
        """Where observations are read, which final ones have, too, and what is read of the first step alone."""
        if self.arrival and self.return_to_go is not None:
            raise OptionError("return_to_go sums rewards that actions led to. Leave out reward_alignment='arrival'.")
        places: dict[str, Place] = {}
        if not self._simple:
            observed = [column.name for column in schema.columns if column.owner == "observation"]
            places = {name: Place(OBSERVED, (self.length,)) for name in observed}
        if self.tails:
            places |= {name: Place(TOLD, (self.length,)) for name in _TOLD}
        for name in self.first_only:
            names = [column.name for column in schema.columns if column.name == name or _is_part(column.name, name)]
            if not names:
                raise ColumnError(f"first_only has {name!r}, which is no column of the store.")
            if name == REWARD and self.arrival:
                raise ColumnError("first_only has 'reward', which reward_alignment shifts. Leave it out of one.")
            places |= {each: Place(FIRST) for each in names}
        return places

    def read(self, snapshot: Snapshot, chains: Chains, drawn: Drawn, schema: Schema) -> Reading:
        """The steps of the sequences that begin at these rows."""
        rows = begin = drawn.rows
        if self._plain_steps:
            steps = chains.forward(snapshot, rows, self.steps, across=self.across)
            return Reading({ROW: steps.rows()}, {"start_row_id": rows.row_ids}, finish=_find_first)
        columns: dict[str, NDArray[Any]] = {"start_row_id": rows.row_ids}
        warm = np.zeros(rows.row_ids.size, np.int64)
        if self.burn_in:
            before = chains.back(snapshot, rows, self.burn_in + 1)
            begin, warm = Located(*before.places[:, :, 0].copy()), before.counts - 1
            columns["is_burn_in"] = np.arange(self.length) < warm[:, None]
        steps = chains.forward(snapshot, begin, self.steps, across=self.across, tails=self.tails)
        acted, flags = steps.places, None
        groups, blanks = {ROW: steps.rows()}, {}
        if not self._simple:
            acted = np.empty((3, warm.size, self.length), np.int64)
            flags = np.empty(acted.shape[1:], np.uint8)
            observed = Steps(np.empty_like(acted), np.minimum(steps.counts, warm + (self.steps - self.burn_in)))
            world = chains.world(snapshot)
            kernels.part_steps(world, steps.places, observed.counts, self.bootstrap, observed.places, acted, flags)
            there, acts = flags & kernels.THERE != 0, flags & kernels.ACTS != 0
            if not self._whole:
                columns["mask"] = there & (acts | (flags & kernels.ENDS != 0))  # not what is only observed
            every = observed.rows()
            groups = {ROW: Located(acted[0].ravel(), acted[1].ravel(), every.row_ids), OBSERVED: every}
            blanks = {ROW: ~acts.ravel(), OBSERVED: ~there.ravel()}
            if self.tails:
                groups[TOLD] = every
                blanks[TOLD] = ~(there & (acts | (flags & kernels.ENDS != 0))).ravel()
        late = None
        if self.arrival:
            groups[ARRIVED], late = self._arrived(snapshot, chains, begin, acted)
        if self.first_only:
            groups[FIRST] = begin
        ends = None
        if self.return_to_go is not None:  # what is beyond the last step that acts
            last = Located(*np.ascontiguousarray(acted[:, :, -1]))
            ends = returns_to_go(snapshot, chains, last, self.return_to_go)
        finish = partial(self._finish, schema.column(REWARD), flags, late, ends)
        return Reading(groups, columns, blanks, finish=finish)

    def _arrived(
        self, snapshot: Snapshot, chains: Chains, begin: Located, acted: NDArray[np.int64]
    ) -> tuple[Located, NDArray[np.bool_]]:
        """The rows of the steps before, and which of the sequences have none before their first."""
        before = chains.back(snapshot, begin, 2)
        places = np.concatenate([before.places[:, :, :1], acted[:, :, :-1]], axis=2)
        return Steps(np.ascontiguousarray(places), before.counts).rows(), before.counts < 2

    def _finish(
        self,
        reward: Column,
        flags: NDArray[np.uint8] | None,
        late: NDArray[np.bool_] | None,
        ends: NDArray[np.float64] | None,
        needed: Columns,
    ) -> Columns:
        """Which steps are the first or the last of their episodes, and shifted rewards."""
        columns = _find_first(needed)
        is_first = columns["is_first"]
        if flags is not None:
            is_first &= flags & kernels.ACTS != 0
        if self.tails and flags is not None:
            columns["is_last"] = flags & kernels.ENDS != 0
            columns["is_terminal"] = columns["is_last"] & (needed["terminated"] != 0)
        if late is not None:
            rewards = needed[ARRIVED].copy()
            if reward.dtype == "bfloat16":
                rewards = widened(rewards)
            nothing = np.zeros(is_first.shape, np.bool_)  # whose reward is not there
            nothing[:, 0] = late
            nothing[:, 1:] = np.diff(needed["episode_id"], axis=1) != 0
            valid = ~nothing | is_first
            nothing |= is_first
            if flags is not None:
                nothing |= flags & kernels.THERE == 0
                valid &= flags & kernels.THERE != 0
            rewards[nothing] = 0
            columns |= {REWARD: rewards, f"{REWARD}.valid": valid}
        if ends is not None and self.return_to_go is not None:
            acts = np.ones(is_first.shape, np.bool_) if flags is None else flags & kernels.ACTS != 0
            follows = np.zeros(acts.shape, np.bool_)
            follows[:, :-1] = (np.diff(needed["episode_id"], axis=1) == 0) & acts[:, 1:]
            values = np.ascontiguousarray(as_numbers(reward, needed[REWARD]))
            sums = np.empty_like(values)
            kernels.sum_backwards(values, acts, follows, self.return_to_go, ends, sums)
            columns[RETURN] = as_stored(reward, sums)
        return columns


def _find_first(needed: Columns) -> dict[str, NDArray[Any]]:
    """Which steps are the first of their episodes."""
    return {"is_first": needed["step"] == 0}


def _is_part(column: str, name: str) -> bool:
    """Whether a column is a leaf of a nested one, or tells where it is missing."""
    return column.startswith(name + ".")
