"""The limits of a store over all of its shards: what leaves next, and what each shard may hold by itself. Pure.

Segments that are sealed leave oldest first over the whole store, by the time of their newest row, a little before the
limit is reached. So that the store keeps within its limits however late somebody looks, each shard is told besides how
much it may hold: what it holds, and a part of what is free. What is free is counted up to a sixteenth beyond the limit,
so that a shard reaches its bound only where rows come faster than anybody looks; then it drops its own oldest segments,
whoever's turn it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from .retention import Limits, Piece

SHARE_BEYOND: Final = 16  # the part of a limit that all shards together may be beyond it
_MANY_ROWS: Final = 500_000  # more than come in a second
_MANY_BYTES: Final = 1 << 29
SHARE_BELOW: Final = 32  # the part of a limit that is left free, since orders take a while


@dataclass(frozen=True, slots=True)
class Orders:
    """What a shard is told.

    Attributes:
        evict_below: sealed segments of lower numbers go. Never less than it was.
        max_rows, max_bytes: what it may hold, without what is kept for good; None: whatever it likes.
        hot_rows, hot_bytes: its share of the hot tier, likewise.
    """

    evict_below: int = 0
    max_rows: int | None = None
    max_bytes: int | None = None
    hot_rows: int | None = None
    hot_bytes: int | None = None

    def limits(self, keep_below: int) -> Limits:
        """The limits that a shard has by these."""
        return Limits(self.hot_rows, self.hot_bytes, self.max_rows, self.max_bytes, keep_below)


@dataclass(frozen=True)
class Stock:
    """The segments of a shard, as its manifest lists them.

    Attributes:
        shard: its number.
        pieces: in order of number. Of those that are not sealed it is not known what they hold.
        keep_below: segments of lower numbers are kept for good, and count for no limit of what is kept.
        evict_below: what the shard was told before.
    """

    shard: int
    pieces: tuple[Piece, ...]
    keep_below: int = 0
    evict_below: int = 0

    @cached_property
    def spare(self) -> tuple[Piece, ...]:
        """Those that may go once it is their turn."""
        return tuple(piece for piece in self.pieces if piece.number >= self.keep_below)

    @cached_property
    def num_kept(self) -> int:
        """Transitions of those that are kept for good."""
        return sum(piece.num_transitions for piece in self.pieces if piece.number < self.keep_below)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of those that may go."""
        return sum(piece.num_bytes for piece in self.spare)

    @cached_property
    def due(self) -> tuple[Piece, ...]:
        """Those that were told to go and are there still."""
        return tuple(piece for piece in self._sealed if piece.number < self.evict_below)

    @cached_property
    def queue(self) -> tuple[Piece, ...]:
        """Those that may be told to go, in order."""
        return tuple(piece for piece in self._sealed if piece.number >= self.evict_below)

    @cached_property
    def _sealed(self) -> tuple[Piece, ...]:
        stop = next((i for i, piece in enumerate(self.spare) if not piece.sealed), len(self.spare))
        return self.spare[:stop]

    @cached_property
    def hot_rows(self) -> int:
        """Rows that it has allocated in the hot tier."""
        return sum(piece.rows for piece in self.pieces if piece.tier == "hot")

    @cached_property
    def hot_bytes(self) -> int:
        """Bytes that it has allocated there."""
        return sum(piece.num_bytes for piece in self.pieces if piece.tier == "hot")


@dataclass(frozen=True)
class Holding:
    """A shard at one look.

    Attributes:
        stock: its segments.
        num_transitions: that it holds, kept ones and those that were told to go included.
        growth: how many came since the last look.
        follows: whether it does as it is told; where not, what it should have dropped is not counted on.
    """

    stock: Stock
    num_transitions: int
    growth: int = 0
    follows: bool = True

    @property
    def live(self) -> int:
        """Transitions that count for the limit."""
        return max(0, self.num_transitions - self.stock.num_kept)


def plan_orders(holdings: Sequence[Holding], limits: Limits) -> dict[int, Orders]:
    """What each shard is to be told, by number.

    Args:
        holdings: all shards.
        limits: of the whole store.
    """
    below = choose_oldest(holdings, limits)
    rows = _allow(limits.max_rows, [each.live for each in holdings], holdings)
    num_bytes = _allow(limits.max_bytes, [each.stock.num_bytes for each in holdings], holdings)
    hot_rows = _share(limits.hot_rows, [each.stock.hot_rows for each in holdings])
    hot_bytes = _share(limits.hot_bytes, [each.stock.hot_bytes for each in holdings])
    return {
        each.stock.shard: Orders(below[each.stock.shard], *told)
        for each, *told in zip(holdings, rows, num_bytes, hot_rows, hot_bytes, strict=True)
    }


def is_spacious(holdings: Sequence[Holding], limits: Limits) -> bool:
    """Whether nothing comes near a limit for a second, however fast rows come: half of each is free, and much."""
    stocks = [each.stock for each in holdings]
    used = (
        (limits.max_rows, sum(each.live for each in holdings), _MANY_ROWS),
        (limits.hot_rows, sum(each.hot_rows for each in stocks), _MANY_ROWS),
        (limits.max_bytes, sum(each.num_bytes for each in stocks), _MANY_BYTES),
        (limits.hot_bytes, sum(each.hot_bytes for each in stocks), _MANY_BYTES),
    )
    return all(limit is None or limit - held >= max(held, many) for limit, held, many in used)


def is_over(holdings: Sequence[Holding], limits: Limits) -> bool:
    """Whether there is more than is aimed at."""
    live, num_bytes = sum(each.live for each in holdings), sum(each.stock.num_bytes for each in holdings)
    return _exceeds(limits.max_rows, live) or _exceeds(limits.max_bytes, num_bytes)


def choose_oldest(holdings: Sequence[Holding], limits: Limits) -> dict[int, int]:
    """Below which number the segments of each shard go, so that the store is within its limits once they have gone."""
    below = {each.stock.shard: each.stock.evict_below for each in holdings}
    live = sum(each.live - _count(each.stock.due) * each.follows for each in holdings)
    num_bytes = sum(each.stock.num_bytes - _size(each.stock.due) * each.follows for each in holdings)
    queues = {each.stock.shard: iter(each.stock.queue) for each in holdings if each.follows}
    heads: list[tuple[int, int, int, Piece]] = []

    def move_up(shard: int) -> None:
        piece = next(queues[shard], None)
        if piece is not None:
            heapq.heappush(heads, (piece.last_time, shard, piece.number, piece))

    for shard in queues:
        move_up(shard)
    while heads and (_exceeds(limits.max_rows, live) or _exceeds(limits.max_bytes, num_bytes)):
        _, shard, number, piece = heapq.heappop(heads)
        below[shard] = number + 1
        live -= piece.num_transitions
        num_bytes -= piece.num_bytes
        move_up(shard)
    return below


def _exceeds(limit: int | None, count: int) -> bool:
    return limit is not None and count > limit - limit // SHARE_BELOW


def _count(pieces: Iterable[Piece]) -> int:
    return sum(piece.num_transitions for piece in pieces)


def _size(pieces: Iterable[Piece]) -> int:
    return sum(piece.num_bytes for piece in pieces)


def _allow(limit: int | None, held: Sequence[int], holdings: Sequence[Holding]) -> list[int | None]:
    """How much each shard may hold: half of what is free goes to all alike, the rest to those that grow."""
    if limit is None:
        return [None] * len(held)
    free = max(0, limit + limit // SHARE_BEYOND - sum(held))
    growth = [each.growth for each in holdings]
    total = sum(growth)
    alike = free // 2 if total else free
    parts = [(free - alike) * each // total if total else 0 for each in growth]
    return [count + part + alike // len(held) for count, part in zip(held, parts, strict=True)]


def _share(limit: int | None, used: Sequence[int]) -> list[int | None]:
    """Parts of the hot tier: twice what each uses, those that use the most alike; what is left goes to all alike."""
    if limit is None:
        return [None] * len(used)
    left, count = limit, len(used)
    parts = [0] * count
    for place, i in enumerate(sorted(range(count), key=used.__getitem__)):
        parts[i] = min(2 * used[i], left // (count - place))
        left -= parts[i]
    return [part + left // count for part in parts]


def narrower(own: Limits, told: Orders | None) -> Limits:
    """The limits of a writer that is told something; nothing where it has the store for itself."""
    if told is None:
        return own
    return replace(
        told.limits(own.keep_below),
        hot_rows=_least(own.hot_rows, told.hot_rows),
        hot_bytes=_least(own.hot_bytes, told.hot_bytes),
    )


def _least(*limits: int | None) -> int | None:
    return min((each for each in limits if each is not None), default=None)
