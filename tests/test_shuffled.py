"""Draws without replacement: each transition once an epoch, in any order alike, whatever comes and goes meanwhile."""

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
from tests.chances import chi_square
from tests.plain_store import plain_batch, plain_schema
from tests.test_chains import World


@pytest.fixture(params=range(2))
def made(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, World]]:
    """A store of both tiers."""
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([2, 4, 16]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    Store.create(tmp_path / "store", plain_schema(), max_rows=1000).close()
    with open_small(tmp_path / "store") as store:
        world = World(rng, int(rng.choice([1, 3])))
        for _ in range(10):
            store.extend(world.batch(80, 0.1))
        store.maintain()
        yield store, world


def open_small(path: Path) -> Store:
    options = WriterOptions(None, limits=Limits(hot_rows=300, max_rows=1000))
    return Store(Engine(path, writable=True, options=options))


def rows_of(store: Store) -> set[int]:
    return {row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()}


def ids(batches: Any) -> list[int]:
    return [row_id for batch in batches for row_id in batch["row_id"].tolist()]


@pytest.mark.parametrize("prefetch", [0, 3])
def test_each_once_an_epoch(made: tuple[Store, World], prefetch: int) -> None:
    store, _ = made
    expected = rows_of(store)
    sampler = store.sampler(arrowrb.Shuffled(epochs=2), batch_size=64, seed=1, prefetch=prefetch)
    batches = list(sampler)
    sizes = [len(batch["row_id"]) for batch in batches]
    half = -(-len(expected) // 64)
    assert sizes == ([64] * (half - 1) + [len(expected) - 64 * (half - 1)]) * 2
    first, second = ids(batches[:half]), ids(batches[half:])
    assert sorted(first) == sorted(second) == sorted(expected)
    assert first != second
    assert first != sorted(first)
    for batch in batches:
        for name, values in store.gather(batch["row_id"]).items():
            assert torch.equal(batch[name], values)
    with pytest.raises(EmptyError, match="all epochs are over"):
        sampler.sample()
    assert ids(store.sampler(arrowrb.Shuffled(epochs=1), batch_size=64, seed=1)) == first
    assert ids(store.sampler(arrowrb.Shuffled(epochs=1), batch_size=64, seed=2)) != first


def test_the_last_batch_is_left_out(made: tuple[Store, World]) -> None:
    store, _ = made
    count = len(rows_of(store))
    batches = list(store.sampler(arrowrb.Shuffled(epochs=3, drop_last=True), batch_size=64, seed=1))
    assert [len(batch["row_id"]) for batch in batches] == [64] * (3 * (count // 64))
    with pytest.raises(EmptyError, match="do not fit into an epoch"):
        store.sampler(arrowrb.Shuffled(drop_last=True), batch_size=5000).sample()


def test_what_comes_and_goes_meanwhile(made: tuple[Store, World]) -> None:
    """New rows wait for the next epoch; those that go are skipped, and counted."""
    store, world = made
    before = rows_of(store)
    sampler = store.sampler(arrowrb.Shuffled(), batch_size=16, seed=1)
    drawn: list[int] = []
    gone = 0
    while True:
        drawn += sampler.sample()["row_id"].tolist()
        if sampler._stream._epoch is None:
            break
        store.extend(world.batch(30, 0.1))
        store.maintain()
        gone = len(before - rows_of(store) - set(drawn))
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= before
    assert gone > 0
    assert sampler.info().num_skipped == len(before) - len(drawn) > 0
    assert "were gone before their turn" in str(sampler.info())
    now = rows_of(store)
    again = [sampler.sample()["row_id"].tolist() for _ in range(-(-len(now) // 16))]
    assert {row for each in again for row in each} == now


@pytest.mark.parametrize("prefetch", [0, 4])
def test_an_epoch_that_is_held(made: tuple[Store, World], prefetch: int) -> None:
    store, world = made
    table = store.sql("SELECT row_id, reward FROM transitions").fetchall()
    rewards = dict(table)
    sampler = store.sampler(arrowrb.Shuffled(epochs=2, hold=True), batch_size=50, seed=1, prefetch=prefetch)
    drawn: dict[int, float] = {}
    while len(drawn) < len(table):
        batch = sampler.sample()
        assert not set(batch["row_id"].tolist()) & drawn.keys()
        drawn |= dict(zip(batch["row_id"].tolist(), batch["reward"].tolist(), strict=True))
        store.extend(world.batch(200, 0.1))
        store.maintain()
    assert drawn == rewards
    assert not rewards.keys() & rows_of(store)  # all of it is gone
    list(sampler)  # the next epoch
    assert sampler.info().num_skipped == 0


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("reopen", [False, True])
def test_a_state_gives_exactly_the_rest(made: tuple[Store, World], prefetch: int, reopen: bool) -> None:
    store, world = made
    path = Path(store._engine.path)
    sampler = store.sampler(arrowrb.Shuffled(epochs=2), batch_size=48, seed=1, prefetch=prefetch)
    first = ids(sampler.sample() for _ in range(5))
    state = sampler.state_dict()
    rest = ids(sampler)
    assert len(first + rest) == 2 * len(rows_of(store))
    if reopen:
        store.close()
        store = open_small(path)
    fresh = store.sampler(arrowrb.Shuffled(epochs=2), batch_size=48, seed=7, prefetch=1)
    fresh.load_state_dict(state)
    again, epoch = ids(fresh), len(rows_of(store))
    assert sorted(again) == sorted(rest)
    assert again[: epoch - len(first)] == rest[: epoch - len(first)]
    assert reopen or again == rest  # the order of the next epoch goes by how the rows lie when it begins
    # What was dropped since is left out, and nothing else.
    before = rows_of(store)
    store.extend(world.batch(400, 0.1))
    store.maintain()
    left = rows_of(store) & before
    assert left < before
    for ahead in (0, 3):
        fresh = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=48, seed=7, prefetch=ahead)
        fresh.load_state_dict({**state, "stream": {**state["stream"], "num_begun": 1}})
        assert set(ids(fresh)) == left - set(first)
        assert fresh.info().num_skipped == len(before - left - set(first))
    store.close()


def test_checkpoints(made: tuple[Store, World]) -> None:
    store, _ = made
    sampler = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=48, seed=1, prefetch=2, name="epochs")
    sampler.sample()
    store.checkpoint("point")
    rest = ids(sampler)
    store.restore("point")
    assert ids(sampler) == rest


def test_orders_are_uniform() -> None:
    """Every transition is as likely at every place, and so is every pair of places for two of them."""
    with Store.temporary(plain_schema()) as store:
        count = 7
        row_ids = store.extend(plain_batch(count, every=3)).tolist()
        number = {row_id: i for i, row_id in enumerate(row_ids)}
        sampler = store.sampler(arrowrb.Shuffled(), batch_size=count, seed=3)
        places, pairs = Counter[int](), Counter[int]()
        many = 6000
        for _ in range(many):
            order = [number[row_id] for row_id in sampler.sample()["row_id"].tolist()]
            places.update(count * each + place for place, each in enumerate(order))
            pairs.update([count * order.index(0) + order.index(1)])
        chi_square(places, dict.fromkeys(range(count * count), many / count))
        apart = [count * a + b for a in range(count) for b in range(count) if a != b]
        chi_square(pairs, dict.fromkeys(apart, many / len(apart)))


def test_a_larger_order_has_no_pattern() -> None:
    with Store.temporary(plain_schema()) as store:
        row_ids = store.extend(plain_batch(20_000)).tolist()
        number = {row_id: i for i, row_id in enumerate(row_ids)}
        order = np.array(
            [number[each] for each in ids(store.sampler(arrowrb.Shuffled(epochs=1), batch_size=999, seed=3))]
        )
        assert (np.sort(order) == np.arange(20_000)).all()
        for shift in (1, 2, 16, 256):  # serial correlation: normal, of variance 1 / n
            assert abs(np.corrcoef(order[:-shift], order[shift:])[0, 1]) < 5 / 20_000**0.5
        steps = np.diff(order)
        assert Counter(steps.tolist()).most_common(1)[0][1] < 12


def test_tiers(made: tuple[Store, World]) -> None:
    store, _ = made
    hot = ids(store.sampler(arrowrb.Shuffled(epochs=1), batch_size=64, tiers="hot", seed=1))
    segments = store.sql("SELECT row_id FROM transitions").fetchall()
    assert len(hot) == len(set(hot)) < len(segments)
    snapshot = store._engine.snapshot()
    where = snapshot.locate(np.array(sorted(rows_of(store))))
    assert set(hot) == set(where.row_ids[~np.isin(where.slots, list(snapshot.layout.cold))].tolist())


def test_wrong_options(made: tuple[Store, World]) -> None:
    store, _ = made
    for options, text in (
        ({"epochs": 0}, "epochs is 0"),
        ({"hold": 1}, "hold is 1"),
        ({"drop_last": None}, "drop_last"),
    ):
        with pytest.raises(OptionError, match=text):
            arrowrb.Shuffled(**options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="cannot be restricted"):
        arrowrb.Where("reward > 0", arrowrb.Shuffled())
    with Store.temporary(plain_schema()) as empty, pytest.raises(EmptyError, match="the store is empty"):
        empty.sampler(arrowrb.Shuffled(), batch_size=2).sample()
    sampler = store.sampler(arrowrb.Shuffled(), batch_size=16, seed=1)
    sampler.sample()
    state = sampler.state_dict()
    for damage in ({"epoch": 3}, {"num_begun": None}, {"epoch": {**state["stream"]["epoch"], "until": np.zeros(3)}}):
        with pytest.raises(OptionError, match="state"):
            sampler.load_state_dict({**state, "stream": {**state["stream"], **damage}})
