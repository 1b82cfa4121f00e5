"""Sequences against episodes as plain lists: where they begin and how often, what they hold, where they end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.engine import Engine, WriterOptions, segments
from arrowrb.errors import EmptyError, OptionError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema
from tests.test_chains import World


@pytest.fixture(params=range(3))
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[World, Store, Store]]:
    """A writer and a reader of a store with both tiers, whose oldest rows were dropped."""
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([2, 4, 32]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    Store.create(tmp_path / "store", plain_schema(), max_rows=1000).close()
    limits = Limits(hot_rows=300, max_rows=1000)
    with (
        Store(Engine(tmp_path / "store", writable=True, options=WriterOptions(0.02, limits=limits))) as store,
        Store.open(tmp_path / "store") as reader,
    ):
        yield World(rng, int(rng.choice([1, 3]))), store, reader


def episodes_of(store: Store) -> list[list[int]]:
    """Row ids of the transitions that are there, by episode and in order."""
    table = store.sql("SELECT episode_id, row_id FROM transitions ORDER BY episode_id, step").fetchall()
    found: dict[int, list[int]] = {}
    for episode, row_id in table:
        found.setdefault(episode, []).append(row_id)
    return list(found.values())


def starts_of(episodes: list[list[int]], length: int) -> list[int]:
    return [episode[t] for episode in episodes for t in range(len(episode) - length + 1)]


def chi_square(found: Counter[int], expected: dict[int, float]) -> None:
    assert set(found) <= set(expected)
    statistic = sum((found[key] - each) ** 2 / each for key, each in expected.items())
    freedom = len(expected) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * max(freedom, 1)) + 15


@pytest.mark.parametrize("length", [1, 3, 9])
def test_starts(world: tuple[World, Store, Store], length: int) -> None:
    """Their number is right whatever has come, moved and gone since; at the end, how often each is drawn is, too."""
    made, store, reader = world
    rng = np.random.default_rng(length)
    samplers = [each.sampler(arrowrb.Sequences(length), batch_size=64, seed=2) for each in (store, reader)]
    by_episode = store.sampler(arrowrb.Sequences(length, over="episodes"), batch_size=64, seed=3)
    sampled = store.sampler(arrowrb.Sequences(length, strict=False), batch_size=2)
    for _ in range(25):
        store.extend(made.batch(int(rng.integers(1, 90)), float(rng.choice([0.02, 0.2]))))
        if rng.random() < 0.5:
            sampled.sample()  # while segments move
        store.maintain()  # else rows may go between the looks
        episodes = episodes_of(store)
        for each, (owner, name) in zip((*samplers, by_episode), ((store, 0), (reader, 0), (store, 1)), strict=True):
            if length == 1 and not name:
                continue  # all transitions
            counted = each._stream._starts.count(owner._engine.snapshot(), by_episode=bool(name))
            long = [episode for episode in episodes if len(episode) >= length]
            assert counted == (len(long) if name else len(starts_of(episodes, length)))
    episodes = episodes_of(store)
    starts = starts_of(episodes, length)
    count = 64 * (40 * len(starts) // 64 + 1)
    for sampler in samplers:
        found = Counter(row for _ in range(count // 64) for row in sampler.sample()["row_id"][:, 0].tolist())
        chi_square(found, dict.fromkeys(starts, count / len(starts)))
    long = [episode for episode in episodes if len(episode) >= length]
    many = 64 * (200 * len(long) // 64 + 1)
    found = Counter(row for _ in range(many // 64) for row in by_episode.sample()["row_id"][:, 0].tolist())
    expected = {
        row: many / len(long) / (len(episode) - length + 1)
        for episode in long
        for row in episode[: len(episode) - length + 1]
    }
    assert set(found) <= set(expected)
    of = {row: i for i, episode in enumerate(long) for row in episode}
    per_episode = Counter(of[row] for row in found.elements())
    chi_square(per_episode, dict.fromkeys(range(len(long)), many / len(long)))


def check_values(batch: dict[str, Any], store: Store, steps: dict[int, int]) -> None:
    """That each step has the values of its row."""
    mask = batch.get("mask", torch.ones_like(batch["row_id"], dtype=torch.bool))
    ids = batch["row_id"][mask]
    for name, values in store.gather(ids).items():
        assert torch.equal(batch[name][mask], values)
    assert not any(batch[name][~mask].any() for name in batch if name not in ("row_id", "mask", "start_row_id"))
    assert (batch["row_id"][~mask] == -1).all()
    assert torch.equal(batch["start_row_id"], batch["row_id"][:, 0])
    assert batch["is_first"][mask].tolist() == [steps[row_id] == 0 for row_id in ids.tolist()]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("across", [True, False])
def test_what_they_hold(world: tuple[World, Store, Store], strict: bool, across: bool, prefetch: int) -> None:
    made, store, _ = world
    for _ in range(12):
        store.extend(made.batch(80, 0.1))
    store.maintain()
    steps = dict(store.sql("SELECT row_id, step FROM transitions").fetchall())
    lanes: dict[int, list[int]] = {}
    for lane, row_id in store.sql("SELECT lane, row_id FROM transitions ORDER BY lane, ordinal").fetchall():
        lanes.setdefault(lane, []).append(row_id)
    chains = list(lanes.values()) if across else episodes_of(store)
    place = {row_id: (chain, t) for chain in chains for t, row_id in enumerate(chain)}
    strategy = arrowrb.Sequences(6, strict=strict, across_episodes=across)
    sampler = store.sampler(strategy, batch_size=16, seed=1, prefetch=prefetch)
    shorter = 0
    for _ in range(20):
        batch = sampler.sample()
        assert batch["observation"].shape == (16, 6, 4)
        check_values(batch, store, steps)
        for ids in batch["row_id"].tolist():
            chain, t = place[ids[0]]
            expected = chain[t : t + 6]
            assert ids == expected + [-1] * (6 - len(expected))
            shorter += len(expected) < 6
    assert strict == (shorter == 0)


def test_unmasked_starts_are_uniform(world: tuple[World, Store, Store]) -> None:
    made, store, _ = world
    for _ in range(6):
        store.extend(made.batch(60, 0.1))
    rows = [row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()]
    sampler = store.sampler(arrowrb.Sequences(5, strict=False), batch_size=len(rows), seed=1)
    found = Counter(row for _ in range(40) for row in sampler.sample()["row_id"][:, 0].tolist())
    chi_square(found, dict.fromkeys(rows, 40.0))


def test_hot_only(world: tuple[World, Store, Store]) -> None:
    made, store, _ = world
    for _ in range(12):
        store.extend(made.batch(80, 0.1))
    store.maintain()
    hot = {int(view.entry.number) for view in store._engine.snapshot().layout.views if view.cold is None}
    sampler = store.sampler(arrowrb.Sequences(3), batch_size=64, seed=1, tiers="hot")
    for _ in range(10):
        assert {row >> 24 for row in sampler.sample()["row_id"][:, 0].tolist()} <= hot


def test_nothing_long_enough() -> None:
    with Store.temporary(plain_schema()) as store:
        sampler = store.sampler(arrowrb.Sequences(8), batch_size=4)
        with pytest.raises(EmptyError, match="the store is empty"):
            sampler.sample()
        store.extend(plain_batch(70, every=7))
        with pytest.raises(EmptyError, match="No episode has 8 steps"):
            sampler.sample()
        assert store.sampler(arrowrb.Sequences(7), batch_size=4).sample()["is_first"][:, 0].all()
        across = store.sampler(arrowrb.Sequences(70, across_episodes=True), batch_size=2).sample()
        assert across["is_first"].sum() == 20
        with pytest.raises(EmptyError, match="No lane has 71 steps"):
            store.sampler(arrowrb.Sequences(71, across_episodes=True), batch_size=2).sample()


def test_resumes(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", plain_schema()) as store:
        store.extend(plain_batch(700, every=50))
        sampler = store.sampler(arrowrb.Sequences(8), batch_size=4, seed=1, name="main", prefetch=2)
        sampler.sample()
        store.checkpoint("point")
        expected = [sampler.sample()["row_id"] for _ in range(5)]
        store.restore("point")
        for each in expected:
            assert torch.equal(sampler.sample()["row_id"], each)


def test_columns() -> None:
    with Store.temporary(plain_schema()) as store:
        store.extend(plain_batch(70, every=35))
        batch = store.sampler(
            arrowrb.Sequences(8), batch_size=4, columns=["reward", "step"], float64="float32"
        ).sample()
        steps = dict.fromkeys(("reward", "step", "row_id", "is_first"), (4, 8))
        assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {**steps, "start_row_id": (4,)}
        assert batch["reward"].dtype == torch.float32
        assert (batch["step"].diff(dim=1) == 1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"length": 2.5},
        {"length": True},
        {"length": 4, "over": "lanes"},
        {"length": 4, "strict": 1},
        {"length": 4, "across_episodes": True, "over": "episodes"},
    ],
)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        arrowrb.Sequences(**options)
