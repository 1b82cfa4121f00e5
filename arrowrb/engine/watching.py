"""A shard as its files tell of it, for who decides what leaves the store: commits and segments, no rows."""

from __future__ import annotations

import os
import time
from typing import Final

from .. import commits, files
from .. import manifest as manifests
from ..commits import CommitFile, Record
from ..errors import StoreError
from ..manifest import Manifest
from ..retention import Action, HotTier, Limits, plan
from ..schema import Schema
from ..sharing import Holding, Orders, Stock, narrower
from .orders import OrdersFile
from .paths import ShardPaths
from .segments import measure_tier, shape_next
from .state import ShardState

_PATIENCE_SECONDS: Final = 2.0  # for a shard to do as it is told
_CHECKED_SECONDS: Final = 0.2  # how long it is known whether a shard has a writer
_ABANDONED_SECONDS: Final = 5.0  # in which who died may be started again
_DECAY: Final = 0.9  # of what is remembered of growth, a look


class Watched:
    """Follows one shard's commits and manifest, and tells it what it may hold. Not thread-safe."""

    def __init__(self, paths: ShardPaths, schema: Schema) -> None:
        self.paths = paths
        self.next_visit = -float("inf")  # not before that, by the monotonic clock
        self._schema = schema
        self._commits, self._durable_path = CommitFile(paths.visible), paths.durable
        self._boot_id = files.boot_id()
        self._orders: OrdersFile | None = None
        self._held: files.Mapping | None = None
        self._state: ShardState | None = None
        self._record = Record()
        self._stock: Stock | None = None
        self._growth = 0.0
        self._due: tuple[int, float] | None = None  # the oldest segment that should have gone, and since when
        self._checked = -float("inf")
        self._has_writer = True
        self._dead_since: float | None = None

    def look(self, keep_below: int) -> tuple[Holding, tuple[object, ...]]:
        """How the shard stands; and objects that are the same ones as long as it does not change."""
        record = commits.read_newest(self._commits, self._durable_path, self._boot_id)  # before the manifest
        if self._state is not None:
            grown = max(0, record.num_transitions - self._record.num_transitions)
            self._growth = _DECAY * self._growth + grown
        self._record = record
        state, told = self._read_manifest(), self.told
        below = 0 if told is None else told.evict_below
        stock = self._stock
        if stock is None or (stock.keep_below, stock.evict_below) != (keep_below, below):
            stock = self._stock = Stock(self.paths.number, tuple(state.pieces({})), keep_below, below)
        held = max(0, record.num_transitions - state.num_evicted)
        follows = self._follows(stock)
        return Holding(stock, held, int(self._growth), follows), (record, state, stock, follows)

    def _read_manifest(self) -> ShardState:
        try:
            stamp = files.stamp_of(os.stat(self.paths.manifest))
        except OSError as error:
            raise StoreError(error.errno, "Looking for the manifest failed", str(self.paths.manifest)) from error
        if self._state is None or self._held is None or stamp != self._held.stamp:
            manifest, self._held = manifests.read_mapped(self.paths.manifest, self.paths.number)
            self._state, self._stock = ShardState(manifest), None
            if self._orders is not None and not self._orders.is_at(self.paths.orders):
                self._orders = None  # a repair has removed it
        return self._state

    @property
    def manifest(self) -> Manifest:
        """The list of segments, as last seen."""
        return self._read_manifest().manifest if self._state is None else self._state.manifest

    def _follows(self, stock: Stock) -> bool:
        """Whether it has dropped what it was told to, or may not have come to that yet."""
        if not stock.due:
            self._due = None
            return True
        oldest = stock.due[0].number
        if self._due is None or self._due[0] != oldest:
            self._due = oldest, time.monotonic()
        return time.monotonic() - self._due[1] < _PATIENCE_SECONDS

    # -- orders --------------------------------------------------------------------------------------------------

    @property
    def told(self) -> Orders | None:
        """What it was told; None where nothing was, or its file is not there yet."""
        if self._orders is None:
            try:
                self._orders = OrdersFile(self.paths.orders, writable=True)
            except StoreError:  # of an earlier version; whoever opens the shard for writing makes it anew
                return None
        return self._orders.read()

    def tell(self, orders: Orders) -> None:
        """Tell it what it may hold, where its file is there."""
        if self._orders is not None:
            self._orders.write(orders)

    def has_writer(self) -> bool:
        """Whether somebody has the shard open for writing, as far as its files tell; not newer than a moment."""
        now = time.monotonic()
        if now > self._checked + _CHECKED_SECONDS:
            holder = files.read_holder(self.paths.holder)
            self._checked, self._has_writer = now, holder is not None and files.is_alive(holder.pid)
        return self._has_writer

    def is_abandoned(self) -> bool:
        """Whether its writer has died, and nobody has come in its place for a while: its episodes are to be cut."""
        if self._record.clean or self.has_writer():
            self._dead_since = None
            return False
        now = time.monotonic()
        self._dead_since = now if self._dead_since is None else self._dead_since
        return now - self._dead_since > _ABANDONED_SECONDS

    def has_unsealed_rows(self) -> bool:
        """Whether there are rows of which it is not known how old they are."""
        manifest = self.manifest
        sealed = sum(entry.num_transitions for entry in manifest.segments if entry.sealed)
        return self._record.num_transitions > manifest.evicted.num_transitions + sealed

    def plan(self, holding: Holding, own: Limits, orders: Orders | None, num_shards: int) -> list[Action]:
        """What is due in the shard when it is told this; nothing where it is the only one.

        Args:
            holding: how it stands.
            own: the limits of the store.
            orders: what it is told.
            num_shards: of the store.
        """
        limits = narrower(own, orders)
        if orders is not None:  # what is not sealed yet goes later, and the bound is for who writes meanwhile
            limits = Limits(limits.hot_rows, limits.hot_bytes, keep_below=limits.keep_below)
        tier = self._measure(own, limits, num_shards)
        below = 0 if orders is None else orders.evict_below
        pieces = holding.stock.pieces
        return plan(pieces, tier, holding.num_transitions, shard=self.paths.number, below=below)

    def _measure(self, own: Limits, limits: Limits, num_shards: int) -> HotTier:
        state = self._read_manifest() if self._state is None else self._state
        return measure_tier(self._schema, state, limits, shape_next(self._schema, state, own, 1, num_shards))
