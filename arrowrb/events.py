"""Events: what recorders and `extend` hand to the writer, one object a commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CONTINUE: Final = 0  # goes on with the lane's running episode
BEGIN: Final = 1  # a new episode begins with o_t
DECIDE: Final = 2  # by the given ids, and by the bits of the observation
INDEPENDENT: Final = 3  # a row of its own: begins here and is cut (or ends) here


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
