"""Batches for torch's DataLoader: with workers and without."""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

import arrowrb
from arrowrb import datasets
from arrowrb.errors import OptionError, UsageError
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.create(tmp_path / "store", plain_schema()) as store:
        store.extend(plain_batch(300))
    return tmp_path / "store"


def test_without_workers(path: Path) -> None:
    dataset = arrowrb.BatchDataset(path, arrowrb.Sequences(3), batch_size=4, seed=1, prefetch=2)
    batches = list(islice(DataLoader(dataset, batch_size=None), 5))
    with Store.open(path) as store:
        sampler = store.sampler(arrowrb.Sequences(3), batch_size=4, seed=1)
        for batch in batches:
            expected = sampler.sample()
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[name], values) for name, values in expected.items())
    epoch = DataLoader(arrowrb.BatchDataset(path, arrowrb.Shuffled(epochs=1), batch_size=64), batch_size=None)
    for _ in range(2):
        found = sorted(row for batch in epoch for row in batch["row_id"].tolist())
        assert len(found) == len(set(found)) == 300


def test_workers(path: Path) -> None:
    """Each draws others, and the same again for the same seed."""
    dataset = arrowrb.BatchDataset(path, batch_size=8, seed=1)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, in the workers' start
        for _ in range(2):
            iterator = iter(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn"))
            found.append([batch["row_id"].tolist() for batch in islice(iterator, 4)])
            iterator._shutdown_workers()
    assert found[0] == found[1]
    assert len({tuple(ids) for ids in found[0]}) == 4
    with Store.open(path) as store:
        batch = next(iter(DataLoader(dataset, batch_size=None)))
        assert torch.equal(batch["observation"], store.gather(batch["row_id"])["observation"])


def test_wrong_use(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="name is of no use"):
        arrowrb.BatchDataset(path, batch_size=4, name="x")
    dataset = arrowrb.BatchDataset(path, arrowrb.Shuffled(epochs=1), batch_size=8)
    monkeypatch.setattr(datasets, "get_worker_info", lambda: SimpleNamespace(id=0, num_workers=2))
    with pytest.raises(UsageError, match="Each worker would draw every transition"):
        next(iter(dataset))
