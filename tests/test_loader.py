"""Batches: what they hold, and that a kept batch keeps what it held."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch
from gymnasium import spaces

from arrowrb.errors import ColumnError, OptionError, RowError
from arrowrb.loader import Loader, to_torch
from arrowrb.samplers import ROW, Reading
from arrowrb.schema import Extra, Schema
from arrowrb.store import Store
from tests.model import SCHEMA as NESTED
from tests.model import as_batch, of_batch, random_observations, random_outcomes, row_bytes

DOUBLE = Schema.from_spaces(
    spaces.Box(-np.inf, np.inf, (3,), np.float64),
    spaces.Box(-1, 1, (2,), np.float32),
    extras={"brain": Extra("bfloat16", (2,), owner="observation"), "half": Extra("float16")},
)


def double_batch(count):
    number = np.arange(count, dtype=np.float64)
    brain = torch.stack([torch.arange(count), torch.arange(count) + 1], 1).to(torch.bfloat16)
    return {
        "observation": np.stack([number, number + 1e-9, -number], 1),
        "next_observation": np.stack([number + 1, number + 1 + 1e-9, -number - 1], 1),
        "action": np.stack([number, number], 1).astype(np.float32),
        "reward": number / 3,
        "terminated": number % 5 == 4,
        "truncated": number % 7 == 6,
        "brain": brain,
        "next_brain": brain + 1,
        "half": number.astype(np.float16),
    }


@pytest.fixture
def store():
    with Store.temporary(DOUBLE) as store:
        store.extend(double_batch(200), contiguous=False)
        yield store


def test_everything_comes_back(store):
    ids = store.sample(500)["row_id"].unique()
    batch = store.gather(ids)
    places = batch["observation"][:, 0].long()
    for name, expected in double_batch(200).items():
        whole = expected if torch.is_tensor(expected) else torch.from_numpy(expected)
        assert batch[name].dtype == whole.dtype, name
        assert torch.equal(batch[name], whole[places]), name
    assert batch["row_id"].dtype == torch.int64
    assert set(batch) == {*double_batch(1), "row_id"}


def test_columns(store):
    names = ["reward", "next_observation", "episode_id", "next_brain", "kind", "ordinal", "reward", "row_id"]
    batch = store.sample(7, columns=names)
    assert set(batch) == set(names)
    assert batch["kind"].tolist() == [1] * 7
    assert set(store.sample(3, columns=[])) == {"row_id"}
    for wrong in (["rewards"], ["next_reward"], ["observation", ""]):
        with pytest.raises(ColumnError, match="is unknown, expected one of observation"):
            store.sample(3, columns=wrong)
    with pytest.raises(OptionError, match=r"columns=\['reward'\]"):
        store.sample(3, columns="reward")


def test_float32_on_the_way(store):
    whole, cast = store.gather(store.sample(50)["row_id"]), None
    cast = store.gather(whole["row_id"], float64="float32")
    for name in whole:
        expected = whole[name].float() if whole[name].dtype == torch.float64 else whole[name]
        assert torch.equal(cast[name], expected)
        assert cast[name].dtype == expected.dtype
    with pytest.raises(OptionError, match="float64"):
        store.sample(3, float64="half")


@pytest.mark.parametrize(
    "keep",
    [
        lambda batch: batch,
        lambda batch: batch["reward"],
        lambda batch: batch["observation"][3],
        lambda batch: batch["observation"][:, 1].numpy(),
        lambda batch: batch["terminated"].view(-1, 5)[0],
        lambda batch: np.asarray(batch["row_id"])[2:4],
        lambda batch: torch.utils.dlpack.to_dlpack(batch["reward"]),
        lambda batch: batch["reward"].requires_grad_().pow(2).grad_fn,
        lambda batch: memoryview(batch["reward"].numpy()),
        lambda batch: torch.nn.Parameter(batch["reward"]),
    ],
)
def test_a_kept_batch_or_a_part_of_it_keeps_its_memory(store, keep):
    sampler = store.sampler(batch_size=10, seed=0)
    batch = next(sampler)
    first = batch["reward"].untyped_storage().data_ptr()
    kept = keep(batch)
    batch = None
    for _ in range(12):
        assert next(sampler)["reward"].untyped_storage().data_ptr() != first
    del kept
    gc.collect()


def test_batches_kept_stay_as_they_were(store):
    sampler = store.sampler(batch_size=16, seed=3)
    kept = []
    for _ in range(30):
        batch = next(sampler)
        kept.append((batch, {name: value.clone() for name, value in batch.items()}))
    for batch, copies in kept:
        for name, value in batch.items():
            assert torch.equal(value, copies[name])


def test_memory_is_used_again_once_nobody_holds_it(store):
    sampler = store.sampler(batch_size=10, seed=0)
    places = {next(sampler)["reward"].untyped_storage().data_ptr() for _ in range(50)}
    assert len(places) <= 2


def test_a_shared_batch_is_not_drawn_into(store):
    """Sharing moves a tensor's memory elsewhere; the batches that follow must not be stale."""
    sampler = store.sampler(batch_size=10, seed=0)
    next(sampler)["reward"].share_memory_()
    seen = {tuple(next(sampler)["row_id"].tolist()) for _ in range(6)}
    assert len(seen) == 6


def test_changing_a_batch_changes_nothing_stored(store):
    batch = store.sample(20, seed=1)
    expected = {name: value.clone() for name, value in batch.items()}
    for value in batch.values():
        value.zero_()
    del batch, value
    again = store.sample(20, seed=1)
    assert all(torch.equal(again[name], expected[name]) for name in again)


def test_batches_of_other_sizes(store):
    loader = Loader(store.schema)
    snapshot = store._engine.snapshot()
    ids = store.sample(200)["row_id"].numpy()
    for count in (1, 200, 3, 0, 1, 7):
        batch = loader.load(snapshot, Reading({ROW: snapshot.locate(ids[:count].copy())}))
        assert batch["row_id"].tolist() == ids[:count].tolist()
        assert batch["observation"].shape == (count, 3)
        assert torch.equal(batch["reward"], batch["observation"][:, 0] / 3)


def test_row_ids_of_all_makes(store):
    ids = store.sample(6)["row_id"]
    array = ids.numpy()
    makes = (ids, array, ids.tolist(), pa.array(array), pa.chunked_array([array]), array.astype(np.uint64))
    for each in makes:
        assert store.gather(each)["row_id"].tolist() == ids.tolist()
    for wrong in (-1, 2**62, int(ids[0]) + (1 << 24) * 5000, 1 << 48, -(2**63)):
        with pytest.raises(RowError, match=r"row_ids\[1\]"):
            store.gather([int(ids[0]), wrong])
    for bad in ([0.5], [[1]], ["x"], None, [None], 3):
        with pytest.raises((ColumnError, RowError)):
            store.gather(bad)


def test_nested_batches():
    rng = np.random.default_rng(0)
    parts = random_observations(rng, 40), random_observations(rng, 40), random_outcomes(rng, 40)
    with Store.temporary(NESTED) as store:
        ids = store.extend(as_batch(*parts), contiguous=False)
        batch = store.gather(ids[::-1].copy())
        for i in range(40):
            observation, following, outcome = (row_bytes(columns, 39 - i) for columns in parts)
            assert of_batch(batch)[i] == (observation, outcome, following)
        leaf = store.gather(ids, columns=["observation.b", "next_observation.a", "log_prob.valid"])
        assert leaf["observation.b"].dtype == torch.uint8
        assert leaf["next_observation.a"].numpy().tobytes() == parts[1][0].tobytes()
        assert leaf["log_prob.valid"].dtype == torch.bool


def test_threads_draw_beside_each_other_and_a_writer(store):
    torn, stop = [], threading.Event()

    def draw(seed):
        while not stop.is_set():
            batch = store.sample(64)
            if not torch.equal(batch["reward"], batch["observation"][:, 0] / 3):
                torn.append(seed)

    def write():
        for _ in range(100):
            store.extend(double_batch(50), contiguous=False)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(3)]
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in (*threads, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert not torn
    assert len(store) == 200 + 2 * 100 * 50


def test_to_torch_of_rows():
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(range(6)), 2)
    table = pa.table({"x": pa.array([1, None, 3]), "flag": pa.array([True, False, True]), "v": pairs})
    tensors = to_torch(table)
    assert tensors["x"].tolist() == [1, 0, 3]
    assert tensors["x.valid"].tolist() == [True, False, True]
    assert tensors["flag"].dtype == torch.bool
    assert tensors["v"].tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ColumnError, match="'s' has Arrow type string"):
        to_torch(pa.table({"s": ["a"]}))


def test_a_nullable_column_comes_with_its_mask():
    schema = Schema.from_spaces(
        spaces.Box(-1, 1, (2,), np.float32),
        spaces.Discrete(2),
        extras={"k": Extra("int64", nullable=True), "mem": Extra("float32", owner="observation", nullable=True)},
    )
    with Store.temporary(schema) as store:
        step = {"observation": np.zeros(2, np.float32), "next_observation": np.ones(2, np.float32)}
        store.add(**step, action=0, reward=0.0, terminated=True, truncated=False, k=None, mem=None, next_mem=1.0)
        batch = store.sample(3, columns=["k", "next_mem"])
        assert list(batch) == ["k", "k.valid", "next_mem", "next_mem.valid", "row_id"]
        assert not batch["k.valid"].any()
        assert batch["next_mem.valid"].all()
