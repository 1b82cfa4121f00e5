"""The newest rows, and all since a moment: each once, in the order of episodes; and advantages over their runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.engine import Engine, WriterOptions, segments
from arrowrb.errors import ColumnError, EmptyError, OptionError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.plain_store import plain_schema
from tests.test_chains import World


def open_small(path: Path) -> Store:
    return Store(Engine(path, writable=True, options=WriterOptions(None, limits=Limits(hot_rows=300, max_rows=1000))))


@pytest.fixture(params=range(2))
def made(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, World, np.random.Generator]:
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([2, 4, 16]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    Store.create(tmp_path / "store", plain_schema(), max_rows=1000).close()
    return tmp_path / "store", World(rng, int(rng.choice([1, 3]))), rng


def check(store: Store, batch: dict[str, Any], expected: set[int]) -> None:
    """That it holds these rows, in order, with their values, and says where runs end."""
    order = {row_id: (lane, ordinal, episode, step) for row_id, lane, ordinal, episode, step in _table(store)}
    row_ids = batch["row_id"].tolist()
    assert sorted(row_ids) == sorted(expected)
    assert row_ids == sorted(row_ids, key=lambda row_id: order[row_id][:2])
    ends = [order[one][2] != order[two][2] or order[one][3] + 1 != order[two][3] for one, two in pairwise(row_ids)]
    assert batch["run_end"].tolist() == [*ends, True][: len(row_ids)]
    for name, values in store.gather(row_ids).items():
        assert torch.equal(batch[name], values)


def _table(store: Store) -> list[tuple[int, ...]]:
    return store.sql("SELECT row_id, lane, ordinal, episode_id, step FROM transitions").fetchall()  # type: ignore[return-value]


def test_each_once(made: tuple[Path, World, np.random.Generator]) -> None:
    """A writer and a reader see every transition once, or it is counted as missing; over restarts, moves and drops."""
    path, world, rng = made
    store, reader = open_small(path), Store.open(path)
    marks: dict[str, Any] = {"writer": None, "reader": store.watermark(), "slow": store.watermark()}
    unread: dict[str, set[int]] = {name: set() for name in marks}
    lost = 0
    for number in range(40):
        batch = world.batch(int(rng.integers(1, 120)), 0.1)
        new = set(store.extend(batch).tolist())
        store.maintain()
        unread = {name: rows | new for name, rows in unread.items()}
        if rng.random() < 0.1:
            store.close()
            store = open_small(path)
            marks["writer"] = tuple(marks["writer"] or ((), 0))  # as a checkpoint's state gives it back
        for name, each, often in (("writer", store, 0.8), ("reader", reader, 0.5), ("slow", store, 0.02)):
            if rng.random() > often and number < 39:
                continue
            there = {row for row, *_ in _table(store)}
            found, marks[name] = each.since(marks[name])
            check(store, found, unread[name] & there)
            assert marks[name].num_missing == len(unread[name] - there)
            lost += marks[name].num_missing
            unread[name] = set()
            if each is store:
                assert marks[name].shards == store.watermark().shards
    assert lost > 0
    empty, mark = store.since(store.watermark())
    assert (empty["observation"].shape, empty["run_end"].shape, mark.num_missing) == ((0, 4), (0,), 0)
    store.close()
    reader.close()


def test_latest(made: tuple[Path, World, np.random.Generator]) -> None:
    path, world, rng = made
    with open_small(path) as store, Store.open(path) as reader:
        with pytest.raises(EmptyError, match="the store is empty"):
            store.latest(5)
        for _ in range(20):
            store.extend(world.batch(int(rng.integers(1, 120)), 0.1))
            store.maintain()
            rows = [row for row, *_ in sorted(_table(store), key=lambda row: row[2])]
            for count in (1, 7, 150, 5000):
                check(store, store.latest(count), set(rows[-count:]))
            check(store, reader.latest(40), set(rows[-40:]))
        batch = store.latest(3, columns=["reward"], float64="float32")
        assert batch.keys() == {"reward", "row_id", "run_end"}
        assert batch["reward"].dtype == torch.float32


def test_a_mark_survives_in_a_checkpoint(made: tuple[Path, World, np.random.Generator]) -> None:
    path, world, _ = made
    with open_small(path) as store:
        store.extend(world.batch(50, 0.1))
        store.checkpoint("point", state={"mark": tuple(store.watermark())})
        new = set(store.extend(world.batch(30, 0.1)).tolist())
        _, state = store.restore("point")
        batch, _ = store.since(state["mark"])
        check(store, batch, new)


def test_wrong_marks(made: tuple[Path, World, np.random.Generator]) -> None:
    path, world, _ = made
    with open_small(path) as store:
        store.extend(world.batch(50, 0.1))
        for wrong in (3, "x", (((1, 2, 3),), 0), (((-1, 0),), 0), (((True, 0),), 0), ((None,), 0)):
            with pytest.raises(OptionError, match=r"expected what Store\.watermark"):
                store.since(wrong)  # type: ignore[arg-type]
        for wrong in ((((999, 1),), 0), (((1, 999),), 0), (((1, 1), (0, 0)), 0)):
            with pytest.raises(OptionError, match="in the future"):
                store.since(wrong)
        for count in (0, True, 1.5):
            with pytest.raises(OptionError):
                store.latest(count)  # type: ignore[arg-type]


# -- advantages


def slow_gae(
    reward: Any, value: Any, following: Any, terminated: Any, ends: Any, gamma: float, lam: float
) -> list[float]:
    """The definition: a sum over the steps behind each one in its run."""
    found = []
    for t in range(len(reward)):
        total, k = 0.0, t
        while True:
            total += (gamma * lam) ** (k - t) * (reward[k] + gamma * following[k] * (not terminated[k]) - value[k])
            if ends[k] or terminated[k]:
                break
            k += 1
        found.append(total)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_gae_is_what_its_definition_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 300
    reward, value, following = rng.normal(size=(3, count))
    terminated, ends = rng.random(count) < 0.05, rng.random(count) < 0.1
    ends[-1] = True
    gamma, lam = (0.99, 0.95) if seed else (1.0, 1.0)
    expected = np.array(slow_gae(reward, value, following, terminated, ends, gamma, lam))
    advantage, returns = arrowrb.gae(reward, value, following, terminated, ends, gamma=gamma, lam=lam)
    np.testing.assert_allclose(advantage, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(returns, expected + value, rtol=1e-10, atol=1e-10)
    tensors = [torch.tensor(each, dtype=torch.float32, requires_grad=True) for each in (reward, value, following)]
    flags = [torch.tensor(each) for each in (terminated, ends)]
    advantage, returns = arrowrb.gae(*tensors, *flags, gamma=gamma, lam=lam)
    assert advantage.dtype == returns.dtype == torch.float32
    assert not advantage.requires_grad
    np.testing.assert_allclose(advantage.numpy(), expected, rtol=2e-4, atol=2e-4)


def test_gae_by_hand() -> None:
    """Two runs: one that goes on behind its end, bootstrapped; one that terminates."""
    advantage, returns = arrowrb.gae(
        [1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [20.0, 40.0, 99.0], [False, False, True], [False, True, True],
        gamma=0.5, lam=0.5,
    )  # fmt: skip
    assert advantage.tolist() == [1 + 10 - 10 + 0.25 * 2.0, 2 + 20 - 20, 3 - 30]
    assert returns.tolist() == [11.5, 22.0, 3.0]


def test_gae_over_rows_of_a_store() -> None:
    """The usual loop over time, of one lane with ends of both kinds."""
    with Store.temporary(plain_schema()) as store:
        rng = np.random.default_rng(0)
        world = World(rng, 1)
        batch = world.batch(60, 0.0)
        batch["terminated"][20], batch["truncated"][40] = True, True
        batch["observation"][[21, 41]] += 1  # episodes that begin
        store.extend(batch)
        rollout = store.latest(60)
        weights = torch.randn(4)
        value, following = rollout["observation"] @ weights, rollout["next_observation"] @ weights
        advantage, _ = arrowrb.gae(
            rollout["reward"], value, following, rollout["terminated"], rollout["run_end"], gamma=0.9, lam=0.8
        )
        last, expected = 0.0, [0.0] * 60
        for t in reversed(range(60)):
            going_on = 0.0 if batch["terminated"][t] or batch["truncated"][t] else 1.0
            delta = batch["reward"][t] + 0.9 * float(following[t]) * (not batch["terminated"][t]) - float(value[t])
            last = expected[t] = delta + 0.9 * 0.8 * going_on * last
        np.testing.assert_allclose(advantage.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_gae_refuses() -> None:
    one = np.zeros(3)
    flags = np.zeros(3, bool)
    with pytest.raises(ColumnError, match=r"next_value has shape \(2,\), expected \(3,\)"):
        arrowrb.gae(one, one, np.zeros(2), flags, flags)
    with pytest.raises(ColumnError, match=r"reward has shape \(3, 1\)"):
        arrowrb.gae(np.zeros((3, 1)), one, one, flags, flags)
    with pytest.raises(ColumnError, match="value is a str"):
        arrowrb.gae(one, "abc", one, flags, flags)
    for options in ({"gamma": 1.5}, {"lam": -0.1}, {"lam": True}, {"gamma": float("nan")}):
        with pytest.raises(OptionError, match="expected a number from 0 to 1"):
            arrowrb.gae(one, one, one, flags, flags, **options)
