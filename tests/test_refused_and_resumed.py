"""What samplers lose nothing by: errors on the way, states of others, questions that fail, and what is rare."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.errors import ColumnError, EmptyError, OptionError, QueryError
from arrowrb.store import Store

BOX = gym.spaces.Box(-9, 9, (2,), np.float32)


def schema(reward: str = "float64") -> arrowrb.Schema:
    return arrowrb.Schema.from_spaces(BOX, gym.spaces.Discrete(5), reward=(reward, ()))


def add(store: Store, count: int, ends: float = 0.1, *, lane: int = 0, **columns: Any) -> np.ndarray:
    rng = np.random.default_rng(len(store))
    observation = rng.random((count + 1, 2)).astype(np.float32)
    batch: dict[str, Any] = {
        "observation": observation[:-1],
        "next_observation": observation[1:],
        "action": np.zeros(count, np.int64),
        "reward": rng.normal(size=count),
        "terminated": rng.random(count) < ends,
        "truncated": np.zeros(count, np.bool_),
    }
    return store.extend(batch | columns, lane=lane)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.temporary(schema()) as made:
        add(made, 200)
        yield made


def failing_once(at: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Fails with the batch of this number, once."""
    calls = 0

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == at:
            raise ValueError("once")
        return batch

    return transform


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_epoch_is_whole_in_spite_of_errors(store: Store, prefetch: int) -> None:
    options: dict[str, Any] = {"batch_size": 30, "seed": 0, "prefetch": prefetch}
    sampler = store.sampler(arrowrb.Shuffled(epochs=1), transform=failing_once(3), **options)
    ids, errors = [], 0
    while True:
        try:
            ids += next(sampler)["row_id"].tolist()
        except ValueError:
            errors += 1
        except StopIteration:
            break
        if len(ids) in (30, 120):
            sampler.clear()
    assert errors == 1
    assert len(ids) == len(set(ids)) == 200
    assert sampler.info().num_skipped == 0
    plain = [batch["row_id"].tolist() for batch in store.sampler(arrowrb.Shuffled(epochs=1), **options)]
    assert ids == list(chain.from_iterable(plain))


def test_a_batch_that_failed_is_not_logged(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", schema()) as store:
        add(store, 50)
        sampler = store.sampler(batch_size=4, name="a", log=True, seed=0, transform=failing_once(2))
        first = sampler.sample()
        with pytest.raises(ValueError, match="once"):
            sampler.sample()
        second = sampler.sample()
        assert sampler.num_logged == 2
        logged = store.sql("SELECT row_id FROM samples ORDER BY batch, place").fetchall()
        assert [row_id for (row_id,) in logged] == first["row_id"].tolist() + second["row_id"].tolist()


def test_a_mixture_loses_nothing(store: Store) -> None:
    once, endless = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=7), store.sampler(batch_size=1)
    mixture = arrowrb.Mixture([(once, 0.5), (endless, 0.5)], batch_size=14)
    ids = [row_id for batch in mixture for row_id in batch["row_id"][batch["source"] == 0].tolist()]
    rest = [row_id for batch in once for row_id in batch["row_id"].tolist()]
    assert (len(ids), len(rest)) == (196, 4)
    assert len({*ids, *rest}) == 200
    once = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=7)
    nothing = store.sampler(arrowrb.Where("reward > 1e6"), batch_size=1)
    mixture = arrowrb.Mixture([(once, 0.5), (nothing, 0.5)], batch_size=20)
    for _ in range(3):
        with pytest.raises(EmptyError):
            mixture.sample()
    state = once.state_dict()
    assert sorted(row_id for batch in once for row_id in batch["row_id"].tolist()) == sorted({*ids, *rest})
    other = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=7)
    other.load_state_dict(state)
    assert sum(len(batch["row_id"]) for batch in other) == 200


def test_fractions(store: Store) -> None:
    parts = [store.sampler(batch_size=1) for _ in range(3)]
    fractions = np.random.default_rng(1).dirichlet([1, 1, 1]).tolist()
    mixture = arrowrb.Mixture(list(zip(parts, fractions, strict=True)), batch_size=1000)
    counts = np.bincount(mixture.sample()["source"], minlength=3)
    assert (np.abs(counts - 1000 * np.array(fractions)) <= 1).all()
    mixture = arrowrb.Mixture([(parts[0], 1e-7), (parts[1], 1 - 1e-7)], batch_size=2_000_000)
    assert sum(int((mixture.sample()["source"] == 0).sum()) for _ in range(5)) == 1
    with pytest.raises(OptionError, match=r"add up to 0\.99"):
        arrowrb.Mixture([(parts[0], 0.5), (parts[1], 0.49)], batch_size=4)


def test_updates_of_a_mixture_have_an_entry_a_row(store: Store) -> None:
    learner = store.sampler(arrowrb.Prioritized(), batch_size=1)
    mixture = arrowrb.Mixture([(learner, 0.5), (store.sampler(batch_size=1), 0.5)], batch_size=8)
    batch = mixture.sample()
    for wrong in (np.ones(100), np.ones(2), 1.0, torch.ones(9)):
        with pytest.raises(ColumnError, match="td_error has not 8 entries"):
            mixture.update(batch["row_id"], wrong, source=batch["source"])
    state = mixture.state_dict()
    for owed in ([["a", 1], [0, 1]], [[0, 0], [0, 1]], None):
        with pytest.raises(OptionError, match="not one of a mixture"):
            mixture.load_state_dict({**state, "owed": owed})


def test_a_question_that_failed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from arrowrb.sql.posing import Condition, Weighting

    for strategy in (
        arrowrb.Where("reward > -9", every=10),
        arrowrb.Where("reward > -9", arrowrb.Prioritized(), every=10),
        arrowrb.Where("reward > -9", arrowrb.Sequences(1, period=2), every=10),
        arrowrb.Weighted("SELECT row_id, 1.0 AS weight FROM transitions", every=10),
    ):
        sampler = store.sampler(strategy, batch_size=512, seed=0)
        sampler.sample()
        new = set(add(store, 40, ends=1.0).tolist())  # each an episode of its own
        with monkeypatch.context() as patch:
            for kind in (Condition, Weighting):
                patch.setattr(kind, "ask", lambda *_: (_ for _ in ()).throw(QueryError("out of memory")))
            with pytest.raises(QueryError, match="out of memory"):
                sampler.sample()
        seen: set[int] = set()
        for _ in range(30):
            seen |= set(sampler.sample()["row_id"].flatten().tolist())
        assert new <= seen


WRITER = """
import sys, time, numpy as np, arrowrb
from tests.test_refused_and_resumed import add
with arrowrb.Store.open(sys.argv[1], mode="a") as store:
    print("ready", flush=True)
    end = time.time() + 60
    while time.time() < end:
        add(store, 20)
        time.sleep(0.001)
"""


def test_weights_while_a_writer_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path, schema()) as store:
        add(store, 500)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        with Store.open(path) as reader:
            query = "SELECT row_id, 1.0 AS weight FROM transitions"
            sampler = reader.sampler(arrowrb.Weighted(query, every=1), batch_size=64)
            newest, end = 0, time.monotonic() + 60
            while newest <= 1500 and time.monotonic() < end:
                batch = sampler.sample()
                newest = max(newest, int(reader.gather(batch["row_id"], columns=["ordinal"])["ordinal"].max()))
            assert newest > 1500
    finally:
        writer.kill()
        writer.communicate()


def test_sums_of_whole_rewards_are_no_whole_numbers() -> None:
    with Store.temporary(schema("int8")) as store:
        terminated = np.array([False, False, True])
        ids = [*add(store, 3, reward=np.array([0, 0, 1], np.int8), terminated=terminated).tolist()]
        ids += add(store, 3, reward=np.full(3, 100, np.int8), terminated=terminated).tolist()
        for options, dtype in (({}, torch.float64), ({"float64": "float32"}, torch.float32)):
            batch = store.sampler(batch_size=200, n_step=3, gamma=0.99, seed=0, **options).sample()
            wanted = [0.99**2, 0.99, 1.0, *(sum(100 * 0.99**k for k in range(n)) for n in (3, 2, 1))]
            place = np.searchsorted(ids, batch["row_id"].numpy())
            assert batch["reward"].dtype == dtype
            assert batch["reward"].numpy() == pytest.approx(np.array(wanted)[place])
        steps = store.sampler(arrowrb.Sequences(2), batch_size=4, n_step=3, gamma=0.5).sample()
        assert steps["reward"].dtype == torch.float64
        assert store.sampler(batch_size=4).sample()["reward"].dtype == torch.int8
    advantage, returns = arrowrb.gae(
        torch.ones(2), torch.tensor([0, 1]), torch.tensor([1, 0]), torch.zeros(2, dtype=torch.bool), [False, True]
    )
    assert advantage.dtype == returns.dtype == torch.float64
    assert advantage.tolist() == pytest.approx([1.99, 0.0])
    for flags in ([0.5, 0.0], [float("nan"), 0.0]):
        with pytest.raises(ColumnError, match="flags are True or False"):
            arrowrb.gae(np.ones(2), np.ones(2), np.ones(2), flags, [False, True])


def test_a_goal_gives_no_reward_that_the_store_cannot_hold() -> None:
    goals = gym.spaces.Dict({"achieved_goal": BOX, "desired_goal": BOX})
    made = arrowrb.Schema.from_spaces(goals, gym.spaces.Discrete(5), reward=("int8", ()))
    with Store.temporary(made) as store:
        seen = {"achieved_goal": np.zeros((9, 2), np.float32), "desired_goal": np.ones((9, 2), np.float32)}
        add(store, 9, ends=0, observation=seen, next_observation=seen, reward=np.zeros(9, np.int8))
        for reward in (-1.5, 300.0):
            strategy = arrowrb.Hindsight(lambda a, _, r=reward: np.full(len(a), r), fraction=1.0)
            with pytest.raises(ColumnError, match="int8 cannot hold"):
                store.sampler(strategy, batch_size=4).sample()
            assert store.sampler(strategy, batch_size=4, n_step=1).sample()["reward"].tolist() == [reward] * 4


def test_rewards_that_arrive_are_of_their_episode() -> None:
    with Store.temporary(schema()) as store:
        for episode, first, base in ((0, 0, 100.0), (1, 5, 200.0)):
            columns: dict[str, Any] = {
                "reward": base + np.arange(4.0),
                "terminated": np.arange(4) == 3,
                "episode_id": np.full(4, episode),
                "step": np.arange(first, first + 4),
            }
            add(store, 4, **columns)
        strategy = arrowrb.Sequences(8, across_episodes=True, reward_alignment="arrival")
        batch = store.sampler(strategy, batch_size=1).sample()
        assert batch["reward"][0].tolist() == [0, 100, 101, 102, 0, 200, 201, 202]
        assert batch["reward.valid"][0].tolist() == [True] * 4 + [False] + [True] * 3
        lost = arrowrb.Where("step = 5", arrowrb.Sequences(2, reward_alignment="arrival"))
        batch = store.sampler(lost, batch_size=1).sample()
        assert batch["reward.valid"][0].tolist() == [False, True]
        padded = arrowrb.Where("step = 8", arrowrb.Sequences(3, strict=False, tails=True, reward_alignment="arrival"))
        batch = store.sampler(padded, batch_size=1).sample()
        assert batch["reward"][0].tolist() == [202, 203, 0]
        assert batch["reward.valid"][0].tolist() == [True, True, False]


def test_the_one_whole_episode_among_very_many() -> None:
    with Store.temporary(schema()) as store:
        add(store, 10_000, terminated=np.zeros(10_000, np.bool_))
        row_ids = add(store, 10, lane=1, terminated=np.arange(10) == 9)
        for seed in range(3):
            batch = store.sampler(arrowrb.Episodes(), batch_size=2, seed=seed).sample()
            assert batch["row_id"].tolist() == [row_ids.tolist()] * 2


def test_the_one_long_lane_among_very_many() -> None:
    with Store.temporary(schema()) as store:
        for first in range(0, 2000, 500):
            lanes = np.repeat(np.arange(first, first + 500), 3)
            add(store, 1500, lane=lanes, terminated=np.ones(1500, np.bool_))  # type: ignore[arg-type]
        row_ids = add(store, 20, lane=2001, terminated=np.ones(20, np.bool_))
        for seed in range(3):
            batch = store.sampler(arrowrb.Sequences(20, across_episodes=True), batch_size=1, seed=seed).sample()
            assert batch["row_id"][0].tolist() == row_ids.tolist()
        with pytest.raises(EmptyError, match="No lane has 21 steps"):
            store.sampler(arrowrb.Sequences(21, across_episodes=True), batch_size=1).sample()


def test_a_transform_may_give_nothing(store: Store) -> None:
    for prefetch in (0, 2):
        sampler = store.sampler(batch_size=4, transform=lambda batch: batch.update(x=1), prefetch=prefetch)
        assert [batch for _, batch in zip(range(5), sampler, strict=False)] == [None] * 5


def test_states_of_other_strategies(store: Store) -> None:
    def made(strategy: Any) -> arrowrb.Sampler:
        sampler = store.sampler(strategy, batch_size=4)
        sampler.sample()
        return sampler

    weights = "SELECT row_id, 1 AS weight FROM transitions"
    strategies: list[Any] = [
        arrowrb.Uniform(),
        arrowrb.Where("reward > 0"),
        arrowrb.Where("reward < 0"),
        arrowrb.Weighted(weights),
        arrowrb.Prioritized(),
        arrowrb.Where("reward > 0", arrowrb.Prioritized()),
        arrowrb.Sequences(3),
        arrowrb.Where("reward > 0", arrowrb.Sequences(3)),
        arrowrb.Weighted(weights, arrowrb.Sequences(3)),
        arrowrb.PrioritizedSequences(arrowrb.Sequences(3)),
        arrowrb.Where("reward > 0", arrowrb.PrioritizedSequences(arrowrb.Sequences(3))),
        arrowrb.Shuffled(),
        arrowrb.Episodes(),
    ]
    for one in strategies:
        state = made(one).state_dict()
        for other in strategies:
            sampler = made(other)
            if one is other:
                sampler.load_state_dict(state)
                continue
            before = sampler.state_dict()
            with pytest.raises(OptionError, match="Make it with the strategy that it had"):
                sampler.load_state_dict(state)
            after = sampler.state_dict()
            assert np.array_equal(before["stream"]["generator"], after["stream"]["generator"])
    for wrong in (None, 3, {}):
        with pytest.raises(OptionError):
            made(arrowrb.Uniform()).load_state_dict(wrong)  # type: ignore[arg-type]


def test_epochs_of_a_state_with_more(store: Store) -> None:
    sampler = store.sampler(arrowrb.Shuffled(), batch_size=70, seed=0)
    for _ in range(7):
        sampler.sample()
    fewer = store.sampler(arrowrb.Shuffled(epochs=1), batch_size=70)
    fewer.load_state_dict(sampler.state_dict())
    assert sum(1 for _ in zip(range(500), fewer, strict=False)) == 2


def test_options_that_overlap() -> None:
    parts = gym.spaces.Dict({"a": BOX, "b": BOX})
    made = arrowrb.Schema.from_spaces(parts, gym.spaces.Discrete(5))
    with Store.temporary(made) as store:
        for options, name in (
            ({"frame_stack": {"observation": 4}, "windows": {"observation.a": (0, 2)}}, "observation.a"),
            ({"windows": {"observation": (0, 3), "observation.a": (0, 2)}}, "observation.a"),
            ({"frame_stack": {"observation": 4, "observation.b": 2}}, "observation.b"),
            ({"n_step": 3, "windows": {"terminated": (0, 2)}}, "terminated"),
            ({"n_step": 3, "windows": {"truncated": (0, 2)}}, "truncated"),
        ):
            with pytest.raises(OptionError, match=f"{name}', which another"):
                store.sampler(batch_size=2, **options)  # type: ignore[arg-type]


def test_wrong_arguments(store: Store) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: store.sampler(arrowrb.Prioritized, batch_size=2),  # type: ignore[arg-type]
        lambda: arrowrb.Where("true", arrowrb.Uniform),
        lambda: arrowrb.Weighted("SELECT 1", arrowrb.Uniform),
        lambda: arrowrb.Sequences(3, first_only=3),  # type: ignore[arg-type]
        lambda: arrowrb.Sequences(3, first_only=None),  # type: ignore[arg-type]
        lambda: store.sampler(batch_size=2, tiers=np.array(["hot", "all"])),  # type: ignore[arg-type]
        lambda: store.sampler(batch_size=2, prefetch=2**40),
        lambda: store.since((((5, 200),), 0)),
        lambda: store.since((((5, 0), (0, 0)), 0)),
    ]
    for call in calls:
        with pytest.raises(OptionError):
            call()
    sampler = store.sampler(arrowrb.Prioritized(), batch_size=2)
    with pytest.raises(ColumnError, match="complex"):
        sampler.update([0, 1], np.array([1 + 1j, 2]))


def test_what_begins_no_sequence_is_no_largest_priority(store: Store) -> None:
    sampler = store.sampler(arrowrb.PrioritizedSequences(arrowrb.Sequences(3)), batch_size=64, seed=0)
    last = store.sql("SELECT max(row_id) FROM transitions WHERE terminated").fetchall()[0][0]
    sampler.sample()
    sampler.update([last], priority=[1e6])
    row_ids = add(store, 30, ends=0.0)
    batch = sampler.sample()
    assert not set(batch["start_row_id"].tolist()) <= set(row_ids.tolist())


def test_passes_of_a_dataset(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", schema()) as store:
        add(store, 100)
    dataset = arrowrb.BatchDataset(tmp_path / "store", arrowrb.Shuffled(epochs=1), batch_size=10, seed=3)
    passes = [[batch["row_id"].tolist() for batch in dataset] for _ in range(2)]
    assert passes[0] != passes[1]
    assert sorted(chain.from_iterable(passes[0])) == sorted(chain.from_iterable(passes[1]))
    dataset.set_epoch(0)
    assert [batch["row_id"].tolist() for batch in dataset] == passes[0]
    with pytest.raises(OptionError, match="epoch is -1"):
        dataset.set_epoch(-1)


def test_extras_that_batches_have_names_for(tmp_path: Path) -> None:
    for name in ("length", "Source", "run_end", "action_is_pad"):
        with pytest.raises(arrowrb.SchemaError, match="a name that samplers use"):
            arrowrb.Schema.from_spaces(BOX, gym.spaces.Discrete(5), extras={name: "float32"})
    plain = arrowrb.Schema.from_spaces(BOX, gym.spaces.Discrete(5), extras={"lengths": "float32"})
    told = json.loads(json.dumps(plain.to_json()).replace("lengths", "length"))
    old = arrowrb.Schema.from_json(told)  # of a store of long ago
    with Store.create(tmp_path / "store", old) as store:
        add(store, 50, length=np.arange(50, dtype=np.float32))
        with pytest.raises(ColumnError, match="'length' is an extra of the store"):
            store.sampler(arrowrb.Episodes(), batch_size=2).sample()
        assert store.sampler(arrowrb.Episodes(), batch_size=2, columns=["reward"]).sample()["length"].shape == (2,)
        assert store.sample(2)["length"].dtype == torch.float32


def test_closed_samplers(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", schema()) as store:
        add(store, 50)
        with store.sampler(arrowrb.Prioritized(), batch_size=4, name="a", log=True, prefetch=2, seed=0) as first:
            ids = first.sample()["row_id"]
            first.update(ids, priority=np.full(4, 7.0))
            with pytest.raises(OptionError, match="Close that one first"):
                store.sampler(batch_size=4, name="a")
        first.close()
        calls: list[Callable[[], Any]] = [first.sample, lambda: next(first), lambda: first.update(ids, priority=ids)]
        for call in calls:
            with pytest.raises(arrowrb.UsageError, match="The sampler is closed"):
                call()
        second = store.sampler(arrowrb.Prioritized(), batch_size=4, name="a", log=True)
        second.sample()
        assert second.num_logged == 2
        store.checkpoint("one")
        with Store.open(tmp_path / "store") as reader, pytest.raises(arrowrb.LockedError, match="Close it there"):
            reader.sampler(arrowrb.Prioritized(), batch_size=4, name="a")
        second.close()
        with Store.open(tmp_path / "store") as reader:
            reader.sampler(arrowrb.Prioritized(), batch_size=4, name="a").close()


def test_batches_that_were_read_otherwise(tmp_path: Path) -> None:
    goals = gym.spaces.Dict({"achieved_goal": BOX, "desired_goal": BOX})
    with Store.create(tmp_path / "store", arrowrb.Schema.from_spaces(goals, gym.spaces.Discrete(5))) as store:
        seen = {"achieved_goal": np.zeros((60, 2), np.float32), "desired_goal": np.ones((60, 2), np.float32)}
        add(store, 60, observation=seen, next_observation=seen)
        made: list[tuple[Any, dict[str, Any]]] = [
            (arrowrb.Uniform(), {}),
            (arrowrb.Uniform(), {"n_step": 3}),
            (arrowrb.Uniform(), {"n_step": 3, "gamma": 0.5}),
            (arrowrb.Sequences(3), {}),
            (arrowrb.Sequences(4, strict=False), {}),
            (arrowrb.Sequences(4, strict=False), {"frame_stack": {"observation": 2}}),
            (arrowrb.Episodes(complete=False), {}),
            (arrowrb.Hindsight(lambda a, d: (a - d).sum(1)), {}),
            (arrowrb.Hindsight(lambda a, d: (a - d).sum(1), goals="final"), {"n_step": 2}),
        ]
        batches = []
        for strategy, options in made:  # all in one log
            with store.sampler(strategy, batch_size=5, name="a", log=True, seed=0, **options) as sampler:
                batches.append(sampler.sample())
        for number, batch in enumerate(batches, start=1):
            for place, (strategy, options) in enumerate(made, start=1):
                sampler = store.sampler(strategy, batch_size=5, seed=1, **options)
                if place == number:
                    assert torch.equal(sampler.redraw(number, name="a")["reward"], batch["reward"])
                else:
                    with pytest.raises(OptionError, match="Make it with the strategy and options of that one"):
                        sampler.redraw(number, name="a")


def test_what_messages_tell(store: Store) -> None:
    told: list[tuple[Callable[[], Any], str]] = [
        (lambda: store.sampler(batch_size=2, columns=["discount"]), "'discount' comes with a strategy or option"),
        (lambda: store.sampler(batch_size=2, frame_stack={"obs": 4}), "expected one of observation"),
        (lambda: store.sampler(batch_size=2, windows={"next_observation": (0, 2)}), "give 'observation'"),
        (lambda: store.sampler(batch_size=2, frame_stack={"next_observation": 2}), "give 'observation'"),
        (lambda: store.sampler(arrowrb.Where("true", arrowrb.Sequences(999)), batch_size=2).sample(), "can draw"),
        (lambda: arrowrb.Where("true", arrowrb.Episodes()), "Give a value of Uniform"),
        (lambda: store.sampler(arrowrb.Hindsight(lambda a, _: a), batch_size=2), "has no parts"),
        (lambda: store.sampler(batch_size=2).load_state_dict({}), "none of a sampler"),
        (lambda: store.latest(0), "count is 0"),
        (lambda: store.checkpoint("a", state={"mark": store.watermark()}), r"Give tuple\(value\)"),
        (lambda: store.sampler(arrowrb.Prioritized(), batch_size=2).update([0]), "not both"),
        (lambda: arrowrb.BatchDataset("nowhere", batch_size=2, n_steps=3), "'n_steps' is no option"),
    ]
    for call, message in told:
        with pytest.raises(arrowrb.ArrowRBError, match=message):
            call()
    bare = store.sampler(batch_size=1, transform=lambda batch: {"reward": batch["reward"]})
    with pytest.raises(ColumnError, match="leaves out row_id"):
        arrowrb.Mixture([(bare, 1.0)], batch_size=2).sample()


@pytest.mark.parametrize("condition", ["reward > -9", "episode_id IN (SELECT episode_id FROM episodes)"])
def test_a_state_of_a_question_that_is_due(store: Store, condition: str) -> None:
    """It is asked when the next batch is drawn, of the one that goes on, too."""
    weights = f"SELECT row_id, 1.0 AS weight FROM transitions WHERE {condition}"
    for strategy in (arrowrb.Where(condition, every=10), arrowrb.Weighted(weights, every=10)):
        sampler = store.sampler(strategy, batch_size=64, seed=0)
        sampler.sample()
        add(store, 50)
        state = sampler.state_dict()
        fresh = store.sampler(strategy, batch_size=64, seed=1)
        fresh.load_state_dict(state)
        for _ in range(5):
            assert torch.equal(sampler.sample()["row_id"], fresh.sample()["row_id"])
