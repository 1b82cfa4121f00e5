"""The tape: vector steps as arrays, and the transitions on it as Events. Pure NumPy.

Row t of the outcomes lies between rows t and t+1 of the observations that arrived, so that the transition of lane l
at step t has index `t * num_lanes + l` and its next observation the index one row on, unless an episode's final
observation is not on the tape (SAME_STEP, and after a reset): then it is in a side list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowrb.events import Events
from arrowrb.schema import Schema


class Tape:
    """Vector steps of `num_lanes` environments.

    Attributes:
        num_steps: Vector steps on the tape.
        num_pending: Transitions on the tape.
        num_final: Observations in the side list.
        capacity: Vector steps before the arrays grow.
        arrived: Per observation column `[capacity + 1, num_lanes, *shape]`.
        outcome: Per transition column `[capacity, num_lanes, *shape]`; the first two are terminated and truncated.
        arrived_rows: Views of `arrived`, without the axis of lanes where the environment has none.
        outcome_rows: Views of `outcome`, likewise.
        final: Per observation column `[n, *shape]`, the side list.
        happened: bool `[capacity, num_lanes]`: the lane made a transition (False: an autoreset).
        begin: uint8 of the same shape: the transition is the first of its episode.
        default: int64 of the same shape: the index one row on.
        following: int64 of the same shape: the index of the next observation; below zero `~i` of the side list.
        time: int64 `[capacity]`, microseconds.
        version: int64 `[capacity]`, the policy's.
    """

    def __init__(self, schema: Schema, num_lanes: int, *, single: bool, first_lane: int, capacity: int) -> None:
        """Make an empty tape."""
        self.schema = schema
        self.num_lanes = num_lanes
        self.first_lane = first_lane
        self.num_steps = 0
        self.num_pending = 0
        self.num_final = 0
        self._single = single
        self.happened: NDArray[np.bool_]
        self.begin: NDArray[np.uint8]
        self.default: NDArray[np.int64]
        self.following: NDArray[np.int64]
        self.time: NDArray[np.int64]
        self.version: NDArray[np.int64]
        self._allocate(max(capacity, 1))

    def _allocate(self, capacity: int) -> None:
        """Make room for `capacity` steps, keeping what is on the tape."""
        lanes = self.num_lanes
        old = vars(self).get("happened")
        keep = 0 if old is None else self.num_steps

        def grow(name: str, columns: Sequence[Any], rows: int, kept: int) -> list[NDArray[Any]]:
            new = [np.zeros((rows, lanes, *column.shape), column.storage) for column in columns]
            if old is not None:
                for array, before in zip(new, getattr(self, name), strict=True):
                    array[:kept] = before[:kept]
            return new

        self.arrived = grow("arrived", self.schema.observation_columns, capacity + 1, keep + 1)
        self.outcome = grow("outcome", self.schema.transition_columns, capacity, keep)
        self.default = np.arange(lanes, (capacity + 1) * lanes, dtype=np.int64).reshape(capacity, lanes)
        happened, begin = np.zeros((capacity, lanes), np.bool_), np.zeros((capacity, lanes), np.uint8)
        following, time, version = (
            self.default.copy(),
            np.zeros(capacity, np.int64),
            np.zeros(capacity, np.int64),
        )
        if old is None:
            self.final = [np.zeros((lanes, *c.shape), c.storage) for c in self.schema.observation_columns]
        else:
            happened[:keep], begin[:keep], following[:keep] = (
                old[:keep],
                self.begin[:keep],
                self.following[:keep],
            )
            time[:keep], version[:keep] = self.time[:keep], self.version[:keep]
        self.happened, self.begin, self.following, self.time, self.version = (
            happened,
            begin,
            following,
            time,
            version,
        )
        # Views to write one step into: without the axis of lanes where the environment has none.
        axis: Any = (slice(None), 0) if self._single else ()
        self.arrived_rows = [array[axis] for array in self.arrived]
        self.outcome_rows = [array[axis] for array in self.outcome]
        self.capacity = capacity

    def reserve(self, num_steps: int) -> None:
        """Make room for `num_steps` more vector steps."""
        if self.num_steps + num_steps > self.capacity:
            self._allocate(max(self.num_steps + num_steps, 2 * self.capacity))

    def move_final(self, t: int, lanes: NDArray[np.bool_]) -> None:
        """Move observations that a reset overwrites from row t to the side list."""
        count = int(lanes.sum())
        first = self.reserve_final(count)
        for array, final in zip(self.arrived, self.final, strict=True):
            final[first : first + count] = array[t][lanes]
        self.following[t - 1][lanes] = ~np.arange(first, first + count)

    def reserve_final(self, count: int) -> int:
        """Make room for `count` observations in the side list; the index of the first."""
        first = self.num_final
        if first + count > self.final[0].shape[0]:
            rows = max(first + count, 2 * self.final[0].shape[0])
            for index, array in enumerate(self.final):
                self.final[index] = np.zeros((rows, *array.shape[1:]), array.dtype)
                self.final[index][:first] = array[:first]
        self.num_final = first + count
        return first

    def events(self, limit: int | None = None) -> Events:
        """The first `limit` transitions on the tape (None: all), in order of arrival. Columns are views of the tape."""
        t, lanes = self.num_steps, self.num_lanes
        if self.num_pending == t * lanes:
            count = self.num_pending if limit is None else min(limit, self.num_pending)
            index = np.arange(count, dtype=np.int64)
            chosen: Any = slice(0, count)  # views are cheaper than picking all
        else:
            chosen = index = np.flatnonzero(self.happened[:t])[:limit]
        if lanes == 1:
            lane, step = np.zeros(index.size, np.int64), chosen
        else:
            step, lane = np.divmod(index, lanes)
        return Events(
            lane=lane + self.first_lane if self.first_lane else lane,
            begin=self.begin[:t].reshape(-1)[chosen],
            observation=index,
            next_observation=self.following[:t].reshape(-1)[chosen],
            row=index,
            episode_id=np.full(index.size, -1, np.int64),
            step=np.full(index.size, -1, np.int64),
            time=self.time[step],
            policy_version=self.version[step],
            arrived=tuple(array[: t + 1].reshape(-1, *array.shape[2:]) for array in self.arrived),
            final=tuple(array[: self.num_final] for array in self.final),
            outcome=tuple(array[:t].reshape(-1, *array.shape[2:]) for array in self.outcome),
        )

    def retire(self, events: Events) -> None:
        """Take transitions off the tape. What is left lies in the last vector step, which becomes the first."""
        t, rest = self.num_steps, self.num_pending - events.lane.shape[0]
        if t == 0:
            return
        kept = 1 if rest else 0
        for array in self.arrived:
            array[: kept + 1] = array[t - kept : t + 1]
        if self.num_final:
            following = self.following[t - 1].copy()
            self.following[:t] = self.default[:t]
        else:
            following = self.following[t - 1]
        if rest:
            self._carry(t, events, following)
        else:
            self.num_final = 0
        self.num_steps, self.num_pending = kept, rest

    def _carry(self, t: int, events: Events, following: NDArray[np.int64]) -> None:
        """Make the last vector step the first, without the lanes that have been taken."""
        lanes = self.num_lanes
        happened = self.happened[t - 1].copy()
        taken = events.row[events.row >= (t - 1) * lanes] - (t - 1) * lanes
        happened[taken] = False
        for array in (*self.outcome, self.begin, self.time, self.version):
            array[0] = array[t - 1]
        self.happened[0] = happened
        outside = np.flatnonzero((following < 0) & happened)
        finals = [final[~following[outside]] for final in self.final]
        for final, values in zip(self.final, finals, strict=True):
            final[: outside.size] = values
        self.following[0, outside] = ~np.arange(outside.size)
        self.num_final = outside.size

    def forget(self) -> None:
        """Drop all that is on the tape. The arrays are made anew: an interrupt may have torn their growth."""
        self.num_steps = self.num_pending = self.num_final = 0
        self._allocate(self.capacity)
