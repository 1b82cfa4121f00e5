"""Collectors with worker processes: what they write and yield, which policy they use, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
import torch

import arrowrb
from arrowrb import Collector, Schema, Store
from arrowrb.collector import worker
from arrowrb.collector.weights import SharedWeights
from arrowrb.errors import ClosedError, EnvironmentFault, LockedError, OptionError, UsageError, WorkerError
from tests.counting import LENGTH, Counting, check_counting
from tests.worker_parts import (
    Ending,
    Helped,
    OnlyThere,
    Raising,
    Valued,
    Waiting,
    Worn,
    act_by,
    varied,
    within,
)


class Constant(torch.nn.Module):
    """Actions are the parameter, in a module of some size, so that copying it takes a moment."""

    def __init__(self, size: int = 20_000) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(size))

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.value.fill_(value)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        assert bool((self.value == self.value[0]).all()), "a torn version"
        return self.value[:1].expand(len(observation), 1).clone()


def schema() -> Schema:
    return Schema.from_spaces(Counting.observation_space, Counting.action_space)


def processes(collector: Any) -> list[Any]:
    return [worker.process for worker in collector._source._workers]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize("num_envs", [1, 3])
def test_synchronous_batches_are_shared_out(num_envs: int) -> None:
    with (
        Store.temporary(schema()) as store,
        Collector(
            Counting, num_envs=num_envs, num_workers=2, store=store, frames_per_batch=101, total_frames=350, seed=3
        ) as collector,
    ):
        batches = list(collector)
        assert [batch.num_rows for batch in batches] == [101, 101, 101, 47]
        assert collector.num_frames == len(store) == 350
        for batch in batches:
            shards = np.asarray(batch["row_id"]) >> 48
            assert sorted(Counter(shards.tolist()).values()) == [batch.num_rows // 2, -(-batch.num_rows // 2)]
            keys = list(
                zip(
                    shards,
                    np.asarray(batch["lane"]),
                    np.asarray(batch["episode_id"]),
                    np.asarray(batch["step"]),
                    strict=True,
                )
            )
            assert keys == sorted(keys)
        table = pa.Table.from_batches(batches)
        stored = store.sql("SELECT * FROM transitions ORDER BY row_id").arrow()
        assert sorted(table["row_id"].to_pylist()) == stored["row_id"].to_pylist()
        order = np.argsort(np.asarray(table["row_id"]))
        for name in ("observation", "next_observation", "reward", "action", "step"):
            ours, theirs = (each[name].combine_chunks() for each in (table.take(order), stored))
            storage = [each.storage if hasattr(each, "storage") else each for each in (ours, theirs)]
            assert storage[0].to_pylist() == storage[1].to_pylist(), name
        check_counting(store)
        with pytest.raises(StopIteration):
            next(collector)


def test_the_rows_are_the_same_as_without_workers() -> None:
    """The batch has the columns that a collector in this process yields."""
    with Store.temporary(schema()) as store:
        with Collector(Counting, store=store, total_frames=20) as collector:
            one = next(collector)
        with Collector(Counting, store=store, num_workers=1, frames_per_batch=20, total_frames=20) as collector:
            other = next(collector)
            assert collector.worker is None
        assert one.schema.remove_metadata() == other.schema.remove_metadata()
        assert one["step"].to_pylist() == other["step"].to_pylist()


def run_synchronously(seed: int) -> list[Any]:
    rows = []
    with gym.make("CartPole-v1") as env:
        made = Schema.from_env(env)
    with (
        Store.temporary(made) as store,
        Collector(
            varied, num_envs=2, num_workers=2, store=store, frames_per_batch=150, total_frames=450, seed=seed
        ) as collector,
    ):
        for batch in collector:
            table = pa.Table.from_batches([batch]).drop_columns(["time"])
            rows += [
                {name: str(value) for name, value in row.items()}
                for row in pa.table([_plain(column) for column in table.columns], names=table.column_names).to_pylist()
            ]
    return rows


def _plain(column: Any) -> Any:
    chunk = column.combine_chunks()
    return chunk.storage if hasattr(chunk, "storage") else chunk


def test_seeded_synchronous_runs_repeat() -> None:
    one, other, third = run_synchronously(5), run_synchronously(5), run_synchronously(6)
    assert one == other != third


def test_seeded_episodes_are_those_of_the_environment() -> None:
    """The recorded seeds and actions give the recorded observations again."""
    with (
        gym.make("CartPole-v1") as env,
        Store.temporary(Schema.from_env(env)) as store,
        Collector("CartPole-v1", num_workers=2, store=store, total_frames=300, seed=11) as collector,
    ):
        list(collector)
        seeds = store.sql("SELECT episode_id, seed FROM episodes WHERE seed IS NOT NULL").fetchall()
        assert len(seeds) == len({seed for _, seed in seeds}) == 2
        for episode, seed in seeds:
            observation, _ = env.reset(seed=int(seed))
            rows = store.sql(
                "SELECT observation, action, next_observation FROM transitions WHERE episode_id = ? ORDER BY step",
                [episode],
            ).fetchall()
            for seen, action, following in rows:
                assert np.array_equal(np.float32(seen), observation)
                observation = env.step(int(action))[0]
                assert np.array_equal(np.float32(following), observation)


def test_asynchronous_batches_come_once_each() -> None:
    with Store.temporary(schema()) as store:
        with Collector(
            Counting, num_envs=2, num_workers=2, sync=False, store=store, frames_per_batch=50, total_frames=1020
        ) as collector:
            ids: list[int] = []
            sizes = []
            for batch in collector:
                worker = collector.worker
                assert batch.schema.metadata[b"worker"] == str(worker).encode()
                shards = set((np.asarray(batch["row_id"]) >> 48).tolist())
                assert shards == {1 + (worker or 0)}
                ids += batch["row_id"].to_pylist()
                sizes.append(batch.num_rows)
        assert sorted(sizes) == [20] + [50] * 20
        assert len(ids) == len(set(ids)) == len(store) == 1020
        check_counting(store)


def test_steps_a_batch() -> None:
    with Store.temporary(schema()) as store:
        for sync in (True, False):
            with Collector(
                Counting, num_envs=3, num_workers=2, sync=sync, store=store, steps_per_batch=10, total_frames=300
            ) as collector:
                assert sum(batch.num_rows for batch in collector) == 300
        assert len(store) == 600


def test_random_frames_are_those_of_all() -> None:
    with Store.temporary(schema()) as store:
        policy = Constant()
        policy.set(1e6)
        with Collector(
            Counting,
            policy,
            num_workers=2,
            sync=False,
            store=store,
            frames_per_batch=10,
            total_frames=400,
            init_random_frames=105,
        ) as collector:
            list(collector)
        count = store.sql("SELECT count(*) FROM transitions WHERE action[1] <> 1e6").fetchall()[0][0]
        assert count == 105


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_function_may_make_a_vector_environment(num_workers: int) -> None:
    """Its lanes are those that steps are counted by, and random actions end with a vector step."""
    with Store.temporary(schema()) as store:
        policy = Constant()
        policy.set(1e6)
        with Collector(
            lambda: gym.vector.SyncVectorEnv([Counting] * 4),
            policy,
            num_workers=num_workers,
            store=store,
            steps_per_batch=10,
            total_frames=400,
            init_random_frames=101,
        ) as collector:
            assert next(collector).num_rows == 4 * 9 * max(1, num_workers)  # a step in ten resets
            assert collector.lanes == range(4)
            list(collector)
        assert store.sql("SELECT count(*) FILTER (action[1] <> 1e6), count(*) FROM transitions").fetchall() == [
            (104, 400)
        ]


@pytest.mark.parametrize("sync", [True, False])
def test_every_version_of_a_module_is_whole(sync: bool) -> None:
    """Each row's action is the version that it is recorded with, however often the module changes."""
    with Store.temporary(schema()) as store:
        policy = Constant()
        with Collector(
            Counting, policy, num_envs=2, num_workers=2, sync=sync, store=store, frames_per_batch=100, total_frames=3000
        ) as collector:
            for batch in collector:
                if sync:
                    assert set(batch["policy_version"].to_pylist()) == {collector.policy_version}
                for _ in range(3):
                    policy.set(collector.policy_version + 1)
                    collector.update_policy()
            assert collector.policy_version == collector.num_frames // 100 * 3
        wrong, versions = store.sql(
            "SELECT count(*) FILTER (action[1] <> policy_version), count(DISTINCT policy_version) FROM transitions"
        ).fetchall()[0]
        assert wrong == 0
        assert versions > 5


def test_a_new_version_is_used_within_two_steps() -> None:
    """Workers take it between steps, in the middle of a batch."""
    with Store.temporary(schema()) as store:
        policy = Constant()
        with Collector(
            lambda: Counting(pause=0.02), policy, num_workers=2, sync=False, store=store, frames_per_batch=60
        ) as collector:
            next(collector)
            published = {}
            for version in range(1, 10):
                policy.set(version)
                collector.update_policy()
                published[version] = time.time_ns() // 1000
                time.sleep(0.1)
            for _ in range(4):
                next(collector)
        for version, moment in published.items():
            late = store.sql(
                f"SELECT row_id >> 48, count(*) FROM transitions WHERE time > {moment} AND policy_version < {version} "
                "GROUP BY 1"
            ).fetchall()
            assert all(count <= 2 for _, count in late), (version, late)


def test_other_policies_are_sent() -> None:
    def policy(value: float) -> Any:
        return lambda observation: np.full((len(observation), 1), value, np.float32)

    with (
        Store.temporary(schema()) as store,
        Collector(Counting, policy(0), num_workers=2, store=store, frames_per_batch=40, total_frames=120) as collector,
    ):
        for version, batch in enumerate(collector):
            assert set(batch["reward"].to_pylist()) == {float(version)}
            assert set(batch["policy_version"].to_pylist()) == {version}
            assert collector.update_policy(policy(version + 1)) == version + 1
        with pytest.raises(OptionError, match="kind"):
            collector.update_policy(Constant())
        with pytest.raises(OptionError, match="version"):
            collector.update_policy(version=2)
        with pytest.raises(UsageError, match="update_policy"):
            collector.policy_version = 7


@pytest.mark.parametrize("make_policy", [Constant, Valued])
def test_a_synchronous_batch_is_under_one_version(make_policy: Any, tmp_path: Path) -> None:
    """Whatever is published, or changed without that, while it is collected and a worker is started again."""
    policy = make_policy()
    with (
        Store.temporary(schema()) as store,
        Collector(
            partial(Waiting, str(tmp_path)),
            policy,
            num_workers=1,
            store=store,
            frames_per_batch=15,
            total_frames=45,
            restart_workers=2,
        ) as collector,
    ):

        def learn() -> None:
            for number, version in ((1, 3), (2, 7)):
                assert within(60, (tmp_path / f"reached-{number}").exists)
                policy.set(version)
                collector.update_policy(version=version)
                policy.set(99)
                (tmp_path / f"go-on-{number}").touch()

        learner = threading.Thread(target=learn)
        learner.start()
        for version, batch in zip((0, 3, 7), collector, strict=True):
            assert set(batch["policy_version"].to_pylist()) == {version}
            assert set(batch["reward"].to_pylist()) == {version}
        learner.join()
        assert collector.num_restarts == 2
        assert collector.policy_version == 7


def test_a_module_of_another_make_is_refused() -> None:
    """Workers would go on with the computation of the first one."""

    class Negated(Constant):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            return -super().forward(observation)

    memory = SharedWeights(Constant())
    memory.write(Constant(), 1)
    with pytest.raises(OptionError, match=r"Negated as its type, expected Constant"):
        memory.write(Negated(), 2)
    with pytest.raises(OptionError, match="other parameters"):
        memory.write(Constant(3), 2)
    memory.close()
    memory = SharedWeights(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Tanh()))
    with pytest.raises(OptionError, match="ReLU at '1', expected Tanh"):
        memory.write(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU()), 1)
    with pytest.raises(OptionError, match="nothing at '1', expected Tanh"):
        memory.write(torch.nn.Sequential(torch.nn.Linear(2, 1)), 1)
    memory.close()


def test_a_version_that_was_written_in_part_is_never_used() -> None:
    def two(value: float) -> Any:
        module = torch.nn.Bilinear(1, 1, 1)
        torch.nn.init.constant_(module.weight, value)
        torch.nn.init.constant_(module.bias, value)
        return module

    memory, taken, broken = SharedWeights(two(0)), two(0), two(3)
    broken.bias = torch.nn.Parameter(torch.zeros(1, device="meta"))
    memory.write(two(1), 1)
    memory.release()
    memory.write(two(2), 2)
    assert memory.take(taken) == (1, 1)
    with pytest.raises(NotImplementedError):
        memory.write(broken, 3)
    memory.release()
    assert memory.take(taken) == (1, 1)
    assert taken.weight.item() == taken.bias.item() == 1
    memory.write(two(4), 4)
    memory.release()
    assert memory.take(taken) == (2, 4)
    memory.close()


def test_an_own_collector_takes_new_policies_too() -> None:
    with Store.temporary(schema()) as store, Collector(Counting, lambda o: o[:, :1] * 0, store=store) as collector:
        next(collector)
        assert collector.update_policy(lambda o: o[:, :1] * 0 + 5) == 1
        batch = next(collector)
        assert set(batch["reward"].to_pylist()) == {5.0}
        assert set(batch["policy_version"].to_pylist()) == {1}
        assert collector.worker is None
        assert collector.num_restarts == 0


def test_workers_run_by_themselves() -> None:
    with Store.temporary(schema()) as store:
        with Collector(
            Counting, num_workers=2, sync=False, store=store, frames_per_batch=50, total_frames=1030
        ) as collector:
            with pytest.raises(UsageError, match="was not called"):
                _ = collector.running
            collector.start()
            collector.start()
            with pytest.raises(UsageError, match="by themselves"):
                next(collector)
            while collector.running:
                time.sleep(0.01)
            assert collector.num_frames == len(store) == 1030
        assert not collector.running
        with pytest.raises(ClosedError):
            collector.start()
        with (
            Collector(Counting, num_workers=1, store=store) as collector,
            pytest.raises(UsageError, match="Give sync=False"),
        ):
            collector.start()
        with Collector(Counting, num_workers=1, sync=False, store=store) as collector:
            next(collector)
            with pytest.raises(UsageError, match="asked for already"):
                collector.start()
        with Collector(Counting, store=store) as collector, pytest.raises(UsageError, match="num_workers"):
            collector.start()
        with Collector(lambda: Counting(fails_at=45), num_workers=1, sync=False, store=store) as collector:
            collector.start()
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                while collector.running:
                    time.sleep(0.01)
            with pytest.raises(ClosedError):
                _ = collector.running


def test_what_a_worker_raises_ends_the_run() -> None:
    with Store.temporary(schema()) as store:
        collector = Collector(
            lambda: Counting(fails_at=45), num_workers=2, sync=False, store=store, frames_per_batch=20
        )
        with pytest.raises(ZeroDivisionError, match="broke") as caught:
            for _ in collector:
                pass
        assert "in step" in str(caught.value.__cause__)
        assert all(process is None or not process.is_alive() for process in processes(collector))
        with pytest.raises(ClosedError):
            next(collector)
        collector.close()
        assert len(store) >= 45  # what was whole is kept
        assert store.sql("SELECT count(*) FROM episodes WHERE ended_by = 'running'").fetchall() == [(0,)]
        check_counting(store)


def test_workers_are_started_again(caplog: pytest.LogCaptureFixture) -> None:
    """Each fails after 45 steps; what was committed stays, and what was asked for comes."""
    with Store.temporary(schema()) as store:
        for sync in (True, False):
            with Collector(
                lambda: Counting(fails_at=45),
                num_workers=2,
                sync=sync,
                store=store,
                frames_per_batch=20,
                total_frames=200,
                restart_workers=8,
            ) as collector:
                before = len(store)
                ids = [row for batch in collector for row in batch["row_id"].to_pylist()]
                assert collector.num_restarts == len(collector.failures) >= 3
                assert all(isinstance(error, ZeroDivisionError) for error in collector.failures)
                assert len(ids) == len(set(ids)) == len(store) - before == 200
        check_counting(store)
        cut = store.sql("SELECT count(*) FROM episodes WHERE ended_by = 'cut' AND length < 7").fetchall()[0][0]
        assert cut >= 6
        assert "the environment broke" in caplog.text
        assert "started again" in caplog.text


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt, OnlyThere])
def test_whatever_a_worker_raises_is_an_error(error: Any) -> None:
    """Nothing of it ends the run as though all were there, or the process; and it counts as a failure."""
    with Store.temporary(schema()) as store:
        with Collector(
            partial(Raising, error), num_workers=1, store=store, frames_per_batch=20, total_frames=60, restart_workers=1
        ) as collector:
            assert next(collector).num_rows == next(collector).num_rows == 20
            with pytest.raises(EnvironmentFault if error is StopIteration else WorkerError) as caught:
                next(collector)
            text = str(caught.value.__cause__ if error is StopIteration else caught.value)
            assert "in step" in text
            assert error.__name__ in text
            assert collector.num_restarts == 1
        assert len(store) == 48
        check_counting(store)


@pytest.mark.parametrize("size", [{"frames_per_batch": 80}, {"steps_per_batch": 40}], ids=["frames", "steps"])
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_a_worker_may_fail_twice_within_an_order(sync: bool, size: dict[str, Any], tmp_path: Path) -> None:
    """Each batch is whole, and all come to the total."""
    with Store.temporary(schema()) as store:
        with Collector(
            partial(Worn, str(tmp_path)),
            num_envs=2,
            num_workers=1,
            sync=sync,
            store=store,
            total_frames=90,
            restart_workers=2,
            **size,
        ) as collector:
            batches = list(collector)
            assert collector.num_restarts == 2
            assert collector.num_frames == len(store) == 90
        assert [batch.num_rows for batch in batches] == [80, 10]
        assert len({row for batch in batches for row in batch["row_id"].to_pylist()}) == 90
        check_counting(store)


def test_a_worker_that_dies_before_it_reports(tmp_path: Path) -> None:
    """What it has committed is a batch; what it was to do next is done once."""

    def make() -> Any:
        real, killed = worker._Control.send, tmp_path / "killed"

        def send(control: Any, message: Any) -> None:
            if isinstance(message, worker.Done) and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            real(control, message)

        worker._Control.send = send  # type: ignore[method-assign]
        return Counting()

    with (
        Store.temporary(schema()) as store,
        Collector(
            make, num_workers=1, sync=False, store=store, frames_per_batch=20, total_frames=110, restart_workers=1
        ) as collector,
    ):
        assert [batch.num_rows for batch in collector] == [20] * 5 + [10]
        assert collector.num_restarts == 1
        assert len(store) == 110


def test_a_killed_worker_is_noticed() -> None:
    with Store.temporary(schema()) as store:
        collector = Collector(lambda: Counting(pause=0.01), num_workers=2, store=store, frames_per_batch=100_000)
        pid = processes(collector)[1].pid
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({pid}, 9)"])
        with pytest.raises(WorkerError, match="Worker 1 was killed by SIGKILL"):
            next(collector)
        assert time.monotonic() - began < 60
        process.wait()


def test_a_worker_that_dies_before_it_reads_what_it_is_given() -> None:
    """However much that is: more than a pipe holds."""
    policy = partial(act_by, np.zeros(100_000))
    resource_tracker.ensure_running()
    with Store.temporary(schema()) as store:
        multiprocessing.set_executable("/bin/false")
        try:
            with pytest.raises(WorkerError, match="ended with exit code 1 while it was started"):
                Collector(Counting, policy, num_workers=1, store=store)
        finally:
            multiprocessing.set_executable(sys.executable)


def test_new_policies_wait_for_no_worker() -> None:
    """One that is stopped reads nothing; then it uses the newest."""
    with Store.temporary(schema()) as store:
        policy = partial(act_by, np.zeros(100_000))
        with Collector(Counting, policy, num_workers=1, sync=False, store=store, frames_per_batch=20) as collector:
            next(collector)
            pid = processes(collector)[0].pid
            os.kill(pid, signal.SIGSTOP)
            for version in range(1, 9):
                collector.update_policy(partial(act_by, np.full(100_000, version)))
            os.kill(pid, signal.SIGCONT)
            assert within(60, lambda: set(next(collector)["reward"].to_pylist()) == {8.0})
        wrong = store.sql("SELECT count(*) FROM transitions WHERE reward <> policy_version").fetchall()
        assert wrong == [(0,)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_environments_fork_keep_no_worker(tmp_path: Path) -> None:
    """A worker has ended when it has, whoever has its files open."""
    helpers = tmp_path / "helpers"
    try:
        with Store.temporary(schema()) as store:
            collector = Collector(lambda: Helped(helpers), num_workers=2, store=store, frames_per_batch=100_000)
            for process in processes(collector):
                os.kill(process.pid, signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(WorkerError, match="was killed by SIGKILL"):
                next(collector)
            assert time.monotonic() - began < 12  # less than a worker that does not end is waited for
    finally:
        for pid in helpers.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_a_learner_forks_have_no_workers() -> None:
    """They cannot end them, nor use them, nor keep them."""
    with (
        Store.temporary(schema()) as store,
        Collector(Counting, num_workers=2, sync=False, store=store, frames_per_batch=50) as collector,
    ):
        next(collector)
        source: Any = collector._source
        waiting, told = os.pipe()
        child = os.fork()
        if child == 0:
            refused = 0
            for use in (source.batch, partial(source.publish, None, 1)):
                try:
                    use()
                except UsageError:
                    refused += 1
            collector.close()
            if refused == 2:
                os.write(told, b"!")
                time.sleep(60)
            os._exit(1)
        assert os.read(waiting, 1) == b"!"
        for _ in range(6):
            next(collector)
        ours = processes(collector)
        collector.close()
        assert [process.exitcode for process in ours] == [0, 0]
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        os.close(waiting)
        os.close(told)


def test_closing_ends_a_thread_that_waits_for_a_batch() -> None:
    with Store.temporary(schema()) as store:
        for sync in (True, False):
            collector = Collector(
                lambda: Counting(pause=0.01), num_workers=1, sync=sync, store=store, frames_per_batch=10**6
            )
            with ThreadPoolExecutor(1) as pool:
                batch = pool.submit(next, collector)
                assert within(30, collector._source._num_ordered)  # type: ignore[union-attr]
                collector.close()
                with pytest.raises(ClosedError):
                    batch.result(timeout=30)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt("x"), GeneratorExit("x")], ids=repr)
def test_what_is_no_exception_arrives_as_an_error(error: BaseException) -> None:
    """It means something to the process that it is raised in alone."""
    with (
        Store.temporary(schema()) as store,
        Collector(lambda: Ending(error), num_workers=1, store=store) as collector,
        pytest.raises(WorkerError, match=f"Worker 0 ended with this error:(?s:.*){type(error).__name__}: "),
    ):
        next(collector)


def test_an_error_is_told_though_the_environment_does_not_close() -> None:
    with (
        Store.temporary(schema()) as store,
        Collector(lambda: Ending(ZeroDivisionError("no air"), True), num_workers=1, store=store) as collector,
        pytest.raises(ZeroDivisionError, match="no air"),
    ):
        next(collector)


def test_what_keeps_workers_from_starting() -> None:
    def broken() -> Any:
        raise RuntimeError("no display")

    with Store.temporary(schema()) as store:
        with pytest.raises(RuntimeError, match="no display"):
            Collector(broken, num_workers=2, store=store)
        with pytest.raises(OptionError, match="cannot be sent"):
            Collector(Counting(), num_workers=2, store=store)
        with pytest.raises(OptionError, match="without a store"):
            Collector(Counting, num_workers=2)
        lock = threading.Lock()
        with pytest.raises(OptionError, match="pickled"):
            Collector(lambda: Counting(lock.locked()), num_workers=1, store=store)
        with pytest.raises(OptionError, match="num_workers"):
            Collector(Counting, sync=False, store=store)
        with pytest.raises(OptionError, match="num_workers is -1"):
            Collector(Counting, num_workers=-1, store=store)
        assert len(store) == 0


def test_two_collectors_cannot_have_the_same_workers() -> None:
    with (
        Store.temporary(schema()) as store,
        Collector(Counting, num_workers=1, store=store),
        pytest.raises(LockedError),
    ):
        Collector(Counting, num_workers=1, store=store)


def test_a_run_goes_on_with_other_numbers_of_workers(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path, schema()).close()
    total = 0
    for num_workers, mode in ((2, "a"), (1, "r"), (3, "a")):
        with (
            Store.open(path, mode=mode) as store,
            Collector(
                Counting, num_workers=num_workers, store=store, total_frames=90, frames_per_batch=30
            ) as collector,
        ):
            total += sum(batch.num_rows for batch in collector)
            assert len(store) == total
    with Store.open(path) as store:
        check_counting(store)
        shards = store.sql("SELECT row_id >> 48, count(*) FROM transitions GROUP BY 1 ORDER BY 1").fetchall()
        assert shards == [(1, 45 + 90 + 30), (2, 45 + 30), (3, 30)]
    assert not arrowrb.verify(path).problems


SCRIPT = """
    import os
    import sys
    import time
    import arrowrb
    from tests.counting import Counting
    from tests.test_workers import processes

    if __name__ == "__main__":
        with (
            arrowrb.Store.open(sys.argv[1], mode="a") as store,
            arrowrb.Collector(Counting, num_workers=2, sync=False, store=store, frames_per_batch=50) as collector,
        ):
            print(*(process.pid for process in processes(collector)), flush=True)
            if "fork" in sys.argv and os.fork() == 0:
                time.sleep(45)
                os._exit(0)
            for batch in collector:
                pass
"""


def start_script(path: Path, tmp_path: Path, *options: str) -> tuple[Any, list[int]]:
    script = tmp_path / "run_of_workers.py"
    script.write_text(textwrap.dedent(SCRIPT))
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), str(path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(word) for word in process.stdout.readline().split()]


@pytest.mark.parametrize("how", ["interrupt", "kill", "terminate", "fork"])
def test_no_process_is_left(how: str, tmp_path: Path) -> None:
    """Ctrl-C (which reaches all), and the death of the process that started them, also where one it forked lives on."""
    path = tmp_path / "store"
    Store.create(path, schema()).close()
    process, pids = start_script(path, tmp_path, how)
    assert len(pids) == 2
    with Store.open(path) as store:
        assert within(60, lambda: len(store) > 500)
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "terminate":
        process.terminate()
    else:
        process.kill()
    assert within(30, lambda: not any(alive(pid) for pid in pids))
    if how == "fork":
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    if how == "interrupt":
        assert errors.count("Traceback") == 1
        assert "KeyboardInterrupt" in errors
    with Store.open(path, mode="a") as store:
        for name in ("worker-0", "worker-1"):
            Store.open(path, mode="a", shard=name).close()  # no lock is left
        check_counting(store)
    assert not arrowrb.verify(path).problems


def test_a_collector_that_nobody_holds_ends_its_workers() -> None:
    with Store.temporary(schema()) as store:
        collector: Any = Collector(Counting, num_workers=1, store=store)
        pid = processes(collector)[0].pid
        repr(collector)
        with pytest.raises(UsageError):
            _ = collector.env
        assert list(collector.lanes) == [0]
        del collector
        assert within(30, lambda: not alive(pid))


def test_workers_wait_for_a_learner(tmp_path: Path) -> None:
    """The limiter holds them back; closing the collector ends them while they wait, and who sampled lets them go on."""
    limiter = arrowrb.SampleToInsertRatio(samples_per_insert=1, min_size=100, tolerance=50, patience=60)
    with Store.create(tmp_path / "store", schema(), limiter=limiter) as store:
        with Collector(Counting, num_workers=2, sync=False, store=store, frames_per_batch=10) as collector:
            collector.start()
            assert within(30, lambda: len(store) >= 100)
            time.sleep(0.5)
            assert len(store) <= 100 + 50 + 2 * 10
            sampler = store.sampler(batch_size=50, seed=1)
            for _ in range(20):
                sampler.sample()
            assert within(30, lambda: len(store) >= 1000)
            assert collector.running
            pids = [process.pid for process in processes(collector)]
            time.sleep(0.2)
        assert not any(alive(pid) for pid in pids)
        assert len(store) <= 100 + 1000 + 50 + 2 * 10 + 20
        check_counting(store)


def test_workers_fill_a_store_that_keeps_so_much_only() -> None:
    """Limits are for all shards together; what a batch says was dropped meanwhile is not in it."""
    with Store.temporary(schema(), max_rows=2_000) as store:
        with Collector(
            Counting, num_envs=2, num_workers=2, sync=False, store=store, frames_per_batch=50, total_frames=20_000
        ) as collector:
            sampler = store.sampler(batch_size=64, seed=1)
            for batch in collector:
                assert batch.num_rows <= 50
                sampler.sample()
        assert collector.num_frames == 20_000
        assert store.info().num_evicted == 20_000 - len(store)
        assert 1_000 < len(store) <= 2_000 + 2_000 // 8
        assert (
            store.sql("SELECT count(*) FROM episodes WHERE ended_by <> 'running'").fetchall()[0][0] >= 20_000 // LENGTH
        )
        newest = store.sql("SELECT max(step), count(DISTINCT row_id >> 48) FROM transitions").fetchall()[0]
        assert newest == (LENGTH - 1, 2)


def test_a_script_from_stdin_has_workers() -> None:
    """There is no file to run again, and what the script defines travels by value."""
    script = """
        import sys
        import arrowrb
        from tests.counting import Counting

        class Doubled(Counting):
            def step(self, action):
                return super().step(2 * action)

        def policy(observation):
            return observation[:, :1] * 0 + 3

        schema = arrowrb.Schema.from_spaces(Counting.observation_space, Counting.action_space)
        options = {"frames_per_batch": 20, "total_frames": 40}
        with arrowrb.Store.temporary(schema) as store:
            for more in ({"num_workers": 1}, {"num_envs": 2, "vectorization_mode": "async"}):
                with arrowrb.Collector(Doubled, policy, store=store, **options, **more) as collector:
                    print(*(set(batch["reward"].to_pylist()) for batch in collector))
        print(sys.modules["__main__"].__file__)
    """
    command = [sys.executable, "-W", "error", "-"]
    done = subprocess.run(command, input=textwrap.dedent(script), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["{6.0} {6.0}"] * 2 + ["<stdin>"], done.stderr


def test_processes_begin_with_ctrl_c_blocked() -> None:
    """Also the first one of a process, which starts a tracker of resources beside it."""
    script = """
        import time
        from multiprocessing import get_context
        from arrowrb.collector.processes import _without_interrupts

        if __name__ == "__main__":
            process = get_context("spawn").Process(target=time.sleep, args=(60,))
            with _without_interrupts():
                process.start()
            with open(f"/proc/{process.pid}/status") as status:
                print(next(line for line in status if line.startswith("SigBlk")).split()[1])
            process.kill()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert int(done.stdout, 16) & (1 << (signal.SIGINT - 1))
