"""Batches out of several samplers: exact fractions, where each row came from, and who is told what was learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.errors import ColumnError, EmptyError, OptionError, UsageError
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema


@pytest.fixture
def stores() -> Iterator[tuple[Store, Store]]:
    """Offline rewards are above 100."""
    with Store.temporary(plain_schema()) as offline, Store.temporary(plain_schema()) as online:
        batch = plain_batch(90, seed=1)
        offline.extend({**batch, "reward": batch["reward"] + 1000})
        online.extend(plain_batch(60, seed=2))
        yield offline, online


def test_halves(stores: tuple[Store, Store]) -> None:
    offline, online = stores
    mixture = arrowrb.Mixture(
        [(offline.sampler(batch_size=1, seed=1), 0.25), (online.sampler(batch_size=7, seed=2), 0.75)], batch_size=64
    )
    for batch, _ in zip(mixture, range(5), strict=False):
        assert batch["source"].tolist() == [0] * 16 + [1] * 48
        assert ((batch["reward"] > 100) == (batch["source"] == 0)).all()
        for number, store in enumerate(stores):
            part = batch["source"] == number
            for name, values in store.gather(batch["row_id"][part]).items():
                assert torch.equal(batch[name][part], values)
        assert batch["terminated"].dtype == torch.bool


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (1 / 3, 2 / 3), (0.1, 0.2, 0.7), (0.03, 0.97), (1.0,)])
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_fractions_are_exact(stores: tuple[Store, Store], fractions: tuple[float, ...], batch_size: int) -> None:
    parts = [(stores[0].sampler(batch_size=1, seed=number), each) for number, each in enumerate(fractions)]
    mixture = arrowrb.Mixture(parts, batch_size=batch_size)
    total = np.zeros(len(fractions))
    for number in range(1, 61):
        counts = np.bincount(mixture.sample()["source"].numpy(), minlength=len(fractions))
        assert counts.sum() == batch_size
        total += counts
        assert (np.abs(total - np.array(fractions) * batch_size * number) < 1).all()


def test_what_was_learned_goes_to_whom_it_concerns(stores: tuple[Store, Store]) -> None:
    offline, online = stores
    one = offline.sampler(arrowrb.Prioritized(alpha=1.0, eps=0.0), batch_size=1, seed=1)
    other = online.sampler(batch_size=1, seed=2)
    mixture = arrowrb.Mixture([(one, 0.5), (other, 0.5)], batch_size=40)
    batch = mixture.sample()
    assert (batch["weight"][20:] == 1).all()
    mixture.update(batch["row_id"], torch.zeros(40), source=batch["source"])  # offline rows: never again
    zero = set(batch["row_id"][:20].tolist())
    for _ in range(5):
        batch = mixture.sample()
        assert not zero & set(batch["row_id"][:20].tolist())
    chosen = batch["row_id"][:1].tolist() * 2
    mixture.update(chosen, source=[0, 1], priority=[1e9, 0.0])  # that of the online row is left out
    assert set(mixture.sample()["row_id"][:20].tolist()) == set(chosen)


def test_states(stores: tuple[Store, Store]) -> None:
    def make(seed: int) -> arrowrb.Mixture:
        return arrowrb.Mixture(
            [
                (stores[0].sampler(arrowrb.Prioritized(), batch_size=1, seed=seed), 0.3),
                (stores[1].sampler(arrowrb.Shuffled(), batch_size=1, seed=seed), 0.7),
            ],
            batch_size=11,
        )

    mixture = make(1)
    for _ in range(4):
        mixture.sample()
    state = mixture.state_dict()
    rest = [mixture.sample() for _ in range(12)]
    fresh = make(9)
    fresh.load_state_dict(state)
    for expected in rest:
        batch = fresh.sample()
        assert all(torch.equal(batch[name], values) for name, values in expected.items())
    for wrong in ({}, {**state, "owed": [[1, 0], [1, 2]]}, {**state, "parts": state["parts"][:1]}):
        with pytest.raises(OptionError, match="not one of a mixture of 2"):
            fresh.load_state_dict(wrong)
    other = arrowrb.Mixture([(stores[1].sampler(arrowrb.Shuffled(), batch_size=1), 1)], batch_size=1)
    half = {**state, "parts": [state["parts"][0], {**other.state_dict()["parts"][0], "batch_size": 2}]}
    before = make(9)
    before.load_state_dict(fresh.state_dict())
    with pytest.raises(OptionError, match="batch_size is 1"):
        fresh.load_state_dict(half)
    for _ in range(3):  # neither part has changed
        expected = before.sample()
        batch = fresh.sample()
        assert all(torch.equal(batch[name], values) for name, values in expected.items())
    with pytest.raises(ColumnError, match=r"source has shape .* Give batch\[\"source\"\]"):
        fresh.update(batch["row_id"], source=batch["reward"], priority=torch.ones(11))


def test_epochs_end_and_go_on(stores: tuple[Store, Store]) -> None:
    endless = arrowrb.Mixture([(stores[0].sampler(arrowrb.Shuffled(), batch_size=1), 1)], batch_size=40)
    ids = [row for _ in range(9) for row in endless.sample()["row_id"].tolist()]  # 4 epochs of 90
    assert all(len(set(ids[first : first + 90])) == 90 for first in range(0, 360, 90))
    short = arrowrb.Mixture([(stores[0].sampler(arrowrb.Shuffled(epochs=1), batch_size=1), 1)], batch_size=40)
    assert len(list(short)) == 2
    with pytest.raises(EmptyError, match="Part 0 of the mixture has come to its end"):
        short.sample()


def test_nested_and_sequences() -> None:
    space = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (2,)), "b": gym.spaces.Tuple((gym.spaces.Discrete(5),))})
    schema = arrowrb.Schema.from_spaces(space, gym.spaces.Discrete(2))
    with Store.temporary(schema) as store:
        for number in range(30):
            store.add(
                observation={"a": [0.25, 0.5], "b": (number % 5,)},
                action=1,
                reward=1.0,
                next_observation={"a": [0.25, 0.5], "b": ((number + 1) % 5,)},
                terminated=number % 10 == 9,
                truncated=False,
            )
        parts = [(store.sampler(arrowrb.Sequences(4), batch_size=1, seed=seed), 0.5) for seed in (1, 2)]
        batch = arrowrb.Mixture(parts, batch_size=6).sample()
        assert batch["observation"]["a"].shape == (6, 4, 2)
        assert batch["observation"]["b"][0].shape == (6, 4)
        assert batch["source"].tolist() == [0, 0, 0, 1, 1, 1]


def test_wrong_use(stores: tuple[Store, Store]) -> None:
    one, other = (store.sampler(batch_size=2) for store in stores)
    wrong: list[tuple[Any, str]] = [
        ([], "parts is"),
        ([(one, 0.5)], "add up to 0.5"),
        ([(one, 0.5), (one, 0.5)], "named twice"),
        ([(one, 0.0), (other, 1.0)], "fraction of part 0 is 0.0"),
        ([(one, True)], "fraction of part 0 is True"),
        ([(stores[0], 1.0)], "pairs of a sampler and a fraction"),
        ([(stores[0].sampler(batch_size=2, prefetch=1), 1.0)], "prefetch=0"),
    ]
    for parts, text in wrong:
        with pytest.raises(OptionError, match=text):
            arrowrb.Mixture(parts, batch_size=4)
    mixture = arrowrb.Mixture([(one, 0.5), (other, 0.5)], batch_size=4)
    batch = mixture.sample()
    with pytest.raises(UsageError, match="No sampler of the mixture keeps priorities"):
        mixture.update(batch["row_id"], [0.0] * 4, source=batch["source"])
    for source, text in (([0], "source has shape"), ([0, 1, 2, 0], "a part that is none")):
        with pytest.raises(ColumnError, match=text):
            mixture.update(batch["row_id"], [0.0] * 4, source=source)
    few = stores[1].sampler(batch_size=1, columns=["reward"])
    with pytest.raises(ColumnError, match="Part 1 has no column 'observation'"):
        arrowrb.Mixture([(one, 0.5), (few, 0.5)], batch_size=4).sample()
    short = stores[1].sampler(batch_size=1, float64="float32")
    with pytest.raises(ColumnError, match=r"reward is .*float64.* in one part, and .*float32"):
        arrowrb.Mixture([(one, 0.5), (short, 0.5)], batch_size=4).sample()
    made = stores[1].sampler(batch_size=1, transform=len)
    with pytest.raises(ColumnError, match="Part 1 gives a int"):
        arrowrb.Mixture([(one, 0.5), (made, 0.5)], batch_size=4).sample()
