"""The shortest loop: one environment, one array as observation, random actions.

Most of a step's cost is Python's, so the loop touches local names only and converts in bulk at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowrb.collector.random_actions import RandomActions
from arrowrb.errors import ColumnError
from arrowrb.events import BEGIN
from arrowrb.staging import Stage


def fits(stage: Stage) -> bool:
    """Whether a stage's columns are as simple as this loop needs them."""
    schema = stage.schema
    return (
        stage.layout.single
        and len(schema.observation_columns) == 1
        and bool(schema.observation_columns[0].shape)
        and len(schema.transition_columns) == 4
        and not schema.transition_columns[3].shape
    )


class SingleLane:
    """Steps one environment with random actions.

    Attributes:
        observation: The observation at hand, as the environment returned it.
        elapsed: Steps of the episode that runs.
    """

    def __init__(
        self, env: Any, stage: Stage, clock: Callable[[], int], random: RandomActions, limit: int | None
    ) -> None:
        """Prepare to step.

        Args:
            env: The environment.
            stage: The tape.
            clock: Microseconds.
            random: The actions.
            limit: The largest number of steps in an episode.
        """
        self._env, self._stage, self._clock, self._random, self._limit = env, stage, clock, random, limit
        self.observation: Any = None
        self.info: Any = {}
        self.elapsed = 0
        self._lists: tuple[list[Any], list[Any], list[Any], list[int]] = ([], [], [], [])
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._finals: list[NDArray[Any]] = []

    def run(self, count: int, version: int) -> None:
        """Make exactly `count` steps. What an exception or an interrupt leaves whole is on the tape."""
        stage = self._stage
        stage.reserve(count)
        drawn = self._random.take(count)[0][:, 0]
        stage.outcome_rows[2][stage.num_steps : stage.num_steps + count] = drawn
        # NumPy's numbers, as a space's own sample() returns: Discrete.contains is slower on Python's.
        actions = list(drawn)
        self._lists = ([], [], [], [])
        self._begins, self._ends, self._finals = ([stage.num_steps] if stage.fresh[0] else []), [], []
        try:
            self._loop(actions)
        except BaseException:
            self._settle(version)
            raise
        self._settle(version)

    def _loop(self, actions: list[Any]) -> None:
        stage, clock, limit = self._stage, self._clock, self._limit
        step, reset = self._env.step, self._env.reset
        cell, rows, ndarray = stage.observation_cells[0], stage.arrived_rows[0], np.ndarray
        dtype, shape = cell.direct, cell.column.shape
        rewards, stops, cuts, times = self._lists
        add_reward, add_stop, add_cut, add_time = rewards.append, stops.append, cuts.append, times.append
        add_final, add_end, add_begin = self._finals.append, self._ends.append, self._begins.append
        t = stage.num_steps
        deadline = -1 if limit is None else t + limit - self.elapsed
        for action in actions:
            observation, reward, terminated, truncated, info = step(action)
            t += 1
            if type(observation) is ndarray and observation.dtype is dtype and observation.shape == shape:
                rows[t] = observation
            else:
                cell.write(rows[t], stage.schema.observation_tree.leaves(observation)[0])
            add_reward(reward)
            add_stop(terminated)
            add_cut(truncated)
            add_time(clock())  # last: now the step is whole
            if terminated or truncated or t == deadline:
                if not (terminated or truncated):
                    cuts[-1] = True
                add_final(rows[t].copy())
                add_end(t - 1)
                observation, info = reset()
                if type(observation) is ndarray and observation.dtype is dtype and observation.shape == shape:
                    rows[t] = observation
                else:
                    cell.write(rows[t], stage.schema.observation_tree.leaves(observation)[0])
                add_begin(t)
                deadline = -1 if limit is None else t + limit
        self.observation, self.info = observation, info
        if limit is not None:
            self.elapsed = limit - (deadline - t)

    def _settle(self, version: int) -> None:
        """Bring the steps that are whole onto the tape."""
        stage = self._stage
        times = self._lists[3]
        first, count = stage.num_steps, len(times)
        error: ColumnError | None = None
        try:
            values = self._values(count)
        except ColumnError as found:
            error = found
            count = self._good(count)
            values = self._values(count)
        stop = first + count
        stage.outcome_rows[3][first:stop] = values[0]
        stage.outcome_rows[0][first:stop], stage.outcome_rows[1][first:stop] = values[1], values[2]
        stage.happened[first:stop] = True
        stage.begin[first:stop] = 0
        for begin in self._begins:
            if begin < stop:
                stage.begin[begin] = BEGIN
        ends = [end for end in self._ends if end < stop]
        if ends:
            place = stage.reserve_final(len(ends))
            stage.final[0][place : place + len(ends)] = self._finals[: len(ends)]
            stage.following[ends, 0] = ~np.arange(place, place + len(ends))
        stage.time[first:stop] = times[:count]
        stage.version[first:stop] = version
        stage.fresh = np.array([bool(self._begins) and self._begins[-1] == stop])
        stage.num_steps = stop
        stage.num_pending += count
        if error is not None:
            raise error

    def _values(self, count: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        rewards, stops, cuts, _ = self._lists
        return (
            self._stage.reward_cell.convert(rewards[:count], (count,)),
            _flags(stops[:count], "terminated"),
            _flags(cuts[:count], "truncated"),
        )

    def _good(self, count: int) -> int:
        """How many steps come before the first that cannot be converted."""
        rewards, stops, cuts, _ = self._lists
        for index in range(count):
            try:
                self._stage.reward_cell.convert(rewards[index], ())
                _flags(stops[index : index + 1], "terminated")
                _flags(cuts[index : index + 1], "truncated")
            except ColumnError:
                return index
        return count


def _flags(values: list[Any], name: str) -> NDArray[Any]:
    array = np.array(values) if values else np.zeros(0, np.bool_)
    if array.dtype != np.bool_ and (array.dtype.kind not in "iuf" or not ((array == 0) | (array == 1)).all()):
        raise ColumnError(f"'{name}' has dtype {array.dtype}, expected bool. Return True or False.")
    if array.ndim != 1:
        raise ColumnError(f"'{name}' has shape {array.shape[1:]}, expected (). Return one flag.")
    return array
