"""What was drawn, and from which rows a batch of it is read: the words between strategies, views and loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine import Located, Snapshot
from ..schema import Schema
from .chains import Chains

ROW: Final = "row"  # the group of the rows that were drawn, or of the steps that these stand for
OBSERVED: Final = "observed"  # of the rows whose observations are read, final ones included, where these are others
REWARD: Final = "reward"

Columns = Mapping[str, NDArray[Any]]
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Drawn(NamedTuple):
    """Rows that were drawn.

    Attributes:
        rows: where they are; none at the end of a stream that has one.
        columns: what else the batch says of them, by name: one entry a row.
        hidden: what a view goes by and the batch does not say, likewise.
        snapshot: what they are in, where it is not the one that they were drawn from.
    """

    rows: Located
    columns: Columns = NOTHING
    hidden: Columns = NOTHING
    snapshot: Snapshot | None = None

    @classmethod
    def joined(cls, every: list[Drawn]) -> Drawn:
        """Several of one snapshot, one after the other."""
        if len(every) == 1:
            return every[0]
        parts = [(each.rows.slots, each.rows.positions, each.rows.row_ids) for each in every]
        rows = Located(*(np.concatenate(each) for each in zip(*parts, strict=True)))
        columns = {name: np.concatenate([each.columns[name] for each in every]) for name in every[0].columns}
        hidden = {name: np.concatenate([each.hidden[name] for each in every]) for name in every[0].hidden}
        return cls(rows, columns, hidden, every[0].snapshot)

    def split(self, sizes: Sequence[int]) -> list[Drawn]:
        """Parts of these numbers of rows, in order."""
        stops = accumulate(sizes)
        return [self.part(slice(stop - size, stop)) for size, stop in zip(sizes, stops, strict=True)]

    def part(self, part: slice | NDArray[np.int64]) -> Drawn:
        """Some of the rows; by places copies, else views."""
        return Drawn(
            Located(self.rows.slots[part], self.rows.positions[part], self.rows.row_ids[part]),
            {name: each[part] for name, each in self.columns.items()},
            {name: each[part] for name, each in self.hidden.items()},
            self.snapshot,
        )


@dataclass(frozen=True, slots=True)
class Place:
    """From which rows a column of a batch is read.

    Attributes:
        group: the rows.
        dims: how many of them for each row that was drawn, as the dimensions that these become; one without.
    """

    group: str = ROW
    dims: tuple[int, ...] = ()

    def within(self, dims: tuple[int, ...]) -> Place:
        """The same for each of several rows."""
        return Place(self.group, (*dims, *self.dims))


class Need(NamedTuple):
    """A column of the store that is read to compute others, which batches do not show."""

    column: str
    place: Place


class Reading(NamedTuple):
    """The rows to read a batch from, and what is known of them already.

    Attributes:
        groups: rows by group, as many for each that was drawn as their places' dimensions have.
        columns: other columns of the batch, by name.
        blanks: places of a group that are to be zero, bool[rows].
        patches: what is put in place of what some rows hold, by the name of a column, or of a leaf of one: which of
            the rows, int64[n], and the values, [n, *shape].
        finish: makes more columns of the batch out of those that the view needs, by the name of the need.
    """

    groups: Mapping[str, Located]
    columns: Columns = NOTHING
    blanks: Mapping[str, NDArray[np.bool_]] = NOTHING
    patches: Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]] = NOTHING
    finish: Callable[[Columns], Columns] | None = None


class AnyView(Protocol):
    """What a batch reads for the rows that were drawn.

    Not thread-safe. Reading goes by the snapshot, the rows and what else was drawn with them, by nothing else: it may
    be done later, and in another thread, than the draw.
    """

    @property
    def plain(self) -> bool:
        """Whether batches are the rows as they are."""
        ...

    @property
    def history(self) -> int | None:
        """How many steps before a row are read at most; None: all of its episode."""
        ...

    @property
    def ragged(self) -> bool:
        """Whether a row that is drawn stands for any number of rows, so that each batch has a shape of its own."""
        ...

    @property
    def padded(self) -> bool:
        """Whether these rows become a dimension of their own, padded to the longest."""
        ...

    @property
    def computed(self) -> tuple[str, ...]:
        """Columns of the store that are computed instead of read."""
        ...

    @property
    def length(self) -> int | None:
        """How many steps each row stands for; None: itself, without a dimension of its own."""
        ...

    @property
    def needs(self) -> Mapping[str, Need]:
        """What is read to compute columns, by names of its own."""
        ...

    def places(self, schema: Schema) -> dict[str, Place]:
        """Where the columns of a batch are read that are not read from the row itself, by name."""
        ...

    def read(self, snapshot: Snapshot, chains: Chains, drawn: Drawn, schema: Schema) -> Reading:
        """The rows that a batch of these rows is read from."""
        ...
