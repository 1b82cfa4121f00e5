"""A limiter with workers and learners: who waits learns at once why nobody comes, and loops end as they should."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrowrb import Collector, SampleToInsertRatio, Store
from arrowrb.errors import WaitError, WorkerError
from tests.counting import Counting
from tests.test_limiter import LONG, SCHEMA, again, child, limiter_of, until
from tests.test_workers import schema

SOON = 30.0  # seconds, far below the patience, and far above what anything here takes


@contextlib.contextmanager
def soon() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < SOON


def limited(ratio: float = 1, **options: Any) -> Store:
    return Store.temporary(schema(), limiter=SampleToInsertRatio(ratio, **{"patience": LONG, **options}))


def rows(count: int) -> dict[str, Any]:
    zeros = np.zeros((count, 2), np.float32)
    ends = {"terminated": np.ones(count, np.bool_), "truncated": np.zeros(count, np.bool_)}
    given = {"observation": zeros, "next_observation": zeros, "action": zeros[:, :1], "reward": np.ones(count)}
    return {**given, **ends}


def workers(store: Store, env: Any = Counting, **options: Any) -> Collector:
    given: dict[str, Any] = {"num_workers": 1, "sync": False, "frames_per_batch": 10, **options}
    return Collector(env, store=store, **given)


# -- what a worker raises ------------------------------------------------------------------------------------------


def test_a_learner_that_waits_learns_what_a_worker_raised() -> None:
    with limited(min_size=500) as store, workers(store, lambda: Counting(fails_at=30)) as collector:
        collector.start()
        sampler = store.sampler(batch_size=8)
        with soon(), pytest.raises(WaitError, match="ended with an error: ZeroDivisionError: the env") as caught:
            sampler.sample()
        error = caught.value.__cause__
        assert isinstance(error, ZeroDivisionError)
        assert "counting.py" in str(error.__cause__)  # the worker's traceback
        with pytest.raises(ZeroDivisionError):
            _ = collector.running


def test_a_learner_that_waits_learns_that_a_worker_was_killed() -> None:
    with limited(min_size=500) as store, workers(store, lambda: Counting(pause=0.01)) as collector:
        collector.start()
        sampler = store.sampler(batch_size=8)
        (worker,) = collector._source._workers  # type: ignore[union-attr]
        killer = threading.Timer(0.3, worker.process.kill)
        killer.start()
        with soon(), pytest.raises(WaitError, match="SIGKILL") as caught:
            sampler.sample()
        killer.join()
        assert isinstance(caught.value.__cause__, WorkerError)


def test_a_collector_that_failed_and_was_closed_is_forgotten() -> None:
    with limited(min_size=40) as store:
        with workers(store, lambda: Counting(fails_at=30)) as collector:
            collector.start()
            sampler = store.sampler(batch_size=8)
            with pytest.raises(WaitError, match="ZeroDivisionError"):
                sampler.sample()
        with workers(store, total_frames=100) as collector:
            collector.start()
            sampler.sample()


# -- how loops of learners end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_documented_loop_ends_when_all_is_collected(num_workers: int) -> None:
    """The learner is faster and waits at the end: the batch that it waits for is let through, and the loop is over."""
    with limited(4, min_size=20, tolerance=0) as store:
        env, options = lambda: Counting(pause=0.002), {"num_workers": num_workers, "total_frames": 105}
        with workers(store, env, **options) as collector, soon():
            collector.start()
            sampler, batches = store.sampler(batch_size=64), 0
            while collector.running:
                sampler.sample()
                batches += 1
        told = limiter_of(store)
        assert told.inserts == len(store) == 105
        assert told.samples == 64 * batches
        assert -2 * 64 < told.owed <= 0


def test_a_loop_over_batches_ends_when_all_is_collected() -> None:
    for sync in (True, False):
        with limited(2, min_size=10, tolerance=20) as store, soon():
            with workers(store, sync=sync, num_workers=2, frames_per_batch=20, total_frames=100) as collector:
                sampler = store.sampler(batch_size=40)
                for _ in collector:
                    sampler.sample()
                sampler.sample()
            assert len(store) == 100


def test_a_min_size_that_is_never_reached_is_told_at_once() -> None:
    with limited(min_size=500) as store, workers(store, total_frames=50) as collector:
        collector.start()
        sampler = store.sampler(batch_size=8)
        with soon(), pytest.raises(WaitError, match=r"50 transitions are committed, and min_size is 500\. All is coll"):
            sampler.sample()
        assert not collector.running


def test_who_else_collects_is_waited_for() -> None:
    """The collector of this process is done, and an actor is not."""
    with (
        limited(min_size=100) as store,
        workers(store, total_frames=20) as collector,
        Store.open(store.path, mode="a", shard="actor") as actor,
    ):
        collector.start()
        until(lambda: not collector.running)
        release = threading.Event()

        def act() -> None:
            actor.extend(rows(1))
            release.wait(LONG)
            actor.extend(rows(100))

        threads = [threading.Thread(target=act), threading.Timer(0.5, release.set)]
        for thread in threads:
            thread.start()
        until(lambda: len(store) == 21)
        store.sampler(batch_size=8).sample()
        assert release.is_set()
        for thread in threads:
            thread.join()


def test_a_thread_that_collected_and_has_ended() -> None:
    with limited(min_size=10, tolerance=10) as store:
        thread = threading.Thread(target=lambda: again(lambda: store.extend(rows(1)), 30))
        sampler = store.sampler(batch_size=8)
        thread.start()
        with soon(), pytest.raises(WaitError, match="Nobody collects any more"):
            again(sampler.sample)
        thread.join()
        assert limiter_of(store).samples == 32


@pytest.mark.parametrize("ends", ["cleanly", "killed"])
def test_actors_of_ones_own_that_are_gone(tmp_path: Path, ends: str) -> None:
    """Who has closed the store does not come back, and that is told soon; who has died may be started again."""
    path, actors = tmp_path / "store", []
    patience = LONG if ends == "cleanly" else 3.0
    Store.create(path, SCHEMA, limiter=SampleToInsertRatio(1, min_size=10, tolerance=20, patience=patience)).close()
    with Store.open(path) as store, contextlib.ExitStack() as stack:
        sampler = store.sampler(batch_size=8)
        for shard in ("one", "two"):
            actors.append(child(path, shard, size=5, count=4 if ends == "cleanly" else 10**9, pause=0.01))
            stack.callback(actors[-1].communicate)
            stack.callback(actors[-1].kill)
        with soon(), pytest.raises(WaitError) as caught:  # noqa: PT012
            sampler.sample()
            if ends == "killed":
                for actor in actors:
                    actor.kill()
            again(sampler.sample)
        told = "Nobody collects any more" if ends == "cleanly" else "Nobody collects now: process"
        assert told in str(caught.value)


def test_an_actor_that_failed_may_be_started_again(tmp_path: Path) -> None:
    """Its store was closed by the error, and not because it was done."""
    ratio = SampleToInsertRatio(1, min_size=10, tolerance=10, patience=3.0)
    Store.create(tmp_path / "store", schema(), limiter=ratio).close()
    with Store.open(tmp_path / "store") as store:
        sampler = store.sampler(batch_size=8)
        with pytest.raises(ZeroDivisionError), Store.open(tmp_path / "store", mode="a", shard="actor") as actor:  # noqa: PT012
            actor.extend(rows(10))
            raise ZeroDivisionError
        with soon(), pytest.raises(WaitError, match=r"Nobody collects now: process \d+ \(actor\) died"):
            again(sampler.sample)
        with Store.open(tmp_path / "store", mode="a", shard="actor") as actor:
            actor.extend(rows(10))
            (told,) = [each for each in limiter_of(store).participants if each.side == "collecting"]
            assert (told.name, told.alive) == ("actor", True)
            sampler.sample()


def test_a_worker_that_is_started_again_is_waited_for() -> None:
    env = lambda: Counting(fails_at=30)  # noqa: E731
    with limited(min_size=60) as store, workers(store, env, restart_workers=5, total_frames=200) as collector:
        collector.start()
        store.sampler(batch_size=8).sample()
        assert collector.num_restarts >= 1


# -- iterating, in the thread that samples -------------------------------------------------------------------------


def test_asking_and_sampling_in_turn_by_one_thread() -> None:
    """Workers that collect when they are asked, by a thread that waits for them to have collected."""
    with limited(min_size=500) as store, workers(store, sync=True) as collector:
        sampler = store.sampler(batch_size=8)
        next(collector)
        with soon(), pytest.raises(WaitError, match=r"10 transitions .* asks for another .* collector\.start\(\)"):
            sampler.sample()
        next(collector)  # goes on


@pytest.mark.parametrize("sync", [True, False])
def test_asking_for_what_only_sampling_would_allow(sync: bool) -> None:
    """Then it goes on, as no worker has given up."""
    with limited(min_size=20, tolerance=60) as store, workers(store, sync=sync, num_workers=2) as collector:
        sampler = store.sampler(batch_size=8)
        for _ in range(3):
            next(collector)
        sampler.sample()
        with soon(), pytest.raises(WaitError, match=r"sampling owes .* of the workers samples.* collector\.start\(\)"):
            again(collector.__next__)
        for _ in range(10):
            sampler.sample()
        next(collector)


def test_another_thread_that_samples_is_waited_for() -> None:
    with limited(min_size=20, tolerance=60) as store, workers(store, sync=True, num_workers=2) as collector:
        sampler = store.sampler(batch_size=8)
        thread = threading.Thread(target=lambda: again(lambda: (sampler.sample(), time.sleep(0.02)), 12))
        thread.start()
        for _ in range(10):
            next(collector)
        thread.join()


# -- workers that give up ------------------------------------------------------------------------------------------


def test_a_worker_that_waited_in_vain_is_not_started_again() -> None:
    with limited(min_size=10, tolerance=10, patience=0.5) as store, workers(store, restart_workers=5) as collector:
        collector.start()
        with soon(), pytest.raises(WaitError, match="Nobody samples now"):  # noqa: PT012
            while collector.running:
                time.sleep(0.01)
        assert collector.num_restarts == 0
