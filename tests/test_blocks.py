"""Draws out of a pool of row groups: every transition as likely, whatever moves and goes; fewer groups are decoded."""

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
from arrowrb.samplers import blocks
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from arrowrb.tiers import cold
from tests.chances import chi_square
from tests.plain_store import plain_schema
from tests.test_chains import World


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "_MOST_GROUP_ROWS", 8)
    monkeypatch.setattr(cold, "_LEAST_GROUP_ROWS", 8)


@pytest.fixture(params=range(2))
def made(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_groups: None
) -> Iterator[tuple[Store, World]]:
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([4, 16]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    Store.create(tmp_path / "store", plain_schema(), max_rows=1000).close()
    options = WriterOptions(None, limits=Limits(hot_rows=300, max_rows=1000))
    with Store(Engine(tmp_path / "store", writable=True, options=options)) as store:
        world = World(rng, int(rng.choice([1, 3])))
        for _ in range(9):
            store.extend(world.batch(70, 0.1))
        store.maintain()
        yield store, world


def rows_of(store: Store) -> list[int]:
    return [row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()]


def test_every_transition_is_as_likely(made: tuple[Store, World]) -> None:
    """Over many samplers, one draw of each: those of one sampler are correlated."""
    store, _ = made
    rows = rows_of(store)
    found = Counter[int]()
    for seed in range(3 * len(rows)):
        found.update(
            store.sampler(batch_size=1, seed=seed, cold="block", columns=["reward"]).sample()["row_id"].tolist()
        )
        if seed % 4 == 0:
            sampler = store.sampler(batch_size=7, seed=seed, cold="block", columns=["reward"])
            for _ in range(9):
                sampler.sample()
            found.update(sampler.sample()["row_id"][:1].tolist())
    chi_square(found, dict.fromkeys(rows, found.total() / len(rows)))


def test_also_while_rows_come_move_and_go(made: tuple[Store, World]) -> None:
    store, world = made
    samplers = [store.sampler(batch_size=8, seed=seed, cold="block", columns=["reward"]) for seed in range(1500)]
    for sampler in samplers:
        sampler.sample()
    for _ in range(3):
        store.extend(world.batch(180, 0.1))
        store.maintain()
        for sampler in samplers:
            sampler.sample()
    rows = rows_of(store)
    found = Counter(sampler.sample()["row_id"][0].item() for sampler in samplers)
    tenth = {row: i * 10 // len(rows) for i, row in enumerate(sorted(rows))}
    sizes = Counter(tenth.values())
    by_tenth = Counter(tenth[row] for row in found.elements())
    chi_square(by_tenth, {key: len(samplers) * size / len(rows) for key, size in sizes.items()})


def test_what_batches_hold_and_their_states(made: tuple[Store, World]) -> None:
    store, world = made
    options: dict[str, Any] = {"batch_size": 32, "cold": "block", "n_step": 2}
    plain, ahead = (store.sampler(seed=1, prefetch=prefetch, **options) for prefetch in (0, 3))
    state = plain.state_dict()
    for number in range(30):
        batch, other = plain.sample(), ahead.sample()
        assert torch.equal(batch["row_id"], other["row_id"])
        assert torch.equal(batch["observation"], store.gather(batch["row_id"])["observation"])
        if number == 10:
            state = plain.state_dict()
            rest = [plain.sample()["row_id"] for _ in range(8)]
            plain.load_state_dict(state)
            fresh = store.sampler(seed=9, **options)
            fresh.load_state_dict(state)
            for expected in rest:
                assert torch.equal(plain.sample()["row_id"], expected)
                assert torch.equal(fresh.sample()["row_id"], expected)
            for _ in range(8):
                ahead.sample()
    store.extend(world.batch(900, 0.1))  # all of the pool is gone
    store.maintain()
    plain.load_state_dict(state)
    assert set(plain.sample()["row_id"].tolist()) <= set(rows_of(store))


def test_fewer_groups_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_groups: None) -> None:
    """As many as are due; and no more of them than have room in half of the cache."""
    Store.create(tmp_path / "store", plain_schema(), hot_rows=1000).close()
    cache = 200_000
    engine = Engine(
        tmp_path / "store", writable=True, options=WriterOptions(None, limits=Limits(hot_rows=1000)), cache_bytes=cache
    )
    with Store(engine) as store:
        world = World(np.random.default_rng(0), 1)
        for _ in range(20):
            store.extend(world.batch(1000, 0.05))
        store.maintain()
        decoded = []
        whole = cold.ColdSegment.decode
        monkeypatch.setattr(
            cold.ColdSegment, "decode", lambda self, group, places: decoded.append(group) or whole(self, group, places)
        )
        sampler = store.sampler(batch_size=256, seed=1, cold="block", columns=["observation", "reward"])
        for _ in range(50):
            sampler.sample()
        drawn = 50 * 256 * store.info().cold_rows / store.info().num_rows
        assert len(decoded) < 1.3 * (drawn / (blocks.REUSE * 8) + blocks._LEAST) + 20
        pool = sampler._stream._rows._pool  # type: ignore[attr-defined]
        assert blocks._LEAST < len(pool) <= cache * blocks._SHARE / (8 * store.schema.row_bytes)


def test_options(made: tuple[Store, World]) -> None:
    store, _ = made
    hot = store.sampler(batch_size=64, seed=1, cold="block", tiers="hot").sample()["row_id"]
    assert torch.equal(hot, store.sampler(batch_size=64, seed=1, tiers="hot").sample()["row_id"])
    assert store.sampler(arrowrb.Sequences(3, strict=False), batch_size=4, cold="block").sample()["row_id"].shape == (
        4,
        3,
    )
    for wrong, text in (
        (arrowrb.Sequences(3), "cannot begin at every transition"),
        (arrowrb.Prioritized(), "cannot draw by"),
        (arrowrb.Shuffled(), "cannot draw by"),
        (arrowrb.Where("true"), "cannot draw by"),
    ):
        with pytest.raises(OptionError, match=text):
            store.sampler(wrong, batch_size=4, cold="block")
    with pytest.raises(OptionError, match="cold is 'warm'"):
        store.sampler(batch_size=4, cold="warm")
    sampler = store.sampler(batch_size=4, cold="block")
    state = sampler.state_dict()
    with pytest.raises(OptionError, match="no pool of row groups"):
        sampler.load_state_dict({**state, "stream": {**state["stream"], "rows": 3}})
    with Store.temporary(plain_schema()) as empty, pytest.raises(EmptyError):
        empty.sampler(batch_size=2, cold="block").sample()
