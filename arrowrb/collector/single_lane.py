"""The shortest loop: one environment, one array as observation, random actions.

Most of a step's cost is Python's, so the loop touches local names only and converts in bulk at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from time import time_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowrb.collector.random_actions import RandomActions
from arrowrb.engine import now_microseconds
from arrowrb.errors import ColumnError, EnvironmentFault
from arrowrb.events import BEGIN
from arrowrb.staging import Stage

_MOST_BYTES = 4096  # larger observations are copied once, into the tape


def fits(stage: Stage) -> bool:
    """Whether a stage's columns are as simple as this loop needs them."""
    schema = stage.schema
    return (
        stage.layout.single
        and schema.action_tree.is_leaf
        and len(schema.observation_columns) == 1
        and bool(schema.observation_columns[0].shape)
        and schema.observation_columns[0].item_bytes <= _MOST_BYTES
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
        self._env, self._stage, self._random, self._limit = env, stage, random, limit
        self.observation: Any = None
        self.info: Any = {}
        self.elapsed = 0
        # The system's clock is read bare, and its nanoseconds divided in bulk: a call less a step.
        self._stamp, self._unit = (time_ns, 1000) if clock is now_microseconds else (clock, 1)
        self._observations: list[bytes] = []
        self._rewards: list[Any] = []
        self._times: list[int] = []
        self._begins: list[int] = []
        self._ends: list[tuple[int, Any, Any]] = []  # step, terminated, truncated
        self._finals: list[bytes] = []

    def run(self, count: int, version: int) -> None:
        """Make exactly `count` steps. What an exception or an interrupt leaves whole is on the tape."""
        stage = self._stage
        stage.reserve(count)
        drawn = self._random.take(count)[0][:, 0]
        stage.outcome_rows[2][stage.num_steps : stage.num_steps + count] = drawn
        # NumPy's numbers, as a space's own sample() returns: Discrete.contains is slower on Python's.
        actions = list(drawn)
        self._observations, self._rewards, self._times, self._ends, self._finals = [], [], [], [], []
        self._begins = [stage.num_steps] if stage.fresh[0] else []
        try:
            self._loop(actions)
        except BaseException:
            self._settle(version)
            raise
        self._settle(version)

    def _loop(self, actions: list[Any]) -> None:
        stage, stamp, limit = self._stage, self._stamp, self._limit
        step, reset = self._env.step, self._env.reset
        cell, ndarray, encode = stage.observation_cells[0], np.ndarray, self._encode
        # What is cast on the way in is not taken byte by byte.
        dtype, shape = None if cell.column.cast_from else cell.direct, cell.column.shape
        add_observation, add_reward, add_time = self._observations.append, self._rewards.append, self._times.append
        add_end, add_final, add_begin = self._ends.append, self._finals.append, self._begins.append
        t = stage.num_steps
        deadline = -1 if limit is None else t + limit - self.elapsed
        for action in actions:
            result = step(action)
            try:
                observation, reward, terminated, truncated, info = result
            except (TypeError, ValueError):
                raise EnvironmentFault(
                    f"step returned {type(result).__name__}, expected a tuple (observation, reward, terminated, "
                    f"truncated, info). Update the environment to Gymnasium's API."
                ) from None
            t += 1
            if type(observation) is ndarray and observation.dtype is dtype and observation.shape == shape:
                content = observation.tobytes()  # a third of the time of a copy into an array
            else:
                content = encode(observation)
            add_observation(content)
            add_reward(reward)
            if terminated or truncated or t == deadline:
                add_final(content)
                add_end((t - 1, terminated, truncated if terminated or truncated else True))
                add_time(stamp())  # last: now the step is whole
                observation, info = reset()
                self._observations[-1] = encode(observation)
                add_begin(t)
                deadline = -1 if limit is None else t + limit
            else:
                add_time(stamp())
        self.observation, self.info = observation, info
        if limit is not None:
            self.elapsed = limit - (deadline - t)

    def _encode(self, observation: Any) -> bytes:
        """The bytes of an observation in its column."""
        stage = self._stage
        row = np.empty_like(stage.arrived_rows[0][0])
        stage.observation_cells[0].write(row, stage.schema.observation_tree.leaves(observation)[0])
        content: bytes = row.tobytes()
        return content

    def _settle(self, version: int) -> None:
        """Bring the steps that are whole onto the tape."""
        stage = self._stage
        first, count = stage.num_steps, len(self._times)
        error: ColumnError | None = None
        try:
            self._convert(first, count)
        except ColumnError as found:
            error = found
            count = self._good(first, count)
            self._convert(first, count)
        stop = first + count
        stage.happened[first:stop] = True
        stage.begin[first:stop] = 0
        for begin in self._begins:
            if begin < stop:
                stage.begin[begin] = BEGIN
        rows = stage.arrived_rows[0]
        if count:
            rows[first + 1 : stop + 1] = _decode(self._observations[:count], rows)
        ends = [end for end, _, _ in self._ends if end < stop]
        if ends:
            place = stage.reserve_final(len(ends))
            stage.final[0][place : place + len(ends)] = _decode(self._finals[: len(ends)], rows)
            stage.following[ends, 0] = ~np.arange(place, place + len(ends))
        times = np.array(self._times[:count], np.int64)
        stage.time[first:stop] = times // self._unit
        stage.version[first:stop] = version
        stage.fresh = np.array([bool(self._begins) and self._begins[-1] == stop])
        stage.num_steps = stop
        stage.num_pending += count
        if error is not None:
            raise error

    def _convert(self, first: int, count: int) -> None:
        """Write rewards and flags of `count` steps; the flags of a step that ended nothing are False."""
        stage, stop = self._stage, first + count
        stage.outcome_rows[3][first:stop] = stage.reward_cell.convert(self._rewards[:count], (count,))
        ends = [end for end in self._ends if end[0] < stop]
        for index, name in enumerate(("terminated", "truncated")):
            stage.outcome_rows[index][first:stop] = 0
            if ends:
                stage.outcome_rows[index][[end[0] for end in ends]] = _flags([end[1 + index] for end in ends], name)

    def _good(self, first: int, count: int) -> int:
        """How many steps come before the first that cannot be converted."""
        bad = count
        for index in range(count):
            try:
                self._stage.reward_cell.convert(self._rewards[index], ())
            except ColumnError:
                bad = index
                break
        for end, terminated, truncated in self._ends:
            try:
                _flags([terminated], "terminated"), _flags([truncated], "truncated")
            except ColumnError:
                return min(bad, end - first)
        return bad


def _decode(contents: list[bytes], like: NDArray[Any]) -> NDArray[Any]:
    """Observations from their bytes, [n, *shape]."""
    return np.frombuffer(b"".join(contents), like.dtype).reshape(-1, *like.shape[1:])


def _flags(values: list[Any], name: str) -> NDArray[Any]:
    array = np.array(values) if values else np.zeros(0, np.bool_)
    if array.dtype != np.bool_ and (array.dtype.kind not in "iuf" or not ((array == 0) | (array == 1)).all()):
        raise ColumnError(f"'{name}' has dtype {array.dtype}, expected bool. Return True or False.")
    if array.ndim != 1:
        raise ColumnError(f"'{name}' has shape {array.shape[1:]}, expected (). Return one flag.")
    return array
