"""Batches that a thread reads ahead: the same as without, whole, kept, resumed; and what a sampler tells of itself."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.engine import Engine, WriterOptions
from arrowrb.errors import ClosedError, OptionError, UsageError
from arrowrb.loader import batches
from arrowrb.retention import Limits
from arrowrb.store import Store

GOAL = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
SCHEMA = arrowrb.Schema.from_spaces(
    gym.spaces.Dict({"observation": GOAL, "achieved_goal": GOAL, "desired_goal": GOAL}), gym.spaces.Discrete(2)
)
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "uniform": (arrowrb.Uniform(), {}),
    "views": (
        arrowrb.Uniform(),
        {"n_step": 3, "frame_stack": {"observation.observation": 2}, "windows": {"action": (-1, 2)}},
    ),
    "prioritized": (arrowrb.Prioritized(), {"n_step": 2}),
    "sequences": (arrowrb.Sequences(3), {}),
    "masked": (arrowrb.Sequences(4, strict=False), {}),
    "lanes": (arrowrb.Sequences(4, across_episodes=True), {}),
    "hindsight": (arrowrb.Hindsight(lambda achieved, desired: (achieved - desired).sum(1)), {}),
}


def append(store: Store, rng: np.random.Generator, count: int) -> set[int]:
    """Episodes of random goals in two lanes; row ids."""
    lanes = rng.integers(0, 2, count)
    points = {name: rng.normal(size=(count, 2)).astype(np.float32) for name in ("achieved_goal", "desired_goal")}
    observation = {**points, "observation": rng.normal(size=(count, 2)).astype(np.float32)}
    behind = {name: np.empty_like(values) for name, values in observation.items()}
    for lane in (0, 1):
        at = np.flatnonzero(lanes == lane)
        for name, values in observation.items():
            behind[name][at] = np.concatenate([values[at[1:]], values[at[:1]] + 1])
    row_ids = store.extend(
        {
            "observation": observation,
            "action": rng.integers(0, 2, count),
            "reward": rng.normal(size=count),
            "next_observation": behind,
            "terminated": rng.random(count) < 0.1,
            "truncated": rng.random(count) < 0.02,
            "lane": lanes,
        }
    )
    return set(row_ids.tolist())


def fill(path: Path) -> Store:
    """A store of both tiers."""
    Store.create(path, SCHEMA, max_rows=4000).close()
    store = Store(Engine(path, writable=True, options=WriterOptions(None, limits=Limits(hot_rows=1000, max_rows=4000))))
    rng = np.random.default_rng(0)
    for _ in range(20):
        append(store, rng, 130)
    store.maintain()
    assert store.info().cold_rows
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with fill(tmp_path / "store") as made:
        yield made


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One that no test writes to."""
    with fill(tmp_path_factory.mktemp("still") / "store") as made:
        yield made


def flat(batch: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a batch by name, nested ones too."""
    found: dict[str, torch.Tensor] = {}
    for name, value in batch.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def same(one: Any, other: Any) -> bool:
    a, b = flat(one), flat(other)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name].nan_to_num(7.5), b[name].nan_to_num(7.5))
        if a[name].is_floating_point()
        else torch.equal(a[name], b[name])
        for name in a
    )


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("prefetch", [1, 5])
def test_batches_are_the_same_whether_read_ahead_or_not(still: Store, kind: str, prefetch: int) -> None:
    strategy, options = SAMPLERS[kind]
    plain = still.sampler(strategy, batch_size=16, seed=3, **options)
    ahead = still.sampler(strategy, batch_size=16, seed=3, prefetch=prefetch, **options)
    kept = []
    for _ in range(20):
        one, other = plain.sample(), ahead.sample()
        assert same(one, other)
        kept.append((one, other, {name: value.clone() for name, value in flat(one).items()}))
    for one, other, before in kept:  # whoever keeps a batch keeps it unchanged
        assert same(one, before)
        assert same(other, before)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_state_gives_the_same_remainder(still: Store, kind: str, prefetch: int) -> None:
    strategy, options = SAMPLERS[kind]
    sampler = still.sampler(strategy, batch_size=16, seed=3, prefetch=prefetch, **options)
    for number in range(7):
        batch = sampler.sample()
        if kind == "prioritized":
            sampler.update(batch["row_id"], np.full(16, float(number)))
    state = sampler.state_dict()
    rest = [{name: each.clone() for name, each in flat(sampler.sample()).items()} for _ in range(9)]
    sampler.load_state_dict(state)  # into itself
    assert all(same(sampler.sample(), batch) for batch in rest)
    for other in (0, prefetch):
        fresh = still.sampler(strategy, batch_size=16, seed=8, prefetch=other, **options)
        fresh.load_state_dict(state)
        again = fresh.state_dict()
        assert all(same(fresh.sample(), batch) for batch in rest)
        fresh.load_state_dict(again)  # before anything of it was drawn
        assert all(same(fresh.sample(), batch) for batch in rest)


@pytest.mark.parametrize(
    "damage",
    [
        {"ahead": np.zeros(3, np.int64)},
        {"ahead": np.zeros(16, np.float32)},
        {"columns": {"weight": np.zeros(3)}},
        {"hidden": 3},
        {"batch_size": 8},
        {"stream": {"strategy": "prioritized"}},
    ],
)
def test_states_that_do_not_fit_change_nothing(still: Store, damage: dict[str, Any]) -> None:
    sampler = still.sampler(batch_size=16, seed=3, prefetch=2)
    sampler.sample()
    state = sampler.state_dict()
    with pytest.raises(OptionError):
        sampler.load_state_dict({**state, **damage})
    rest = [sampler.sample()["row_id"].tolist() for _ in range(5)]
    sampler.load_state_dict(state)
    assert [sampler.sample()["row_id"].tolist() for _ in range(5)] == rest


def test_rows_that_come_later_wait_for_at_most_the_batches_ahead(store: Store) -> None:
    sampler = store.sampler(batch_size=64, seed=3, prefetch=4)
    sampler.sample()
    new = append(store, np.random.default_rng(5), 2000)
    fresh = [bool(new & set(sampler.sample()["row_id"].tolist())) for _ in range(8)]
    assert not any(fresh[:2])
    assert all(fresh[4:])
    newest = append(store, np.random.default_rng(6), 2000)
    sampler.clear()
    assert newest & set(sampler.sample()["row_id"].tolist())


def test_an_error_of_a_transform_is_raised_where_its_batch_is_asked_for(still: Store) -> None:
    calls = 0

    def transform(batch: dict[str, torch.Tensor]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ZeroDivisionError("four")
        return batch["row_id"].shape, threading.current_thread().name

    sampler = still.sampler(batch_size=4, seed=3, prefetch=1, transform=transform)
    assert sampler.sample() == ((4,), "arrowrb-prefetch")
    assert sampler.sample() == ((4,), "arrowrb-prefetch")
    assert sampler.sample() == ((4,), "arrowrb-prefetch")
    with pytest.raises(ZeroDivisionError, match="four"):
        sampler.sample()
    assert sampler.sample()[0] == (4,)
    assert still.sampler(batch_size=4, transform=len).sample() == 7
    with pytest.raises(OptionError, match="transform is 3"):
        still.sampler(batch_size=4, transform=3)  # type: ignore[arg-type]


def test_tensordicts(still: Store) -> None:
    import tensordict

    batch = still.sampler(batch_size=4, seed=1, as_tensordict=True).sample()
    assert isinstance(batch, tensordict.TensorDict)
    assert batch.batch_size == (4,)
    assert same(batch.to_dict(), still.sampler(batch_size=4, seed=1).sample())
    shape = still.sampler(batch_size=4, as_tensordict=True, transform=lambda batch: batch.batch_size).sample()
    assert shape == (4,)
    sequences = still.sampler(arrowrb.Sequences(3), batch_size=4, as_tensordict=True, prefetch=1).sample()
    assert sequences["observation", "achieved_goal"].shape == (4, 3, 2)
    pair = gym.spaces.Tuple((gym.spaces.Discrete(3), GOAL))
    with Store.temporary(arrowrb.Schema.from_spaces(pair, gym.spaces.Discrete(2))) as nameless:
        point = (1, np.zeros(2, np.float32))
        flags = {"terminated": True, "truncated": False}
        nameless.add(observation=point, action=1, reward=0.0, next_observation=point, **flags)
        with pytest.raises(OptionError, match="observation is of a Tuple space"):
            nameless.sampler(batch_size=2, as_tensordict=True).sample()
    with pytest.raises(OptionError, match="as_tensordict is 1"):
        still.sampler(batch_size=4, as_tensordict=1)  # type: ignore[arg-type]


def test_threads_end_with_their_samplers(store: Store) -> None:
    def running() -> int:
        gc.collect()
        return sum(thread.name == "arrowrb-prefetch" for thread in threading.enumerate())

    before = running()
    samplers = [store.sampler(batch_size=4, prefetch=2) for _ in range(5)]
    for sampler in samplers:
        sampler.sample()
    assert running() == before + 5
    sampler = samplers.pop()
    samplers.clear()
    wait_for(lambda: running() == before + 1)
    store.close()
    with pytest.raises(ClosedError):
        sampler.sample()
    del sampler
    wait_for(lambda: running() == before)


def wait_for(happens: Callable[[], bool]) -> None:
    begin = time.monotonic()
    while not happens():
        assert time.monotonic() - begin < 20
        time.sleep(0.01)


def test_samplers_that_rest_hold_no_segments(store: Store) -> None:
    sampler = store.sampler(batch_size=4, prefetch=2)
    kept = sampler.sample()
    append(store, np.random.default_rng(5), 4000)  # all that it drew from is gone
    store.maintain()
    gc.collect()
    assert kept["row_id"].shape == (4,)
    wait_for(lambda: store.info().pinned_bytes == 0)


SCRIPT = """
import sys, arrowrb, torch
store = arrowrb.Store.open(sys.argv[1])
large = torch.ones(1000, 1000)
def transform(batch):
    return torch.mm(large, large)  # compiled code, without the GIL
sampler = store.sampler(batch_size=256, prefetch=64, transform=transform)
for _ in range(3):
    sampler.sample()
if sys.argv[2] == "dropped":
    del sampler
print("done", flush=True)
"""


@pytest.mark.parametrize("how", ["held", "dropped"])
def test_a_process_ends_while_batches_are_read(still: Store, how: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(still._engine.path), how]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_children_are_refused(store: Store) -> None:
    sampler = store.sampler(batch_size=4, prefetch=2)
    sampler.sample()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            for _ in range(8):
                sampler.sample()
        except UsageError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert sampler.sample()["row_id"].shape == (4,)


def test_a_wait_that_is_too_long_says_so(still: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(batches, "_LOOK_SECONDS", 0.1)
    hold = threading.Event()
    sampler = still.sampler(batch_size=4, prefetch=2, transform=lambda batch: hold.wait(30) and batch)
    with pytest.raises(arrowrb.WaitError, match="batches that are read ahead"):
        sampler.sample()
    hold.set()
    assert sampler.sample()["row_id"].shape == (4,)


def test_what_a_sampler_tells(store: Store) -> None:
    sampler = store.sampler(batch_size=64, seed=3, prefetch=2)
    told = sampler.info()
    assert (told.num_batches, told.num_rows, told.replay_ratio, told.age_rows) == (0, 0, None, None)
    for _ in range(4):
        sampler.sample()
    append(store, np.random.default_rng(5), 100)
    batch = sampler.sample()
    told = sampler.info()
    assert (told.num_batches, told.num_rows, told.num_committed) == (5, 320, 100)
    assert told.replay_ratio == 3.2
    assert told.cold_hits + told.cold_misses > 0
    assert 0 < told.wait_seconds < told.seconds
    newest = store.sql("SELECT max(ordinal) FROM steps").fetchall()[0][0]
    ordinals = store.gather(batch["row_id"], columns=["ordinal"])["ordinal"]
    assert told.age_rows == pytest.approx(float((newest - ordinals).double().mean()))
    assert told.age_seconds is not None
    assert 0 <= told.age_seconds < 600
    assert "5 batches" in str(told)
    assert "replay ratio 3.20" in str(told)
    assert told.as_dict()["replay_ratio"] == 3.2
    append(store, np.random.default_rng(5), 4000)
    store.maintain()
    assert sampler.info().age_rows is None  # its rows are gone


def test_updates_of_rows_that_are_gone_are_told(store: Store) -> None:
    sampler = store.sampler(arrowrb.Prioritized(), batch_size=64, seed=3)
    batch = sampler.sample()
    append(store, np.random.default_rng(5), 4000)
    store.maintain()
    sampler.update(batch["row_id"], np.ones(64))
    assert sampler.info().num_ignored == 64
    assert "64 updates of rows that were gone" in str(sampler.info())
