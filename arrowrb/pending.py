"""Batches of a sampler that were drawn and not handed out yet: as rows of a snapshot, or as row ids that outlast it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .engine import Located, SampleLog, Snapshot
from .errors import OptionError, RowError
from .rows import SHARD_SHIFT
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
    """Batches that are still to be read.

    Attributes:
        row_ids: of their rows.
        columns: what was drawn with these, and is shown.
        hidden: likewise, and is not.
        sizes: of the batches.
        held: what the rows are in, where that was known.
    """

    row_ids: NDArray[np.int64]
    columns: Columns
    hidden: Columns
    sizes: list[int]
    held: Snapshot | None = None

    @classmethod
    def of(cls, drawn: Drawn, sizes: list[int]) -> Rest:
        """Those of some rows."""
        return cls(drawn.rows.row_ids.copy(), drawn.columns, drawn.hidden, sizes, drawn.snapshot)

    @classmethod
    def joined(cls, groups: deque[Group], behind: Rest | None) -> Rest | None:
        """All that is left of groups, and others behind these; None where there is nothing."""
        if not groups:
            return behind
        rest = [group.rest() for group in groups]
        whole = cls.of(Drawn.joined([each for each, _ in rest]), [size for _, part in rest for size in part])
        if behind is None:
            return whole
        columns, hidden = (
            {name: np.concatenate([each[name], other[name]]) for name in each}
            for each, other in ((whole.columns, behind.columns), (whole.hidden, behind.hidden))
        )
        row_ids = np.concatenate([whole.row_ids, behind.row_ids])
        return cls(row_ids, columns, hidden, [*whole.sizes, *behind.sizes], whole.held)

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

    def _holder(self, held: Snapshot, now: Snapshot) -> Snapshot:
        """What has all rows, if either has."""
        try:
            return held if held.find(self.row_ids).row_ids.size == self.row_ids.size else now
        except RowError:
            return now  # some are younger

    def still_there(self, snapshot: Snapshot, once: Once | None) -> tuple[Drawn, list[int]]:
        """The rows, with the sizes of their batches; none where they are to be drawn anew.

        Of those that a stream draws once, the ones that are gone are left out, and counted.
        """
        none, row_ids, sizes = Drawn(Located.empty(0)), self.row_ids, self.sizes
        if self.held is not None:
            snapshot = self._holder(self.held, snapshot)
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


def write(log: SampleLog, drawn: Drawn, watermarks: NDArray[np.int64]) -> None:
    """Log a batch, drawn when the shards were at these watermarks."""
    row_ids = drawn.rows.row_ids
    log.append(row_ids, watermarks[row_ids >> SHARD_SHIFT], drawn.columns, drawn.hidden)
