"""A run at one moment: who writes what how fast, how episodes went, where rows lie, what is sampled."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from arrowrb import files
from arrowrb.engine import Engine, Snapshot, read_store_file
from arrowrb.engine.paths import STORE_FILE
from arrowrb.engine.state import same_objects
from arrowrb.errors import ArrowRBError, ClosedError, StoreNotFoundError
from arrowrb.info import Tiers, writer_of
from arrowrb.manifest import Manifest
from arrowrb.monitor.episodes import Episodes, Spread
from arrowrb.monitor.lanes import Lanes, count_lanes
from arrowrb.monitor.sampled import LogInfo, count_sampled, read_logs
from arrowrb.store import Store

_RATE_SECONDS: Final = 10.0  # over which rates are taken
_GOING_SECONDS: Final = 1.0  # for a folder to be removed, once something in it is missing
_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A shard, which is what one worker or other process writes.

    Attributes:
        shard: its number.
        name: its name, such as ``main`` or ``worker-0``.
        pid: the process that has it open for writing, or has died so; None where it was closed in order.
        alive: whether that process runs.
        num_committed: transitions that were ever committed.
        per_second: transitions a second lately; None at the first look.
        num_lanes: lanes that its writer has; 0 where it has none, or has died.
        num_running: those of them on which an episode runs.
        policy_version: of its newest transition; None where there is none that is new.
        policy_lag: how many versions that is behind the newest one of all shards.
        last_write: when that transition was collected, in seconds since the epoch.
    """

    shard: int
    name: str
    pid: int | None
    alive: bool
    num_committed: int
    per_second: float | None
    num_lanes: int
    num_running: int
    policy_version: int | None
    policy_lag: int | None
    last_write: float | None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run at one moment. Rates are those of the last ten seconds, or since the first look, at which they are None.

    Attributes:
        path: the store's directory.
        env_id: the environment's id, where it is known.
        seconds: since the first look.
        num_transitions: transitions that can be sampled.
        num_committed: transitions that were ever committed.
        num_evicted: those of them that retention has dropped.
        per_second: transitions a second.
        num_episodes: episodes begun.
        num_running: episodes that run.
        num_finished: episodes that ended since the first look, and in the newest rows before it.
        finished_per_second: episodes a second.
        returns: of the newest episodes that ended: None where there is none, or the beginning of none was seen.
        lengths: likewise, in steps.
        policy_version: the newest one of all shards.
        tiers: segments, rows and bytes.
        shards: each shard, and who writes it.
        num_sampled: rows that samplers took, as the store counts them; None where it does not.
        sampled_per_second: likewise; where the store does not count, of the samplers with logs, if there are any.
        replay_ratio: rows sampled for each transition that came in the same time.
        samplers: those with names.
    """

    path: str
    env_id: str | None
    seconds: float
    num_transitions: int
    num_committed: int
    num_evicted: int
    per_second: float | None
    num_episodes: int
    num_running: int
    num_finished: int
    finished_per_second: float | None
    returns: Spread | None
    lengths: Spread | None
    policy_version: int | None
    tiers: Tiers
    shards: tuple[ShardInfo, ...]
    num_sampled: int | None
    sampled_per_second: float | None
    replay_ratio: float | None
    samplers: tuple[LogInfo, ...]


@dataclass(frozen=True, slots=True)
class _Counts:
    """What rates are taken of, at one moment."""

    time: float
    committed: dict[int, int]
    finished: int
    sampled: int | None
    batches: dict[str, int]
    rows: dict[str, int]


class Monitor:
    """Looks at a run. Use it from one thread.

    Its store may be one that others write, opened for reading by a process of its own, or one's own.
    """

    def __init__(self, store: Store, *, window: int = 100, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to look at a store.

        Args:
            store: which one.
            window: how many episodes returns and lengths are of, the newest that ended.
            clock: in seconds.
        """
        self._engine: Engine = store._engine
        self._clock, self._begin = clock, clock()
        self._episodes = Episodes(window)
        self._looks: deque[_Counts] = deque()
        self._measured: tuple[list[Manifest], Tiers] = ([], Tiers.of(()))
        self._stamp = files.stamp_of(os.stat(self._engine.path / STORE_FILE))

    def look(self) -> RunInfo:
        """The run now.

        Raises:
            StoreNotFoundError: if the store was removed, or another one is in its place.
        """
        try:
            if self._is_gone():
                raise self._gone()
            return self._look()
        except (StoreNotFoundError, ClosedError):
            raise
        except (ArrowRBError, OSError) as error:
            patience = time.monotonic() + _GOING_SECONDS
            while time.monotonic() < patience:  # somebody may be removing it file by file
                if self._is_gone():
                    raise self._gone() from error
                time.sleep(_PAUSE_SECONDS)
            raise

    def _is_gone(self) -> bool:
        path = self._engine.path
        try:
            stamp = files.stamp_of(os.stat(path / STORE_FILE))
            if stamp != self._stamp:
                if read_store_file(path).store_id != self._engine.file.store_id:
                    return True
                self._stamp = stamp
        except FileNotFoundError:
            return True
        return False

    def _gone(self) -> StoreNotFoundError:
        return StoreNotFoundError(
            f"The store {self._engine.path} has gone: it was removed, moved or replaced meanwhile."
        )

    def _look(self) -> RunInfo:
        engine, episodes = self._engine, self._episodes
        snapshot = engine.snapshot()
        episodes.take(snapshot)
        logs = read_logs(engine)
        now = _Counts(
            self._clock(),
            {shard: record.num_transitions for shard, record in enumerate(snapshot.records)},
            episodes.num_finished,
            count_sampled(engine),
            {log.name: log.num_batches for log in logs if log.num_batches is not None},
            {log.name: log.num_rows for log in logs if log.num_rows is not None},
        )
        rates = _Rates(self._oldest(now), now)
        samplers = tuple(replace(log, rows_per_second=rates.log(log)) for log in logs)
        shards = self._shards(snapshot, rates)
        sampled = rates.sampled(samplers)
        versions = [each.policy_version for each in shards if each.policy_version is not None]
        committed = sum(now.committed.values())
        return RunInfo(
            path=str(engine.path),
            env_id=engine.schema.env_id,
            seconds=now.time - self._begin,
            num_transitions=snapshot.num_transitions,
            num_committed=committed,
            num_evicted=committed - snapshot.num_transitions,
            per_second=rates.committed,
            num_episodes=sum(record.num_episodes for record in snapshot.records),
            num_running=sum(each.num_running for each in shards),
            num_finished=episodes.num_finished,
            finished_per_second=rates.finished,
            returns=episodes.returns,
            lengths=episodes.lengths,
            policy_version=max(versions, default=None),
            tiers=self._tiers(),
            shards=shards,
            num_sampled=now.sampled,
            sampled_per_second=sampled,
            replay_ratio=sampled / rates.committed if sampled is not None and rates.committed else None,
            samplers=samplers,
        )

    def _oldest(self, now: _Counts) -> _Counts:
        """The look from which rates are taken."""
        self._looks.append(now)
        while len(self._looks) > 2 and self._looks[1].time <= now.time - _RATE_SECONDS:
            self._looks.popleft()
        return self._looks[0]

    def _tiers(self) -> Tiers:
        """Measured anew when a list of segments has changed."""
        manifests, (known, tiers) = self._engine.manifests(), self._measured
        if not same_objects(known, manifests):
            tiers = Tiers.of(entry for manifest in manifests for entry in manifest.segments)
            self._measured = (manifests, tiers)
        return tiers

    def _shards(self, snapshot: Snapshot, rates: _Rates) -> tuple[ShardInfo, ...]:
        names = {manifest.shard: manifest.name for manifest in self._engine.manifests()}
        lanes, newest = count_lanes(snapshot), self._episodes.newest
        version = max((each.policy_version for each in newest.values()), default=0)
        told = []
        for shard, record in enumerate(snapshot.records):
            pid, alive = writer_of(self._engine, shard)
            counted = lanes.get(shard, Lanes()) if alive else Lanes()
            last = newest.get(shard)
            told.append(
                ShardInfo(
                    shard=shard,
                    name=names.get(shard, "?"),
                    pid=pid,
                    alive=alive,
                    num_committed=record.num_transitions,
                    per_second=rates.shard(shard),
                    num_lanes=counted.num_lanes,
                    num_running=counted.num_running,
                    policy_version=None if last is None else last.policy_version,
                    policy_lag=None if last is None else version - last.policy_version,
                    last_write=None if last is None else last.time,
                )
            )
        return tuple(told)


class _Rates:
    """Between two looks; None where they are the same one."""

    def __init__(self, before: _Counts, now: _Counts) -> None:
        self._before, self._now = before, now
        self._seconds = now.time - before.time

    def _rate(self, count: float) -> float | None:
        return count / self._seconds if self._seconds > 0 else None

    def shard(self, shard: int) -> float | None:
        """Transitions a second of one shard, which may be newer than the first look."""
        return self._rate(self._now.committed[shard] - self._before.committed.get(shard, 0))

    @property
    def committed(self) -> float | None:
        """Transitions a second."""
        return self._rate(sum(self._now.committed.values()) - sum(self._before.committed.values()))

    @property
    def finished(self) -> float | None:
        """Episodes a second."""
        return self._rate(self._now.finished - self._before.finished)

    def log(self, log: LogInfo) -> float | None:
        """Rows a second of a sampler: as they are counted, or by its log and the size of its newest batch."""
        if log.num_rows is not None:
            before = self._before.rows.get(log.name, 0)
            return self._rate(log.num_rows - (before if before <= log.num_rows else 0))  # another one counts from 0
        if log.num_batches is None or log.batch_size is None:
            return None
        return self._rate((log.num_batches - self._before.batches.get(log.name, 0)) * log.batch_size)

    def sampled(self, samplers: tuple[LogInfo, ...]) -> float | None:
        """Rows that are sampled a second, as far as that is counted."""
        if self._now.sampled is not None:
            return self._rate(self._now.sampled - (self._before.sampled or 0))
        known = [each.rows_per_second for each in samplers if each.rows_per_second is not None]
        return sum(known) if known else None
