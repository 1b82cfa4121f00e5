"""Returns and lengths of the episodes that end, from the rows that came since the last look.

What is known of an episode that goes on, its sum of rewards and how many steps it had, is kept a lane. So each row is
read once, and none that came before the first look but for the newest ones.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arrowrb.arrivals import rows_between
from arrowrb.engine import Located, Snapshot
from arrowrb.engine.tables import EPISODE, LANE, ORDINAL, POLICY, STEP, TERMINATED, TIME, TRUNCATED
from arrowrb.rows import SHARD_SHIFT
from arrowrb.samplers.returns import widened

_MOST_ROWS: Final = 1 << 18  # of all shards, that one look reads
_LEAST_ROWS: Final = 1 << 12  # of each shard, likewise


@dataclass(frozen=True, slots=True)
class Spread:
    """Of numbers: how many there are, their mean, the smallest and the largest."""

    count: int
    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where there is none; NaN stands for what is not known, and is left out."""
        known = [value for value in values if not math.isnan(value)]
        return cls(len(known), sum(known) / len(known), min(known), max(known)) if known else None


class Newest(NamedTuple):
    """Of the newest transition of a shard: the policy's version, and when it was collected, in seconds."""

    policy_version: int
    time: float


class _Running(NamedTuple):
    """An episode that goes on: the sum of its rewards, NaN where its beginning was not seen, and its steps."""

    episode: int
    total: float
    steps: int


class Episodes:
    """Follows the episodes of all shards.

    Attributes:
        num_finished: episodes that ended in the rows that were looked at.
        newest: by shard, of its newest transition.
    """

    def __init__(self, window: int) -> None:
        """Keep the newest ``window`` episodes."""
        self._since: dict[int, int] = {}
        self._running: dict[tuple[int, int], _Running] = {}
        self._ended: deque[tuple[float, int]] = deque(maxlen=window)
        self.num_finished = 0
        self.newest: dict[int, Newest] = {}

    @property
    def returns(self) -> Spread | None:
        """Of the newest episodes that ended; a vector's elements are summed up."""
        return Spread.of(total for total, _ in self._ended)

    @property
    def lengths(self) -> Spread | None:
        """Likewise, in steps."""
        return Spread.of(length for _, length in self._ended)

    def take(self, snapshot: Snapshot) -> None:
        """Look at the rows that came since the last time: where these are very many, at the newest of each shard."""
        most = max(_LEAST_ROWS, _MOST_ROWS // len(snapshot.records))
        moments = {}
        for shard, record in enumerate(snapshot.records):
            moments[shard] = (max(self._since.get(shard, 0), record.watermark - most), record.watermark)
        rows = rows_between(snapshot, moments)
        self._since = {shard: until for shard, (_, until) in moments.items()}
        if rows.row_ids.size:
            self._follow(_Pieces(snapshot, rows))

    def _follow(self, pieces: _Pieces) -> None:
        self.newest.update(pieces.newest)
        whole = pieces.ended & (pieces.first_step == 0)
        told = (pieces.time, pieces.ordinal, pieces.total, pieces.steps)
        ended = list(zip(*(each[whole].tolist() for each in told), strict=True))
        # The others that count go on from before, or go on: two a lane at most.
        others = np.flatnonzero(~whole & ((pieces.first_step > 0) | pieces.last_of_lane))
        for at in others.tolist():
            key, episode = (int(pieces.shard[at]), int(pieces.lane[at])), int(pieces.episode[at])
            first, total, steps = int(pieces.first_step[at]), float(pieces.total[at]), int(pieces.steps[at])
            before = self._running.pop(key, None)
            if first:
                known = before is not None and (before.episode, before.steps) == (episode, first)
                total = total + before.total if known and before is not None else math.nan
            if pieces.ended[at]:
                ended.append((int(pieces.time[at]), int(pieces.ordinal[at]), total, steps))
            elif pieces.last_of_lane[at]:
                self._running[key] = _Running(episode, total, steps)
        self.num_finished += len(ended)
        self._ended.extend((total, steps) for _, _, total, steps in sorted(ended, key=itemgetter(0, 1)))


class _Pieces:
    """Rows in order of shard, lane and arrival, in pieces of episodes.

    Attributes:
        shard, lane, episode: of each piece, int64[n].
        first_step: where it begins in its episode.
        steps: of its episode up to its end.
        total: the sum of its rewards.
        time, ordinal: of its last row, in microseconds; and its place in the shard's arrivals.
        ended: whether the episode ended with it.
        last_of_lane: whether nothing of its lane follows.
        newest: see `Episodes`.
    """

    def __init__(self, snapshot: Snapshot, rows: Located) -> None:
        schema = snapshot.layout.schema
        reward = schema.places["reward"]
        own = (LANE, EPISODE, STEP, ORDINAL, POLICY, TIME, TERMINATED, TRUNCATED)
        values = snapshot.read(rows, [(place, 0) for place in (*own, reward)])
        lane, episode, step, ordinal, policy, time = (values[place, 0].astype(np.int64) for place in own[:6])
        done = (values[TERMINATED, 0] != 0) | (values[TRUNCATED, 0] != 0)
        shard = rows.row_ids >> SHARD_SHIFT
        moves = (np.diff(shard) != 0) | (np.diff(lane) != 0)
        starts = np.flatnonzero(np.append(True, moves | (np.diff(episode) != 0) | (np.diff(step) != 1) | done[:-1]))
        last = np.append(starts[1:], shard.size) - 1
        self.shard, self.lane, self.episode = shard[starts], lane[starts], episode[starts]
        self.first_step, self.steps = step[starts], step[last] + 1
        self.time, self.ordinal, self.ended = time[last], ordinal[last], done[last]
        self.last_of_lane = np.append(moves, True)[last]
        rewards = values[reward, 0]
        if schema.columns[reward].dtype == "bfloat16":
            rewards = widened(rewards)
        with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs, NaN
            self.total: NDArray[Any] = np.add.reduceat(_summed(rewards), starts)
        stops = np.append(np.flatnonzero(np.diff(shard)) + 1, shard.size).tolist()
        self.newest = {}
        for first, stop in zip([0, *stops], stops, strict=False):
            at = first + int(ordinal[first:stop].argmax())
            self.newest[int(shard[at])] = Newest(int(policy[at]), float(time[at]) / 1e6)


def _summed(rewards: NDArray[Any]) -> NDArray[np.float64]:
    """Over the elements of a vector: float64[n]."""
    sums: NDArray[np.float64] = rewards.reshape(rewards.shape[0], -1).sum(axis=1, dtype=np.float64)
    return sums
