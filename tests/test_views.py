"""What a batch reads beside its rows, against episodes as plain lists: n-step returns, frame stacks, windows."""

from __future__ import annotations

import math
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
from arrowrb.errors import ColumnError, OptionError
from arrowrb.retention import Limits
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.lanes import draw_lanes

GAMMA = 0.9
SCHEMA = arrowrb.Schema.from_spaces(
    gym.spaces.Dict({"a": gym.spaces.Box(-9, 9, (3,), np.float32), "b": gym.spaces.Box(0, 255, (2, 2), np.uint8)}),
    gym.spaces.Box(-1, 1, (2,), np.float32),
    extras={
        "legal": arrowrb.Extra("bool", (3,), owner="observation"),
        "log_prob": arrowrb.Extra("float32", nullable=True),
    },
)


@dataclass
class Episode:
    """Observations o_0 to o_T and what followed each but the last."""

    observations: list[dict[str, np.ndarray]]
    steps: list[dict[str, Any]]
    ids: list[int]


class World:
    """Lanes whose episodes are written and remembered."""

    def __init__(self, rng: np.random.Generator, lanes: int) -> None:
        self.rng = rng
        self.now = [self._begin() for _ in range(lanes)]
        self.episodes: list[Episode] = list(self.now)

    def _observe(self) -> dict[str, np.ndarray]:
        return {
            "a": self.rng.normal(size=3).astype(np.float32),
            "b": self.rng.integers(0, 256, (2, 2)).astype(np.uint8),
            "legal": self.rng.random(3) < 0.5,
        }

    def _begin(self) -> Episode:
        return Episode([self._observe()], [], [])

    def extend(self, store: Store, count: int, ends: float) -> None:
        lanes = draw_lanes(self.rng, len(self.now), count).tolist()
        rows, touched = [], []
        for lane in lanes:
            episode = self.now[lane]
            step = {
                "action": self.rng.normal(size=2).astype(np.float32),
                "reward": float(self.rng.normal()),
                "terminated": bool(self.rng.random() < ends),
                "truncated": bool(self.rng.random() < ends / 2),
                "log_prob": np.float32(self.rng.normal()),
            }
            episode.steps.append(step)
            episode.observations.append(self._observe())
            rows.append((episode.observations[-2], step, episode.observations[-1]))
            touched.append(episode)
            if step["terminated"] or step["truncated"]:
                self.now[lane] = self._begin()
                self.episodes.append(self.now[lane])
        batch: dict[str, Any] = {name: np.array([step[name] for _, step, _ in rows]) for name in rows[0][1]}
        for prefix, place in (("", 0), ("next_", 2)):
            batch[f"{prefix}observation"] = {k: np.array([row[place][k] for row in rows]) for k in ("a", "b")}
            batch[f"{prefix}legal"] = np.array([row[place]["legal"] for row in rows])
        for episode, row_id in zip(touched, store.extend(batch, lane=np.array(lanes)).tolist(), strict=True):
            episode.ids.append(row_id)

    def cut(self) -> None:
        """The store was closed: what ran has ended."""
        for lane in range(len(self.now)):
            if self.now[lane].steps:
                self.now[lane] = self._begin()
                self.episodes.append(self.now[lane])

    def places(self) -> dict[int, tuple[Episode, int]]:
        return {row_id: (episode, t) for episode in self.episodes for t, row_id in enumerate(episode.ids)}


@pytest.fixture(params=range(2), scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Store]]:
    """A store of both tiers whose oldest rows were dropped, with episodes that are running, cut and ended.

    All tests of a module read the same one.
    """
    tmp_path = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(request.param)
    block_rows = int(rng.choice([2, 4, 16]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    made = World(rng, 3)
    Store.create(tmp_path / "store", SCHEMA, max_rows=1000).close()

    def opened() -> Store:
        limits = Limits(hot_rows=300, max_rows=1000)
        return Store(Engine(tmp_path / "store", writable=True, options=WriterOptions(None, limits=limits)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "shape_segment", shape)
        store = opened()
        for round_ in range(20):
            made.extend(store, 80, 0.05)
            if round_ % 7 == 3:
                store.close()
                made.cut()
                store = opened()
        store.maintain()
    yield made, store
    store.close()


def draw(world: tuple[World, Store], **options: Any) -> list[tuple[Episode, int, int, dict[str, Any]]]:
    """Rows as (episode, step, first step that is still there, batch of that row)."""
    made, store = world
    places = made.places()
    there = {row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()}
    found = []
    for prefetch in (0, 2):
        sampler = store.sampler(batch_size=64, seed=3, prefetch=prefetch, **options)
        for batch in (sampler.sample(), sampler.sample()):
            for i, row_id in enumerate(batch["row_id"].tolist()):
                episode, t = places[row_id]
                oldest = min(k for k, each in enumerate(episode.ids) if each in there)
                found.append((episode, t, oldest, pick(batch, i)))
    return found


def pick(batch: Any, i: int) -> Any:
    return {k: pick(v, i) for k, v in batch.items()} if isinstance(batch, dict) else batch[i].numpy()


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_n_step(world: tuple[World, Store], n: int) -> None:
    for episode, t, _, row in draw(world, n_step=n, gamma=GAMMA):
        steps = episode.steps[t : t + n]
        last = steps[-1]
        assert row["num_steps"] == len(steps)
        assert row["discount"] == pytest.approx(GAMMA ** len(steps), rel=1e-6)
        assert row["reward"] == pytest.approx(math.fsum(GAMMA**k * s["reward"] for k, s in enumerate(steps)), rel=1e-9)
        assert row["reward"].dtype == np.float64
        assert row["terminated"] == last["terminated"]
        assert row["truncated"] == last["truncated"]
        assert (row["action"] == steps[0]["action"]).all()
        assert row["log_prob"] == steps[0]["log_prob"]
        for name in ("a", "b"):
            assert (row["observation"][name] == episode.observations[t][name]).all()
            assert (row["next_observation"][name] == episode.observations[t + len(steps)][name]).all()
        assert (row["legal"] == episode.observations[t]["legal"]).all()
        assert (row["next_legal"] == episode.observations[t + len(steps)]["legal"]).all()


@pytest.mark.parametrize(("padding", "n"), [("repeat", None), ("zero", None), ("repeat", 3), ("zero", 3)])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_frame_stack(world: tuple[World, Store], frames: int, padding: str, n: int | None) -> None:
    options = {"frame_stack": {"observation.b": frames, "legal": frames}, "padding": padding, "n_step": n}
    for episode, t, oldest, row in draw(world, **options):
        ahead = len(episode.steps[t : t + (n or 1)])
        for end, prefix in ((t, ""), (t + ahead, "next_")):
            wanted = range(end - frames + 1, end + 1)
            for name, found in (("b", row[f"{prefix}observation"]["b"]), ("legal", row[f"{prefix}legal"])):
                assert found.shape[0] == frames
                for frame, k in zip(found, wanted, strict=True):
                    value = episode.observations[max(k, oldest)][name]
                    assert (frame == (0 if k < oldest and padding == "zero" else value)).all()
            assert (row[f"{prefix}observation"]["a"] == episode.observations[end]["a"]).all()


@pytest.mark.parametrize("span", [(-1, 1), (0, 5), (-4, 3), (2, 6), (-5, -2)])
def test_windows(world: tuple[World, Store], span: tuple[int, int]) -> None:
    names = ("observation.a", "action", "log_prob", "reward")
    for episode, t, oldest, row in draw(world, windows=dict.fromkeys(names, span)):
        for name in names:
            values = (
                [each["a"] for each in episode.observations]
                if name == "observation.a"
                else [step[name] for step in episode.steps]
            )
            found = row["observation"]["a"] if name == "observation.a" else row[name]
            assert found.shape[0] == span[1] - span[0]
            for place, k in enumerate(range(t + span[0], t + span[1])):
                assert row[f"{name}_is_pad"][place] == (not oldest <= k < len(values))
                assert (found[place] == values[min(max(k, oldest), len(values) - 1)]).all()
        assert row["log_prob.valid"].all()
        assert row["log_prob.valid"].shape == (span[1] - span[0],)


def test_windows_of_different_spans(world: tuple[World, Store]) -> None:
    """Names that share a span, with others in between."""
    _, store = world
    spans = {"action": (0, 4), "observation": (-1, 1), "reward": (0, 4), "legal": (-1, 1), "log_prob": (1, 3)}
    batch = store.sampler(batch_size=32, windows=spans, seed=0).sample()
    for name, (first, stop) in spans.items():
        alone = store.sampler(batch_size=32, windows={name: (first, stop)}, seed=0).sample()
        assert torch.equal(batch[f"{name}_is_pad"], alone[f"{name}_is_pad"])
        both = (batch[name], alone[name]) if name != "observation" else (batch[name]["a"], alone[name]["a"])
        assert torch.equal(*both)


def test_columns_and_dtypes(world: tuple[World, Store]) -> None:
    _, store = world
    batch = store.sampler(
        batch_size=8, n_step=3, columns=["observation.a", "next_observation", "reward"], float64="float32"
    ).sample()
    assert set(batch) == {"observation.a", "next_observation", "reward", "row_id", "num_steps", "discount"}
    assert batch["reward"].dtype == torch.float32
    batch = store.sampler(batch_size=8, n_step=3, columns=["action"]).sample()
    assert set(batch) == {"action", "row_id", "num_steps", "discount"}
    stacked = store.sampler(batch_size=8, frame_stack={"observation": 3}).sample()
    assert stacked["observation"]["a"].shape == (8, 3, 3)
    assert stacked["next_observation"]["b"].shape == (8, 3, 2, 2)


def test_prioritized_with_views(world: tuple[World, Store]) -> None:
    _, store = world
    sampler = store.sampler(arrowrb.Prioritized(), batch_size=8, n_step=3, frame_stack={"observation": 2}, prefetch=1)
    batch = sampler.sample()
    assert batch["weight"].shape == batch["num_steps"].shape == (8,)
    sampler.update(batch["row_id"], torch.ones(8))


def test_batches_that_are_kept_stay(world: tuple[World, Store]) -> None:
    _, store = world
    sampler = store.sampler(batch_size=8, n_step=3, frame_stack={"observation": 2}, padding="zero", seed=0)
    kept = sampler.sample()
    copy = kept["observation"]["a"].clone()
    for _ in range(20):
        sampler.sample()
    assert torch.equal(kept["observation"]["a"], copy)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"n_step": 0}, OptionError, "n_step is 0"),
        ({"n_step": True}, OptionError, "n_step is True"),
        ({"gamma": 1.1}, OptionError, "gamma is 1.1"),
        ({"gamma": math.nan}, OptionError, "gamma is nan"),
        ({"frame_stack": 4}, OptionError, "frame_stack is 4"),
        ({"frame_stack": {"observation": 0}}, OptionError, "frame_stack"),
        ({"frame_stack": {"action": 4}}, ColumnError, "'action' is no column of observations"),
        ({"frame_stack": {"pixels": 4}}, ColumnError, "'pixels'"),
        ({"padding": "edge"}, OptionError, "padding is 'edge'"),
        ({"windows": {"action": (1, 1)}}, OptionError, "windows"),
        ({"windows": {"action": 3}}, OptionError, "windows"),
        ({"windows": {"actions": (0, 1)}}, ColumnError, "'actions'"),
        ({"windows": {"observation": (0, 1)}, "frame_stack": {"observation": 2}}, OptionError, "'observation'"),
        ({"windows": {"reward": (0, 1)}, "n_step": 2}, OptionError, "'reward'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], error: type[Exception], told: str) -> None:
    with Store.temporary(SCHEMA) as store, pytest.raises(error, match=told):
        store.sampler(batch_size=2, **options)
