"""A shard as it was at an earlier commit: the point of a checkpoint.

Segments that began later are left out. Of those that have rows from before and after, the rows are told by their
ordinals, as in segments that are being written; such a one is read out of Parquet into memory, where it is as if it
had stayed hot. What retention has dropped since is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoints import Mark
from ..commits import Record
from ..rows import Kind
from ..tiers.hot import HotSegment
from .state import Look, ShardState


@dataclass(frozen=True, slots=True)
class Past:
    """What was made of a state, kept for as long as the state is the same.

    Attributes:
        state: the shard's segments as they are now.
        record: the commit that is looked back at.
        look: what a snapshot takes.
        read_back: segments that were read out of Parquet, by number.
    """

    state: ShardState
    record: Record
    look: Look
    read_back: Mapping[int, HotSegment]


def look_back(state: ShardState, record: Record, until: Mark, last: Past | None) -> Past:
    """The shard at a commit that is not the newest; ``last`` is what this returned before."""
    if last is not None and last.state is state and last.record is record:
        return last
    known = {} if last is None else last.read_back
    read_back: dict[int, HotSegment] = {}
    views, num_rows, num_transitions = [], 0, 0
    for entry in state.manifest.segments:
        if entry.number >= until.next_segment or (entry.sealed and entry.first_ordinal > record.watermark):
            continue
        view, number = state.view_at(entry, record.watermark), entry.number
        if view.cold is not None and not view.closed:
            read_back[number] = known.get(number) or view.cold.in_memory()
            view = replace(view, hot=read_back[number], cold=None)
        views.append(view)
        if view.closed:
            num_rows, num_transitions = num_rows + entry.num_rows, num_transitions + entry.num_transitions
        else:
            kinds = view.visible_kinds(record.watermark)
            num_rows += int(np.count_nonzero(kinds))
            num_transitions += int(np.count_nonzero(kinds == Kind.TRANSITION))
    evicted = replace(
        state.manifest.evicted,
        num_rows=record.watermark - num_rows,
        num_transitions=record.num_transitions - num_transitions,
    )
    look = Look(state.version, record, num_transitions, evicted, lambda: views, tuple)
    return Past(state, record, look, read_back)
