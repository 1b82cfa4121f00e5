"""Random operations on a store against the model: everything that is read back is what was put in, bit for bit."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arrowrb.engine import segments
from arrowrb.errors import FullError, RowError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from tests.model import random_observations, random_outcomes, read_manifest, read_segments
from tests.model_pair import Pair

pytestmark = pytest.mark.filterwarnings("ignore:.*do not go on where.*:UserWarning")


def tiny(block_rows):
    """Segments so small that blocks fill, segments seal and slow lanes are moved all the time."""

    def shape(*, num_lanes, **_):
        return SegmentShape(4 * max(num_lanes, 1) * block_rows, block_rows)

    return shape


@pytest.mark.parametrize("hot_rows", [None, 1], ids=["hot", "both tiers"])
@pytest.mark.parametrize(
    ("num_lanes", "block_rows", "rounds"), [(1, 2, 60), (1, 16, 60), (3, 3, 40), (17, 4, 30), (200, 2, 10)]
)
def test_random_operations(tmp_path, monkeypatch, num_lanes, block_rows, rounds, hot_rows):
    monkeypatch.setattr(segments, "shape_segment", tiny(block_rows))
    limits = Limits(hot_rows=hot_rows)
    pair = Pair(tmp_path / "store", seed=num_lanes * 100 + block_rows, num_lanes=num_lanes, limits=limits)
    rng = np.random.default_rng(num_lanes)
    for number in range(rounds):
        how = rng.random()
        if how < 0.5:
            count = int(rng.integers(0, 10 + 5 * num_lanes))
            pair.extend(count, ids=rng.random() < 0.4, contiguous=rng.random() < 0.85, how="extend")
        elif how < 0.6:
            pair.extend(1, ids=False, contiguous=True, how="add")
        elif how < 0.85:
            pair.record(int(rng.integers(1, 9)))
        elif how < 0.92:
            pair.reopen()
        else:
            pair.store.flush()
        if rng.random() < 0.2:
            pair.hold()
        pair.check(deep=number % 10 == 9)
    pair.reopen()
    pair.check(deep=True)
    sealed = [entry for entry in read_manifest(pair.path)["segments"] if entry["sealed"]]
    assert sealed
    assert any(entry["tier"] == "cold" for entry in sealed) == (hot_rows is not None)
    pair.close()
    pair.check_held()


def test_slow_lanes_are_moved(tmp_path, monkeypatch):
    """One lane runs, others take a row now and then: their blocks do not keep segments open."""
    monkeypatch.setattr(segments, "shape_segment", tiny(4))
    pair = Pair(tmp_path / "store", seed=5, num_lanes=6)
    pair.extend(24, ids=False, contiguous=True, how="extend")
    pair.num_lanes = 1
    for number in range(80):
        pair.extend(12, ids=False, contiguous=True, how="extend")
        if number % 20 == 19:
            pair.num_lanes = 6
            pair.extend(2, ids=False, contiguous=True, how="extend")
            pair.num_lanes = 1
    pair.check(deep=True)
    unsealed = [segment.entry for segment in read_segments(pair.path) if not segment.entry["sealed"]]
    assert len(unsealed) <= 6
    pair.num_lanes = 6
    for _ in range(6):
        pair.extend(12, ids=False, contiguous=True, how="extend")
    pair.reopen()
    pair.check(deep=True)
    pair.close()


def test_same_ids_twice(tmp_path, monkeypatch):
    """The same rows with the same ids, three times over: runs go on in their own copy."""
    monkeypatch.setattr(segments, "shape_segment", tiny(4))
    pair = Pair(tmp_path / "store", seed=9, num_lanes=1)
    rng = np.random.default_rng(1)
    count = 30
    observation = random_observations(rng, count + 1)
    outcome = random_outcomes(rng, count, end=0.0)
    outcome[0][-1] = 1
    before, after = [c[:-1].copy() for c in observation], [c[1:].copy() for c in observation]
    for _ in range(3):
        pair.external(before, after, outcome, np.zeros(count, np.int64), np.full(count, 7), np.arange(count))
    pair.extend(40, ids=False, contiguous=True, how="extend")
    pair.reopen()
    pair.check(deep=True)
    pair.close()


def memory_folder():
    """Where syncs take no time, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Machine(RuleBasedStateMachine):
    """Hypothesis chooses the operations and shrinks what fails."""

    @initialize(
        seed=st.integers(0, 2**32 - 1),
        lanes=st.sampled_from([1, 2, 5, 12]),
        block_rows=st.sampled_from([2, 3, 5, 16]),
        hot_rows=st.sampled_from([None, 1]),
    )
    def start(self, seed, lanes, block_rows, hot_rows):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(segments, "shape_segment", tiny(block_rows))
        self.folder = Path(tempfile.mkdtemp(prefix="arrowrb-test-", dir=memory_folder()))
        self.pair = Pair(self.folder / "store", seed, lanes, Limits(hot_rows=hot_rows))

    @rule(count=st.integers(0, 40), ids=st.booleans(), contiguous=st.booleans())
    def extend(self, count, ids, contiguous):
        self.pair.extend(count, ids=ids, contiguous=contiguous, how="extend")

    @rule(ids=st.booleans(), contiguous=st.booleans())
    def add(self, ids, contiguous):
        self.pair.extend(1, ids=ids, contiguous=contiguous, how="add")

    @rule(num_steps=st.integers(1, 12))
    def record(self, num_steps):
        self.pair.record(num_steps)

    @rule()
    def reopen(self):
        self.pair.reopen()

    @rule()
    def crash(self):
        self.pair.crash()

    @rule()
    def flush(self):
        self.pair.store.flush()

    @rule(at=st.integers(1, 3), kind=st.sampled_from([FullError, KeyboardInterrupt, MemoryError]))
    def fail(self, at, kind):
        self.pair.fail(at, kind)

    @rule()
    def hold(self):
        self.pair.hold()

    @rule()
    @precondition(lambda self: self.pair.row_ids)
    def no_rows_of_others(self):
        wrong = max(self.pair.row_ids) + 1
        while wrong in self.pair.row_ids:
            wrong += 1
        with pytest.raises(RowError, match="names no transition"):
            self.pair.store.gather([self.pair.row_ids[0], wrong])

    @invariant()
    def agrees(self):
        if hasattr(self, "pair"):
            self.pair.check(deep=False)

    def teardown(self):
        if hasattr(self, "pair"):
            self.pair.check(deep=True)
            self.pair.reopen()
            self.pair.check(deep=True)
            self.pair.close()
            self.pair.check_held()
            shutil.rmtree(self.folder)
            self.patch.undo()


def machine(seed):
    """A test of some of the examples, so that several processes share them."""
    made = hypothesis.seed(seed)(type(f"Machine{seed}", (Machine,), {})).TestCase
    made.settings = settings(
        max_examples=int(os.environ.get("ARROWRB_EXAMPLES", "200")) // 4,
        stateful_step_count=50,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return made


TestMachine0, TestMachine1, TestMachine2, TestMachine3 = map(machine, range(4))
