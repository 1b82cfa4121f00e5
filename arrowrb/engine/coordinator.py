"""The coordinator: the one process of those that write a store which sees to its limits over all shards.

It holds a lock of the store, `shards/coordinator`: the writer of the main shard takes it when it opens, that of another
one where it is free, and each tries again now and then. So it is taken over when its holder dies or closes the store.
While there is one shard the coordinator does nothing, and the shard's writer goes by the limits itself, at its commits.

Otherwise it looks at the commits and manifests of all shards many times a second, orders what is sealed by age, and
tells each shard through its own small file (see `orders`) what is to go and what it may hold. The shards' writers do
the rest, each in its own shard; where a shard has none, the coordinator visits it (see `visits`), also where its writer
died and left episodes running, which a visit cuts. It writes nothing else, and decides by what lies in files only:
whoever comes after it goes on where it was.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from .. import checkpoints, files
from ..errors import FullError, LockedError
from ..retention import Action, Limits
from ..rows import MAX_SHARDS
from ..sharing import Holding, Orders, is_over, is_spacious, plan_orders
from .creating import StoreFile
from .keeping import Kept
from .options import WriterOptions
from .paths import list_shards, shard_paths
from .segments import in_force
from .shards import ShardCount
from .state import same_objects
from .visits import visit
from .watching import Watched

_LEAST_PAUSE_SECONDS: Final = 0.1  # between visits of a shard
_SHARE_OF_VISITS: Final = 5  # of the time that they may take: a fifth


class Survey:
    """All shards of a store, as their files tell. Not thread-safe."""

    def __init__(self, store: Path, file: StoreFile, limits: Limits) -> None:
        self.file = file
        self.num_shards = ShardCount(store)
        self.watched: dict[int, Watched] = {}
        self.holdings: list[Holding] = []
        self.orders: dict[int, Orders] = {}
        self._store = store
        self._asked = limits
        self._kept = Kept(store, file.store_id)
        self._marks: list[object] = []
        self.look()

    def look(self) -> bool:
        """See how all shards stand, and plan what they are to be told; returns whether anything has changed."""
        if len(self.watched) != self.num_shards():
            for number in list_shards(self._store):
                if number not in self.watched:
                    self.watched[number] = Watched(shard_paths(self._store, number), self.file.schema)
        marks: list[object] = [self._kept.look()]
        self.holdings = []
        for number, shard in self.watched.items():
            holding, seen = shard.look(self._kept.below(number))
            self.holdings.append(holding)
            marks += seen
        if same_objects(self._marks, marks):
            return False
        self._marks = marks
        self.orders = plan_orders(self.holdings, self.limits) if len(self.watched) > 1 else {}
        return True

    @property
    def limits(self) -> Limits:
        """Of the whole store, as they are in force."""
        kept = max((each.stock.keep_below for each in self.holdings), default=0)
        return in_force(replace(self._asked, keep_below=kept), self.file.schema)

    def is_over(self) -> bool:
        """Whether there is more than the store is to keep."""
        return is_over(self.holdings, self.limits)

    def is_spacious(self) -> bool:
        """Whether nothing comes near a limit for a while."""
        return is_spacious(self.holdings, self.limits)

    def is_due(self, holding: Holding) -> bool:
        """Whether there is something to do in a shard; a cheap look where there is not."""
        stock, told = holding.stock, self.orders.get(holding.stock.shard)
        if told is None:
            return False
        if self.watched[stock.shard].told is None:  # of an earlier version: it cannot be told anything yet
            return holding.num_transitions > 0
        if stock.spare and stock.spare[0].sealed and stock.spare[0].number < told.evict_below:
            return True
        pairs = ((told.hot_rows, stock.hot_rows), (told.hot_bytes, stock.hot_bytes))
        full = any(share is not None and used > share for share, used in pairs)
        return full and bool(self._plan(holding))

    def plan(self) -> list[Action]:
        """What is due in all shards."""
        return [action for holding in self.holdings for action in self._plan(holding)]

    def _plan(self, holding: Holding) -> list[Action]:
        number = holding.stock.shard
        limits = in_force(replace(self._asked, keep_below=holding.stock.keep_below), self.file.schema)
        return self.watched[number].plan(holding, limits, self.orders.get(number), len(self.watched))


class Coordinator:
    """Sees to the limits of a store over all shards, as long as it holds the lock. Thread-safe.

    Args:
        store: its folder.
        file: what it is.
        options: with the limits of the whole store.
        own: the number of the shard that this process writes.
    """

    def __init__(self, store: Path, file: StoreFile, options: WriterOptions, own: int) -> None:
        self._store = store
        self._file = file
        self._options = options
        self._own = own
        self._guard = threading.Lock()
        self._visiting = threading.Lock()
        self._lock: files.Lock | None = None
        self._survey: Survey | None = None
        self._hastes = False

    def take_role(self) -> bool:
        """Become the coordinator where there is none; returns whether this is it now."""
        with self._guard:
            if self._lock is None:
                with contextlib.suppress(LockedError, FullError):
                    self._lock = files.Lock(
                        self._store / "shards" / "coordinator",
                        self._store / "shards" / "coordinator.json",
                        what=f"Limits of {self._store} are seen to",
                        remedy="It is taken over when that ends.",
                    )
            return self._lock is not None

    def leave_role(self) -> None:
        """Let another process be the coordinator."""
        with self._guard:
            self._leave()

    def _leave(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = self._survey = None
        self._hastes = False

    @property
    def in_haste(self) -> bool:
        """Whether this is the coordinator, and something may come near a limit before long."""
        return self._hastes

    def look(self, *, plan: bool = False) -> list[Action]:
        """Look at all shards and tell each what it is to do, where nobody else does.

        Returns:
            What is due by that, with ``plan``.
        """
        with self._guard:
            if self._lock is None:
                return []
            try:
                self._lock.renew()
            except LockedError:  # something dropped it, and another process has it by now
                self._leave()
                return []
            if self._survey is None:
                self._survey = Survey(self._store, self._file, self._options.limits)
            elif not self._survey.look() and not plan:
                return []
            if len(self._survey.watched) == 1:
                return []
            self._hastes = not self._survey.is_spacious()
            for number, orders in self._survey.orders.items():
                self._survey.watched[number].tell(orders)
            return self._survey.plan() if plan else []

    def visit_next(self) -> None:
        """Visit the first shard that has no writer and in which something is due, if none was visited just now."""
        with self._visiting:
            self._visit(time.monotonic(), most=1)

    def visit_all(self) -> None:
        """Visit all shards that have no writer and in which something is due."""
        with self._visiting:
            self._visit(float("inf"), most=MAX_SHARDS)

    def _to_visit(self, by: float) -> Iterator[Watched]:
        """Shards to visit that may be by this time."""
        survey = self._survey
        if survey is None or len(survey.watched) == 1:
            return
        over = survey.is_over()
        for holding in survey.holdings:
            shard = survey.watched[holding.stock.shard]
            if holding.stock.shard == self._own or shard.next_visit > by:
                continue
            due = survey.is_due(holding) or (over and shard.has_unsealed_rows()) or shard.is_abandoned()
            if due and not (holding.follows and shard.has_writer()):
                yield shard

    def _visit(self, by: float, most: int) -> None:
        with self._guard:  # not while it visits: others have to be told more meanwhile
            chosen = list(itertools.islice(self._to_visit(by), most))
        file = self._file
        for shard in chosen:
            begun = time.monotonic()
            try:
                below = checkpoints.keep_below(self._store, file.store_id, shard.paths.number)
                options = replace(self._options, limits=replace(self._options.limits, keep_below=below))
                visit(shard.paths, file.schema, file.store_id, options, ShardCount(self._store))
            finally:
                ended = time.monotonic()
                shard.next_visit = ended + max(_LEAST_PAUSE_SECONDS, _SHARE_OF_VISITS * (ended - begun))
