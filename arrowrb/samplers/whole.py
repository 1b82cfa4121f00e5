"""Draws that leave out rows of whose history retention has dropped a part, so that their frame stacks are whole.

Few rows are left out, those at the rim of what is there: they are found when they are drawn, and others drawn in place
of them, so that all that remain are as likely as they were beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Located, Snapshot
from ..errors import EmptyError, OptionError
from .history import NO_HISTORY, WholeHistory
from .questions import FromRows, Weighted, Where
from .reading import Drawn
from .searching import draw_fitting_rows
from .sequences import Sequences
from .sources import Choose, Rows, all_rows
from .strategy import Stream
from .views import View


class _WholeRows:
    """Draws of those rows of some set that have their history."""

    def __init__(self, rows: Rows, history: WholeHistory) -> None:
        self._rows = rows
        self._history = history
        self.joins = False

    def draw(self, snapshot: Snapshot, state: NDArray[np.uint64], count: int, *, tiers: str) -> Located:
        """Draw rows as the set does, and others for those that have not."""

        def fitting(rows: Located) -> Drawn:
            return Drawn(rows).part(self._history.keep(snapshot, rows))

        drawn = draw_fitting_rows(self._rows, fitting, snapshot, state, count, tiers=tiers)
        if drawn is None:
            raise EmptyError(NO_HISTORY)
        return drawn.rows

    def save(self) -> Any:
        """That of the set."""
        return self._rows.save()

    def load(self, state: Any) -> None:
        """As it was."""
        self._rows.load(state)


@dataclass(frozen=True, slots=True)
class _FromWhole:
    """A strategy that begins with rows that have their history."""

    strategy: FromRows
    steps: int

    def start(self, seed: int | None) -> Stream:
        """A new stream of draws."""
        return self.start_from(seed, all_rows)

    def start_from(self, seed: int | None, choose: Choose) -> Stream:
        """A new stream of draws that begins with chosen rows."""
        return self.strategy.start_from(seed, lambda own: _WholeRows(choose(own), WholeHistory(self.steps)))


def with_history(strategy: object, view: View) -> object:
    """A strategy that leaves out rows whose frame stacks and windows retention has left only a part of.

    Raises:
        OptionError: if it cannot leave out any.
    """
    before = [frames - 1 for frames in view.frame_stack.values()] + [-first for first, _ in view.windows.values()]
    steps = max(before, default=0)
    if steps < 1:
        raise OptionError("strict leaves out transitions without whole frame stacks or windows. Give frame_stack.")
    return _with_history(strategy, steps)


def _with_history(strategy: object, steps: int) -> Any:
    if isinstance(strategy, Where | Weighted):
        return replace(strategy, strategy=_with_history(strategy.strategy, steps))
    if isinstance(strategy, Sequences):
        steps += strategy.burn_in
        if strategy.over == "episodes":
            raise OptionError('strict leaves out starts, but over is "episodes". Draw over "starts".')
    if isinstance(strategy, FromRows):
        return _FromWhole(strategy, steps)
    raise OptionError(f"strict is True, but {strategy!r} leaves out no rows.")
