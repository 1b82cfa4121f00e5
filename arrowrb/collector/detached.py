"""What a collector writes to where no store was given: numbers episodes and steps, keeps nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from arrowrb.events import BEGIN, Events
from arrowrb.schema import Schema


class Detached:
    """A sink without a store. Row ids are all -1."""

    times_opened = 0
    shard = 0

    def __init__(self, schema: Schema) -> None:
        """Start with episode 0."""
        self.schema = schema
        self._next_episode = 0
        self._episode = np.zeros(0, np.int64)
        self._step = np.zeros(0, np.int64)

    def clock(self) -> int:
        """Microseconds since the epoch."""
        return time.time_ns() // 1000

    def wait_to_commit(self) -> None:
        """Return at once."""

    def ingest(self, events: Events) -> NDArray[np.int64]:
        """Fill in episodes (numbered in order of arrival) and steps."""
        count = events.lane.shape[0]
        if count == 0:
            return np.zeros(0, np.int64)
        begins = events.begin == BEGIN
        numbered = self._next_episode - 1 + np.cumsum(begins)
        self._next_episode += int(np.count_nonzero(begins))
        order: NDArray[np.int64] | slice = slice(None)
        first = np.zeros(1, np.int64)
        if self._episode.size > 1:
            order = np.argsort(events.lane, kind="stable")
            first = np.flatnonzero(np.diff(events.lane[order], prepend=-1))
        lanes, begun = events.lane[order], begins[order]
        # The events of a lane lie together: each belongs to the last begin at or before it, or goes on.
        starts = np.zeros(count, np.int64)
        starts[first] = first
        starts[begun] = np.flatnonzero(begun)
        np.maximum.accumulate(starts, out=starts)
        episodes = numbered[order][starts]
        steps = np.arange(count) - starts
        goes_on = ~begun[starts]
        episodes[goes_on] = self._episode[lanes[goes_on]]
        steps[goes_on] += self._step[lanes[goes_on]]
        last = np.append(first[1:], count) - 1
        self._episode[lanes[last]] = episodes[last]
        self._step[lanes[last]] = steps[last] + 1
        events.episode_id[order] = episodes
        events.step[order] = steps
        return np.full(count, -1, np.int64)

    def cut(self, lanes: Sequence[int]) -> None:
        """Nothing is kept, so nothing is cut."""

    def claim_lanes(self, count: int, first: int | None = None) -> int:
        """Lanes from 0 on."""
        self._episode, self._step = np.zeros(count, np.int64), np.zeros(count, np.int64)
        return first or 0

    def times_claimed(self, lane: int) -> int:  # noqa: ARG002
        """Each collector without a store is the first."""
        return 1

    def release_lanes(self, first: int, count: int) -> None:
        """Nothing to give back."""

    def note_seeds(self, pairs: Sequence[tuple[int, int | None]]) -> None:
        """Nowhere to note them."""
