"""Stores of every released version are read, checked, repaired and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import arrowrb
from tests.released.__main__ import HERE, describe
from tests.test_sql import write_rich

RELEASED = sorted(HERE.glob("store-*.zip"))


@pytest.fixture(params=RELEASED, ids=lambda path: path.stem)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.unpack_archive(request.param, tmp_path)
    return tmp_path / "store"


def test_there_is_one_of_this_version() -> None:
    """Made anew by `python -m tests.released` as long as a version is not released; then left alone."""
    assert HERE / f"store-{arrowrb.__version__}.zip" in RELEASED


def test_all_of_it_is_read(released: Path) -> None:
    known = json.loads(released.with_name("holds.json").read_text())
    assert arrowrb.verify(released)
    with arrowrb.Store.open(released) as store:
        assert json.loads(json.dumps(describe(store))) == known
        tensors, state = store.restore("kept")
        assert tensors["weight"].tolist() == list(range(6))
        assert state == {"steps": (1, 2)}
        assert len(next(store.sampler(batch_size=64, seed=1))["reward"]) == 64
    with arrowrb.Store.open(released, at="kept") as past:
        assert 0 < len(past) < known["num_transitions"]


def test_it_goes_on(released: Path, tmp_path: Path) -> None:
    known = json.loads(released.with_name("holds.json").read_text())
    with arrowrb.Store.open(released, mode="a", hot_rows=1000) as store:
        write_rich(store, np.random.default_rng(5), 30, lane=1)
        store.maintain()
        store.export(tmp_path / "out")
        store.backup(tmp_path / "copy")
        store.checkpoint("another")
        count = len(store)
        assert count <= known["num_transitions"] + 30
    assert arrowrb.verify(released)
    assert not arrowrb.repair(released).problems
    with arrowrb.Store.open(tmp_path / "copy") as copy:
        assert len(copy) == count
    assert arrowrb.import_parquet(tmp_path / "out", tmp_path / "again").num_transitions == count
