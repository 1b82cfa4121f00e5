"""Sequences with periods, burn-in, bootstrap steps, tails, shifted rewards; by priority: against plain lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.engine import Engine, WriterOptions, segments
from arrowrb.errors import ColumnError, EmptyError, OptionError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.chances import chi_square

SCHEMA = arrowrb.Schema.from_spaces(
    gym.spaces.Dict({"x": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)}),
    gym.spaces.Discrete(100),
    extras={
        "state": arrowrb.Extra("float32", (3,), owner="observation"),
        "log_prob": arrowrb.Extra("float32", (), owner="transition", nullable=True),
    },
)


@dataclass
class Step:
    """What is known of a step: an observation, and what followed it, if that is a transition."""

    episode: int
    step: int
    observation: np.ndarray
    state: np.ndarray
    row_id: int = -1
    action: int = 0
    reward: float = 0.0
    log_prob: float | None = None
    terminated: bool = False
    truncated: bool = False
    acts: bool = True


class Lanes:
    """Lanes that write into a store, and all their steps as lists; final observations are steps that do not act."""

    def __init__(self, store: Store, rng: np.random.Generator, count: int) -> None:
        self.store, self.rng = store, rng
        self.lanes: list[list[Step]] = [[] for _ in range(count)]
        self.episodes = 0
        self.now = [self.begin() for _ in range(count)]

    def begin(self) -> Step:
        self.episodes += 1
        return self.observe(self.episodes, 0)

    def observe(self, episode: int, step: int) -> Step:
        return Step(episode, step, self.rng.normal(size=2), self.rng.normal(size=3).astype(np.float32))

    def extend(self, count: int, ends: float) -> None:
        rng, written = self.rng, []
        lanes = rng.integers(0, len(self.lanes), count)
        behind = []
        for lane in lanes.tolist():
            now = self.now[lane]
            now.action, now.reward = int(rng.integers(1, 100)), float(rng.normal())
            now.log_prob = float(np.float32(rng.normal())) if rng.random() < 0.7 else None
            now.terminated, now.truncated = bool(rng.random() < ends), bool(rng.random() < ends / 2)
            following = self.observe(now.episode, now.step + 1)
            following.acts = False
            self.lanes[lane].append(now)
            written.append(now)
            behind.append(following)
            if now.terminated or now.truncated:
                self.lanes[lane].append(following)
                self.now[lane] = self.begin()
            else:
                following.acts = True
                self.now[lane] = following
        row_ids = self.store.extend(
            {
                "observation": {"x": np.array([each.observation for each in written])},
                "next_observation": {"x": np.array([each.observation for each in behind])},
                "state": np.array([each.state for each in written]),
                "next_state": np.array([each.state for each in behind]),
                "action": np.array([each.action for each in written]),
                "reward": np.array([each.reward for each in written]),
                "log_prob": np.array([each.log_prob or 0 for each in written], np.float32),
                "log_prob.valid": np.array([each.log_prob is not None for each in written]),
                "terminated": np.array([each.terminated for each in written]),
                "truncated": np.array([each.truncated for each in written]),
                "lane": lanes,
            }
        )
        for each, row_id in zip(written, row_ids.tolist(), strict=True):
            each.row_id = row_id

    def left(self) -> list[list[Step]]:
        """Of each lane what is there yet: transitions that were not dropped, and what they lead to."""
        there = {row_id for (row_id,) in self.store.sql("SELECT row_id FROM transitions").fetchall()}
        found = []
        for lane in self.lanes:
            kept = []
            for step in lane:
                leads = not step.acts and kept and kept[-1].episode == step.episode
                if (step.acts and step.row_id in there) or leads:
                    kept.append(step)
            found.append(kept)
        return found


@pytest.fixture(params=range(2))
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lanes]:
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([2, 4, 16]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    Store.create(tmp_path / "store", SCHEMA, max_rows=1000).close()
    options = WriterOptions(0.02, limits=Limits(hot_rows=250, max_rows=1000))
    with Store(Engine(tmp_path / "store", writable=True, options=options)) as store:
        lanes = Lanes(store, rng, int(rng.choice([1, 3])))
        for _ in range(14):
            lanes.extend(80, 0.08)
        store.maintain()
        assert store.info().num_evicted
        assert store.info().cold_rows
        yield lanes


def expected_steps(lane: list[Step], at: int, strategy: arrowrb.Sequences) -> tuple[list[Step | None], int]:
    """The steps of the sequence that begins at a transition, padded, and how many of them only warm up."""
    first = at
    while first > at - strategy.burn_in and first > 0 and lane[first - 1].episode == lane[at].episode:
        first -= 1
    warm, steps = at - first, []
    for step in lane[first:]:
        if not strategy.across_episodes and step.episode != lane[at].episode:
            break
        if (step.acts or strategy.tails) and len(steps) < warm + strategy.length:
            steps.append(step)
    return [*steps, *[None] * (strategy.burn_in + strategy.length - len(steps))], warm


def after(lane: list[Step], step: Step, now: list[Step]) -> Step:
    """The step whose observation a transition led to."""
    return next(each for each in [*lane, *now] if (each.episode, each.step) == (step.episode, step.step + 1))


def check(batch: dict[str, Any], made: Lanes, strategy: arrowrb.Sequences) -> set[str]:
    """That a batch is what the model says. Returns what happened in it."""
    lanes, seen = made.left(), set()
    place = {step.row_id: (lane, at) for lane in lanes for at, step in enumerate(lane) if step.acts}
    total = strategy.burn_in + strategy.length + strategy.bootstrap
    assert batch["row_id"].shape[1] == total
    whole = "mask" not in batch
    for i, start in enumerate(batch["start_row_id"].tolist()):
        lane, at = place[start]
        steps, warm = expected_steps(lane, at, strategy)
        assert lane[at].step % strategy.period == 0
        count = sum(step is not None for step in steps)
        bootstrap = strategy.bootstrap and steps[count - 1].acts
        there = [j < count or (j == count and bootstrap) for j in range(total)]
        assert whole == (strategy.strict and not strategy.burn_in and not strategy.bootstrap)
        assert all(there) if whole else batch["mask"][i].tolist() == [j < count for j in range(total)]
        if strategy.burn_in:
            assert batch["is_burn_in"][i].tolist() == [j < warm for j in range(total)]
            seen.add(f"warm {warm > 0}")
        for j in range(total):
            step = steps[j] if j < count else None
            observed = step if step is not None else after(lane, steps[count - 1], made.now) if there[j] else None
            x = batch["observation"]["x"][i, j].numpy()
            assert (x == (0 if observed is None else observed.observation)).all()
            if not strategy.first_only:
                assert (batch["state"][i, j].numpy() == (0 if observed is None else observed.state)).all()
            acts = step is not None and step.acts
            assert batch["action"][i, j].item() == (step.action if acts else 0)
            assert batch["terminated"][i, j].item() == (acts and step.terminated)
            assert batch["truncated"][i, j].item() == (acts and step.truncated)
            assert batch["log_prob.valid"][i, j].item() == (acts and step.log_prob is not None)
            assert batch["log_prob"][i, j].item() == ((step.log_prob if acts else 0) or 0)
            behind = after(lane, step, made.now).observation if acts else 0
            assert (batch["next_observation"]["x"][i, j].numpy() == behind).all()
            assert batch["is_first"][i, j].item() == (acts and step.step == 0)
            if step is None or step.acts:
                assert batch["row_id"][i, j].item() == (-1 if step is None else step.row_id)
            if strategy.tails:
                last = step is not None and not step.acts
                assert batch["is_last"][i, j].item() == last
                assert batch["is_terminal"][i, j].item() == (last and steps[j - 1].terminated)
                seen.add(f"last {last}")
            reward = step.reward if acts else 0.0
            if strategy.reward_alignment == "arrival":
                where = lane.index(observed) if observed in lane else len(lane)
                previous = steps[count - 1] if step is None and there[j] else lane[where - 1] if where else None
                reward = 0.0
                if there[j] and previous is not None and previous.acts and previous.episode == observed.episode:
                    reward = previous.reward
            assert batch["reward"][i, j].item() == reward
        if strategy.first_only:
            assert (batch["state"][i].numpy() == steps[0].state).all()
            assert batch["log_prob"].shape == (len(batch["row_id"]), total)
        seen |= {f"short {count < total}", f"bootstrap {bootstrap}"}
    return seen


OPTIONS: list[tuple[dict[str, Any], set[str]]] = [
    ({"strict": False, "period": 4}, {"short True"}),
    ({"period": 3}, set()),
    ({"burn_in": 3}, {"warm True", "warm False"}),
    ({"burn_in": 3, "strict": False, "period": 2, "bootstrap": True}, {"warm True", "bootstrap True"}),
    ({"bootstrap": True}, {"bootstrap True"}),
    ({"bootstrap": True, "strict": False, "reward_alignment": "arrival"}, {"bootstrap True", "short True"}),
    ({"tails": True, "strict": False}, {"last True", "short True"}),
    ({"tails": True, "strict": False, "bootstrap": True, "reward_alignment": "arrival"}, {"bootstrap False"}),
    ({"tails": True, "across_episodes": True, "reward_alignment": "arrival"}, {"last True"}),
    ({"tails": True, "across_episodes": True, "bootstrap": True}, {"last True", "bootstrap False"}),
    ({"across_episodes": True, "reward_alignment": "arrival"}, set()),
    ({"across_episodes": True, "strict": False, "burn_in": 2}, {"warm True"}),
    ({"reward_alignment": "arrival", "first_only": ("state",)}, set()),
    ({"over": "episodes", "burn_in": 2, "first_only": ["state"]}, {"warm True"}),
]


@pytest.mark.parametrize(
    ("options", "happens"), OPTIONS, ids=lambda each: "-".join(each) if isinstance(each, dict) else ""
)
def test_what_sequences_hold(made: Lanes, options: dict[str, Any], happens: set[str]) -> None:
    strategy = arrowrb.Sequences(5, **options)
    sampler = made.store.sampler(strategy, batch_size=24, seed=1, prefetch=1)
    seen: set[str] = set()
    for _ in range(4):
        seen |= check(sampler.sample(), made, strategy)
    made.extend(60, 0.1)
    made.store.maintain()
    sampler.clear()
    for _ in range(2):
        seen |= check(sampler.sample(), made, strategy)
    assert happens <= seen


@pytest.mark.parametrize(
    "options", [{"strict": False}, {"across_episodes": True}, {"strict": False, "bootstrap": True}]
)
def test_tails_say_which_steps_they_are(made: Lanes, options: dict[str, Any]) -> None:
    names = ["lane", "episode_id", "step", "time"]
    strategy = arrowrb.Sequences(5, tails=True, **options)
    batch = made.store.sampler(strategy, batch_size=64, seed=1, columns=names).sample()
    asked = "SELECT row_id, lane, episode_id, step, time FROM steps"
    told = {row_id: values for row_id, *values in made.store.sql(asked).fetchall()}
    there = batch["mask"] if "mask" in batch else torch.ones_like(batch["row_id"], dtype=torch.bool)
    assert (there & batch["is_last"]).any()
    columns = [batch[name][there].tolist() for name in names]
    for row_id, *values in zip(batch["row_id"][there].tolist(), *columns, strict=True):
        assert values == told[row_id]
    assert not any(batch[name][~there].any() for name in names)


@pytest.mark.parametrize("name", ["reward", "terminated"])
def test_what_is_summed_is_not_read_of_the_first_step_alone(made: Lanes, name: str) -> None:
    with pytest.raises(OptionError, match="another option reads it of each"):
        made.store.sampler(arrowrb.Sequences(4, first_only=(name,)), batch_size=8, n_step=2)


def starts(made: Lanes, length: int, period: int = 1) -> list[int]:
    """Row ids where so many transitions of an episode follow."""
    found = []
    for lane in made.left():
        for at, step in enumerate(lane):
            run = lane[at : at + length]
            if len(run) == length and all(each.acts and each.episode == step.episode for each in run):
                found += [step.row_id] if step.step % period == 0 else []
    return found


def draw(sampler: arrowrb.Sampler, count: int) -> Counter[int]:
    return Counter(row for _ in range(-(-count // 64)) for row in sampler.sample()["start_row_id"].tolist())


@pytest.mark.parametrize(("length", "period"), [(1, 3), (4, 2), (6, 5)])
def test_periods(made: Lanes, length: int, period: int) -> None:
    sampler = made.store.sampler(arrowrb.Sequences(length, period=period), batch_size=64, seed=1)
    for number in range(12):  # rows come, move and go
        expected = starts(made, length, period)
        found = draw(sampler, 200 * len(expected) if number == 11 else 128)
        assert set(found) <= set(expected)
        if number == 11:
            chi_square(found, dict.fromkeys(expected, found.total() / len(expected)))
        else:
            made.extend(int(made.rng.integers(1, 60)), 0.08)
            made.store.maintain()


@pytest.mark.parametrize("strict", [True, False])
def test_sequences_by_priority(made: Lanes, strict: bool) -> None:
    sequences = arrowrb.Sequences(4, period=2, strict=strict)
    strategy = arrowrb.PrioritizedSequences(sequences, arrowrb.Prioritized(alpha=0.8, beta=0.5, eps=0.01), eta=0.7)
    sampler = made.store.sampler(strategy, batch_size=64, seed=1)
    rng, raw, largest = made.rng, dict[int, float](), 1.0
    for _ in range(12):
        there = starts(made, 4 if strict else 1, 2)
        raw = {row: raw.get(row, largest) for row in there}
        batch = sampler.sample()
        assert set(batch["start_row_id"].tolist()) <= set(there)
        errors, mask = rng.normal(size=(64, 4)), rng.random((64, 4)) < 0.7
        mask[:, 0] = True
        errors[~mask] = np.nan  # must not count
        sampler.update(batch["start_row_id"], torch.from_numpy(errors), mask=torch.from_numpy(mask))
        for row, each, counts in zip(batch["start_row_id"].tolist(), errors, mask, strict=True):
            size = np.abs(each[counts])
            raw[row] = float(np.float32(0.7 * size.max() + 0.3 * size.mean() + 0.01))
        largest = max(largest, *raw.values())
        made.extend(30, 0.08)
        made.store.maintain()
    there = starts(made, 4 if strict else 1, 2)
    mass = {row: raw.get(row, largest) ** 0.8 for row in there}
    total = sum(mass.values())
    batch = sampler.sample()
    for row, weight in zip(batch["start_row_id"].tolist(), batch["weight"].tolist(), strict=True):
        assert weight == pytest.approx((min(mass.values()) / mass[row]) ** 0.5, rel=1e-4)
    found = draw(sampler, 300 * len(there))
    chi_square(found, {row: found.total() * each / total for row, each in mass.items()})


def test_priorities_of_sequences_survive(made: Lanes) -> None:
    strategy = arrowrb.PrioritizedSequences(arrowrb.Sequences(3, period=2))
    sampler = made.store.sampler(strategy, batch_size=64, seed=1, name="learner")
    batch = sampler.sample()
    sampler.update(batch["start_row_id"], np.arange(64 * 3.0).reshape(64, 3) + 1)
    state = sampler.state_dict()
    kept = made.store.sampler(strategy, batch_size=64, seed=5)
    kept.load_state_dict(state)
    del sampler
    again = made.store.sampler(strategy, batch_size=64, seed=1, name="learner")
    again.load_state_dict(
        {**state, "stream": {**state["stream"], "priorities": again.state_dict()["stream"]["priorities"]}}
    )
    for _ in range(5):
        one, other = kept.sample(), again.sample()
        assert torch.equal(one["row_id"], other["row_id"])
        assert torch.equal(one["weight"], other["weight"])
    made.extend(50, 0.1)
    assert torch.equal(kept.sample()["row_id"], again.sample()["row_id"])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"period": 0}, "period is 0"),
    ({"burn_in": -1}, "burn_in is -1"),
    ({"burn_in": True}, "burn_in is True"),
    ({"bootstrap": 1}, "bootstrap is 1"),
    ({"tails": True}, "strict=False"),
    ({"reward_alignment": "late"}, "reward_alignment is 'late', expected 'departure' or 'arrival'"),
    ({"first_only": "state"}, "first_only is 'state'"),
    ({"period": 2, "over": "episodes"}, "period counts the steps of an episode"),
    ({"period": 2, "across_episodes": True}, "period counts the steps of an episode"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        arrowrb.Sequences(5, **options)


def test_wrong_use(made: Lanes) -> None:
    store = made.store
    with pytest.raises(ColumnError, match="'hidden', which is no column"):
        store.sampler(arrowrb.Sequences(2, first_only=("hidden",)), batch_size=2)
    strategy = arrowrb.Sequences(2, first_only=("reward",), reward_alignment="arrival")
    with pytest.raises(ColumnError, match="reward_alignment shifts"):
        store.sampler(strategy, batch_size=2)
    for wrong, text in ((3, "expected Sequences"), (arrowrb.Sequences(2, over="episodes"), "those of starts")):
        with pytest.raises(OptionError, match=text):
            arrowrb.PrioritizedSequences(wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="eta is 2"):
        arrowrb.PrioritizedSequences(arrowrb.Sequences(2), eta=2)
    with pytest.raises(EmptyError, match="900 steps"):
        store.sampler(arrowrb.Sequences(900, period=2), batch_size=2).sample()
    sampler = store.sampler(arrowrb.PrioritizedSequences(arrowrb.Sequences(2)), batch_size=2)
    ids = sampler.sample()["start_row_id"]
    for errors, mask, text in (
        (np.zeros(2), None, r"shape \(2,\), expected \(2, steps\)"),
        (np.zeros((2, 2)), np.zeros((2, 3)), "mask has shape"),
        (np.zeros((2, 2)), [[1, 1], [0, 0]], r"mask\[1\] is False"),
        (np.array([[1.0, 2.0], [1.0, np.nan]]), None, r"td_error\[1\] is nan"),
    ):
        with pytest.raises(ColumnError, match=text):
            sampler.update(ids, errors, mask=mask)
    with pytest.raises(OptionError, match="mask tells"):
        store.sampler(arrowrb.Prioritized(), batch_size=2).update(ids, np.zeros(2), mask=np.ones(2))


def to_go(lane: list[Step], at: int, gamma: float) -> float:
    total, factor = 0.0, 1.0
    for step in lane[at:]:
        if step.episode != lane[at].episode or not step.acts:
            break
        total += factor * step.reward
        factor *= gamma
    return total


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"strict": False, "tails": True, "burn_in": 2},
        {"across_episodes": True, "tails": True, "bootstrap": True},
        {"across_episodes": True},
    ],
)
def test_returns_to_go(made: Lanes, options: dict[str, Any] | None, gamma: float) -> None:
    strategy = arrowrb.Uniform() if options is None else arrowrb.Sequences(5, **options)
    batch = made.store.sampler(strategy, batch_size=64, seed=1, return_to_go=gamma, prefetch=1).sample()
    lanes = made.left()
    expected = {step.row_id: to_go(lane, at, gamma) for lane in lanes for at, step in enumerate(lane) if step.acts}
    ids, sums = batch["row_id"], batch["return_to_go"]
    assert sums.shape == ids.shape
    assert sums.dtype == torch.float64
    wanted = torch.tensor([expected.get(row_id, 0.0) for row_id in ids.flatten().tolist()], dtype=torch.float64)
    torch.testing.assert_close(sums.flatten(), wanted, rtol=1e-9, atol=1e-9)
    assert torch.equal(
        batch["reward"].flatten() != 0, torch.tensor([each in expected for each in ids.flatten().tolist()])
    )


def test_long_returns_to_go_and_their_options() -> None:
    schema = arrowrb.Schema.from_spaces(gym.spaces.Discrete(5), gym.spaces.Discrete(2), reward=("float32", (2,)))
    with Store.temporary(schema) as store:
        count = 1000
        rewards = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2) % 7
        zeros = np.zeros(count, np.int64)
        row_ids = store.extend(
            {
                "observation": zeros, "next_observation": zeros, "action": zeros, "reward": rewards,
                "terminated": np.arange(count) == count - 1, "truncated": zeros.astype(bool),
            }
        )  # fmt: skip
        batch = store.sampler(batch_size=50, seed=1, return_to_go=1.0).sample()
        at = np.searchsorted(row_ids, batch["row_id"].numpy())
        assert batch["return_to_go"].dtype == torch.float32
        assert np.array_equal(batch["return_to_go"].numpy(), [rewards[each:].sum(0) for each in at])
    with Store.temporary(SCHEMA) as store:
        short = {"batch_size": 2, "float64": "float32"}
        with pytest.raises(OptionError, match=r"return_to_go is 1\.5"):
            store.sampler(return_to_go=1.5, **short)  # type: ignore[arg-type]
        arrived = arrowrb.Sequences(2, reward_alignment="arrival")
        with pytest.raises(OptionError, match="Leave out reward_alignment"):
            store.sampler(arrived, return_to_go=1.0, **short)  # type: ignore[arg-type]
        Lanes(store, np.random.default_rng(0), 1).extend(30, 0.1)
        batch = store.sampler(return_to_go=1.0, **short).sample()  # type: ignore[arg-type]
        assert batch["return_to_go"].dtype == batch["reward"].dtype == torch.float32
