"""Hindsight experience replay (Andrychowicz et al. 2017, https://arxiv.org/abs/1707.01495)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..errors import ColumnError, OptionError
from ..schema import Column, Schema
from .chains import Chains
from .reading import REWARD, AnyView, Columns, Drawn, Need, Place, Reading
from .sources import Choose, Rows, all_rows
from .strategy import StrategyView, check_generator, generator_state
from .views import View, discounted

_WHOLE: Final = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
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
            if not _takes_two(getattr(self, name)):
                raise OptionError(
                    f"{name} is {getattr(self, name)!r}, which cannot be called with two arrays alone, achieved and "
                    "desired. Give a function of these, such as "
                    "lambda achieved, desired: env.unwrapped.compute_reward(achieved, desired, {})."
                )
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
        self.view: StrategyView = HindsightView(strategy)

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
        generator = check_generator(state, "hindsight", "with goals in hindsight")
        goals = check_generator({**state, "generator": state.get("goals")}, "hindsight", "with goals in hindsight")
        self._rows.load(state.get("rows"))
        self._state[:], self._goals[:] = generator, goals


class HindsightView:
    """Transitions, some of them with another goal.

    With ``n_step`` all rewards that are summed are those under the other goal, up to a step that it ends.
    """

    plain, ragged, padded, length = False, False, False, None

    def __init__(self, strategy: Hindsight, view: View | None = None) -> None:
        self._strategy = strategy
        self._view = view or View()

    def __repr__(self) -> str:
        goals = (self._strategy.goals, self._strategy.achieved, self._strategy.desired)
        return f"HindsightView({', '.join(map(repr, goals))}, {self._view!r})"

    def combined(self, view: View) -> AnyView:
        """With options of transitions."""
        if view.return_to_go is not None:
            raise OptionError("return_to_go is the sum of rewards under the goal that there was. Leave it out.")
        return HindsightView(self._strategy, view)

    @property
    def history(self) -> int | None:
        """A goal may be one that was reached before."""
        return None if self._strategy.goals == "episode" else self._view.history

    @property
    def computed(self) -> tuple[str, ...]:
        """Sums of rewards."""
        return self._view.computed

    @property
    def needs(self) -> Mapping[str, Need]:
        """The rewards that are summed of transitions with their own goal."""
        return self._view.needs

    def places(self, schema: Schema) -> dict[str, Place]:
        """Where the columns of a batch are read that are not read from the row itself, by name.

        Raises:
            ColumnError: if the observation has no goals of one dtype and shape.
            OptionError: if a window would show what is computed anew.
        """
        achieved, desired = (self._column(schema, name) for name in (self._strategy.achieved, self._strategy.desired))
        one, other = schema.columns[achieved], schema.columns[desired]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            raise ColumnError(
                f"{one.name} is {one.dtype}{list(one.shape)} and {other.name} is {other.dtype}{list(other.shape)}, "
                "expected the same: one becomes the other."
            )
        for name in self._view.windows:
            if name in (REWARD, "terminated") or f"{other.name}.".startswith(f"{name}."):
                raise OptionError(f"windows has {name!r}, which depends on the goal. Give the other columns.")
        return self._view.places(schema)

    def _column(self, schema: Schema, name: str) -> int:
        names = [column.name for column in schema.columns]
        if f"observation.{name}" not in names:
            there = [each.removeprefix("observation.") for each in names if each.startswith("observation.")]
            if not there:
                raise ColumnError(
                    f"The observation has no parts, expected a dict of goals and the rest, with {name!r} among them."
                )
            raise ColumnError(f"The observation has no {name!r}, expected one of {there}. Give achieved= and desired=.")
        return names.index(f"observation.{name}")

    def read(self, snapshot: Snapshot, chains: Chains, drawn: Drawn, schema: Schema) -> Reading:
        """The rows, and what is to be put in place of what they hold."""
        strategy, rows, chosen = self._strategy, drawn.rows, drawn.hidden["relabelled"]
        at = np.flatnonzero(chosen)
        if at.size == 0:
            reading = self._view.read_rows(snapshot, chains, rows, schema)
            return reading._replace(columns={**reading.columns, "relabelled": chosen})
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
        steps = chains.forward(snapshot, at_rows, self._view.n_step or 1)
        there = np.arange(steps.places.shape[2]) < steps.counts[:, None]
        reached = snapshot.read(Located(*np.ascontiguousarray(steps.places[:, there])), [(place, 1)])[place, 1]
        reward, ended = self._judge(reached, np.repeat(desired, steps.counts, axis=0), schema.column(REWARD))
        rewards, ends = np.zeros((*there.shape, *reward.shape[1:]), reward.dtype), np.zeros(there.shape, np.bool_)
        rewards[there], ends[there] = reward, ended
        counts = np.minimum(steps.counts, np.where(ends.any(1), ends.argmax(1) + 1, there.shape[1]))
        name, at_last = f"observation.{strategy.desired}", ends[np.arange(at.size), counts - 1]
        patches = {name: (at, desired), f"next_{name}": (at, desired), "terminated": (at, at_last)}
        if self._view.n_step is None:
            reading = self._view.read_rows(snapshot, chains, rows, schema)
            patches[REWARD] = (at, rewards[:, 0])
        else:
            most = np.full(rows.slots.size, self._view.n_step)
            most[at] = counts
            reading = self._view.read_rows(snapshot, chains, rows, schema, most=most)
            sums = discounted(schema.column(REWARD), rewards, counts, self._view.powers)
            reading = reading._replace(finish=partial(_with_sums, reading, at, sums))
        return reading._replace(columns={**reading.columns, "relabelled": chosen}, patches=patches)

    def _judge(
        self, reached: NDArray[Any], desired: NDArray[Any], spec: Column
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Rewards of transitions under other goals, and whether they terminate."""
        strategy, count = self._strategy, len(reached)
        reward = _checked("reward", strategy.reward(reached.copy(), desired.copy()), (count, *spec.shape))
        if self._view.n_step is None and spec.dtype in _WHOLE:
            wrong = np.flatnonzero((reward.astype(spec.dtype) != reward).reshape(count, -1).any(1))
            if wrong.size:
                raise ColumnError(f"reward returned {reward[wrong[0]]}, which the store's {spec.dtype} cannot hold.")
        ended: Any = np.zeros(count, np.bool_)
        if strategy.terminated is not None:
            ended = _checked("terminated", strategy.terminated(reached.copy(), desired.copy()), (count,)) != 0
        return reward, ended


def _takes_two(function: Any) -> bool:
    """Whether a function can be called with two arguments, as far as it tells."""
    if function is None:
        return True
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one of C, say, that does not tell
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def _with_sums(reading: Reading, at: NDArray[np.int64], sums: NDArray[np.float64], needed: Columns) -> Columns:
    """Sums of rewards, of which some are known already."""
    columns = {} if reading.finish is None else dict(reading.finish(needed))
    columns[REWARD][at] = sums
    return columns


def _checked(name: str, values: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """What a user's function returned, as an array of this shape."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ColumnError(f"{name} returned NaN.")
    if array.shape != shape or array.dtype.kind not in "fiub":
        raise ColumnError(f"{name} returned {array.dtype} {array.shape}, expected numbers {shape}: one a transition.")
    return array
