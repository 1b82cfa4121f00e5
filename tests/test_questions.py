"""Draws that SQL restricts or weights: which rows, how often, and when it is asked again."""

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
from arrowrb.errors import EmptyError, OptionError, QueryError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.sql import Posing
from arrowrb.store import Store
from tests.chances import chi_square
from tests.plain_store import plain_schema
from tests.test_chains import World

GOOD = "reward > 0.5"
LONG = "episode_id IN (SELECT episode_id FROM episodes WHERE length >= 12)"


class Made:
    """A store of both tiers, and what of it may be drawn."""

    def __init__(self, store: Store, world: World) -> None:
        self.store, self.world = store, world

    def extend(self, count: int) -> None:
        self.store.extend(self.world.batch(count, 0.08))
        self.store.maintain()

    def rows(self, condition: str = "true") -> set[int]:
        query = f"SELECT row_id FROM transitions WHERE {condition}"
        return {row_id for (row_id,) in self.store.sql(query).fetchall()}

    def starts(self, length: int, period: int = 1) -> set[int]:
        runs: dict[int, list[tuple[int, int]]] = {}
        query = "SELECT episode_id, step, row_id FROM transitions ORDER BY 1, 2"
        for episode, step, row_id in self.store.sql(query).fetchall():
            runs.setdefault(episode, []).append((step, row_id))
        return {
            row_id
            for run in runs.values()
            for at, (step, row_id) in enumerate(run)
            if at + length <= len(run) and step % period == 0
        }


@pytest.fixture(params=range(2))
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([2, 4, 16]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    Store.create(tmp_path / "store", plain_schema(), max_rows=1000).close()
    options = WriterOptions(None, limits=Limits(hot_rows=300, max_rows=1000))
    with Store(Engine(tmp_path / "store", writable=True, options=options)) as store:
        found = Made(store, World(rng, int(rng.choice([1, 3]))))
        for _ in range(14):
            found.extend(80)
        yield found


def ids(batch: dict[str, Any]) -> list[int]:
    return (batch["start_row_id"] if "start_row_id" in batch else batch["row_id"]).tolist()


STRATEGIES: dict[str, tuple[Any, int, int]] = {
    "uniform": (arrowrb.Uniform(), 1, 1),
    "prioritized": (arrowrb.Prioritized(), 1, 1),
    "sequences": (arrowrb.Sequences(4), 4, 1),
    "masked": (arrowrb.Sequences(4, strict=False), 1, 1),
    "periodic": (arrowrb.Sequences(3, period=2), 3, 2),
    "by priority": (arrowrb.PrioritizedSequences(arrowrb.Sequences(3, period=2)), 3, 2),
    "hindsight": (arrowrb.Hindsight(lambda achieved, desired: achieved), 1, 1),
}


@pytest.mark.parametrize(
    ("kind", "condition"),
    [(kind, GOOD) for kind in STRATEGIES if kind != "hindsight"] + [("uniform", LONG), ("by priority", LONG)],
)
def test_where(made: Made, kind: str, condition: str) -> None:
    """Only rows that meet the condition are drawn, each as often; what comes, moves and goes is followed."""
    strategy, length, period = STRATEGIES[kind]
    sampler = made.store.sampler(arrowrb.Where(condition, strategy, every=1), batch_size=64, seed=1)
    for number in range(10):
        expected = made.rows(condition) & made.starts(length, period)
        assert expected
        if number < 9:
            assert set(ids(sampler.sample())) <= expected
            made.extend(int(made.world.rng.integers(1, 90)))
    found = Counter(row for _ in range(4 * len(expected)) for row in ids(sampler.sample()))
    chi_square(found, dict.fromkeys(expected, found.total() / len(expected)))


@pytest.mark.parametrize("kind", ["uniform", "sequences", "masked", "periodic"])
def test_weighted(made: Made, kind: str) -> None:
    strategy, length, period = STRATEGIES[kind]
    query = "SELECT row_id, CASE WHEN step < 8 THEN step + 1 ELSE 0 END AS weight FROM transitions WHERE reward > -1"
    sampler = made.store.sampler(arrowrb.Weighted(query, strategy, every=1), batch_size=64, seed=1)
    for number in range(8):
        told = dict(made.store.sql(query).fetchall())
        expected = {row: told[row] for row in made.starts(length, period) if told.get(row)}
        if number < 7:
            assert set(ids(sampler.sample())) <= expected.keys()
            made.extend(int(made.world.rng.integers(1, 90)))
    found = Counter(row for _ in range(6 * len(expected)) for row in ids(sampler.sample()))
    total = sum(expected.values())
    chi_square(found, {row: found.total() * weight / total for row, weight in expected.items()})


def test_weights_that_change(made: Made) -> None:
    query = "SELECT row_id, 1.0 AS weight FROM transitions WHERE ordinal > (SELECT max(ordinal) FROM transitions) - 60"
    sampler = made.store.sampler(arrowrb.Weighted(query, every=1), batch_size=4000, seed=1)
    for _ in range(6):
        assert set(ids(sampler.sample())) == {row for row, _ in made.store.sql(query).fetchall()}
        made.extend(30)


def test_priorities_within_a_condition(made: Made) -> None:
    """They count as without; those of rows that do not meet it are kept, and count when they do."""
    strategy = arrowrb.Prioritized(alpha=1.0, beta=1.0, eps=0.0)
    newest = "ordinal > (SELECT max(ordinal) FROM transitions) - 300"
    sampler = made.store.sampler(arrowrb.Where(newest, strategy, every=1), batch_size=64, seed=1)
    sampler.sample()
    rows = sorted(made.rows())
    raw = {row: float(1 + row % 7) for row in rows}
    sampler.update(rows, priority=list(raw.values()))
    expected = made.rows(newest)
    total = sum(raw[row] for row in expected)
    batch = sampler.sample()
    for row, weight in zip(batch["row_id"].tolist(), batch["weight"].tolist(), strict=True):
        assert weight == pytest.approx(min(raw[each] for each in expected) / raw[row], rel=1e-5)
    found = Counter(row for _ in range(5 * len(expected)) for row in ids(sampler.sample()))
    chi_square(found, {row: found.total() * raw[row] / total for row in expected})


def test_it_is_asked_again_after_so_many_transitions(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[int], list[int]]] = []
    condition = Posing.condition

    def watched(posing: Posing, text: str) -> Any:
        question = condition(posing, text)
        ask = question.ask
        question.ask = lambda since, until: asked.append((list(since), list(until))) or ask(since, until)  # type: ignore[method-assign]
        return question

    monkeypatch.setattr(Posing, "condition", watched)
    sampler = made.store.sampler(arrowrb.Where(GOOD, every=100), batch_size=16, seed=1)
    sampler.sample()
    for _ in range(9):
        made.extend(40)
        sampler.sample()
    assert len(asked) == 4  # after 120, 240 and 360
    assert all(since == before for (since, _), (_, before) in zip(asked[1:], asked, strict=False))  # of new rows only
    asked.clear()
    unsteady = made.store.sampler(arrowrb.Where(LONG, every=1), batch_size=16, seed=1)
    for _ in range(3):
        unsteady.sample()
        made.extend(10)
    assert [since for since, _ in asked] == [[0]] * 3


@pytest.mark.parametrize(
    ("condition", "steady"),
    [
        ("reward > 0 AND policy_version >= 12", True),
        ("abs(reward) + list_sum(observation::FLOAT[]) > 0 OR NOT terminated", True),
        ("reward > (SELECT avg(reward) FROM transitions)", False),
        ("random() < 0.5", False),
        ("time < epoch_us(now())", False),
        ("time < epoch_us(current_timestamp)", False),
        ("row_number() OVER (ORDER BY reward) > 5", False),
    ],
)
def test_what_cannot_change(made: Made, condition: str, steady: bool) -> None:
    try:
        assert Posing(made.store._engine).condition(condition).steady == steady
    except QueryError as error:  # DuckDB has no windows in WHERE
        assert not steady
        assert "WHERE clause cannot contain window functions" in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "periodic", "by priority"])
def test_a_state_gives_the_same_remainder(made: Made, kind: str) -> None:
    """Even though rows came after the condition was last asked."""
    strategy = arrowrb.Where(GOOD, STRATEGIES[kind][0], every=100)
    sampler = made.store.sampler(strategy, batch_size=16, seed=1)
    sampler.sample()
    made.store.extend(made.world.batch(70, 0.08))
    sampler.sample()
    state = sampler.state_dict()
    rest = [sampler.sample()["row_id"].clone() for _ in range(5)]
    fresh = made.store.sampler(strategy, batch_size=16, seed=9)
    for each in (sampler, fresh):
        each.load_state_dict(state)
        assert all(torch.equal(each.sample()["row_id"], ids) for ids in rest)
    made.store.extend(made.world.batch(40, 0.08))  # now it is asked
    last = sampler.sample()["row_id"]
    assert torch.equal(fresh.sample()["row_id"], last)


def test_a_state_of_weights_gives_the_same_remainder(made: Made) -> None:
    strategy = arrowrb.Weighted("SELECT row_id, exp(reward) AS weight FROM transitions", every=100)
    sampler = made.store.sampler(strategy, batch_size=16, seed=1)
    sampler.sample()
    made.store.extend(made.world.batch(70, 0.08))
    state = sampler.state_dict()
    rest = [sampler.sample()["row_id"].clone() for _ in range(5)]
    fresh = made.store.sampler(strategy, batch_size=16, seed=9)
    fresh.load_state_dict(state)
    assert all(torch.equal(fresh.sample()["row_id"], ids) for ids in rest)
    question = state["stream"]["rows"]
    for rows, told in (("?", "asks nothing"), ({**question, "asked": [3]}, r"as far as \[3\]")):
        with pytest.raises(OptionError, match=told):
            fresh.load_state_dict({**state, "stream": {**state["stream"], "rows": rows}})


def test_tiers_and_checkpoints(made: Made) -> None:
    store = made.store
    hot = set(ids(store.sampler(arrowrb.Where(GOOD), batch_size=4000, tiers="hot", seed=1).sample()))
    every = set(ids(store.sampler(arrowrb.Where(GOOD), batch_size=4000, seed=1).sample()))
    assert hot < every
    assert every <= made.rows(GOOD)
    sampler = store.sampler(arrowrb.Where(GOOD), batch_size=16, seed=1, name="good", prefetch=2)
    sampler.sample()
    store.checkpoint("point")
    rest = [sampler.sample()["row_id"].clone() for _ in range(4)]
    store.restore("point")
    assert all(torch.equal(sampler.sample()["row_id"], each) for each in rest)


def test_a_reader_follows(made: Made) -> None:
    with Store.open(made.store._engine.path) as reader:
        sampler = reader.sampler(arrowrb.Where(GOOD, arrowrb.Sequences(3), every=1), batch_size=64, seed=1)
        for _ in range(5):
            assert set(ids(sampler.sample())) <= made.rows(GOOD) & made.starts(3)
            made.extend(50)


def test_wrong_questions(made: Made) -> None:
    store = made.store
    for condition, error, text in (
        ("rewardd > 0", QueryError, "rewardd"),
        ("true) OR (true", QueryError, "."),
        ("", OptionError, "condition is ''"),
        (3, OptionError, "condition is 3"),
        ("1; DROP TABLE transitions", QueryError, "."),
    ):
        with pytest.raises(error, match=text):
            store.sampler(arrowrb.Where(condition), batch_size=2)  # type: ignore[arg-type]
    for query, error, text in (
        ("SELECT row_id FROM transitions", QueryError, "Add weight"),
        ("SELECT 1 AS weight", QueryError, "Add row_id"),
        ("DELETE FROM transitions", QueryError, "SELECT"),
    ):
        with pytest.raises(error, match=text):
            store.sampler(arrowrb.Weighted(query), batch_size=2)
    for query, text in (
        ("SELECT row_id, -1 AS weight FROM transitions", "expected a finite one, 0 or more"),
        ("SELECT row_id, 'nan'::DOUBLE AS weight FROM transitions", "expected a finite one, 0 or more"),
        ("SELECT row_id, 1 AS weight FROM transitions UNION ALL SELECT row_id, 2 FROM transitions", "twice"),
        ("SELECT row_id, NULL::DOUBLE AS weight FROM transitions", "weight is NULL"),
        ("SELECT 'x' AS row_id, 1 AS weight", "row_id is string"),
        ("SELECT row_id, 1 AS weight FROM steps", "names no transition"),
        ("SELECT 1099511627776 AS row_id, 1 AS weight", "names no transition"),
    ):
        with pytest.raises(QueryError, match=text):
            store.sampler(arrowrb.Weighted(query), batch_size=2).sample()
    with pytest.raises(EmptyError, match="No transition meets 'reward > 100'"):
        store.sampler(arrowrb.Where("reward > 100"), batch_size=2).sample()
    with pytest.raises(EmptyError, match="a weight above 0"):
        store.sampler(arrowrb.Weighted("SELECT row_id, 0 AS weight FROM transitions"), batch_size=2).sample()
    for wrong in (arrowrb.Prioritized(), arrowrb.Where(GOOD), 3):
        with pytest.raises(OptionError, match="strategy is"):
            arrowrb.Weighted("SELECT row_id, 1 AS weight FROM transitions", wrong)
    with pytest.raises(OptionError, match="strategy is"):
        arrowrb.Where(GOOD, arrowrb.Where(GOOD))
    with pytest.raises(OptionError, match="every is 0"):
        arrowrb.Where(GOOD, every=0)
    with pytest.raises(OptionError, match="only starts can be chosen"):
        store.sampler(arrowrb.Where(GOOD, arrowrb.Sequences(3, over="episodes")), batch_size=2)
    with Store.temporary(plain_schema()) as empty, pytest.raises(EmptyError, match="the store is empty"):
        empty.sampler(arrowrb.Where(GOOD), batch_size=2).sample()
