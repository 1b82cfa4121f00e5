"""Prioritized replay against a model in plain Python, and against the paper's definitions."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.engine import Engine, WriterOptions, segments
from arrowrb.errors import (
    ColumnError,
    EmptyError,
    OptionError,
    RowError,
    UsageError,
)
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema

ALPHA, BETA, EPS = 0.7, 0.5, 0.01


@dataclass
class Model:
    """Raw priorities by row id, as the paper has them."""

    raw: dict[int, float] = field(default_factory=dict)
    largest: float = 1.0

    def add(self, row_ids) -> None:
        for row_id in row_ids:
            self.raw[int(row_id)] = self.largest

    def update(self, row_ids, priorities) -> None:
        for row_id, priority in zip(row_ids, priorities, strict=True):
            if int(row_id) in self.raw:
                self.raw[int(row_id)] = float(np.float32(priority))
                self.largest = max(self.largest, float(np.float32(priority)))

    def keep(self, row_ids) -> None:
        there = set(row_ids)
        self.raw = {row_id: raw for row_id, raw in self.raw.items() if row_id in there}

    def probabilities(self) -> dict[int, float]:
        masses = {row_id: raw**ALPHA if raw > 0 else 0.0 for row_id, raw in self.raw.items()}
        total = math.fsum(masses.values())
        return {row_id: mass / total for row_id, mass in masses.items()}

    def weights(self, beta: float) -> dict[int, float]:
        p, n = self.probabilities(), len(self.raw)
        weights = {row_id: (n * each) ** -beta for row_id, each in p.items() if each > 0}
        largest = max(weights.values())
        return {row_id: weight / largest for row_id, weight in weights.items()}


def row_ids_of(store: Store) -> list[int]:
    return [row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()]


def check(sampler: arrowrb.Sampler, model: Model, draws: int = 1) -> None:
    """That rows, weights and sums are those of the model."""
    weights = model.weights(BETA)
    for _ in range(draws):
        batch = sampler.sample()
        for row_id, weight in zip(batch["row_id"].tolist(), batch["weight"].tolist(), strict=True):
            assert weight == pytest.approx(weights[row_id], rel=1e-5)
    tree = sampler._stream._tree
    total = math.fsum(raw**ALPHA for raw in model.raw.values() if raw > 0)
    assert tree._totals.sum() == pytest.approx(total, rel=1e-6)


def check_distribution(sampler: arrowrb.Sampler, model: Model, *, count: int) -> None:
    """Chi-square against the model's probabilities, rows that are hardly ever drawn taken together."""
    expected = {row_id: p * count for row_id, p in model.probabilities().items()}
    found = dict.fromkeys(expected, 0)
    for _ in range(count // sampler.batch_size):
        for row_id in sampler.sample()["row_id"].tolist():
            found[row_id] += 1
    assert all(found[row_id] == 0 for row_id, each in expected.items() if each == 0)
    often = [row_id for row_id, each in expected.items() if each >= 8]
    pairs = [(found[row_id], expected[row_id]) for row_id in often]
    pairs.append((sum(found.values()) - sum(f for f, _ in pairs), sum(expected.values()) - sum(e for _, e in pairs)))
    statistic = sum((f - e) ** 2 / e for f, e in pairs if e > 1e-6)
    freedom = len(pairs) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom) + 15


def small_segments(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)


def open_small(path: Path, hot: int, most: int) -> Store:
    limits = Limits(hot_rows=hot, max_rows=most)
    return Store(Engine(path, writable=True, options=WriterOptions(0.02, limits=limits)))


@pytest.mark.parametrize("seed", range(6))
def test_against_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Rows come on several lanes, move and go; priorities change; the store is closed and opened again."""
    rng = np.random.default_rng(seed)
    small_segments(monkeypatch, int(rng.choice([2, 8, 32])))
    path = tmp_path / "store"
    Store.create(path, plain_schema(), max_rows=1000).close()
    strategy = arrowrb.Prioritized(alpha=ALPHA, beta=BETA, eps=EPS)
    model, ignored, ever = Model(), 0, []
    store = open_small(path, 300, 1000)
    sampler = store.sampler(strategy, batch_size=32, seed=seed, name="learner", prefetch=int(seed % 3 == 2))
    for _ in range(60):
        act = rng.choice(["extend", "extend", "update", "priority", "tidy", "open", "draw"])
        if act == "extend" or not ever:
            count = int(rng.integers(1, 90))
            new = store.extend(plain_batch(count, int(rng.integers(1 << 30))), lane=rng.integers(0, 3, count))
            sampler.update(new[:0], np.zeros(0))  # looks at what is new, so that the model knows when that is
            model.add(new)
            ever += new.tolist()
        elif act in ("update", "priority"):
            chosen = rng.choice(ever, 40)
            store.maintain()
            before, there = sampler._stream.num_ignored, set(row_ids_of(store))
            if act == "update":
                errors = rng.normal(size=40)
                sampler.update(torch.from_numpy(chosen), torch.from_numpy(errors).float())
                model.update(chosen, np.abs(errors.astype(np.float32).astype(np.float64)) + EPS)
            else:
                given = rng.choice([0.0, 1e-3, 2.0, 30.0], 40)
                sampler.update(chosen, priority=given)
                model.update(chosen, given)
            ignored += sum(row_id not in there for row_id in chosen.tolist())
            assert sampler._stream.num_ignored - before == sum(row_id not in there for row_id in chosen.tolist())
        elif act == "tidy":
            store.maintain()
        elif act == "open":
            del sampler
            store.close()
            store = open_small(path, 300, 1000)
            sampler = store.sampler(strategy, batch_size=32, seed=seed, name="learner")
        else:
            sampler.sample()
        store.maintain()
        model.keep(row_ids_of(store))
        sampler.clear()
        check(sampler, model)
    check_distribution(sampler, model, count=32 * 600)
    assert store.verify()
    assert {path.name for path in (path / "samplers" / "learner").glob("*.priorities")} == {
        f"00000-{view.entry.number:08d}.priorities" for view in store._engine.snapshot().layout.views
    }
    store.close()


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 127, 128, 129, 1024, 1025, 9000])
def test_every_size_of_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Sums, the smallest mass and draws at both ends, whatever the number of levels."""
    monkeypatch.setattr(segments, "shape_segment", lambda **_: SegmentShape(16384, 4096))
    with Store.temporary(plain_schema()) as store:
        row_ids = store.extend(plain_batch(rows, 0))
        sampler = store.sampler(arrowrb.Prioritized(alpha=ALPHA, beta=BETA), batch_size=50, seed=rows)
        model = Model()
        model.add(row_ids)
        check(sampler, model)
        for edge in (0, rows - 1):
            given = np.zeros(rows)
            given[edge] = 1e-30
            sampler.update(row_ids, priority=given)
            assert set(sampler.sample()["row_id"].tolist()) == {int(row_ids[edge])}
        given = np.random.default_rng(rows).exponential(size=rows)
        sampler.update(row_ids, priority=given)
        model.update(row_ids, given)
        check(sampler, model, 20)


def test_the_definitions_of_the_paper(tmp_path: Path) -> None:
    """Schaul et al. 2016, section 3.3 and 3.4, by hand: p = |delta| + eps, P = p^a / sum, w = (1 / N P)^b / max w."""
    with Store.temporary(plain_schema()) as store:
        row_ids = store.extend(plain_batch(4, 0))
        strategy = arrowrb.Prioritized(alpha=0.5, beta=1.0, eps=0.0)
        sampler = store.sampler(strategy, batch_size=40_000, seed=3)
        sampler.update(row_ids, [1.0, -4.0, 9.0, -16.0])
        batch = sampler.sample()
        place = np.searchsorted(row_ids, batch["row_id"].numpy())
        share = np.bincount(place) / 40_000
        assert share == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.01)
        # N P = 0.4, 0.8, 1.2, 1.6; the largest weight is that of the first.
        expected = np.array([1, 1 / 2, 1 / 3, 1 / 4], np.float32)
        assert batch["weight"].numpy() == pytest.approx(expected[place], rel=1e-6)
        new = store.extend(plain_batch(1, 1))  # arrives with the largest priority so far
        later = sampler.sample()["row_id"].numpy()
        assert (later == new[0]).mean() == pytest.approx(4 / 14, abs=0.01)


def test_normalized_by_the_batch(tmp_path: Path) -> None:
    with Store.temporary(plain_schema()) as store:
        row_ids = store.extend(plain_batch(100, 0))
        sampler = store.sampler(arrowrb.Prioritized(normalizer="batch", beta=0.7), batch_size=5, seed=3)
        given = np.linspace(0.001, 5, 100)
        sampler.update(row_ids, priority=given)
        for _ in range(20):
            batch = sampler.sample()
            p = given[np.searchsorted(row_ids, batch["row_id"].numpy())] ** 0.6 / (given**0.6).sum()
            w = (100 * p) ** -0.7
            assert batch["weight"].numpy() == pytest.approx(w / w.max(), rel=1e-5)


def test_beta_is_annealed(tmp_path: Path) -> None:
    with Store.temporary(plain_schema()) as store:
        row_ids = store.extend(plain_batch(2, 0))
        sampler = store.sampler(
            arrowrb.Prioritized(alpha=1, beta=0.2, beta_final=1.0, beta_batches=4), batch_size=64, seed=3
        )
        sampler.update(row_ids, priority=[1.0, 2.0])
        smallest = [float(sampler.sample()["weight"].min()) for _ in range(7)]
        assert smallest == pytest.approx([0.5**beta for beta in (0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0)], rel=1e-6)


def test_draws_of_the_hot_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_segments(monkeypatch, 32)
    path = tmp_path / "store"
    Store.create(path, plain_schema()).close()
    with open_small(path, 500, 10_000) as store:
        store.extend(plain_batch(2000, 0))
        store.maintain()
        hot = set()
        for _ in range(20):
            hot |= set(store.sample(500, tiers="hot")["row_id"].tolist())
        row_ids = np.array(row_ids_of(store))
        strategy = arrowrb.Prioritized(alpha=ALPHA, beta=BETA)
        both = store.sampler(strategy, batch_size=50, seed=1)
        only = store.sampler(strategy, batch_size=50, seed=1, tiers="hot")
        given = np.random.default_rng(0).exponential(size=row_ids.size)
        for each in (both, only):
            each.update(row_ids, priority=given)
        model = Model()
        model.add(row_ids)
        model.update(row_ids, given)
        check(both, model, 20)
        assert not set(both.sample()["row_id"].tolist()) <= hot
        model.keep(hot)
        check_distribution(only, model, count=20_000)


def test_same_seed_same_rows_in_either_tier(tmp_path: Path) -> None:
    drawn = []
    for hot_rows in (None, 2000):
        with Store.create(tmp_path / str(hot_rows), plain_schema(), hot_rows=hot_rows) as store:
            row_ids = np.concatenate([store.extend(plain_batch(1000, seed)) for seed in range(12)])
            store.maintain()
            sampler = store.sampler(arrowrb.Prioritized(), batch_size=100, seed=5)
            sampler.update(row_ids, priority=np.arange(row_ids.size) + 1.0)
            drawn.append([sampler.sample() for _ in range(5)])
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one["reward"], other["reward"])
        assert torch.equal(one["weight"], other["weight"])


def test_restore_goes_back(tmp_path: Path) -> None:
    strategy = arrowrb.Prioritized(beta_final=1.0, beta_batches=50)
    with Store.create(tmp_path / "store", plain_schema()) as store:
        row_ids = store.extend(plain_batch(500, 0))
        sampler = store.sampler(strategy, batch_size=16, seed=1, name="learner", prefetch=2)
        sampler.update(row_ids, priority=np.arange(500.0))
        sampler.sample()
        store.checkpoint("point")
        expected = [sampler.sample() for _ in range(6)]
        sampler.update(row_ids, priority=np.full(500, 700.0))
        later = store.extend(plain_batch(3, 1))
        sampler.sample()
        store.restore("point")
        again = [sampler.sample() for _ in range(2)]  # those that were drawn ahead
        for one, other in zip(expected[:2], again, strict=True):
            assert torch.equal(one["row_id"], other["row_id"])
            assert torch.equal(one["weight"], other["weight"])
        model = Model()
        model.add(row_ids)
        model.update(row_ids, np.arange(500.0))
        model.add(later)  # not known at that point: new
        tree = sampler._stream._tree
        sampler.sample()
        total = math.fsum(raw**0.6 for raw in model.raw.values() if raw > 0)
        assert tree._totals.sum() == pytest.approx(total, rel=1e-6)
    with Store.open(tmp_path / "store", mode="a") as store:  # the process that resumes
        store.restore("point")
        sampler = store.sampler(strategy, batch_size=16, name="learner", prefetch=2)
        for one, other in zip(expected[:2], [sampler.sample() for _ in range(2)], strict=True):
            assert torch.equal(one["row_id"], other["row_id"])


@pytest.mark.parametrize(
    ("td_error", "priority", "error", "told"),
    [
        ([math.nan, 1], None, ColumnError, r"td_error\[0\] is nan"),
        ([1, -math.inf], None, ColumnError, r"td_error\[1\] is -inf"),
        (None, [1, math.inf], ColumnError, r"priority\[1\] is inf"),
        (None, [1, -1e-9], ColumnError, r"priority\[1\] is -1e-09"),
        ([1, 2, 3], None, ColumnError, r"shape \(3,\), expected \(2,\)"),
        ([[1], [2]], None, ColumnError, r"shape \(2, 1\)"),
        (["a", "b"], None, ColumnError, "expected one number a row"),
        (None, None, OptionError, "either td_error"),
        ([1, 2], [1, 2], OptionError, "either td_error"),
    ],
)
def test_wrong_updates(td_error, priority, error, told) -> None:
    with Store.temporary(plain_schema()) as store:
        row_ids = store.extend(plain_batch(2, 0))
        sampler = store.sampler(arrowrb.Prioritized(), batch_size=16)
        before = sampler.state_dict()["stream"]["priorities"]
        with pytest.raises(error, match=told):
            sampler.update(row_ids, td_error, priority=priority)
        assert sampler.state_dict()["stream"]["priorities"]["largest"] == before["largest"]
        assert sampler.sample()["weight"].tolist() == [1.0] * 16


def test_wrong_rows(tmp_path: Path) -> None:
    with Store.temporary(plain_schema()) as store:
        row_ids = store.extend(plain_batch(2, 0))
        sampler = store.sampler(arrowrb.Prioritized(), batch_size=16)
        for wrong in (-1, int(row_ids[-1]) + 5, 1 << 40, 1 << 60):
            with pytest.raises(RowError, match=rf"row_ids\[1\] = {wrong} "):
                sampler.update([int(row_ids[0]), wrong], [5.0, 5.0])
        assert sampler.sample()["weight"].tolist() == [1.0] * 16  # nothing of it was taken
        with pytest.raises(UsageError, match="keeps no priorities"):
            store.sampler(batch_size=1).update(row_ids, [1, 1])


def test_nothing_to_draw(tmp_path: Path) -> None:
    with Store.temporary(plain_schema()) as store:
        sampler = store.sampler(arrowrb.Prioritized(), batch_size=16)
        with pytest.raises(EmptyError, match="the store is empty"):
            sampler.sample()
        row_ids = store.extend(plain_batch(2, 0))
        sampler.update(row_ids, priority=[0, 0])
        with pytest.raises(EmptyError, match="all have priority 0"):
            sampler.sample()
        sampler.update(row_ids[:1], priority=[1e-50])
        assert set(sampler.sample()["row_id"].tolist()) == {int(row_ids[0])}


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -0.1},
        {"alpha": 1.5},
        {"alpha": math.nan},
        {"beta": 2},
        {"beta": "1"},
        {"eps": -1},
        {"normalizer": "max"},
        {"beta_final": 1.0},
        {"beta_batches": 10},
        {"beta_batches": -1, "beta_final": 1.0},
    ],
)
def test_wrong_options(options) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        arrowrb.Prioritized(**options)


def test_a_forked_child_is_refused(tmp_path: Path) -> None:
    with Store.temporary(plain_schema()) as store:
        store.extend(plain_batch(20, 0))
        sampler = store.sampler(arrowrb.Prioritized(), batch_size=16)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                sampler.sample()
                os.write(write, b"drawn")
            except UsageError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with open(read) as pipe:
            assert "forked" in pipe.read()
        os.waitpid(child, 0)
