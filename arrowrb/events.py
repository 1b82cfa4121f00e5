"""Events: what recorders and `extend` hand to the writer, one object a commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import ColumnError, OptionError
from .schema import Rows

CONTINUE: Final = 0  # goes on with the lane's running episode
BEGIN: Final = 1  # a new episode begins with o_t
DECIDE: Final = 2  # by the given ids, and by the bits of the observation
INDEPENDENT: Final = 3  # a row of its own: begins here and is cut (or ends) here

_MAX_INT32: Final = (1 << 31) - 1
_MAX_INT64: Final = (1 << 63) - 1
MAX_EPISODE: Final = 1 << 62  # room for those that are assigned after it
MAX_STEP: Final = 1 << 30  # room for the steps that follow


@dataclass(frozen=True, slots=True)
class Events:
    """``n`` transitions in order of arrival. Arrays are C-contiguous; sources are read during the call only.

    Attributes:
        lane: lane numbers, int64[n].
        begin: one of CONTINUE, BEGIN, DECIDE, INDEPENDENT, uint8[n]. A running episode of a lane that begins
            another is cut.
        observation: index of o_t, int64[n], read only where an episode begins: ``i >= 0`` in ``arrived``, ``i < 0`` is
            ``~i`` in ``final``.
        next_observation: index of o_{t+1}, int64[n], same rule.
        row: index into the ``outcome`` arrays, int64[n].
        episode_id: int64[n]; -1 means assign. Filled in place with what was assigned.
        step: int64[n]; -1 means assign. Filled in place.
        time: microseconds since the epoch, int64[n].
        policy_version: int64[n].
        arrived: observations, one array a column of ``schema.observation_columns``, [m, *shape], storage dtype.
        final: the same for observations that lie elsewhere; may have no rows.
        outcome: one array a column of ``schema.transition_columns``, [k, *shape], storage dtype.
        seeds: (index of an event, seed) of episodes that were reset with one, where it is known with the events.
        cut_time: when the episode that a begin cuts was cut, int64[n]; None: at ``time``.
    """

    lane: NDArray[np.int64]
    begin: NDArray[np.uint8]
    observation: NDArray[np.int64]
    next_observation: NDArray[np.int64]
    row: NDArray[np.int64]
    episode_id: NDArray[np.int64]
    step: NDArray[np.int64]
    time: NDArray[np.int64]
    policy_version: NDArray[np.int64]
    arrived: tuple[NDArray[Any], ...]
    final: tuple[NDArray[Any], ...]
    outcome: tuple[NDArray[Any], ...]
    seeds: tuple[tuple[int, int], ...] = ()
    cut_time: NDArray[np.int64] | None = None


def external(rows: Rows, time: int, contiguous: bool) -> Events:
    """Rows that no recorder made, as events: o_t lies in ``arrived``, o_{t+1} in ``final``.

    Args:
        rows: the rows, with lanes, episodes and steps where they were given.
        time: of those that give none, microseconds.
        contiguous: False declares that the rows are independent of each other.
    """
    if not isinstance(contiguous, bool | np.bool_):
        raise OptionError(f"contiguous is {contiguous!r}, expected True or False, for all rows of the batch.")
    n = rows.num_rows
    index = np.arange(n)
    return Events(
        lane=np.zeros(n, np.int64) if rows.lane is None else rows.lane.astype(np.int64),
        begin=np.full(n, DECIDE if contiguous else INDEPENDENT, np.uint8),
        observation=index,
        next_observation=~index,
        row=index,
        episode_id=_given("episode_id", rows.episode_id, n, -1, MAX_EPISODE),
        step=_given("step", rows.step, n, -1, MAX_STEP),
        time=_given("time", rows.time, n, time, _MAX_INT64),
        policy_version=_given("policy_version", rows.policy_version, n, 0, _MAX_INT32),
        arrived=rows.observation,
        final=rows.next_observation,
        outcome=rows.outcome,
    )


def check_version(name: str, value: Any, least: int = 0) -> None:
    """Refuse what is no version of a policy that rows can be recorded with."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= _MAX_INT32:
        raise OptionError(f"{name} is {value!r}, expected an integer from {least} to {_MAX_INT32}.")


def _given(name: str, values: NDArray[Any] | None, count: int, default: int, most: int) -> NDArray[np.int64]:
    """A copy of a given column (the writer fills it in), or the default for every row."""
    if values is None:
        return np.full(count, default, np.int64)
    if values.size and not (values.min() >= 0 and values.max() <= most):
        wrong = values.min() if values.min() < 0 else values.max()
        raise ColumnError(
            f"Column {name!r} has the value {wrong}, expected 0 to {most}. Leave it out to have it assigned."
        )
    return np.array(values, np.int64)
