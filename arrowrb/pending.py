"""Batches of a sampler that were drawn and not handed out yet: as rows of a snapshot, or as row ids that outlast it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .engine import Located, Snapshot
from .errors import OptionError, RowError
from .samplers import Columns, Drawn, Once


class Group:
    """Batches that were drawn together, and not all handed out yet."""

    __slots__ = ("_drawn", "_first", "_sizes", "watermarks")

    def __init__(self, drawn: Drawn, sizes: list[int], watermarks: NDArray[np.int64]) -> None:
        self._drawn = drawn
        self.watermarks = watermarks  # of each shard, when they were drawn
        self._sizes = deque(sizes)
        self._first = 0

    def first(self) -> Drawn:
        """The next batch's rows."""
        return self._drawn.part(slice(self._first, self._first + self._sizes[0]))

    def pop(self) -> NDArray[np.int64]:
        """The row ids of the next batch, which is handed out now."""
        first, self._first = self._first, self._first + self._sizes.popleft()
        return self._drawn.rows.row_ids[first : self._first]

    def __len__(self) -> int:
        return len(self._sizes)

    def rest(self) -> tuple[Drawn, list[int]]:
        """The rows of the batches that are left, and how many each has."""
        return self._drawn.part(slice(self._first, None)), list(self._sizes)


class Rest(NamedTuple):
    """Batches that are still to be read: their row ids, what was drawn with these, and the batches' sizes."""

    row_ids: NDArray[np.int64]
    columns: Columns
    hidden: Columns
    sizes: list[int]

    @classmethod
    def of(cls, drawn: Drawn, sizes: list[int]) -> Rest:
        """Those of some rows."""
        return cls(drawn.rows.row_ids.copy(), drawn.columns, drawn.hidden, sizes)

    @classmethod
    def of_groups(cls, groups: deque[Group]) -> Rest:
        """All that is left of these."""
        rest = [group.rest() for group in groups]
        return cls.of(Drawn.joined([each for each, _ in rest]), [size for _, part in rest for size in part])

    def save(self) -> dict[str, Any]:
        """As plain values and arrays, for a state."""
        told = {name: dict(each) for name, each in (("columns", self.columns), ("hidden", self.hidden)) if each}
        return {"ahead": self.row_ids.copy(), "sizes": list(self.sizes), **told}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Rest:
        """Out of a state.

        Raises:
            OptionError: if it holds none.
        """
        ahead, sizes = state.get("ahead"), state.get("sizes")
        columns, hidden = (state.get(name, {}) for name in ("columns", "hidden"))
        counts = isinstance(sizes, list) and all(isinstance(size, int) and size > 0 for size in sizes)
        rows = isinstance(ahead, np.ndarray) and ahead.dtype == np.int64 and counts
        if not isinstance(ahead, np.ndarray) or not rows or ahead.shape != (sum(sizes or []),):
            raise OptionError("The state that the sampler is to go on from is damaged: it holds no whole batches.")
        for told in (columns, hidden):
            if not isinstance(told, dict) or any(np.shape(each) != ahead.shape for each in told.values()):
                raise OptionError("The state that the sampler is to go on from is damaged: it holds no whole batches.")
        return cls(ahead.copy(), columns, hidden, list(sizes or []))

    def still_there(self, snapshot: Snapshot, once: Once | None) -> tuple[Drawn, list[int]]:
        """The rows, with the sizes of their batches; none where they are to be drawn anew.

        Of those that a stream draws once, the ones that are gone are left out, and counted.
        """
        none, row_ids, sizes = Drawn(Located.empty(0)), self.row_ids, self.sizes
        try:
            there = np.isin(row_ids, snapshot.find(row_ids).row_ids)
        except RowError:
            return none, []  # of another store, or lost with the power
        if not there.all():
            if once is None:
                return none, []
            once.num_skipped += int((~there).sum())
            ends = np.cumsum(sizes)
            sizes = [int(there[end - size : end].sum()) for size, end in zip(sizes, ends.tolist(), strict=True)]
            row_ids, sizes = np.ascontiguousarray(row_ids[there]), [size for size in sizes if size]
        return (Drawn(snapshot.locate(row_ids), self.columns, self.hidden, snapshot), sizes) if sizes else (none, [])
