"""Sets of rows that may be drawn, which grow: where sequences begin, what a question found, and both at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..engine.tables import KIND, STEP
from ..errors import EmptyError, OptionError
from ..rows import Kind
from .chains import Chains, Follower, Key, nobody

_PIECE: Final = 1 << 20  # rows that are looked at in one go

Positions = NDArray[np.int32]


@dataclass(slots=True)
class News:
    """Rows of a source that a snapshot has, and the one before had not.

    Attributes:
        rows: their positions by slot.
        anew: the source begins again: what it named before no longer holds.
    """

    rows: dict[int, Positions] = field(default_factory=dict)
    anew: bool = False


class Source(Protocol):
    """A set of rows that may be drawn. Not thread-safe; one consumer each."""

    def follow(self, snapshot: Snapshot) -> News:
        """What has come since the last call, of a snapshot that is newer. Each row is named once, until ``anew``."""
        ...

    def restart(self) -> None:
        """Begin anew with the next call: what was named may not have been taken."""
        ...

    def save(self) -> Any:
        """What it depends on beside the rows that there are: a plain value, None for nothing."""
        ...

    def load(self, state: Any) -> None:
        """Be what it was when it gave this state; it begins anew."""
        ...


class Rows(Protocol):
    """Draws of rows from some set. Not thread-safe.

    Attributes:
        joins: one draw of many rows is the same as several of fewer, one after the other.
    """

    joins: bool

    def draw(self, snapshot: Snapshot, state: NDArray[np.uint64], count: int, *, tiers: str) -> Located:
        """Draw transitions, with replacement; ``state`` is the generator's, advanced in place.

        Raises:
            EmptyError: if there is none.
        """
        ...

    def save(self) -> Any:
        """As that of a source."""
        ...

    def load(self, state: Any) -> None:
        """As that of a source."""
        ...


Choose = Callable[[Source | None], Rows]
"""Makes rows to draw from, out of those that a strategy can begin with (None: out of all)."""


def check_no_state(state: Any) -> None:
    """That a state is one of rows that depend on nothing.

    Raises:
        OptionError: if it is not.
    """
    if state is not None:
        raise OptionError(
            "The sampler draws from all rows, but the state that it is to go on from is of one that asks for some by "
            "SQL, or draws from a pool of row groups. Make it with the strategy that it had."
        )


class AllRows:
    """All transitions."""

    joins = True

    def draw(self, snapshot: Snapshot, state: NDArray[np.uint64], count: int, *, tiers: str) -> Located:
        """Draw transitions uniformly, with replacement."""
        return snapshot.draw_uniform(state, count, tiers=tiers)

    def save(self) -> None:
        """Nothing."""
        return

    def load(self, state: Any) -> None:
        """Nothing."""
        check_no_state(state)


def all_rows(own: Source | None) -> Rows:
    """Rows of a strategy that nothing restricts but itself."""
    return AllRows() if own is None else Listed(own)


class Beginnings:
    """Where sequences of an episode may begin: every ``period`` steps, with so many steps behind them.

    Args:
        length: how many steps there have to be, the first included.
        period: a sequence begins at steps 0, ``period``, 2 ``period`` and so on.
        chains: what follows what.
    """

    def __init__(self, length: int, period: int, chains: Chains) -> None:
        self._length = length
        self._period = period
        self._chains = chains
        self.restart()
        self._anew = False

    def restart(self) -> None:
        """Name all anew."""
        self._layout: Callable[[], Any] = nobody
        self._seen: dict[Key, NDArray[np.int32]] = {}  # rows of each block that were looked at
        self._done: set[Key] = set()
        self._growing: list[int] = []
        self._anew = True

    def save(self) -> None:
        """Nothing."""
        return

    def load(self, state: Any) -> None:
        """Nothing."""
        check_no_state(state)

    def follow(self, snapshot: Snapshot) -> News:
        """The starts to which the last of their steps has come."""
        layout, views = snapshot.layout, snapshot.layout.views
        world = self._chains.world(snapshot)
        if layout is not self._layout():
            keys = [(view.shard, view.entry.number) for view in views]
            self._done &= set(keys)
            self._seen = {key: seen for key, seen in self._seen.items() if key in keys}
            self._growing = [slot for slot, key in enumerate(keys) if key not in self._done]
            self._layout = weakref.ref(layout)
        found = [np.zeros((2, 0), np.int64)]
        for slot in self._growing:
            for positions in self._look(snapshot, slot):
                slots = np.full(positions.size, slot, np.int64)
                kernels.go_back(world, self._length - 1, slots, positions)
                found.append(np.stack([slots, positions])[:, slots >= 0])
            if views[slot].closed:
                self._done.add((views[slot].shard, views[slot].entry.number))
        self._growing = [slot for slot in self._growing if not views[slot].closed]
        slots, positions = np.concatenate(found, axis=1)
        anew, self._anew = self._anew, False
        return News({slot: positions[slots == slot].astype(np.int32) for slot in np.unique(slots).tolist()}, anew)

    def _look(self, snapshot: Snapshot, slot: int) -> list[NDArray[np.int64]]:
        """New transitions of a segment that are the last ones of a sequence, if it has all its steps."""
        view, rows = snapshot.layout.views[slot], int(snapshot.layout.shapes[slot, 1])
        blocks = view.entry.rows // rows
        seen = self._seen.setdefault((view.shard, view.entry.number), np.zeros(blocks, np.int32))
        filled = np.full(blocks, rows, np.int32)
        if not view.whole:
            first = int(snapshot.layout.shapes[slot, 2])
            filled = snapshot.fills[first : first + blocks]
        changed = np.flatnonzero(filled > seen)
        if changed.size == 0:
            return []
        spans = [np.arange(b * rows + seen[b], b * rows + filled[b], dtype=np.int64) for b in changed.tolist()]
        seen[changed] = filled[changed]
        positions = np.concatenate(spans)
        kinds = view.cold.kinds if view.cold is not None else view.column(KIND)
        positions = positions[kinds[positions] == Kind.TRANSITION]
        begins = view.column(STEP)[positions].astype(np.int64) - (self._length - 1)
        positions = positions[(begins >= 0) & (begins % self._period == 0)]
        return [positions[first : first + _PIECE].copy() for first in range(0, positions.size, _PIECE)]


class Both:
    """What two sources have both named."""

    def __init__(self, one: Source, other: Source) -> None:
        self._sources = (one, other)
        self._flags: dict[Key, NDArray[np.uint8]] = {}
        self._found: dict[Key, list[Positions]] = {}  # what has not been told yet
        self._anew = False

    def restart(self) -> None:
        """Name all anew."""
        for source in self._sources:
            source.restart()
        self._flags, self._found, self._anew = {}, {}, True

    def save(self) -> Any:
        """Those of the two."""
        return [source.save() for source in self._sources]

    def load(self, state: Any) -> None:
        """As they were."""
        states = state if isinstance(state, list) and len(state) == 2 else [None, None]
        for source, each in zip(self._sources, states, strict=True):
            source.load(each)

    def follow(self, snapshot: Snapshot) -> News:
        """The rows that the second of them has named now."""
        views = snapshot.layout.views
        keys = [(view.shard, view.entry.number) for view in views]
        self._flags = {key: self._flags[key] for key in keys if key in self._flags}
        for place, source in enumerate(self._sources):
            told = source.follow(snapshot)
            if told.anew:
                self._anew = True
                for key in self._flags:
                    self._flags[key] &= np.uint8(~(1 << place) & 0xFF)
            for slot, positions in told.rows.items():
                flags = self._flags.setdefault(keys[slot], np.zeros(views[slot].entry.rows, np.uint8))
                both = np.empty(positions.size, np.int32)
                address = flags.__array_interface__["data"][0]
                count = kernels.mark_rows(address, np.uint8(1 << place), positions, both)
                self._found.setdefault(keys[slot], []).append(both[:count])
        news, found = News(anew=self._anew), self._found
        self._found, self._anew = {}, False
        if news.anew:
            held = {slot: np.flatnonzero(self._flags[key] == 3) for slot, key in enumerate(keys) if key in self._flags}
            news.rows = {slot: positions.astype(np.int32) for slot, positions in held.items() if positions.size}
        else:
            parts = {slot: found[key] for slot, key in enumerate(keys) if key in found}
            news.rows = {slot: np.concatenate(each) for slot, each in parts.items() if any(map(len, each))}
        return news


class Listed(Follower):
    """The rows of a source, listed by segment; draws are uniform over them. Not thread-safe.

    Lists are sorted, so that draws depend on the rows, not on when they were named.
    """

    joins = True

    def __init__(self, source: Source, nothing: str = "No transition can be drawn.") -> None:
        super().__init__()
        self._source = source
        self._nothing = nothing
        self._layout: Callable[[], Any] = nobody
        self._lists: dict[Key, Positions] = {}
        self._keys: list[Key] = []
        self._addresses = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._until = np.zeros(0, np.int64)  # their running sums

    def save(self) -> Any:
        """That of the source."""
        return self._source.save()

    def load(self, state: Any) -> None:
        """As it was."""
        self._source.load(state)
        self._snapshot = nobody

    def _forget(self) -> None:
        self._layout = nobody
        self._source.restart()

    def _follow(self, snapshot: Snapshot) -> None:
        layout = snapshot.layout
        news = self._source.follow(snapshot)
        changed = bool(news.rows) or news.anew
        if layout is not self._layout():
            self._keys = [(view.shard, view.entry.number) for view in layout.views]
            self._lists = {key: self._lists[key] for key in self._keys if key in self._lists}
            self._layout, changed = weakref.ref(layout), True
        if news.anew:
            self._lists.clear()
        for slot, positions in news.rows.items():
            held = self._lists.get(self._keys[slot], _NO_POSITIONS)
            self._lists[self._keys[slot]] = np.sort(np.concatenate([held, positions]))
        if changed:
            lists = [self._lists.get(key, _NO_POSITIONS) for key in self._keys]
            self._addresses = np.array([each.__array_interface__["data"][0] for each in lists], np.int64)
            self._counts = np.array([each.size for each in lists], np.int64)
            self._until = np.cumsum(self._counts)

    def draw(self, snapshot: Snapshot, state: NDArray[np.uint64], count: int, *, tiers: str) -> Located:
        """Draw rows uniformly, with replacement."""
        self.follow(snapshot)
        until = self._until
        if tiers == "hot" and snapshot.layout.cold:
            counts = self._counts.copy()
            counts[list(snapshot.layout.cold)] = 0
            until = np.cumsum(counts)
        if until.size == 0 or until[-1] == 0:
            raise nothing_to_draw(snapshot, self._nothing)
        located = Located.empty(count)
        kernels.draw_listed(
            state,
            until,
            self._addresses,
            snapshot.layout.shapes,
            located.slots,
            located.positions,
            located.row_ids,
        )
        return located


_NO_POSITIONS: Final = np.zeros(0, np.int32)


def nothing_to_draw(snapshot: Snapshot, why: str) -> EmptyError:
    """The error of a set without rows."""
    if snapshot.num_transitions == 0:
        return EmptyError("There is no transition to sample: the store is empty. Collect or extend first.")
    return EmptyError(why)
