"""What a shard consists of at one moment, as its writer's threads see it: replaced whole, never changed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..commits import Record
from ..errors import CorruptError
from ..manifest import Evicted, Manifest, SegmentEntry
from ..retention import Piece
from ..tiers.cold import ColdSegment
from ..tiers.hot import HotSegment
from ..writer import OpenSegment
from .snapshot import SegmentView


def same_objects(before: Sequence[object], now: Sequence[object]) -> bool:
    """Whether two looks found the very same things, so that nothing has changed in between."""
    return len(before) == len(now) and all(map(operator.is_, before, now))


@dataclass(frozen=True, slots=True)
class Look:
    """What a snapshot takes from a shard.

    Attributes:
        version: another one whenever segments came, went or moved.
        record: the newest commit.
        num_transitions: that are not evicted.
        evicted: what retention has dropped.
        views: makes the views of the segments that can be read.
        leaving: makes those of segments that are evicted, whose files are not gone yet: their runs count still.
    """

    version: int
    record: Record
    num_transitions: int
    evicted: Evicted
    views: Callable[[], Sequence[SegmentView]]
    leaving: Callable[[], Sequence[SegmentView]]


@dataclass(frozen=True)
class ShardState:
    """The manifest and the mappings of its segments.

    Attributes:
        manifest: as it lies on disk.
        hot: mappings by number, of segments that are being prepared too.
        cold: likewise.
        leaving: numbers of segments that are evicted, and their transitions; the manifest lists them until their
            tables are written.
        version: counts the changes that snapshots must see.
    """

    manifest: Manifest
    hot: Mapping[int, HotSegment] = field(default_factory=dict)
    cold: Mapping[int, ColdSegment] = field(default_factory=dict)
    leaving: Mapping[int, int] = field(default_factory=dict)
    version: int = 0

    @property
    def num_evicted(self) -> int:
        """Transitions that were committed and can be sampled no more."""
        return self.manifest.evicted.num_transitions + sum(self.leaving.values())

    @property
    def rows_so_far(self) -> int:
        """Rows that were ever allocated."""
        return self.manifest.evicted.rows + sum(entry.rows for entry in self.manifest.segments)

    @cached_property
    def _listed(self) -> list[Piece]:
        """The segments that are not leaving, by the manifest alone. Asked for several times a state."""
        return [piece_of(each) for each in self.manifest.segments if each.number not in self.leaving]

    def pieces(self, closing: Mapping[int, OpenSegment]) -> list[Piece]:
        """The segments that are not leaving, as limits see them. ``closing`` are closed and not sealed."""
        return [
            replace(piece, closed=True, num_transitions=closing[piece.number].num_transitions)
            if piece.number in closing
            else piece
            for piece in self._listed
        ]

    def view_at(self, entry: SegmentEntry, watermark: int) -> SegmentView:
        """A segment as it is seen at a commit, which may be older than what is known of it.

        It may have been sealed after that commit; until it is passed, rows are told by their ordinals.
        """
        closed = entry.sealed and entry.last_ordinal <= watermark
        whole = closed and 2 * entry.num_rows >= entry.rows
        hot, cold = self.hot.get(entry.number), self.cold.get(entry.number)
        return SegmentView(self.manifest.shard, entry, closed, whole, hot=hot, cold=cold)

    def views(
        self, closing: Mapping[int, OpenSegment], opened: Sequence[OpenSegment], *, leaving: bool
    ) -> list[SegmentView]:
        """Views of the segments that stay, or of those that leave; the caller holds the guard of commits."""
        open_fills = {segment.entry.number: segment.fills for segment in opened}
        shard, views = self.manifest.shard, []
        for entry in self.manifest.segments:
            number = entry.number
            if (number in self.leaving) != leaving:
                continue
            if entry.tier == "cold":
                views.append(SegmentView(shard, entry, True, 2 * entry.num_rows >= entry.rows, cold=self.cold[number]))
            elif entry.sealed:
                views.append(SegmentView(shard, entry, True, 2 * entry.num_rows >= entry.rows, self.hot[number]))
            elif number in closing:
                whole = 2 * int(closing[number].fills.sum()) >= entry.rows
                views.append(SegmentView(shard, entry, True, whole, self.hot[number]))
            elif number in open_fills:
                views.append(SegmentView(shard, entry, False, False, self.hot[number], live=open_fills[number]))
        return views


def piece_of(entry: SegmentEntry) -> Piece:
    """A segment as limits see it, by the manifest alone."""
    return Piece(
        entry.number,
        entry.tier,
        entry.sealed,
        entry.sealed,
        entry.rows,
        entry.bytes,
        entry.num_transitions,
        entry.last_time,
    )


def check_record(record: Record, manifest: Manifest, root: Path) -> None:
    """Refuse a record of more rows than there can be, before anybody counts on it.

    Raises:
        CorruptError: if it is one.
    """
    most = manifest.evicted.num_rows + sum(entry.rows for entry in manifest.segments)
    if not manifest.lost and max(record.watermark, record.num_transitions) > most:  # of lost ones nothing is known
        raise CorruptError(
            f"{root}: the commit records know of {record.watermark:,} rows and {record.num_transitions:,} transitions, "
            f"but segments have held {most:,} at most. `arrowrb verify` tells more."
        )
