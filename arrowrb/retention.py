"""Retention and the hot tier's bound in one shard: from segments and limits to what is evicted and demoted. Pure.

Both take whole segments, oldest first. Eviction is decided by counts at a commit, so that a seeded run repeats;
demotion changes nothing that a reader sees, and may come when it likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

ROOM_BEFORE: Final = 3  # segments for which there is room when demotion begins
ROOM_AFTER: Final = 4  # and when it ends
LEAST_HOT_SEGMENTS: Final = 8  # what a hot tier needs: being filled, prepared, waiting for a sync, being demoted


@dataclass(frozen=True, slots=True)
class Limits:
    """What a shard may hold; None is no limit.

    Attributes:
        hot_rows, hot_bytes: allocated in the hot tier; what is beyond goes to the cold one.
        max_rows: transitions in all; the oldest beyond are evicted.
        max_bytes: bytes of segments on disk, likewise.
        keep_below: segments of lower numbers are kept for good, and count for neither.
    """

    hot_rows: int | None = None
    hot_bytes: int | None = None
    max_rows: int | None = None
    max_bytes: int | None = None
    keep_below: int = 0

    def spare(self, pieces: Iterable[Piece]) -> list[Piece]:
        """The segments that may be evicted once it is their turn."""
        return [piece for piece in pieces if piece.number >= self.keep_below]

    def keeps_all_hot(self, row_bytes: int) -> bool:
        """Whether nothing is ever demoted: retention evicts it before the hot tier is full."""
        if self.hot_rows is None and self.hot_bytes is None:
            return True
        if self.max_rows is None or self.keep_below:
            return False
        by_rows = self.hot_rows is None or self.hot_rows >= self.max_rows
        return by_rows and (self.hot_bytes is None or self.hot_bytes >= self.max_rows * row_bytes)


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment, as far as limits care.

    Attributes:
        number: its own.
        tier: ``"hot"`` or ``"cold"``.
        closed: whether all of its blocks are closed, so that it may go.
        sealed: whether its tables are written, so that it may become cold.
        rows: allocated.
        num_bytes: of its file.
        num_transitions: in it.
        last_time: of its newest row, in microseconds; known once it is sealed.
    """

    number: int
    tier: str
    closed: bool
    sealed: bool
    rows: int
    num_bytes: int
    num_transitions: int
    last_time: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """What is due with one segment.

    Attributes:
        kind: ``"evict"`` or ``"demote"``.
        segment: its number.
        num_transitions: in it.
        num_bytes: of its file now.
        shard: the number of its shard.
    """

    kind: str
    segment: int
    num_transitions: int
    num_bytes: int
    shard: int = 0


def plan(
    pieces: Sequence[Piece], tier: HotTier, num_transitions: int, *, shard: int = 0, below: int = 0
) -> list[Action]:
    """All that is due in a shard, evictions first; see `choose_evictions`."""
    kept = sum(piece.num_transitions for piece in pieces if piece.number < tier.limits.keep_below)
    evicted = choose_evictions(pieces, tier.limits, num_transitions - kept, below)
    for piece in evicted:
        if piece.tier == "hot":
            tier = tier.without(piece)
    demoted = choose_demotions([piece for piece in pieces if piece not in evicted], tier)
    return [
        Action(kind, piece.number, piece.num_transitions, piece.num_bytes, shard)
        for kind, chosen in (("evict", evicted), ("demote", demoted))
        for piece in chosen
    ]


def choose_evictions(pieces: Iterable[Piece], limits: Limits, num_transitions: int, below: int = 0) -> list[Piece]:
    """The oldest segments that have to go.

    Args:
        pieces: in order of number.
        limits: those that bound what is kept.
        num_transitions: in all of them that may go.
        below: segments of lower numbers go in any case.
    """
    pieces = limits.spare(pieces)
    num_bytes = sum(piece.num_bytes for piece in pieces)
    evicted = []
    for piece in pieces:
        too_many = limits.max_rows is not None and num_transitions > limits.max_rows
        too_large = limits.max_bytes is not None and num_bytes > limits.max_bytes
        if not (too_many or too_large or piece.number < below) or not piece.closed:
            break
        evicted.append(piece)
        num_transitions -= piece.num_transitions
        num_bytes -= piece.num_bytes
    return evicted


@dataclass(frozen=True, slots=True)
class HotTier:
    """How full the hot tier is, and what bounds it.

    Attributes:
        rows, num_bytes: allocated.
        next_rows, next_bytes: what the next segment takes.
        limits: the bounds.
    """

    rows: int
    num_bytes: int
    next_rows: int
    next_bytes: int
    limits: Limits

    def exceeds(self, *, with_next: int) -> bool:
        """Whether it would be over a bound with so many segments more."""
        return _over(self.limits.hot_rows, self.rows, self.next_rows, with_next) or _over(
            self.limits.hot_bytes, self.num_bytes, self.next_bytes, with_next
        )

    def without(self, piece: Piece) -> HotTier:
        """The tier when a segment has left it."""
        rows, num_bytes = self.rows - piece.rows, self.num_bytes - piece.num_bytes
        return HotTier(rows, num_bytes, self.next_rows, self.next_bytes, self.limits)


def _over(limit: int | None, used: int, step: int, count: int) -> bool:
    if limit is None:
        return False
    return used + count * step > max(limit, LEAST_HOT_SEGMENTS * step)


def choose_demotions(pieces: Sequence[Piece], tier: HotTier) -> list[Piece]:
    """The oldest sealed segments beyond the hot tier's bound, with room kept for some more to be prepared.

    Once it is time, several go at once, since each round costs syncs. What retention evicts next is passed over: it
    would be written only to be removed.
    """
    demoted: list[Piece] = []
    spare = tier.limits.spare(pieces)
    num_transitions = sum(piece.num_transitions for piece in spare)
    for piece in pieces:
        if not tier.exceeds(with_next=ROOM_AFTER if demoted else ROOM_BEFORE):
            break
        if piece.tier != "hot" or not piece.sealed:
            continue
        if spare and piece is spare[0] and _goes_next(piece, num_transitions, tier):
            continue
        demoted.append(piece)
        tier = tier.without(piece)
    return demoted


def _goes_next(oldest: Piece, num_transitions: int, tier: HotTier) -> bool:
    """Whether the oldest segment will be evicted before another one has been filled."""
    most = tier.limits.max_rows
    return most is not None and num_transitions + min(tier.next_rows, oldest.num_transitions) > most


def is_tight(pieces: Iterable[Piece], tier: HotTier) -> bool:
    """Whether writing must wait until segments have left the hot tier: another one would not fit into it."""
    return tier.exceeds(with_next=1) and any(piece.tier == "hot" and piece.closed for piece in pieces)
