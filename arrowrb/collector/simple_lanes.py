"""The shortest loop: one array as observation, random actions, of one environment or of several in this process.

Most of a step's cost is Python's, so the loop touches local names only and converts in bulk at its end. Lanes of a
SyncVectorEnv that was made here are stepped one by one, without it: it would bring together what is written one by one
all the same. A lane whose episode ends is reset at once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from time import time_ns
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from arrowrb.collector.environments import Made
from arrowrb.collector.random_actions import RandomActions
from arrowrb.engine import now_microseconds
from arrowrb.errors import ColumnError, EnvironmentFault
from arrowrb.events import BEGIN
from arrowrb.staging import NEXT_STEP, Stage

_MOST_BYTES = 4096  # larger observations are copied once, into the tape


def fits(stage: Stage, made: Made, runner: object, limit: int | None) -> bool:
    """Whether an environment is as simple as this loop needs it."""
    schema = stage.schema
    layout = made.layout
    # A policy would be given the observations of all lanes, and a limit is looked after by vector steps.
    lanes = made.owned and type(made.env) is SyncVectorEnv and layout.mode == NEXT_STEP and runner is limit is None
    return (
        (layout.single or lanes)
        and schema.action_tree.is_leaf
        and len(schema.observation_columns) == 1
        and bool(schema.observation_columns[0].shape)
        and schema.observation_columns[0].item_bytes <= _MOST_BYTES
        and len(schema.transition_columns) == 4
        and not schema.transition_columns[3].shape
    )


class SimpleLanes:
    """Steps one environment, or the lanes of several, with random actions.

    Attributes:
        observation: The observation at hand, as the environment returned it; None of several.
        elapsed: Steps of the episode that runs, of one.
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
            limit: The largest number of steps in an episode, of one environment.
        """
        self._envs = [env] if stage.layout.single else env.envs
        # To which a SyncVectorEnv casts what its environments return.
        self._cast = None if stage.layout.single else env.single_observation_space.dtype
        self._stage, self._random, self._limit = stage, random, limit
        self.observation: Any = None
        self.info: Any = {}
        self.elapsed = 0
        # The system's clock is read bare, and its nanoseconds divided in bulk: a call less a step.
        self._stamp, self._unit = (time_ns, 1000) if clock is now_microseconds else (clock, 1)
        # Of each transition, lane by lane within a step.
        self._observations: list[bytes] = []
        self._rewards: list[Any] = []
        self._times: list[int] = []
        self._begins: list[int] = []
        self._ends: list[tuple[int, Any, Any]] = []  # transition, terminated, truncated
        self._finals: list[bytes] = []

    def run(self, count: int, version: int) -> None:
        """Make exactly `count` steps of all lanes. What an exception or an interrupt leaves whole is on the tape."""
        stage = self._stage
        stage.reserve(count)
        drawn = self._random.take(count)[0]
        stage.outcome[2][stage.num_steps : stage.num_steps + count] = drawn
        # NumPy's numbers, as a space's own sample() returns: Discrete.contains is slower on Python's.
        actions = list(drawn.reshape(-1, *drawn.shape[2:]))
        self._observations, self._rewards, self._times, self._ends, self._finals = [], [], [], [], []
        self._begins = np.flatnonzero(stage.fresh).tolist()
        try:
            self._loop(actions)
        except BaseException:
            self._settle(version)
            raise
        self._settle(version)

    def _loop(self, actions: list[Any]) -> None:
        stage, stamp, limit, envs = self._stage, self._stamp, self._limit, self._envs
        cell, ndarray, encode = stage.observation_cells[0], np.ndarray, self._encode
        # What is cast on the way in is not taken byte by byte.
        dtype, shape = None if cell.column.cast_from else cell.direct, cell.column.shape
        add_observation, add_reward, add_time = self._observations.append, self._rewards.append, self._times.append
        add_end, add_final, add_begin = self._ends.append, self._finals.append, self._begins.append
        k, num_lanes = 0, len(envs)
        deadline = -1 if limit is None else limit - self.elapsed
        observation: Any = None
        info: Any = None
        for action, step in zip(actions, cycle([env.step for env in envs]), strict=False):
            result = step(action)
            try:
                observation, reward, terminated, truncated, info = result
            except (TypeError, ValueError):
                raise EnvironmentFault(
                    f"step returned {type(result).__name__}, expected a tuple (observation, reward, terminated, "
                    f"truncated, info). Update the environment to Gymnasium's API."
                ) from None
            k += 1
            if type(observation) is ndarray and observation.dtype is dtype and observation.shape == shape:
                content = observation.tobytes()  # a third of the time of a copy into an array
            else:
                content = encode(observation)
            add_observation(content)
            add_reward(reward)
            if terminated or truncated or k == deadline:
                add_final(content)
                add_end((k - 1, terminated, truncated if terminated or truncated else True))
                add_time(stamp())  # last: now the step is whole
                observation, info = envs[(k - 1) % num_lanes].reset()
                self._observations[-1] = encode(observation)
                add_begin(k - 1 + num_lanes)
                deadline = -1 if limit is None else k + limit
            else:
                add_time(stamp())
        self.observation, self.info = observation, info
        if limit is not None:
            self.elapsed = limit - (deadline - k)

    def _encode(self, observation: Any) -> bytes:
        """The bytes of an observation in its column."""
        stage, rows = self._stage, self._stage.arrived[0]
        row = np.empty(rows.shape[2:], rows.dtype)
        if self._cast is not None:
            observation = np.stack([observation], out=np.empty((1, *row.shape), self._cast))[0]
        stage.observation_cells[0].write(row, stage.schema.observation_tree.leaves(observation)[0])
        content: bytes = row.tobytes()
        return content

    def _settle(self, version: int) -> None:
        """Bring the steps that are whole onto the tape."""
        stage, num_lanes = self._stage, len(self._envs)
        first, count = stage.num_steps, len(self._times) // num_lanes
        error: ColumnError | None = None
        try:
            self._convert(first, count)
        except ColumnError as found:
            error = found
            count = self._good(count * num_lanes) // num_lanes
            self._convert(first, count)
        stop, made = first + count, count * num_lanes
        stage.happened[first:stop] = True
        begins = np.zeros((count + 1, num_lanes), stage.begin.dtype)
        begins.reshape(-1)[[begin for begin in self._begins if begin < made + num_lanes]] = BEGIN
        stage.begin[first:stop] = begins[:-1]
        rows = stage.arrived[0]
        if count:
            rows[first + 1 : stop + 1] = _decode(self._observations[:made], rows)
        ends = [end for end, _, _ in self._ends if end < made]
        if ends:
            place = stage.reserve_final(len(ends))
            stage.final[0][place : place + len(ends)] = _decode(self._finals[: len(ends)], stage.final[0])
            steps, lanes = np.divmod(ends, num_lanes)
            stage.following[first + steps, lanes] = ~np.arange(place, place + len(ends))
        times = np.array(self._times[num_lanes - 1 : made : num_lanes], np.int64)
        stage.time[first:stop] = times // self._unit
        stage.version[first:stop] = version
        stage.fresh = begins[-1] != 0
        stage.num_steps = stop
        stage.num_pending += made
        if error is not None:
            raise error

    def _convert(self, first: int, count: int) -> None:
        """Write rewards and flags of `count` steps; the flags of a step that ended nothing are False."""
        stage, num_lanes = self._stage, len(self._envs)
        stop, made = first + count, count * num_lanes
        rewards = stage.reward_cell.convert(self._rewards[:made], (made,))
        stage.outcome[3][first:stop] = rewards.reshape(count, num_lanes)
        ends = [end for end in self._ends if end[0] < made]
        steps, lanes = np.divmod(np.array([end for end, _, _ in ends], np.int64), num_lanes)
        for index, name in enumerate(("terminated", "truncated")):
            stage.outcome[index][first:stop] = 0
            stage.outcome[index][first + steps, lanes] = _flags([end[1 + index] for end in ends], name)

    def _good(self, made: int) -> int:
        """How many transitions come before the first that cannot be converted."""
        bad = made
        for index in range(made):
            try:
                self._stage.reward_cell.convert(self._rewards[index], ())
            except ColumnError:
                bad = index
                break
        for end, terminated, truncated in self._ends:
            try:
                _flags([terminated], "terminated"), _flags([truncated], "truncated")
            except ColumnError:
                return min(bad, end)
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
