"""Recovery: from what lies in the open segments to what a writer does about it. Pure: values in, values out.

The states that a dead writer can leave, and what becomes of them:

- rows beyond the trusted watermark: wiped before this is asked (they were never visible, or not durable);
- a lane whose newest row is a transition: its newest observation waits in the row behind, and becomes a *cut* tail;
- a lane whose newest row is a tail of kind 3: its newest observation waits as the copy that the same commit wrote to
  the first row of another block, and becomes a *cut* tail there. A first row that looks like such a copy without a
  tail that leads to it was left by a commit that never counted;
- free rows and blocks: used again, unless the machine restarted without a clean close. Then rows beyond the durable
  record may have been seen under their row ids, so what is left of the open segments is closed off for good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .rows import Kind


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """The last committed row of a block."""

    segment: int
    lane: int
    position: int
    stop: int  # first position behind the block
    ordinal: int
    kind: int
    episode_id: int
    step: int


@dataclass(frozen=True, slots=True)
class WaitingCopy:
    """The first row of a block without committed rows, as it names itself."""

    segment: int
    lane: int
    position: int
    stop: int
    episode_id: int
    step: int


@dataclass(frozen=True, slots=True)
class LanePlan:
    """How one lane goes on: at ``cursor`` of a block that stops at ``stop``."""

    lane: int
    segment: int
    cursor: int
    stop: int
    episode_id: int
    step: int
    running: bool  # an observation waits at ``cursor``, to become a cut tail


def plan_lanes(ends: Iterable[BlockEnd], copies: Iterable[WaitingCopy]) -> list[LanePlan]:
    """Decide for each lane how it goes on.

    Args:
        ends: the ends of all blocks with committed rows in open segments, and of blocks of sealed segments that
            end in kind 3, in any order.
        copies: the waiting copies in open segments.
    """
    newest: dict[int, BlockEnd] = {}
    for end in ends:
        if end.lane not in newest or end.ordinal > newest[end.lane].ordinal:
            newest[end.lane] = end
    waiting = {(copy.lane, copy.episode_id, copy.step): copy for copy in copies}
    plans = []
    for lane in sorted(newest):
        end = newest[lane]
        if end.kind == Kind.CONTINUED:
            copy = waiting.get((lane, end.episode_id, end.step))
            if copy is not None:
                plans.append(
                    LanePlan(lane, copy.segment, copy.position, copy.stop, copy.episode_id, copy.step, running=True)
                )
            continue
        running = end.kind == Kind.TRANSITION
        step = end.step + 1 if running else 0
        plans.append(LanePlan(lane, end.segment, end.position + 1, end.stop, end.episode_id, step, running))
    return plans
