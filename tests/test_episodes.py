"""Whole episodes: each as likely, all of their steps, padded or packed."""

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
from tests.plain_store import plain_schema
from tests.test_chains import World


@pytest.fixture(params=range(2))
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store of both tiers, with episodes that run, were cut, and have lost their beginning."""
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([2, 4, 16]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    Store.create(tmp_path / "store", plain_schema(), max_rows=1000).close()
    options = WriterOptions(None, limits=Limits(hot_rows=300, max_rows=1000))
    world = World(rng, 3)
    for number in range(2):
        with Store(Engine(tmp_path / "store", writable=True, options=options)) as store:
            for _ in range(9):
                store.extend(world.batch(80, 0.1))
                store.maintain()
            if number:
                yield store


def episodes_of(store: Store) -> dict[int, tuple[list[int], bool]]:
    """Row ids of each episode, in order, and whether it is whole."""
    found: dict[int, list[tuple[int, int]]] = {}
    query = "SELECT episode_id, step, row_id FROM transitions ORDER BY 1, 2"
    for episode, step, row_id in store.sql(query).fetchall():
        found.setdefault(episode, []).append((step, row_id))
    ended = {episode for (episode,) in store.sql("SELECT episode_id FROM steps WHERE kind = 2").fetchall()}
    return {
        episode: ([row_id for _, row_id in steps], episode in ended and steps[0][0] == 0)
        for episode, steps in found.items()
    }


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_they_hold(made: Store, packed: bool, complete: bool, prefetch: int) -> None:
    episodes = episodes_of(made)
    assert any(whole for _, whole in episodes.values())
    assert any(not whole for _, whole in episodes.values())
    expected = {rows[0]: rows for rows, whole in episodes.values() if whole or not complete}
    sampler = made.sampler(arrowrb.Episodes(complete, packed), batch_size=8, seed=1, prefetch=prefetch)
    found = Counter[int]()
    for _ in range(40 * len(expected) // 8):
        batch = sampler.sample()
        lengths = batch["length"].tolist()
        if not packed:
            assert batch["mask"].tolist() == [[t < each for t in range(max(lengths))] for each in lengths]
            assert (batch["row_id"][~batch["mask"]] == -1).all()
            assert not batch["observation"][~batch["mask"]].any()
            assert not batch["is_first"][~batch["mask"]].any()
            batch = {name: each[batch["mask"]] for name, each in batch.items() if name not in ("length", "mask")}
        runs = [part.tolist() for part in batch["row_id"].split(lengths)]
        assert all(run == expected[run[0]] for run in runs)
        found.update(run[0] for run in runs)
        steps = made.gather(batch["row_id"], columns=["step"])["step"]
        assert torch.equal(batch["is_first"], steps == 0)
    for name, values in made.gather(batch["row_id"]).items():
        assert torch.equal(batch[name], values)
    chi_square(found, dict.fromkeys(expected, found.total() / len(expected)))


def test_states_and_options(made: Store) -> None:
    sampler = made.sampler(arrowrb.Episodes(), batch_size=3, seed=1, prefetch=2)
    sampler.sample()
    state = sampler.state_dict()
    rest = [sampler.sample()["row_id"] for _ in range(6)]
    fresh = made.sampler(arrowrb.Episodes(), batch_size=3, seed=4)
    fresh.load_state_dict(state)
    assert all(torch.equal(fresh.sample()["row_id"], ids) for ids in rest)
    few: dict[str, Any] = made.sampler(
        arrowrb.Episodes(packed=True), batch_size=3, seed=1, columns=["reward"], as_tensordict=True
    ).sample()
    assert few["reward"].shape == (int(few["length"].sum()),)
    with pytest.raises(OptionError, match="packed is 1"):
        arrowrb.Episodes(packed=1)  # type: ignore[arg-type]


def test_nothing_to_draw() -> None:
    with Store.temporary(plain_schema()) as store:
        sampler = store.sampler(arrowrb.Episodes(), batch_size=2)
        with pytest.raises(EmptyError, match="the store is empty"):
            sampler.sample()
        store.extend(World(np.random.default_rng(0), 1).batch(9, 0.0))
        with pytest.raises(EmptyError, match="no episode that has ended"):
            sampler.sample()
        running = store.sampler(arrowrb.Episodes(complete=False), batch_size=2).sample()
        assert running["length"].tolist() == [9, 9]
