"""Uniform draws: every transition equally likely, whatever the state of the segments."""

from __future__ import annotations

import numpy as np
import pytest

from arrowrb.engine import segments
from arrowrb.errors import CorruptError, EmptyError, OptionError
from arrowrb.samplers import Uniform, generator_state
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.model import SCHEMA, as_batch, random_observations, random_outcomes


def fill(store, rng, count, lanes, *, contiguous=True):
    rows = as_batch(random_observations(rng, count), random_observations(rng, count), random_outcomes(rng, count))
    return store.extend(rows, lane=lanes, contiguous=contiguous).tolist()


def check_uniform(snapshot, ids, seed):
    """Chi-square over all transitions, at a level that a right sampler misses once in a million."""
    count = max(60_000, 40 * len(ids))
    drawn = Uniform().start(seed).draw(snapshot, count).rows
    assert (drawn.row_ids >> 24 << 24 | drawn.positions == drawn.row_ids).all()
    order = np.sort(np.array(ids))
    place = np.searchsorted(order, drawn.row_ids)
    assert (order[np.minimum(place, len(order) - 1)] == drawn.row_ids).all()
    observed = np.bincount(place, minlength=len(order))
    expected = count / len(order)
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(order) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom) + 15


@pytest.mark.filterwarnings("ignore:.*do not go on where.*:UserWarning")
@pytest.mark.parametrize("block_rows", [2, 4, 32])
def test_mixes_of_segments(tmp_path, monkeypatch, block_rows):
    def shape(*, num_lanes, **_):
        return SegmentShape(4 * num_lanes * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    rng = np.random.default_rng(block_rows)
    ids = []
    path = tmp_path / "store"
    with Store.create(path, SCHEMA, sync_interval=None) as store, Store.open(path) as reader:
        for round_ in range(6):
            lanes = rng.choice([0, 0, 0, 0, 1, 1, 2, 7, 11][: 3 + round_], 120)
            ids += fill(store, rng, 120, lanes, contiguous=round_ % 2 == 0)
            if round_ == 3:
                store.flush()
            for each in (store, reader):
                check_uniform(each._engine.snapshot(), ids, round_)


def test_many_lanes_with_one_row_each(tmp_path):
    """5,000 lanes: the rows lie far apart, and draws still look at few rows."""
    rng = np.random.default_rng(0)
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        ids = fill(store, rng, 5000, np.arange(5000))
        for each in (store, Store.open(tmp_path / "store")):
            snapshot = each._engine.snapshot()
            assert snapshot.domain.start[-1] <= 4 * len(ids)
            check_uniform(snapshot, ids, 1)
            if each is not store:
                each.close()


@pytest.mark.filterwarnings("ignore:.*do not go on where.*:UserWarning")
def test_trials_are_bounded_at_any_fill(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "shape_segment", lambda num_lanes, **_: SegmentShape(64 * num_lanes, 16))
    rng = np.random.default_rng(0)
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        for number in range(60):
            fill(
                store, rng, int(rng.integers(1, 60)), rng.integers(0, 1 + number % 13, 1)[0], contiguous=number % 3 > 0
            )
            snapshot = store._engine.snapshot()
            assert snapshot.domain.start[-1] <= 4 * snapshot.num_transitions


def test_the_same_seed_draws_the_same(tmp_path):
    rng = np.random.default_rng(0)
    with Store.create(tmp_path / "store", SCHEMA) as store:
        fill(store, rng, 500, 0)
        with Store.open(tmp_path / "store") as reader:
            first, again = (each.sampler(batch_size=33, seed=4) for each in (store, reader))
            other = store.sampler(batch_size=33, seed=5)
            for _ in range(5):
                one, two, three = (next(each)["row_id"].tolist() for each in (first, again, other))
                assert one == two != three
        assert store.sample(9, seed=1)["row_id"].tolist() == store.sample(9, seed=1)["row_id"].tolist()
        assert store.sample(9)["row_id"].tolist() != store.sample(9)["row_id"].tolist()


def test_bad_arguments(tmp_path):
    with Store.create(tmp_path / "store", SCHEMA) as store:
        with pytest.raises(EmptyError, match="store is empty"):
            store.sample(3)
        fill(store, np.random.default_rng(0), 1, 0)
        assert store.sample(50)["reward"].unique().numel() == 1
        for size in (0, -1, 1.5, True, "3", None):
            with pytest.raises(OptionError, match="batch_size"):
                store.sample(size)
        for seed in (-1, 1.5, True, "x"):
            with pytest.raises(OptionError, match="seed"):
                generator_state(seed)


def test_a_record_without_rows_is_an_error_not_a_loop(tmp_path):
    """A damaged store: the commit record speaks of transitions that the segments do not hold."""
    with Store.create(tmp_path / "store", SCHEMA) as store:
        fill(store, np.random.default_rng(0), 100, 0)
        for view in store._engine.snapshot().layout.views:
            for place in (0, 6):
                store._engine.writer_shard.segments.state.hot[view.entry.number].column(place)[:] = 0
        with pytest.raises(CorruptError, match="store is damaged"):
            store.sample(3)
        with Store.open(tmp_path / "store") as reader, pytest.raises(CorruptError, match="store is damaged"):
            reader.sample(3)
