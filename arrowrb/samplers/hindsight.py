"""Hindsight experience replay (Andrychowicz et al. 2017, https://arxiv.org/abs/1707.01495)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..errors import ColumnError, OptionError
from ..schema import Schema
from .chains import Chains
from .reading import REWARD, ROW, Drawn, Place, Reading
from .sources import Choose, Rows, all_rows
from .strategy import check_generator, generator_state

GOALS: Final = ("future", "final", "episode")  # as the kernel numbers them
Goal = Callable[[NDArray[Any], NDArray[Any]], Any]


@dataclass(frozen=True, slots=True)
class Hindsight:
    """Draw transitions uniformly, and give some of them a goal that was reached later in their episode.

    For environments whose observation is a dict with the goal that was reached and the one that is desired (Gymnasium's
    goal environments). Of a transition that is chosen, the desired goal is replaced in ``observation`` and
    ``next_observation`` by what was reached at another observation of the same episode, the final one included, and
    ``reward`` and ``terminated`` are computed anew; ``truncated`` stays. A batch has another tensor, ``relabelled``,
    bool[batch_size].

    Attributes:
        reward: called with what was reached after the transitions and their new goals, arrays [n, *shape]; returns
            their rewards, [n]. For an environment of Gymnasium-Robotics:
            ``lambda achieved, desired: env.unwrapped.compute_reward(achieved, desired, {})``.
        terminated: likewise, for the flags; by default no relabelled transition is one that ends its episode.
        goals: from where: ``"future"``, the observations after the transition; ``"final"``, the last of these; or
            ``"episode"``, any of the episode but its first.
        fraction: how likely a transition gets another goal.
        achieved: name in the observation of what was reached.
        desired: name in the observation of the goal.
    """

    reward: Goal
    terminated: Goal | None = None
    goals: str = "future"
    fraction: float = 0.8
    achieved: str = "achieved_goal"
    desired: str = "desired_goal"

    def __post_init__(self) -> None:
        for name in ("reward", "terminated"):
            if not callable(getattr(self, name)) and not (name == "terminated" and self.terminated is None):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected a function of achieved and desired.")
        if self.goals not in GOALS:
            raise OptionError(f"goals is {self.goals!r}, expected one of {', '.join(map(repr, GOALS))}.")
        real = isinstance(self.fraction, int | float | np.floating) and not isinstance(self.fraction, bool)
        if not real or not 0 <= self.fraction <= 1:
            raise OptionError(f"fraction is {self.fraction!r}, expected a number from 0 to 1.")

    def start(self, seed: int | None) -> HindsightStream:
        """A new stream of draws."""
        return HindsightStream(self, seed, all_rows(None))

    def start_from(self, seed: int | None, choose: Choose) -> HindsightStream:
        """A new stream of draws of chosen rows."""
        return HindsightStream(self, seed, choose(None))


class HindsightStream:
    """Uniform draws, and the goals that go with them."""

    extra_columns: tuple[str, ...] = ()

    def __init__(self, strategy: Hindsight, seed: int | None, rows: Rows) -> None:
        self._rows = rows
        self._fraction = strategy.fraction
        self._state = generator_state(seed)
        self._goals = generator_state(seed, 1)
        self.chains = Chains()
        self.view = HindsightView(strategy)

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """Choose ``count`` transitions uniformly, and draw which of them get other goals."""
        luck = np.empty(2 * count, np.float64)
        kernels.fill_uniform(self._goals, luck)
        hidden = {"relabelled": luck[:count] < self._fraction, "luck": luck[count:]}
        return Drawn(self._rows.draw(snapshot, self._state, count, tiers=tiers), hidden=hidden)

    def save(self, snapshot: Snapshot) -> dict[str, Any]:  # noqa: ARG002
        """The generators' states, and that of the rows."""
        generators = {"generator": self._state.copy(), "goals": self._goals.copy()}
        return {"strategy": "hindsight", **generators, "rows": self._rows.save()}

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:  # noqa: ARG002
        """Go on from a state that `save` gave."""
        self._state[:] = check_generator(state, "hindsight", "with goals in hindsight")
        self._goals[:] = check_generator({**state, "generator": state.get("goals")}, "hindsight", "goals")
        self._rows.load(state.get("rows"))


class HindsightView:
    """Transitions, some of them with another goal."""

    plain, ragged, padded, computed, length = False, False, False, (), None
    needs: Mapping[str, Place] = {}

    def __init__(self, strategy: Hindsight) -> None:
        self._strategy = strategy

    def places(self, schema: Schema) -> dict[str, Place]:
        """All columns are read from the rows themselves.

        Raises:
            ColumnError: if the observation has no goals of one dtype and shape.
        """
        achieved, desired = (self._column(schema, name) for name in (self._strategy.achieved, self._strategy.desired))
        one, other = schema.columns[achieved], schema.columns[desired]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            raise ColumnError(
                f"{one.name} is {one.dtype}{list(one.shape)} and {other.name} is {other.dtype}{list(other.shape)}, "
                "expected the same: one becomes the other."
            )
        return {}

    def _column(self, schema: Schema, name: str) -> int:
        names = [column.name for column in schema.columns]
        if f"observation.{name}" not in names:
            there = [each for each in names if each.startswith("observation.")]
            raise ColumnError(f"The observation has no {name!r}, expected one of {there}. Give achieved= and desired=.")
        return names.index(f"observation.{name}")

    def read(self, snapshot: Snapshot, chains: Chains, drawn: Drawn, schema: Schema) -> Reading:
        """The rows, and what is to be put in place of what they hold."""
        strategy, rows, chosen = self._strategy, drawn.rows, drawn.hidden["relabelled"]
        columns, at = {"relabelled": chosen}, np.flatnonzero(chosen)
        if at.size == 0:
            return Reading({ROW: rows}, columns)
        at_rows = Located(rows.slots[at], rows.positions[at], rows.row_ids[at])
        goals = Located(np.empty(at.size, np.int64), np.empty(at.size, np.int64), at_rows.row_ids)
        kernels.find_goals(
            drawn.hidden["luck"][at],
            chains.world(snapshot),
            at_rows.slots,
            at_rows.positions,
            GOALS.index(strategy.goals),
            goals.slots,
            goals.positions,
        )
        place = self._column(schema, strategy.achieved)
        desired = snapshot.read(goals, [(place, 0)])[place, 0]
        reached = snapshot.read(at_rows, [(place, 1)])[place, 1]
        spec = schema.column(REWARD)
        reward = _checked("reward", strategy.reward(reached.copy(), desired.copy()), (at.size, *spec.shape))
        ended: Any = np.zeros(at.size, np.bool_)
        if strategy.terminated is not None:
            ended = _checked("terminated", strategy.terminated(reached.copy(), desired.copy()), (at.size,)) != 0
        name = f"observation.{strategy.desired}"
        patches = {name: (at, desired), f"next_{name}": (at, desired), REWARD: (at, reward), "terminated": (at, ended)}
        return Reading({ROW: rows}, columns, patches=patches)


def _checked(name: str, values: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """What a user's function returned, as an array of this shape."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "fiub":
        raise ColumnError(f"{name} returned {array.dtype} {array.shape}, expected numbers {shape}: one a transition.")
    return array
