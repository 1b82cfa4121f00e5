"""What a store holds at one moment, for people and for programs."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from . import checkpoints, files
from .checkpoints import Checkpoint
from .engine import Engine, SegmentView, Snapshot
from .engine.paths import shard_paths
from .engine.tables import ORDINAL, TIME
from .limiter import LimiterInfo
from .manifest import SegmentEntry


@dataclass(frozen=True, slots=True)
class WriterInfo:
    """A shard, and who writes it.

    Attributes:
        shard: its number.
        name: its name, such as ``main`` or ``worker-0``.
        pid: the process that has it open for writing, or has died so; None where it was closed in order.
        alive: whether that process runs.
        num_transitions: transitions of it that can be sampled.
        last_write: when its newest row was collected, in seconds since the epoch; None where there is none.
    """

    shard: int
    name: str
    pid: int | None
    alive: bool
    num_transitions: int
    last_write: float | None

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.alive else "no writer"
        if self.pid is not None and not self.alive:
            who += f" (process {self.pid} died)"
        told = f"{self.name}: {who}, {self.num_transitions:,} transitions"
        if self.last_write is None:
            return told
        return f"{told}, the newest of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.last_write))}"


@dataclass(frozen=True, slots=True)
class Tiers:
    """What segments take.

    Attributes:
        num_segments: how many by state: open and sealed (in the hot tier), and cold.
        allocated_rows, allocated_bytes: room that the segments of the hot tier take on disk.
        cold_rows, cold_bytes: rows and bytes of the Parquet files.
    """

    num_segments: dict[str, int]
    allocated_rows: int
    allocated_bytes: int
    cold_rows: int
    cold_bytes: int

    @classmethod
    def of(cls, segments: Iterable[SegmentEntry]) -> Self:
        """Of these segments."""
        segments = list(segments)
        hot = [entry for entry in segments if entry.tier == "hot"]
        cold = [entry for entry in segments if entry.tier == "cold"]
        return cls(
            num_segments={
                "open": sum(not entry.sealed for entry in hot),
                "sealed": sum(entry.sealed for entry in hot),
                "cold": len(cold),
            },
            allocated_rows=sum(entry.rows for entry in hot),
            allocated_bytes=sum(entry.bytes for entry in hot),
            cold_rows=sum(entry.num_rows for entry in cold),
            cold_bytes=sum(entry.bytes for entry in cold),
        )

    def lines(self) -> list[tuple[str, str]]:
        """Label and value of each line of a table."""
        return [
            ("segments", ", ".join(f"{count} {state}" for state, count in self.num_segments.items())),
            ("hot tier", f"{human_bytes(self.allocated_bytes)} for {self.allocated_rows:,} rows"),
            ("cold tier", f"{human_bytes(self.cold_bytes)} for {self.cold_rows:,} rows"),
        ]


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Counts, tiers and bytes.

    Attributes:
        path: the store's directory.
        env_id: the environment's id, where it is known.
        num_transitions: transitions that can be sampled.
        num_episodes: episodes begun.
        num_rows: committed rows, tails included, without those that were dropped.
        num_evicted: transitions that retention has dropped.
        num_breaks: external rows whose observation did not agree with the row before.
        num_segments: segments by state: open and sealed (in the hot tier), and cold.
        allocated_rows, allocated_bytes: room that the segments of the hot tier take on disk.
        cold_rows, cold_bytes: rows and bytes of the Parquet files.
        pinned_bytes: of files that are gone or moved, which snapshots in this process still hold.
        row_bytes: bytes of one row.
        bytes_per_transition: allocated bytes of rows in use a transition, tails included.
        checkpoints: the named points that there are, oldest first.
        writer_pid: the process that has the store open for writing, if any; the first where there are several.
        writers: each shard, and who writes it.
        limiter: by which collecting and sampling wait for each other, and who does; None where there is none.
        columns: name, dtype and shape of each column of the schema.
    """

    path: str
    env_id: str | None
    num_transitions: int
    num_episodes: int
    num_rows: int
    num_evicted: int
    num_breaks: int
    num_segments: dict[str, int]
    allocated_rows: int
    allocated_bytes: int
    cold_rows: int
    cold_bytes: int
    pinned_bytes: int
    row_bytes: int
    bytes_per_transition: float | None
    checkpoints: tuple[Checkpoint, ...]
    writer_pid: int | None
    writers: tuple[WriterInfo, ...]
    limiter: LimiterInfo | None
    columns: tuple[tuple[str, str, tuple[int, ...]], ...]

    def summary(self) -> str:
        """One line."""
        env = f", {self.env_id}" if self.env_id else ""
        hot, cold = self.num_segments["open"] + self.num_segments["sealed"], self.num_segments["cold"]
        tiers = f"hot tier {human_bytes(self.allocated_bytes)} in {hot} segments"
        if cold:
            tiers += f", cold tier {human_bytes(self.cold_bytes)} in {cold}"
        return (
            f"Store({self.path!r}{env}: {self.num_transitions:,} transitions, {self.num_episodes:,} episodes, {tiers})"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of a table."""
        tiers = Tiers(self.num_segments, self.allocated_rows, self.allocated_bytes, self.cold_rows, self.cold_bytes)
        lines = [
            ("store", self.path),
            ("environment", self.env_id or "-"),
            ("transitions", f"{self.num_transitions:,}"),
            ("episodes begun", f"{self.num_episodes:,}"),
            ("rows, tails included", f"{self.num_rows:,}"),
            ("dropped", f"{self.num_evicted:,} transitions"),
            ("breaks", f"{self.num_breaks:,}"),
            *tiers.lines(),
            ("pinned", human_bytes(self.pinned_bytes)),
            ("bytes a row", f"{self.row_bytes:,}"),
        ]
        if self.bytes_per_transition is not None:
            lines.append(("bytes a transition", f"{self.bytes_per_transition:,.1f}"))
        for point in self.checkpoints:
            later = self.num_transitions + self.num_evicted - point.num_transitions
            told = f"{point.num_transitions:,} transitions, {later:,} later{', kept' if point.keep else ''}"
            lines.append(("checkpoint", f"{point.name}: {told}"))
        lines.append(("writer", "none" if self.writer_pid is None else f"process {self.writer_pid}"))
        lines += [(f"shard {each.shard}", str(each)) for each in self.writers]
        return lines if self.limiter is None else [*lines, *self.limiter.rows()]

    def html(self) -> str:
        """A small table for notebooks."""
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for label, value in self.rows()
        )
        return f"<table>{cells}</table>"


@dataclass(frozen=True, slots=True)
class SamplerInfo:
    """What a sampler has given since it was made; ``print`` it, or log `as_dict`.

    Attributes:
        num_batches: batches.
        num_rows: transitions in them, or sequences.
        seconds: since it was made.
        num_committed: transitions that the store has taken meanwhile.
        wait_seconds: how long batches that are read ahead were waited for.
        limiter_seconds: how long the store's limiter was waited for.
        cold_hits: rows read of the cold tier that were in the store's cache, whoever read them.
        cold_misses: likewise, for which a row group had to be decoded.
        num_ignored: updates of priorities of rows that were gone.
        num_skipped: transitions of epochs that are over that were gone when it was their turn.
        num_short: episodes that are there and are shorter than a strict sequence, so that none of them is drawn.
        age_rows: how many rows of its shard have come after a row of the last batch, on average; None before the first.
        age_seconds: how long ago it was collected, on average; likewise.
    """

    num_batches: int
    num_rows: int
    seconds: float
    num_committed: int
    wait_seconds: float
    limiter_seconds: float
    cold_hits: int
    cold_misses: int
    num_ignored: int
    num_skipped: int
    num_short: int
    age_rows: float | None
    age_seconds: float | None

    @property
    def batches_per_second(self) -> float:
        """Batches a second, the time between them included."""
        return self.num_batches / max(self.seconds, 1e-9)

    @property
    def rows_per_second(self) -> float:
        """Transitions, or sequences, a second."""
        return self.num_rows / max(self.seconds, 1e-9)

    @property
    def replay_ratio(self) -> float | None:
        """Rows drawn for each transition that the store has taken meanwhile; None if it has taken none."""
        return self.num_rows / self.num_committed if self.num_committed else None

    def as_dict(self) -> dict[str, float]:
        """All of it that there is, by name."""
        names = [*self.__slots__, "batches_per_second", "rows_per_second", "replay_ratio"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def __str__(self) -> str:
        parts = [
            f"{self.num_batches:,} batches ({self.batches_per_second:,.0f}/s)",
            f"{self.num_rows:,} rows ({self.rows_per_second:,.0f}/s)",
            f"waited {self.wait_seconds:.2f} of {self.seconds:.2f} s",
        ]
        if self.limiter_seconds:
            parts.append(f"{self.limiter_seconds:.2f} s for the limiter")
        if self.replay_ratio is not None:
            parts.append(f"replay ratio {self.replay_ratio:,.2f}")
        if self.cold_hits + self.cold_misses:
            parts.append(f"{self.cold_hits / (self.cold_hits + self.cold_misses):.0%} of cold rows in the cache")
        if self.num_ignored:
            parts.append(f"{self.num_ignored:,} updates of rows that were gone")
        if self.num_skipped:
            parts.append(f"{self.num_skipped:,} transitions were gone before their turn")
        if self.num_short:
            parts.append(f"{self.num_short:,} episodes are too short")
        if self.age_seconds is not None and self.age_rows is not None:
            parts.append(f"age {self.age_rows:,.0f} rows, {self.age_seconds:,.1f} s")
        return ", ".join(parts)


def human_bytes(count: float) -> str:
    """A size for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def describe(engine: Engine) -> StoreInfo:
    """Look at a store without reading its rows, but for the times of the newest."""
    snapshot = engine.snapshot()
    tiers = Tiers.of(entry for manifest in engine.manifests() for entry in manifest.segments)
    records = snapshot.records
    row_bytes = engine.schema.row_bytes
    num_rows = sum(record.watermark for record in records) - sum(each.num_rows for each in snapshot.evicted)
    transitions = snapshot.num_transitions
    return StoreInfo(
        path=str(engine.path),
        env_id=engine.schema.env_id,
        num_transitions=transitions,
        num_episodes=sum(record.num_episodes for record in records),
        num_rows=num_rows,
        num_evicted=sum(record.num_transitions for record in records) - transitions,
        num_breaks=sum(record.num_breaks for record in records),
        num_segments=tiers.num_segments,
        allocated_rows=tiers.allocated_rows,
        allocated_bytes=tiers.allocated_bytes,
        cold_rows=tiers.cold_rows,
        cold_bytes=tiers.cold_bytes,
        pinned_bytes=engine.pinned_bytes,
        row_bytes=row_bytes,
        bytes_per_transition=num_rows * row_bytes / transitions if transitions else None,
        checkpoints=tuple(checkpoints.read_all(engine.path, engine.file.store_id)),
        writer_pid=engine.writer_pid(),
        writers=describe_writers(engine, snapshot),
        limiter=engine.limiting.look(),
        columns=tuple((column.name, column.dtype, column.shape) for column in engine.schema.columns),
    )


def describe_writers(engine: Engine, snapshot: Snapshot) -> tuple[WriterInfo, ...]:
    """Each shard of a snapshot, and who writes it, as far as can be seen from here."""
    names = {manifest.shard: manifest.name for manifest in engine.manifests()}
    newest: dict[int, int] = {}
    for view in snapshot.layout.views:
        moment = _newest_time(view, snapshot.records[view.shard].watermark)
        newest[view.shard] = max(moment, newest.get(view.shard, 0))
    told = []
    for shard, (record, evicted) in enumerate(zip(snapshot.records, snapshot.evicted, strict=True)):
        pid, alive = writer_of(engine, shard)
        count = record.num_transitions - evicted.num_transitions
        last = newest.get(shard, 0)
        told.append(WriterInfo(shard, names.get(shard, "?"), pid, alive, count, last / 1e6 if last else None))
    return tuple(told)


def writer_of(engine: Engine, shard: int) -> tuple[int | None, bool]:
    """The process that has a shard open for writing, or has died so, and whether it runs."""
    own = engine.writer_shard
    if own is not None and own.paths.number == shard:
        return engine.writer_pid(), True
    holder = files.read_holder(shard_paths(engine.path, shard).holder)
    return (None, False) if holder is None else (holder.pid, files.is_alive(holder.pid))


def _newest_time(view: SegmentView, watermark: int) -> int:
    """When the newest row of a segment was collected, in microseconds; 0 where it has none."""
    if view.entry.sealed:
        return view.entry.last_time
    ordinals = view.column(ORDINAL)
    there = (ordinals > 0) & (ordinals <= watermark)
    return int(view.column(TIME)[there].max(initial=0))
