"""A commit that breaks anywhere leaves all of it or nothing, and the next one works."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from arrowrb import writer as writer_module
from arrowrb.engine import segments
from arrowrb.errors import ColumnError, OptionError, UsageError
from arrowrb.events import CONTINUE, Events
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.model import SCHEMA, as_batch, random_observations, random_outcomes, row_bytes
from tests.model_pair import Pair


class BrokenError(Exception):
    """Raised in the middle of a commit."""


class Breaker:
    """Raises at the n-th line that runs in the writer's module, outside of `settle`; or in one function of it."""

    def __init__(self, at: int, only: str | None = None) -> None:
        self.at = at
        self.only = only
        self.count = 0

    def __call__(self, frame, event, argument):
        name = frame.f_code.co_name
        chosen = name == self.only if self.only else name not in _SAFE
        return self.line if chosen and frame.f_code.co_filename == writer_module.__file__ else None

    def line(self, frame, event, argument):
        if event == "line":
            self.count += 1
            if self.count == self.at:
                raise BrokenError
        return self.line


_SAFE = ("settle", "_rescan", "take_closed", "has_closed")


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "shape_segment", lambda num_lanes, **_: SegmentShape(16 * num_lanes, 4))
    pair = Pair(tmp_path / "store", seed=3, num_lanes=3)
    yield pair
    pair.close()


def contiguous_batch(pair, count):
    """Rows of all lanes in turn that go on where the lanes are."""
    rng = pair.rng
    observation, following = random_observations(rng, count), random_observations(rng, count)
    for i in range(3, count):
        for column, source in zip(observation, following, strict=True):
            column[i] = source[i - 3]
    return observation, following, random_outcomes(rng, count, end=0.05), np.arange(count) % 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:.*rows do not go on where:UserWarning")
@pytest.mark.parametrize("growing", [False, True])
def test_breaks_at_any_line(pair, growing):
    at, quiet = 0, 0
    while quiet < 40:  # commits differ in their number of lines
        at += 1
        quiet = 0 if broken_extend(pair, Breaker(at), growing) else quiet + 1
        pair.check(deep=at % 20 == 0)
    assert at > 60
    before, stood = len(pair.row_ids), 0
    for at in range(1, 20):
        if broken_extend(pair, Breaker(at, "_publish"), growing):
            stood += len(pair.row_ids) > before  # broke behind the record: the commit stands
        before = len(pair.row_ids)
    assert stood > 0
    pair.check(deep=True)
    pair.reopen()
    pair.check(deep=True)


def broken_extend(pair, breaker, growing) -> bool:
    """Extend under a breaker and keep the model in step with what stands; whether it broke."""
    rows = contiguous_batch(pair, 40 if growing else 5)
    if growing:
        pair.num_lanes += 1  # lanes and tables grow in the commit
        rows[3][-1] = pair.num_lanes
    observation, following, outcome, lanes = rows
    previous = sys.gettrace()
    sys.settrace(breaker)
    try:
        got = pair.store.extend(as_batch(observation, following, outcome), lane=lanes)
    except BrokenError:
        got = None
    finally:
        sys.settrace(previous)
    broke = got is None
    if broke:
        pair.store._engine.writer_shard.writer.settle()
        if len(pair.store) > len(pair.row_ids):
            got = ids_of_newest(pair.store, len(lanes))
    if got is not None:
        pair.row_ids += list(got)
        for i in range(len(lanes)):
            pair.model.external(
                int(lanes[i]),
                *(row_bytes(columns, i) for columns in (observation, following, outcome)),
                bool(outcome[0][i] or outcome[1][i]),
            )
    return broke


def ids_of_newest(store, count):
    """Row ids of the newest transitions, in order of ordinal."""
    snapshot = store._engine.snapshot()
    found = []
    for slot, view in enumerate(snapshot.layout.views):
        places = np.flatnonzero(snapshot.visible_kinds(slot) == 1)
        base = view.shard << 48 | view.entry.number << 24
        found += zip(snapshot.column(slot, 0)[places].tolist(), (places + base).tolist(), strict=True)
    return [row_id for _, row_id in sorted(found)[-count:]]


def test_bad_batches_change_nothing(pair):
    pair.extend(30, ids=False, contiguous=True, how="extend")
    rows = as_batch(random_observations(pair.rng, 4), random_observations(pair.rng, 4), random_outcomes(pair.rng, 4))
    for change in (
        {"reward": np.zeros(3)},
        {"reward": np.zeros((4, 1))},
        {"action": np.array([0, 1, 5, 0])},
        {"unknown": np.zeros(4)},
        {"episode_id": np.array([0, 1, 2, -5])},
        {"episode_id": np.full(4, 2**63 - 1)},
        {"step": np.full(4, 2**31 - 1)},
        {"observation": {"a": rows["observation"]["a"].astype(np.float64), "b": rows["observation"]["b"]}},
    ):
        with pytest.raises(ColumnError):
            pair.store.extend(rows | change)
    for lane in (-1, 2**31, np.array([0, 1, 2]), 0.5, "x"):
        with pytest.raises((ColumnError, OptionError)):
            pair.store.extend(rows, lane=lane)
    with pytest.raises(OptionError, match="lane is 65536"):
        pair.store.extend(rows, lane=1 << 16)
    pair.check(deep=True)


def test_no_rows(pair):
    rows = as_batch(random_observations(pair.rng, 0), random_observations(pair.rng, 0), random_outcomes(pair.rng, 0))
    got = pair.store.extend(rows)
    assert got.dtype == np.int64
    assert got.size == 0
    assert pair.store.gather(got)["reward"].shape == (0,)
    pair.check(deep=True)


def test_largest_ids_leave_room(pair):
    rows = as_batch(random_observations(pair.rng, 1), random_observations(pair.rng, 1), random_outcomes(pair.rng, 1))
    pair.store.extend(rows | {"episode_id": np.array([1 << 62]), "step": np.array([1 << 30])})
    for _ in range(3):
        pair.store.extend(rows)
    with Store.open(pair.path) as reader:
        assert len(reader) == len(pair.store) == 4
    pair.store.extend(rows, lane=65_535)
    assert len(pair.store) == 5


def test_continue_without_episode(pair):
    rng = pair.rng
    outcome = random_outcomes(rng, 1, end=0.0)
    observation = tuple(random_observations(rng, 1))
    one = np.zeros(1, np.int64)
    events = Events(
        lane=one + 2, begin=np.full(1, CONTINUE, np.uint8), observation=one, next_observation=one, row=one,
        episode_id=one - 1, step=one - 1, time=one, policy_version=one,
        arrived=observation, final=observation, outcome=tuple(outcome),
    )  # fmt: skip
    with pytest.raises(UsageError, match="Lane 2 has no running episode"):
        pair.store._engine.ingest(events)
    pair.check(deep=True)


def test_schema_of_tests_has_all_kinds_of_columns():
    assert {column.encoding for column in SCHEMA.columns} == {"primitive", "tensor", "binary"}
