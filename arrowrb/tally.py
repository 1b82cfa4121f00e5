"""Counts of what a sampler has given."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, Gate, Snapshot
from .engine.tables import ORDINAL, TIME
from .info import SamplerInfo
from .rows import SHARD_SHIFT


def watermarks_of(snapshot: Snapshot) -> NDArray[np.int64]:
    """Of each shard, int64[shards]."""
    return np.array([record.watermark for record in snapshot.records], np.int64)


class Tally:
    """Counts what a sampler gives, from when it was made."""

    def __init__(self, engine: Engine, gate: Gate | None = None) -> None:
        self._engine, self._gate = engine, gate
        self._begin = time.monotonic()
        self._cold = self._cold_reads()
        self._num_committed = self._committed(engine.snapshot())
        self.num_batches = self.num_rows = 0
        self.wait_seconds = 0.0
        self._last = np.zeros(0, np.int64)

    def add(self, row_ids: NDArray[np.int64]) -> None:
        """Note a batch that is handed out."""
        self._last = row_ids
        self.num_batches += 1
        self.num_rows += row_ids.size
        if self._gate is not None:
            self._gate.count(row_ids.size)

    def info(self, num_ignored: int, num_skipped: int, num_short: int) -> SamplerInfo:
        """The counts now; those that the strategy keeps are given."""
        snapshot, seconds = self._engine.snapshot(), time.monotonic() - self._begin
        hits, misses = self._cold_reads()
        age_seconds = age_rows = None
        rows = snapshot.find(self._last)
        if rows.row_ids.size:
            values = snapshot.read(rows, [(ORDINAL, 0), (TIME, 0)])
            newest = watermarks_of(snapshot)[rows.row_ids >> SHARD_SHIFT]
            age_rows = float(np.mean(newest - values[ORDINAL, 0]))
            age_seconds = float(time.time() - np.mean(values[TIME, 0]) / 1e6)
        return SamplerInfo(
            num_batches=self.num_batches,
            num_rows=self.num_rows,
            seconds=seconds,
            num_committed=self._committed(snapshot) - self._num_committed,
            wait_seconds=self.wait_seconds,
            limiter_seconds=0.0 if self._gate is None else self._gate.wait_seconds,
            cold_hits=hits - self._cold[0],
            cold_misses=misses - self._cold[1],
            num_ignored=num_ignored,
            num_skipped=num_skipped,
            num_short=num_short,
            age_rows=age_rows,
            age_seconds=age_seconds,
        )

    def _cold_reads(self) -> tuple[int, int]:
        return self._engine.cache.num_hits, self._engine.cache.num_misses

    @staticmethod
    def _committed(snapshot: Snapshot) -> int:
        return sum(record.num_transitions for record in snapshot.records)
