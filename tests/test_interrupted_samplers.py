"""Samplers beside other threads, and after Ctrl-C at any moment: nothing is torn, nothing is lost."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import arrowrb
from arrowrb import kernels
from arrowrb.errors import QueryError, RowError, UsageError
from arrowrb.store import Store
from tests.test_refused_and_resumed import add, schema
from tests.test_views import World
from tests.test_views import world as world  # noqa: PLC0414

pytestmark = pytest.mark.usefixtures("no_garbage")

STRATEGIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "n-step": (arrowrb.Uniform(), {"n_step": 5}),
    "sequences": (arrowrb.Sequences(3), {}),
    "periods": (arrowrb.Sequences(3, period=2), {}),
    "prioritized": (arrowrb.Prioritized(), {}),
    "where": (arrowrb.Where("reward > -9"), {}),
    "where prioritized": (arrowrb.Where("reward > -9", arrowrb.Prioritized()), {}),
    "weighted": (arrowrb.Weighted("SELECT row_id, 1.0 AS weight FROM transitions"), {}),
    "episodes": (arrowrb.Episodes(complete=False), {}),
    "shuffled": (arrowrb.Shuffled(), {}),
    "ahead": (arrowrb.Uniform(), {"prefetch": 3}),
    "shuffled ahead": (arrowrb.Shuffled(), {"prefetch": 3}),
}


@pytest.fixture
def interrupts() -> Iterator[None]:
    """A timer that sends what Ctrl-C does."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", STRATEGIES)
def test_interrupted_at_any_moment(interrupts: None, name: str) -> None:
    """The next batch is there, and all rows can be drawn."""
    strategy, options = STRATEGIES[name]
    chance = random.Random(1)
    with Store.temporary(schema()) as store:
        every = set(add(store, 60).tolist())
        hits = 0
        for _ in range(60):
            sampler = store.sampler(strategy, batch_size=64, seed=1, **options)
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 4e-3))
                for _ in range(30):
                    sampler.sample()
                signal.setitimer(signal.ITIMER_REAL, 0)  # in here: it may ring meanwhile
            except (KeyboardInterrupt, RuntimeError, QueryError):  # DuckDB tells in its own words
                hits += 1
            seen: set[int] = set()
            for _ in range(15):
                seen |= set(sampler.sample()["row_id"].flatten().tolist())
            if "sequences" not in name and "periods" not in name:
                assert every <= seen | {-1}, name
        assert hits > 5


def inside(owner: Any, name: str, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of one call."""
    real = getattr(owner, name)

    def hit(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        patch.setattr(owner, name, real)
        signal.raise_signal(signal.SIGINT)
        return result

    patch.setattr(owner, name, hit)


@pytest.mark.parametrize(
    ("kernel", "strategy"),
    [
        ("count_starts", arrowrb.Sequences(3)),
        ("go_back", arrowrb.Sequences(3, period=2)),
        ("mend_roots", arrowrb.Prioritized()),
        ("link_blocks", arrowrb.Sequences(3, across_episodes=True)),
        ("admit_rows", arrowrb.Where("reward > -9", arrowrb.Prioritized())),
    ],
)
def test_interrupted_in_a_kernel(kernel: str, strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.temporary(schema()) as store:
        for lane in range(5):
            add(store, 2000, lane=lane)
        sampler = store.sampler(strategy, batch_size=4)
        inside(kernels, kernel, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            sampler.sample()
        sampler.sample()


def test_interrupted_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.temporary(schema()) as store:
        add(store, 100)
        sampler: Any = store.sampler(arrowrb.Where("reward > -9"), batch_size=200)
        inside(sampler._stream._rows._source, "follow", monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            sampler.sample()
        assert len(set(sampler.sample()["row_id"].tolist())) > 70


@pytest.mark.parametrize("strategy", [arrowrb.Uniform(), arrowrb.Shuffled(epochs=1)])
def test_where_no_thread_can_be_started(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with too many of them; and Ctrl-C in the middle of starting one may come out as such an error, too."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Store.temporary(schema()) as store:
        add(store, 1000)
        sampler = store.sampler(strategy, batch_size=100, prefetch=3)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for _ in range(2):
                with pytest.raises(RuntimeError, match="thread"):
                    sampler.sample()
        ids = [each for _ in range(10) for each in sampler.sample()["row_id"].tolist()]
        assert isinstance(strategy, arrowrb.Uniform) or len(set(ids)) == 1000


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("place", ["draw", "add", "read"])
def test_an_interrupted_epoch_is_whole(place: str, prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.temporary(schema()) as store:
        add(store, 1000)
        sampler: Any = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=100, prefetch=prefetch)
        owner = {"draw": sampler._stream, "add": sampler._tally, "read": sampler._reader}[place]
        ids: list[int] = []
        if place != "read" or prefetch == 0:
            inside(owner, place, monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                next(sampler)
        for batch in sampler:
            ids += batch["row_id"].tolist()
        assert len(ids) == len(set(ids)) == 1000
        assert sampler.info().num_skipped == 0


def test_an_interrupted_log_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "store", schema()) as store:
        add(store, 1000)
        for place, prefetch in (("_note", 0), ("_note", 2), ("_read_now", 0)):
            sampler: Any = store.sampler(batch_size=50, name="a", log=True, prefetch=prefetch)
            inside(sampler, place, monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                sampler.sample()
            monkeypatch.undo()
            for _ in range(4):
                batch = sampler.sample()
                again = sampler.redraw(sampler.num_logged)
                assert (again["row_id"] == batch["row_id"]).all()
            sampler.close()


LEARNING = """
import threading, time, sys, arrowrb
from arrowrb.store import Store
from tests.test_refused_and_resumed import add, schema
store = Store.create(sys.argv[1], schema(), max_rows=5000, sync_interval=None)
add(store, 500)
errors = []
def learn():
    sampler = store.sampler(arrowrb.Prioritized(), batch_size=64, name="learner", log=5000)
    try:
        while not done:
            batch = sampler.sample()
            sampler.update(batch["row_id"], batch["reward"])
    except Exception as error:
        errors.append(error)
def write():
    while not done:
        add(store, 500)
done = False
threads = [threading.Thread(target=each) for each in (learn, write)]
for each in threads: each.start()
end, points = time.monotonic() + 8, 0
while time.monotonic() < end:
    store.checkpoint("point", state={})
    store.sql("SELECT count(*), max(row_id) FROM samples").fetchall()
    points += 1
done = True
for each in threads: each.join()
assert not errors, errors
assert points > 2
store.close()
print("well", points)
"""


def test_checkpoints_beside_a_learner_in_another_thread(tmp_path: Path) -> None:
    """In a process of its own: it died there."""
    command = [sys.executable, "-c", LEARNING, str(tmp_path / "store")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout.startswith("well"), ended.stderr[-2000:]


def test_a_transform_that_makes_a_checkpoint(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", schema()) as store:
        add(store, 100)

        def transform(batch: Any) -> Any:
            store.checkpoint("point", state={})
            return batch

        sampler = store.sampler(batch_size=4, name="a", transform=transform)
        sampler.sample()


def test_what_a_transform_may_raise() -> None:
    with Store.temporary(schema()) as store:
        add(store, 100)
        for prefetch in (0, 2):
            sampler = store.sampler(batch_size=4, transform=lambda _: sys.exit(3), prefetch=prefetch)
            for _ in range(2):
                with pytest.raises(SystemExit):
                    sampler.sample()
            sampler = store.sampler(batch_size=4, transform=lambda _: next(iter([])), prefetch=prefetch)
            with pytest.raises(RuntimeError, match="transform raised StopIteration"):
                next(sampler)


def test_closed_samplers_have_no_state() -> None:
    with Store.temporary(schema()) as store:
        add(store, 100)
        first = store.sampler(arrowrb.Prioritized(), batch_size=10, name="x")
        first.sample()
        state = first.state_dict()
        first.close()
        with store.sampler(arrowrb.Prioritized(), batch_size=10, name="x"):
            for call in (first.state_dict, lambda: first.load_state_dict(state)):
                with pytest.raises(UsageError, match="is closed"):
                    call()


def test_restored_rows_that_are_gone(world: tuple[World, Store], tmp_path: Path) -> None:
    """An endless sampler draws anew; held epochs keep what they gave back."""
    with Store.create(tmp_path / "store", schema(), max_rows=1000) as store:
        add(store, 300)
        ahead = store.sampler(batch_size=50, seed=0, prefetch=3)
        ahead.sample()
        state = ahead.state_dict()
        held = store.sampler(arrowrb.Shuffled(epochs=1, hold=True), batch_size=50, prefetch=3)
        counts = Counter(held.sample()["row_id"].tolist())
        held.clear()
        for _ in range(40):
            add(store, 300)
        store.maintain()
        fresh = store.sampler(batch_size=50, seed=0)
        fresh.load_state_dict(state)
        assert len(fresh.sample()["row_id"]) == 50
        fresh.load_state_dict(state)
        assert len([batch for _, batch in zip(range(5), fresh, strict=False)]) == 5
        for batch in held:
            counts.update(batch["row_id"].tolist())
        assert counts.total() == len(counts) == 300


def test_a_mixture_logs_what_it_hands_out(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", schema()) as store:
        add(store, 100)
        calls = 0

        def transform(batch: dict[str, Any]) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            if calls in (3, 4):
                raise ValueError("no")
            return batch

        once = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=1, seed=0, name="m", log=True)
        mixture = arrowrb.Mixture([(once, 0.5), (store.sampler(batch_size=1, transform=transform), 0.5)], batch_size=20)
        batches = 0
        while True:
            try:
                next(mixture)
                batches += 1
            except ValueError:
                pass
            except StopIteration:
                break
        assert (batches, once.num_logged, once.info().num_rows) == (10, 10, 100)


def test_redrawn_batches_are_what_they_were(tmp_path: Path) -> None:
    """Or an error tells that what they have read is gone."""
    goals = gym.spaces.Dict(
        {name: gym.spaces.Box(-1e6, 1e6, (1,), np.float32) for name in ("achieved_goal", "desired_goal")}
    )
    made = arrowrb.Schema.from_spaces(goals, gym.spaces.Discrete(2))
    reward: Callable[..., Any] = lambda achieved, desired: -np.abs(achieved - desired)[:, 0].astype(float)  # noqa: E731
    with Store.create(tmp_path / "store", made, max_rows=1000) as store:
        count = 0

        def extend(rows: int) -> None:
            nonlocal count
            reached = np.arange(count, count + rows + 1, dtype=np.float32)[:, None]
            count += rows
            seen = {"achieved_goal": reached, "desired_goal": np.zeros_like(reached)}
            store.extend(
                {
                    "observation": {name: each[:-1] for name, each in seen.items()},
                    "next_observation": {name: each[1:] for name, each in seen.items()},
                    "action": np.zeros(rows, np.int64),
                    "reward": np.zeros(rows),
                    "terminated": np.zeros(rows, np.bool_),
                    "truncated": np.zeros(rows, np.bool_),
                }
            )

        for _ in range(10):
            extend(100)
        samplers = [
            store.sampler(strategy, batch_size=1, seed=0, name=f"s{number}", log=True, **options)
            for number, (strategy, options) in enumerate(
                [
                    (arrowrb.Hindsight(reward, goals="episode", fraction=1.0), {}),
                    (arrowrb.Hindsight(reward, goals="future", fraction=1.0), {}),
                    (arrowrb.Uniform(), {"frame_stack": {"observation": 4}}),
                    (arrowrb.Uniform(), {"windows": {"observation": (-3, 1)}}),
                    (arrowrb.Sequences(2, burn_in=8), {}),
                ]
            )
        ]
        drawn = [[sampler.sample() for _ in range(150)] for sampler in samplers]
        for _ in range(6):
            extend(100)
        store.maintain()
        for sampler, batches in zip(samplers, drawn, strict=True):
            outcomes: Counter[str] = Counter()
            for number, batch in enumerate(batches, start=1):
                try:
                    again = sampler.redraw(number)
                except RowError:
                    outcomes["gone"] += 1
                    continue
                outcomes["same"] += 1
                for name in ("achieved_goal", "desired_goal"):
                    assert (again["observation"][name] == batch["observation"][name]).all()
                assert (again["reward"] == batch["reward"]).all()
            assert outcomes["gone"] > 0


def test_many_threads_draw(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", schema(), max_rows=3000) as store:
        add(store, 500)
        errors: list[Exception] = []

        def draw(number: int) -> None:
            strategy = [arrowrb.Uniform(), arrowrb.Sequences(2), arrowrb.Prioritized()][number % 3]
            try:
                sampler = store.sampler(strategy, batch_size=32, name=f"s{number}")
                for _ in range(150):
                    sampler.sample()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=draw, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            add(store, 100)
            store.checkpoint("point", state={})
        assert not errors


def test_loading_a_kernel_swallows_no_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM calls Python functions back while it loads, and what these raise is printed and forgotten."""
    ended = []

    def load(_: str, __: str) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            ended.append(True)
        return SimpleNamespace(**{"no kernel": 1})

    monkeypatch.setattr(kernels, "import_module", load)
    monkeypatch.setitem(kernels._HOMES, "no kernel", "nowhere")
    with pytest.raises(KeyboardInterrupt):
        kernels.__getattr__("no kernel")
    assert ended == [True]
    assert "no kernel" not in vars(kernels)
