"""Rows that hold one observation each -> transitions: the next observation is that of the row behind.

A row is a *final observation* where reward or action are NULL: it makes no transition, and is the next observation of
the row before it. Where episodes are numbered, a row's successor is the next of its episode; else it is the next row,
unless the row ends its episode and the next is no final observation. Where steps are numbered, a successor is one
step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .order import integers, is_done, is_final


@dataclass(frozen=True, slots=True)
class Joined:
    """Transitions with the rows behind them.

    Attributes:
        transitions: with ``next_`` columns.
        is_tail: whether the row behind is a final observation, bool[n].
        time: of the row behind, as the files have it; None if they have none.
    """

    transitions: pa.Table
    is_tail: NDArray[np.bool_]
    time: pa.ChunkedArray | None


class Successors:
    """Joins each row with the one behind it; the last of each lane waits for the next table.

    Args:
        observations: names of the columns that the row behind has.
        final: what to do with a transition whose next observation is nowhere: ``"drop"``, or ``"repeat"`` its own.

    Attributes:
        num_left_out: transitions that were dropped.
    """

    def __init__(self, observations: Sequence[str], final: str) -> None:
        self.num_left_out = 0
        self._observations = observations
        self._repeats = final == "repeat"
        self._held: pa.Table | None = None

    def feed(self, table: pa.Table) -> Joined:
        """The transitions that are complete with these rows."""
        if self._held is not None:
            table = pa.concat_tables([self._held, table])
        table = table.combine_chunks()
        lane = integers(table, "lane")
        if (np.diff(lane) < 0).any():
            order = np.argsort(lane, kind="stable")
            table, lane = table.take(pa.array(order)), lane[order]
        ends = np.diff(lane, append=-1) != 0
        self._held = table.take(pa.array(np.flatnonzero(ends)))
        return self._join(table, ends)

    def finish(self) -> Joined | None:
        """What is left when there are no more rows."""
        held, self._held = self._held, None
        return None if held is None else self._join(held, np.zeros(held.num_rows, np.bool_), last=True)

    def _join(self, table: pa.Table, waiting: NDArray[np.bool_], *, last: bool = False) -> Joined:
        final = is_final(table)
        follows = np.zeros(table.num_rows, np.bool_)
        if not last:
            follows[:-1] = _goes_on(table, final)
        wanted = ~final & ~waiting
        if not self._repeats:
            self.num_left_out += int(np.count_nonzero(wanted & ~follows))
            wanted &= follows
        rows = np.flatnonzero(wanted)
        behind = rows + follows[rows]
        chosen = _pick(table, rows)
        for name in self._observations:
            chosen = chosen.append_column("next_" + name, _pick(table.select([name]), behind).column(0))
        time = _pick(table.select(["time"]), behind).column(0) if "time" in table.column_names else None
        return Joined(chosen, final[behind], time)


def _pick(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    if rows.size and (np.diff(rows) == 1).all():
        return table.slice(int(rows[0]), rows.size)  # without a copy
    return table.take(pa.array(rows))


def _goes_on(table: pa.Table, final: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows, but for the last, are followed by the next observation of their episode."""
    if "episode_id" in table.column_names:
        follows = np.diff(integers(table, "episode_id")) == 0
    else:
        follows = ~final[:-1] & (~is_done(table)[:-1] | final[1:])
    if "step" in table.column_names:
        follows &= np.diff(integers(table, "step")) == 1
    return np.asarray(follows, np.bool_)
