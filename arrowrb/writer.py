"""The writer of one shard: lanes, blocks and commits, over segments that somebody else creates.

States of a commit, and what a crash in each leaves:

1. *placing*: columns, kinds and ordinals beyond the watermark are written. A crash leaves rows that nobody sees;
   recovery sets their kind and ordinal to 0 again.
2. *published*: the commit record is written. A crash leaves the commit in force.

Between the two an exception (a full disk, Ctrl-C) is settled by the record: if it was written, the commit stands;
if not, lanes and segments go back to what they were.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .commits import CommitFile, Record
from .errors import OptionError, UsageError
from .events import Events
from .interrupts import Uninterrupted
from .manifest import SegmentEntry
from .rows import row_id_base
from .schema import SYSTEM_COLUMNS, Schema
from .seeds import SeedEntry, SeedLog
from .tiers.hot import HotSegment

MAX_LANES: Final = 1 << 16
# Places of fields; the kernels have the same.
_SLOT, _CURSOR, _STOP, _RUNNING, _EPISODE, _STEP, _EPOCH = range(7)
_NUM_BLOCKS, _NEXT_BLOCK, _BLOCK_ROWS, _OPEN_BLOCKS, _FILLS, _ROW_BASE, _TRANSITIONS, _LAST_ORDINAL = range(8)
_EVENT, _CURRENT, _ORDINAL, _NUM_TRANSITIONS, _NUM_EPISODES, _NEXT_EPISODE, _BREAKS = range(7)
_NUM_UNDO, _BATCH, _NUM_SLOTS = range(7, 10)
_ITEM, _X_ADDRESS, _X_STRIDE, _Y_ADDRESS, _Y_STRIDE = range(5)
_DONE, _NEED_SEGMENT, _NOT_RUNNING = range(3)
_FIRST_OBSERVATION = len(SYSTEM_COLUMNS)
_C_ORDINAL, _C_TERMINATED, _C_KIND = 0, 7, 6


@dataclass(frozen=True, slots=True, eq=False)
class OpenSegment:
    """A segment that takes rows: its place in the manifest, its mapping, and its blocks' counts of committed rows."""

    entry: SegmentEntry
    hot: HotSegment
    fills: NDArray[np.int32]
    used_blocks: int = 0
    num_transitions: int = 0
    last_ordinal: int = 0

    def filled(self) -> OpenSegment:
        """The same with no block left to give out."""
        return replace(self, used_blocks=self.entry.rows // self.entry.block_rows)


def _address(array: NDArray[Any]) -> int:
    """Where an array's values begin; 0 where it has none."""
    if not array.size:
        return 0
    if array.flags.writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # several times as fast as what follows
    return int(array.__array_interface__["data"][0])


class Writer:
    """Places events into open segments and publishes commits. Not thread-safe: the engine serialises its calls.

    Args:
        schema: the store's schema.
        shard: the shard's number.
        commits: the shard's visible record, mapped writable.
        seeds: the shard's seed log.
        record: the commit in force.
        need_segment: gives the next open segment, for so many lanes; may raise (a full disk).
    """

    def __init__(
        self,
        schema: Schema,
        shard: int,
        commits: CommitFile,
        seeds: SeedLog,
        record: Record,
        need_segment: Callable[[int], OpenSegment],
    ) -> None:
        self.schema = schema
        self.record = record
        self.segments: list[OpenSegment] = []
        self._shard = shard
        self._commits = commits
        self._seeds = seeds
        self._need_segment = need_segment
        self._num_columns = len(schema.columns)
        self._stop_observation = _FIRST_OBSERVATION + len(schema.observation_columns)
        self._lanes = np.zeros((1, 8), np.int64)
        self._lanes[:, _SLOT] = -1
        self._undo = np.zeros((1, 9), np.int64)
        self._table = np.zeros((0, 8), np.int64)
        self._addresses = np.zeros((0, self._num_columns), np.int64)
        self._commit = np.zeros(16, np.int64)
        self._columns = np.zeros((self._num_columns, 5), np.int64)
        self._columns[:, _ITEM] = [column.item_bytes for column in schema.columns]
        self._load(record)
        self._saved: NDArray[np.int64] | None = None
        self._intended: Record | None = None
        self._pending_seeds: dict[int, int] = {}

    # -- commits -------------------------------------------------------------------------------------------------

    def ingest(self, events: Events) -> NDArray[np.int64]:
        """Place all events and make them visible in one commit; or raise, and nothing has happened.

        Returns:
            Row ids of the transitions, int64[n], in order of the events.
        """
        row_ids = np.empty(events.lane.shape[0], np.int64)
        if row_ids.size == 0:
            return row_ids
        self._begin(int(events.lane.max()), int(events.lane.min()))
        try:
            self._aim(events)
            while True:
                status = kernels.ingest(
                    events.lane,
                    events.begin,
                    events.observation,
                    events.next_observation,
                    events.row,
                    events.episode_id,
                    events.step,
                    events.time,
                    events.time if events.cut_time is None else events.cut_time,
                    events.policy_version,
                    row_ids,
                    self._columns,
                    self._stop_observation,
                    self._lanes,
                    self._table,
                    self._addresses,
                    self._commit,
                    self._undo,
                )
                if status == _DONE:
                    break
                if status == _NOT_RUNNING:
                    lane = int(events.lane[self._commit[_EVENT]])
                    raise UsageError(f"Lane {lane} has no running episode to go on with. Reset it first.")
                self._add_segment(self._need_segment(self.active_lanes(events.lane)), int(events.time[-1]))
            seeded = self._note_begun(events) if self._pending_seeds or events.seeds else []
            self._publish()
            for lane in seeded:
                self._pending_seeds.pop(lane, None)
        except BaseException:
            self.settle()
            raise
        return row_ids

    def cut(self, lanes: Sequence[int], time: int) -> int:
        """Abandon the running episodes of these lanes in one commit; returns how many there were."""
        for lane in lanes:
            self._pending_seeds.pop(lane, None)  # of a reset that no step followed
        which = np.asarray([lane for lane in lanes if lane < self._lanes.shape[0]], np.int64)
        if which.size == 0 or not self._lanes[which, _RUNNING].any():
            return 0
        self._begin(0, 0)
        try:
            count = int(
                kernels.cut(which, time, 0, self._lanes, self._table, self._addresses, self._commit, self._undo)
            )
            self._publish()
        except BaseException:
            self.settle()
            raise
        return count

    def close_record(self) -> Record:
        """The record that says the store was closed in order: nothing lies beyond it."""
        self._intended = replace(self.record, sequence=self.record.sequence + 1, clean=True)
        self._commits.write(self._intended)
        self.record, self._intended = self._intended, None
        return self.record

    def _begin(self, most_lane: int, least_lane: int) -> None:
        if self._saved is not None:
            self.settle()
        if not 0 <= least_lane <= most_lane < MAX_LANES:
            wrong = least_lane if least_lane < 0 else most_lane
            raise OptionError(f"lane is {wrong}, expected 0 to {MAX_LANES - 1}. Number lanes from 0.")
        if most_lane >= self._lanes.shape[0]:
            self._grow_lanes(most_lane + 1)
        self._commit[_EVENT] = 0
        self._commit[_NUM_UNDO] = 0
        self._commit[_BATCH] += 1
        self._saved = self._table.copy()

    def _publish(self) -> None:
        watermark, transitions, episodes, next_episode, breaks = self._commit[_ORDINAL : _BREAKS + 1].tolist()
        intended = Record(
            self.record.sequence + 1, watermark, transitions, episodes, next_episode, breaks, self.record.boot_id
        )
        kernels.fence()
        self._intended = intended
        self._commits.write(intended)
        self.record = intended
        self._saved = None
        self._intended = None

    def settle(self) -> None:
        """Finish or take back a commit that was interrupted, by what its record says. Does nothing otherwise."""
        intended, self._intended = self._intended, None
        if intended is not None:
            seen = self._commits.read()
            if seen is not None and seen.sequence == intended.sequence:
                self.record = intended
                self._saved = None
                return
        saved = self._saved
        if saved is None:
            return
        count = len(self.segments)
        self._table, self._addresses = self._table[:count], self._addresses[:count]  # one was being added
        self._commit[_NUM_SLOTS] = count
        for k in range(int(self._commit[_NUM_UNDO])):
            lane = int(self._undo[k, 0])
            self._lanes[lane, :_EPOCH] = self._undo[k, 1 : 1 + _EPOCH]
        for slot, segment in enumerate(self.segments):
            self._table[slot, _NEXT_BLOCK] = saved[slot, _NEXT_BLOCK] if slot < len(saved) else 0
            self._table[slot, _OPEN_BLOCKS] = saved[slot, _OPEN_BLOCKS] if slot < len(saved) else 0
            summary = self._rescan(segment)
            self._table[slot, _TRANSITIONS] = summary[0]
            self._table[slot, _LAST_ORDINAL] = summary[2]
        self._seeds.trim(self.record.watermark)
        self._load(self.record)
        self._saved = None

    def _rescan(self, segment: OpenSegment) -> NDArray[np.int64]:
        """Undo the rows beyond the watermark and count the blocks' rows again."""
        ordinals = int(segment.hot.addresses[_C_ORDINAL])
        kinds = int(segment.hot.addresses[_C_KIND])
        summary = np.zeros(4, np.int64)
        kernels.wipe(ordinals, kinds, segment.entry.rows, self.record.watermark)
        kernels.survey(ordinals, kinds, segment.entry.block_rows, self.record.watermark, segment.fills, summary)
        return summary

    def _load(self, record: Record) -> None:
        commit = self._commit
        commit[_CURRENT] = 0
        commit[_ORDINAL] = record.watermark
        commit[_NUM_TRANSITIONS] = record.num_transitions
        commit[_NUM_EPISODES] = record.num_episodes
        commit[_NEXT_EPISODE] = record.next_episode
        commit[_BREAKS] = record.num_breaks

    def _aim(self, events: Events) -> None:
        """Write the addresses and strides of the sources into the table that the kernel reads."""
        columns = self._columns
        for i, (arrived, final) in enumerate(zip(events.arrived, events.final, strict=True)):
            row = columns[_FIRST_OBSERVATION + i]
            row[_X_ADDRESS], row[_X_STRIDE] = _address(arrived), arrived.strides[0]
            row[_Y_ADDRESS], row[_Y_STRIDE] = _address(final), final.strides[0]
        for i, outcome in enumerate(events.outcome):
            place = _C_TERMINATED + i if i < 2 else self._stop_observation + i - 2
            columns[place, _X_ADDRESS], columns[place, _X_STRIDE] = _address(outcome), outcome.strides[0]

    # -- lanes and segments --------------------------------------------------------------------------------------

    def note_seeds(self, seeds: Sequence[tuple[int, int | None]]) -> None:
        """The episodes that begin next on these lanes were reset with these seeds; None: without one."""
        for lane, seed in seeds:
            if seed is None:
                self._pending_seeds.pop(lane, None)
            else:
                self._pending_seeds[lane] = seed

    def _note_begun(self, events: Events) -> list[int]:
        """Log the seeds of the episodes that begin; returns the lanes whose noted seeds were used."""
        known = [self._seed_entry(events, i, seed) for i, seed in events.seeds]
        entries: dict[int, SeedEntry] = {}
        for i in np.flatnonzero(events.begin != 0).tolist() if self._pending_seeds else ():
            lane = int(events.lane[i])
            seed = self._pending_seeds.get(lane)
            if seed is not None and lane not in entries:
                entries[lane] = self._seed_entry(events, i, seed)
        if known or entries:
            self._seeds.append([*known, *entries.values()])
        return list(entries)

    def _seed_entry(self, events: Events, i: int, seed: int) -> SeedEntry:
        return SeedEntry(int(events.episode_id[i]), int(events.lane[i]), self.record.watermark + 1, seed)

    def active_lanes(self, also: NDArray[np.int64] | None = None) -> int:
        """How many lanes hold a block, or are among ``also``: for the size of the next segment."""
        active = self._lanes[:, _SLOT] >= 0
        if also is not None:
            active[also] = True
        return int(np.count_nonzero(active))

    def running_lanes(self) -> list[int]:
        """The lanes on which an episode is running."""
        lanes: list[int] = np.flatnonzero(self._lanes[:, _RUNNING]).tolist()
        return lanes

    def _grow_lanes(self, count: int) -> None:
        size = max(count, min(2 * self._lanes.shape[0], MAX_LANES))
        lanes = np.zeros((size, 8), np.int64)
        lanes[:, _SLOT] = -1
        lanes[: self._lanes.shape[0]] = self._lanes
        self._undo = np.zeros((size, 9), np.int64)  # before the lanes: kernels write an entry for each lane
        self._lanes = lanes

    def adopt(self, segments: Sequence[OpenSegment], places: NDArray[np.int64]) -> None:
        """Go on with the open segments of an earlier writer.

        Args:
            segments: in order of number.
            places: where lanes go on, int64[n, 7]: lane, slot (index into ``segments``), cursor, stop, whether an
                episode waits at the cursor, its id, its step.
        """
        for segment in segments:
            self._append(segment)
        for lane, slot, *state in places.tolist():
            if lane >= self._lanes.shape[0]:
                self._grow_lanes(lane + 1)
            self._lanes[lane, : _STEP + 1] = (slot, *state)
            self._table[slot, _OPEN_BLOCKS] += 1

    def leave_blocks(self, lanes: Sequence[int]) -> None:
        """Close the blocks of lanes on which nothing runs; what is free in them stays free for good."""
        for lane in lanes:
            slot = int(self._lanes[lane, _SLOT])
            if slot >= 0 and not self._lanes[lane, _RUNNING]:
                self._table[slot, _OPEN_BLOCKS] -= 1
                self._lanes[lane, : _STOP + 1] = (-1, 0, 0)

    def _append(self, segment: OpenSegment) -> None:
        entry = segment.entry
        row = np.zeros((1, 8), np.int64)
        row[0, _NUM_BLOCKS] = entry.rows // entry.block_rows
        row[0, _NEXT_BLOCK] = segment.used_blocks
        row[0, _BLOCK_ROWS] = entry.block_rows
        row[0, _FILLS] = _address(segment.fills)
        row[0, _ROW_BASE] = row_id_base(self._shard, entry.number)
        row[0, _TRANSITIONS] = segment.num_transitions
        row[0, _LAST_ORDINAL] = segment.last_ordinal
        self._table = np.concatenate([self._table, row])
        self._addresses = np.concatenate([self._addresses, segment.hot.addresses[None]])
        self.segments.append(segment)
        self._commit[_NUM_SLOTS] = len(self.segments)

    def _add_segment(self, segment: OpenSegment, time: int) -> None:
        """Take another segment; segments that slow lanes still hold after that are vacated."""
        with Uninterrupted():
            self._append(segment)
        for slot in range(len(self.segments) - 2):
            status = kernels.evacuate(
                slot,
                time,
                0,
                self._columns,
                self._stop_observation,
                self._lanes,
                self._table,
                self._addresses,
                self._commit,
                self._undo,
            )
            if status == _NEED_SEGMENT:
                break  # the next segment that is added goes on with it

    def wants_segment(self) -> bool:
        """Whether a quarter of the blocks of the newest segment is used, so that the next should be prepared."""
        if not self.segments:
            return True
        newest = self._table[-1]
        return bool(4 * newest[_NEXT_BLOCK] > newest[_NUM_BLOCKS])

    def has_closed(self) -> bool:
        """Whether there is a segment in which every block is used and closed."""
        table = self._table
        if not self.segments or table[0, _NEXT_BLOCK] < table[0, _NUM_BLOCKS]:
            return False  # blocks are taken in order of segments
        return bool(((table[:, _NEXT_BLOCK] == table[:, _NUM_BLOCKS]) & (table[:, _OPEN_BLOCKS] == 0)).any())

    def take_closed(self) -> list[OpenSegment]:
        """Give up the closed segments; the caller seals them, and lets nothing interrupt it here."""
        table = self._table
        done = (table[:, _NEXT_BLOCK] == table[:, _NUM_BLOCKS]) & (table[:, _OPEN_BLOCKS] == 0)
        closed = [
            replace(
                self.segments[slot],
                used_blocks=int(table[slot, _NUM_BLOCKS]),
                num_transitions=int(table[slot, _TRANSITIONS]),
                last_ordinal=int(table[slot, _LAST_ORDINAL]),
            )
            for slot in np.flatnonzero(done)
        ]
        keep = np.flatnonzero(~done)
        moved = np.full(len(self.segments) + 1, -1, np.int64)
        moved[keep] = np.arange(keep.size)
        segments = [self.segments[slot] for slot in keep]
        rows, addresses = np.ascontiguousarray(table[keep]), np.ascontiguousarray(self._addresses[keep])
        slots = moved[self._lanes[:, _SLOT]]
        # Nothing below allocates, so that all of it happens or nothing.
        self._lanes[:, _SLOT] = slots
        self.segments, self._table, self._addresses = segments, rows, addresses
        self._commit[_NUM_SLOTS] = len(self.segments)
        self._commit[_CURRENT] = 0
        return closed
