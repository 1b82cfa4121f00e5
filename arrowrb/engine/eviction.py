"""What of a shard is dropped: by counts at commits, or as it is told where there are other shards.

A segment first leaves what can be sampled, here at once and for other processes when the manifest drops it, which its
tables and a sync have to precede. In between a checkpoint of another process may have said that it stays; then it does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..errors import FullError
from ..retention import Piece, choose_evictions
from ..sharing import Orders
from .keeping import Kept, dropping, prepare
from .orders import OrdersFile, lay_out
from .paths import ShardPaths
from .segments import Segments


class Eviction:
    """Decides what leaves a shard that is written. The caller of `obey` and `choose` holds the guard of commits."""

    def __init__(
        self,
        paths: ShardPaths,
        store_id: str,
        segments: Segments,
        pieces: Callable[[], list[Piece]],
        num_shards: Callable[[], int],
    ) -> None:
        self._paths = paths
        self._segments = segments
        self._pieces = pieces
        self._num_shards = num_shards
        self._orders: OrdersFile | None = None
        self._find_orders()
        if num_shards() > 1:
            prepare(paths)
        self._told: Orders | None = None
        self._kept = Kept(paths.root.parent.parent, store_id)
        # Of a version of the state: bytes that may go, transitions that may not, and the first segment that may.
        self._measured = (-1, 0, 0, 0)

    def _find_orders(self) -> None:
        with contextlib.suppress(FullError):  # where there is no room to be told anything, later
            lay_out(self._paths.orders)
            self._orders = OrdersFile(self._paths.orders)

    @property
    def evict_below(self) -> int:
        """Below which number segments were told to go."""
        return 0 if self._told is None else self._told.evict_below

    def obey(self) -> bool:
        """See what is told; returns whether the bounds of the hot tier are others now."""
        told = None if self._orders is None else self._orders.read()
        if told is self._told:
            return False
        self._told, before = told, self._segments.limits
        self._segments.tell(told)
        after = self._segments.limits
        return (before.hot_rows, before.hot_bytes) != (after.hot_rows, after.hot_bytes)

    def choose(self, num_committed: int) -> bool:
        """Take segments that are due out of what can be sampled; returns whether there were any.

        Args:
            num_committed: transitions that were ever committed.
        """
        limits, state, below = self._segments.limits, self._segments.state, self.evict_below
        if self._measured[0] != state.version:  # not the state itself, which holds its mappings
            pieces = self._pieces()
            kept = sum(piece.num_transitions for piece in pieces if piece.number < limits.keep_below)
            spare = limits.spare(pieces)
            first = spare[0].number if spare else below
            self._measured = state.version, sum(piece.num_bytes for piece in spare), kept, first
        _, num_bytes, kept, first = self._measured
        live = num_committed - state.num_evicted - kept
        too_many = limits.max_rows is not None and live > limits.max_rows
        too_large = limits.max_bytes is not None and num_bytes > limits.max_bytes
        if not (too_many or too_large or first < below):
            return False
        chosen = choose_evictions(self._pieces(), limits, live, below)
        if chosen:
            self._segments.leave(chosen)
        return bool(chosen)

    def drop_one(self) -> bool:
        """Drop the oldest segment that leaves, for good; returns whether there was one, and it may go now."""
        if not self._segments.state.leaving:
            return False
        if self._num_shards() == 1:  # only this process makes checkpoints, and has said already what they keep
            return self._segments.evict_one()
        with dropping(self._paths) as allowed:
            if not allowed:
                return False
            self._look_at_checkpoints()
            return self._segments.evict_one()

    def look_around(self) -> None:
        """Keep what checkpoints keep by now, those of other processes too; later, where one is being made."""
        if self._orders is None:
            self._find_orders()
        if self._kept.is_new():
            with dropping(self._paths) as allowed:
                if allowed:
                    self._look_at_checkpoints()

    def _look_at_checkpoints(self) -> None:
        below = self._kept.below(self._paths.number)
        if below != self._segments.limits.keep_below:
            self._segments.keep(below)
            self._segments.touch()
        self._segments.stay(below)
