"""Staging: what environments return, call by call -> a tape. Pure NumPy; the one place that knows autoreset modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from arrowrb.arrival import Cell, write_info, write_lane_info
from arrowrb.errors import ColumnError, EnvironmentFault, SchemaError, UsageError
from arrowrb.schema import Schema
from arrowrb.tape import Tape

NEXT_STEP: Final = "NextStep"
SAME_STEP: Final = "SameStep"
DISABLED: Final = "Disabled"
_BOOL: Final = np.dtype(np.bool_)


@dataclass(frozen=True, slots=True)
class Layout:
    """How an environment returns its lanes.

    Attributes:
        num_lanes: How many environments step together.
        mode: NEXT_STEP, SAME_STEP or DISABLED (also of single environments: whoever steps them resets them).
        single: A gymnasium Env: values have no axis of lanes.
        merged: One of Gymnasium's own vector classes: one dict of info a lane is merged, one seed a lane is taken, and
            chosen lanes can be reset.
        keeps_autoreset: A reset does not clear the autoreset that is due (AsyncVectorEnv without shared memory).
    """

    num_lanes: int
    mode: str
    single: bool
    merged: bool = False
    keeps_autoreset: bool = False


@dataclass(frozen=True, slots=True)
class _Entry:
    """An extra: its column's index among its owner's columns, and that of its valid flags (-1: not nullable)."""

    cell: Cell
    index: int
    valid: int


class Stage(Tape):
    """A tape that follows one environment.

    Calls come in the order reset, (act, step)*; a reset may come between steps, and must where one is due.

    Attributes:
        layout: How values arrive.
        started: Whether every lane has an observation.
        fresh: bool `[num_lanes]`: the observation at hand is the first of an episode.
        waiting: bool `[num_lanes]`: the episode has ended; an autoreset (NEXT_STEP) or a reset (DISABLED) is due.
    """

    def __init__(self, schema: Schema, layout: Layout, first_lane: int = 0, capacity: int = 1) -> None:
        """Make an empty stage.

        Args:
            schema: The columns.
            layout: How values arrive.
            first_lane: The number of lane 0.
            capacity: Vector steps before the tape grows.
        """
        super().__init__(schema, layout.num_lanes, single=layout.single, first_lane=first_lane, capacity=capacity)
        self.layout = layout
        self.started = False
        self.fresh = np.zeros(layout.num_lanes, np.bool_)
        self.waiting = np.zeros(layout.num_lanes, np.bool_)
        self._every = np.ones(layout.num_lanes, np.bool_)
        num_leaves = len(schema.observation_tree.paths)
        lanes = None if layout.single else layout.num_lanes
        self._flag_shape = () if lanes is None else (lanes,)
        self.observation_cells = [Cell.of(column, lanes) for column in schema.observation_columns[:num_leaves]]
        self.reward_index = 2 + len(schema.action_tree.paths)
        self.action_cells = [Cell.of(column, lanes) for column in schema.transition_columns[2 : self.reward_index]]
        self.reward_cell = Cell.of(schema.transition_columns[self.reward_index], lanes, rounds=True)
        self._info = {owner: _entries(schema, owner, info=True) for owner in ("observation", "transition")}
        self._extras = {owner: _entries(schema, owner, info=False) for owner in ("observation", "transition")}

    def reset(
        self,
        observation: Any,
        info: Mapping[str, Any],
        lanes: NDArray[np.bool_] | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the observation of a reset, of all lanes or of chosen ones. An episode that still ran will be cut.

        Raises:
            ColumnError: If the observation or extras do not fit the schema.
            EnvironmentFault: If a lane that was not to be reset has another observation than before.
            UsageError: If the first reset leaves lanes out.
        """
        t, chosen = self.num_steps, self._every if lanes is None else lanes
        partial = lanes is not None and not lanes.all()
        if partial and not self.started:
            raise UsageError("The first reset covers some lanes only. Reset all lanes first.")
        leaves = self.schema.observation_tree.leaves(observation)
        scratch = [np.zeros_like(rows[t, ...]) for rows in self.arrived_rows]
        for index, cell in enumerate(self.observation_cells):
            target, before = scratch[index], self.arrived[index][t]
            cell.write(target, leaves[index])
            if partial and target[~chosen].tobytes() != before[~chosen].tobytes():
                raise EnvironmentFault(
                    f"'{cell.name}' changed in lanes that were not to be reset, expected the same bytes. The "
                    f"environment seems to ignore options['reset_mask']; use one that honours it."
                )
        self._write_entries(scratch, "observation", info, chosen)
        self._write_extras(scratch, "observation", extras)
        if t and self.started:
            moved = chosen & self.happened[t - 1] & (self.following[t - 1] == self.default[t - 1])
            if moved.any():
                self.move_final(t, moved)
        for array, values in zip(self.arrived, scratch, strict=True):
            array[t][chosen] = values[None][chosen] if self.layout.single else values[chosen]
        self.fresh = self.fresh | chosen
        if not self.layout.keeps_autoreset:
            self.waiting = self.waiting & ~chosen
        self.started = True

    def act(self, actions: Sequence[Any], extras: Mapping[str, Any] | None = None) -> None:
        """Take the actions of the step to come, before the environment can change them.

        Args:
            actions: One value per action column.
            extras: What came with them; the observation's own are for `note` or `step`.

        Raises:
            ColumnError: If they do not fit the schema.
            UsageError: If a reset is due.
        """
        if not self.started:
            raise UsageError("A step comes before the first reset. Reset the environment and give its observation.")
        if self.layout.mode == DISABLED and self.waiting.any():
            raise UsageError(
                f"Lane {int(np.flatnonzero(self.waiting)[0])} has ended its episode and was not reset. "
                f"Reset it and give its observation before the next step."
            )
        self.reserve(1)
        t = self.num_steps
        for index, cell in enumerate(self.action_cells):
            cell.put(self.outcome_rows[2 + index], t, actions[index])
        if extras is not None:
            self._check_extras(extras)
        if self._extras["transition"]:
            self._write_extras([rows[t, ...] for rows in self.outcome_rows], "transition", extras)

    def note(self, extras: Mapping[str, Any] | None) -> None:
        """Take the extras of the observation at hand.

        Raises:
            ColumnError: If they do not fit the schema.
        """
        if self._extras["observation"]:
            rows = [rows[self.num_steps, ...] for rows in self.arrived_rows]
            self._write_extras(rows, "observation", extras)

    def step(
        self,
        observation: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        info: Mapping[str, Any],
        extras: Mapping[str, Any] | None = None,
        *,
        time: int,
        version: int,
    ) -> None:
        """Take what a step returned; `act` took its actions. If it raises, the tape is as before.

        Raises:
            ColumnError: If a value does not fit the schema.
            EnvironmentFault: If the environment does not keep to its autoreset mode.
        """
        t, mode = self.num_steps, self.layout.mode
        stop, cut = self._flags(terminated, "terminated"), self._flags(truncated, "truncated")
        ended, waiting = stop | cut, self.waiting
        happened = self._every
        # count_nonzero rather than any(), which is slow on short arrays.
        if mode == NEXT_STEP and np.count_nonzero(waiting):
            happened = ~waiting
            if np.count_nonzero(ended & waiting):
                raise EnvironmentFault(
                    f"Lane {int(np.flatnonzero(ended & waiting)[0])} ended in the step that resets it, expected a "
                    f"first observation. The environment does not keep to autoreset mode {mode}; give the right "
                    f"autoreset_mode=."
                )
        if type(info) is not dict and not isinstance(info, Mapping):
            raise EnvironmentFault(
                f"info is of type {type(info).__name__}, expected a dict. Remove the wrapper that changes it."
            )
        self.reward_cell.put(self.outcome_rows[self.reward_index], t, reward)
        self.outcome[0][t] = stop
        self.outcome[1][t] = cut
        self._arrive(t + 1, observation, info, extras)
        self._settle(t, ended if mode == SAME_STEP else None, info)
        if happened is self._every:
            self.happened[t] = True
            self.begin[t] = self.fresh
            self.num_pending += self.num_lanes
        else:
            self.happened[t] = happened
            self.begin[t] = self.fresh & happened
            self.num_pending += int(np.count_nonzero(happened))
        self.time[t] = time
        self.version[t] = version
        if mode == SAME_STEP:
            self.fresh = ended
        else:
            self.fresh = waiting if mode == NEXT_STEP else np.zeros_like(waiting)
            self.waiting = ended
        self.num_steps = t + 1

    def _arrive(self, t: int, observation: Any, info: Mapping[str, Any], extras: Mapping[str, Any] | None) -> None:
        """Write the observations that a step returned, and what belongs to them."""
        leaves = self.schema.observation_tree.leaves(observation)
        for index, cell in enumerate(self.observation_cells):
            cell.put(self.arrived_rows[index], t, leaves[index])
        if len(self.arrived) > len(self.observation_cells):
            rows = [rows[t, ...] for rows in self.arrived_rows]
            self._write_entries(rows, "observation", info, self._every)
            self._write_extras(rows, "observation", extras)

    def _settle(self, t: int, replaced: NDArray[np.bool_] | None, info: Mapping[str, Any]) -> None:
        """Write the info of a step; of lanes whose observation was replaced by a reset it lies deeper."""
        past = replaced if replaced is not None and np.count_nonzero(replaced) else None
        if self._info["transition"]:
            rows = [rows[t, ...] for rows in self.outcome_rows]
            self._write_entries(rows, "transition", info, self._every if past is None else ~past)
        if past is not None:
            self._take_final(t, past, info)

    def _take_final(self, t: int, ended: NDArray[np.bool_], info: Mapping[str, Any]) -> None:
        """SAME_STEP: final observations and the info of the last step come inside info."""
        final_obs, mask = info.get("final_obs"), info.get("_final_obs")
        if final_obs is None or mask is None or not np.asarray(mask, np.bool_)[ended].all():
            raise EnvironmentFault(
                "info has no 'final_obs' for a lane that ended, expected one. The environment does not keep to "
                "autoreset mode SameStep; give the right autoreset_mode=."
            )
        lanes = np.flatnonzero(ended)
        first = self.reserve_final(lanes.size)
        tree, stacked = self.schema.observation_tree, not isinstance(final_obs, np.ndarray)
        columns = tree.leaves(final_obs) if stacked else []
        for place, lane in enumerate(lanes, first):
            leaves = [column[lane] for column in columns] if stacked else tree.leaves(final_obs[lane])
            for cell, target, leaf in zip(self.observation_cells, self.final, leaves, strict=False):
                cell.write(target[place, ...], leaf)
        last = info.get("final_info")
        last = last if isinstance(last, Mapping) else {}
        self._write_entries([rows[t] for rows in self.outcome], "transition", last, ended)
        if len(self.final) > len(self.observation_cells):
            # By lane as the entries of info are, then packed as the side list is.
            by_lane = [np.zeros((self.layout.num_lanes, *array.shape[1:]), array.dtype) for array in self.final]
            self._write_entries(by_lane, "observation", last, ended)
            for index in range(len(self.observation_cells), len(self.final)):
                self.final[index][first : first + lanes.size] = by_lane[index][lanes]
        self.following[t][lanes] = ~np.arange(first, first + lanes.size)

    def _write_entries(
        self, targets: Sequence[NDArray[Any]], owner: str, info: Mapping[str, Any], lanes: NDArray[np.bool_]
    ) -> None:
        for entry in self._info[owner]:
            valid = None if entry.valid < 0 else targets[entry.valid]
            if self.layout.single:
                write_info(targets[entry.index], valid, entry.cell, info)
            else:
                write_lane_info(targets[entry.index], valid, entry.cell, info, lanes=lanes, merged=self.layout.merged)

    def _check_extras(self, extras: Mapping[str, Any] | None) -> None:
        if extras is None:
            return
        if not isinstance(extras, Mapping):
            raise ColumnError(f"extras is of type {type(extras).__name__}, expected a dict from names to arrays.")
        for name in extras:
            if name not in self.schema.extras and name.removesuffix(".valid") not in self.schema.extras:
                remedy = (
                    "Its value comes from info" if name in self.schema.info else "Declare it in the schema's extras"
                )
                raise ColumnError(
                    f"extras has the unknown name {name!r}, expected only {list(self.schema.extras)}. {remedy}, or "
                    f"leave it out."
                )

    def _write_extras(self, targets: Sequence[NDArray[Any]], owner: str, extras: Mapping[str, Any] | None) -> None:
        for entry in self._extras[owner]:
            name, target = entry.cell.name, targets[entry.index]
            value = None if extras is None else extras.get(name)
            if value is None:
                if entry.valid < 0:
                    raise ColumnError(
                        f"Extra {name!r} is missing, expected a value of dtype {entry.cell.column.dtype} and shape "
                        f"{target.shape}. Give it in extras, or declare it nullable."
                    )
                target[...] = 0
                targets[entry.valid][...] = 0
                continue
            entry.cell.write(target, value)
            if entry.valid >= 0:
                valid = True if extras is None else extras.get(f"{name}.valid", True)
                targets[entry.valid][...] = np.asarray(valid, np.bool_)
                if valid is not True:
                    target[~np.asarray(valid, np.bool_)] = 0

    def truncate(self, lanes: NDArray[np.bool_]) -> None:
        """Declare the last step of these lanes truncated. Their reset must follow."""
        self.outcome[1][self.num_steps - 1][lanes] = 1
        if self.layout.mode == DISABLED:
            self.waiting = self.waiting | lanes

    def _flags(self, value: Any, name: str) -> NDArray[np.bool_]:
        """One flag a lane, also of a single environment."""
        shape = self._flag_shape
        if type(value) is np.ndarray and value.dtype is _BOOL and value.shape == shape and shape:
            return value
        if self.layout.single and isinstance(value, bool | np.bool_):
            return np.array([value])
        array = np.asarray(value)
        good = array.shape == shape and array.dtype.kind in "biuf"
        if not good or not ((array == 0) | (array == 1)).all():
            raise ColumnError(
                f"'{name}' has dtype {array.dtype} and shape {array.shape}, expected bool of shape {shape}. "
                f"Return one flag per lane."
            )
        return array.astype(np.bool_).reshape(self.num_lanes)

    def undo(self, before: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> None:
        """Take the only step on the tape back.

        Args:
            before: `fresh` and `waiting` as they were.
        """
        self.fresh, self.waiting = before
        self.following[:1] = self.default[:1]
        self.num_steps = self.num_pending = self.num_final = 0

    def forget(self) -> None:
        """Drop all that is on the tape; a reset of all lanes must follow."""
        super().forget()
        self.started = False


def _entries(schema: Schema, owner: str, *, info: bool) -> list[_Entry]:
    columns = schema.observation_columns if owner == "observation" else schema.transition_columns
    place = {column.name: index for index, column in enumerate(columns)}
    extras = schema.info if info else schema.extras
    return [
        _Entry(Cell.of(columns[place[name]], rounds=info), place[name], place.get(schema.masks.get(name, ""), -1))
        for name, extra in extras.items()
        if extra.owner == owner
    ]


def check_final_extras(schema: Schema, source: str) -> None:
    """Refuse extras of the observation that final observations cannot have.

    Raises:
        SchemaError: Naming the extra.
    """
    for name, extra in schema.extras.items():
        if extra.owner == "observation" and not extra.nullable:
            raise SchemaError(
                f"Extra {name!r} belongs to the observation and is not nullable, but {source} gives none for the final "
                f"observation of an episode. Declare it nullable."
            )
