"""Options of transitions at each step of what is drawn: n-step returns, frame stacks and windows of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Snapshot
from ..errors import OptionError
from ..schema import Schema
from .chains import Chains
from .reading import OBSERVED, ROW, AnyView, Columns, Drawn, Need, Place, Reading
from .views import View


@dataclass(frozen=True, slots=True)
class StepwiseView:
    """A view of transitions at each step that another one reads.

    Where a step does not act, or is not there, what is computed of it is zero, and so is what is read beside it.

    Attributes:
        steps: reads the steps.
        each: is read at each of them.
    """

    steps: AnyView
    each: View

    @classmethod
    def of(cls, steps: AnyView, view: View) -> AnyView:
        """Steps with these options, but for returns to go, which go by steps."""
        each = replace(view, return_to_go=None)
        return steps if each.plain else cls(steps, each)

    @property
    def plain(self) -> bool:
        """Not the rows as they are."""
        return False

    @property
    def history(self) -> int | None:
        """That of the first step, and what is before it."""
        before = self.steps.history
        return None if before is None else before + self.each.history

    @property
    def ragged(self) -> bool:
        """As the steps."""
        return self.steps.ragged

    @property
    def padded(self) -> bool:
        """As the steps."""
        return self.steps.padded

    @property
    def computed(self) -> tuple[str, ...]:
        """What either computes."""
        return (*self.steps.computed, *self.each.computed)

    @property
    def length(self) -> int | None:
        """That of the steps."""
        return self.steps.length

    @property
    def _dims(self) -> tuple[int, ...]:
        return () if self.length is None else (self.length,)

    @property
    def needs(self) -> Mapping[str, Need]:
        """What either needs."""
        each = {name: Need(column, place.within(self._dims)) for name, (column, place) in self.each.needs.items()}
        return {**self.steps.needs, **each}

    def places(self, schema: Schema) -> dict[str, Place]:
        """Where the columns of a batch are read that are not read from the row itself, by name.

        Raises:
            OptionError: if both read a column, but not from the steps.
        """
        steps, each = self.steps.places(schema), self.each.places(schema)
        for name in (each.keys() | set(self.each.computed)) & steps.keys():
            if steps[name].group != OBSERVED:
                raise OptionError(f"{name!r} is read of the first step alone, but another option reads it of each.")
        return {**steps, **{name: place.within(self._dims) for name, place in each.items()}}

    def read(self, snapshot: Snapshot, chains: Chains, drawn: Drawn, schema: Schema) -> Reading:
        """The rows that a batch of these rows is read from."""
        steps = self.steps.read(snapshot, chains, drawn, schema)
        rows = steps.groups[ROW]
        observed = steps.groups.get(OBSERVED)
        each = self.each.read_rows(snapshot, chains, rows, schema, observed=observed)
        count = rows.slots.size
        nothing = steps.blanks.get(ROW)  # where no step acts
        blanks = dict(steps.blanks)
        for group, located in each.groups.items():
            if group == ROW:
                continue
            blank = steps.blanks.get(OBSERVED) if observed is not None and group.startswith("stack ") else nothing
            own = each.blanks.get(group)
            if blank is not None:
                wide = np.repeat(blank, located.slots.size // count)
                own = wide if own is None else own | wide
            if own is not None:
                blanks[group] = own
        columns = {name: self._shaped(values, nothing) for name, values in each.columns.items()}
        finish = partial(self._finish, steps, each, nothing, count)
        return Reading({**each.groups, **steps.groups}, {**steps.columns, **columns}, blanks, finish=finish)

    def _shaped(self, values: NDArray[Any], nothing: NDArray[np.bool_] | None) -> NDArray[Any]:
        """One entry a step, by the dimensions of the steps; 0 where none acts."""
        if nothing is not None:
            values = values.copy()
            values[nothing] = 0
        return values if self.length is None else values.reshape(-1, self.length, *values.shape[1:])

    def _finish(
        self, steps: Reading, each: Reading, nothing: NDArray[np.bool_] | None, count: int, needed: Columns
    ) -> Columns:
        """What both compute of what was read."""
        columns = {} if steps.finish is None else dict(steps.finish(needed))
        if each.finish is not None:
            names = self.each.needs
            dims = len(self._dims) + 1  # of one entry a step
            flat = {name: needed[name].reshape(count, *needed[name].shape[dims:]) for name in names}
            columns |= {name: self._shaped(values, nothing) for name, values in each.finish(flat).items()}
        return columns
