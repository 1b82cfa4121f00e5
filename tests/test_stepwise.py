"""Options of transitions at each step of sequences and episodes, and with goals in hindsight: against plain lists."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

import arrowrb
from arrowrb.errors import EmptyError, OptionError
from arrowrb.store import Store
from tests.chances import chi_square
from tests.plain_store import plain_batch, plain_schema
from tests.test_hindsight import reward, surviving, terminated
from tests.test_hindsight import store as goals  # noqa: F401
from tests.test_views import GAMMA, Episode, World, pick
from tests.test_views import world as world  # noqa: PLC0414

OPTIONS: list[dict[str, Any]] = [
    {"n_step": 3, "gamma": GAMMA},
    {"frame_stack": {"observation.b": 3, "legal": 2}},
    {"frame_stack": {"observation.b": 2, "legal": 4}, "padding": "zero", "n_step": 2, "gamma": GAMMA},
    {"windows": {"action": (-1, 3), "observation.a": (-2, 2)}, "return_to_go": 0.9},
]
NO_MASK = torch.zeros((20, 20), dtype=torch.bool)
STRATEGIES = {
    "strict": arrowrb.Sequences(5),
    "masked": arrowrb.Sequences(6, strict=False),
    "first": arrowrb.Sequences(4, first_only=("log_prob",)),
    "burned": arrowrb.Sequences(3, burn_in=3, strict=False),
    "bootstrapped": arrowrb.Sequences(4, burn_in=2, bootstrap=True),
    "tailed": arrowrb.Sequences(6, strict=False, tails=True),
    "across": arrowrb.Sequences(8, across_episodes=True),
    "by priority": arrowrb.PrioritizedSequences(arrowrb.Sequences(4, strict=False)),
    "padded": arrowrb.Episodes(complete=False),
    "packed": arrowrb.Episodes(complete=False, packed=True),
}


def check_step(
    row: dict[str, Any], place: tuple[Episode, int, int] | None, acts: bool, options: dict[str, Any]
) -> None:
    """One step of a batch; ``place`` is (episode, step, oldest step that is there), None where there is no step."""
    steps = options.get("n_step")
    ahead = 1
    if steps is not None:
        ahead = len(place[0].steps[place[1] : place[1] + steps]) if place and acts else 0
        sums = [GAMMA**k * s["reward"] for k, s in enumerate(place[0].steps[place[1] :][:ahead])] if place else []
        assert row["num_steps"] == ahead
        assert row["discount"] == pytest.approx(GAMMA**ahead if acts else 0, rel=1e-6)
        assert row["reward"] == pytest.approx(math.fsum(sums), rel=1e-9)
        assert row["terminated"] == bool(place and acts and place[0].steps[place[1] + ahead - 1]["terminated"])
        assert row["truncated"] == bool(place and acts and place[0].steps[place[1] + ahead - 1]["truncated"])
    for name, frames in options.get("frame_stack", {}).items():
        leaf = name.split(".")[-1]
        for prefix, behind, there in (("", 0, place), ("next_", ahead, place if acts else None)):
            found = row[f"{prefix}observation"]["b"] if leaf == "b" else row[f"{prefix}{leaf}"]
            assert found.shape[0] == frames
            if there is None:
                assert not found.any()
                continue
            episode, t, oldest = there
            for frame, k in zip(found, range(t + behind - frames + 1, t + behind + 1), strict=True):
                wanted = episode.observations[max(k, oldest)][leaf]
                assert (frame == (0 if k < oldest and options.get("padding") == "zero" else wanted)).all()
    for name, (first, stop) in options.get("windows", {}).items():
        found, pads = row["observation"]["a"] if name == "observation.a" else row[name], row[f"{name}_is_pad"]
        assert found.shape[0] == pads.shape[0] == stop - first
        if place is None or not acts:
            assert not found.any()
            assert not pads.any()
            continue
        episode, t, oldest = place
        values = [o["a"] for o in episode.observations] if name == "observation.a" else [s[name] for s in episode.steps]
        for value, pad, k in zip(found, pads, range(t + first, t + stop), strict=True):
            assert pad == (not oldest <= k < len(values))
            assert (value == values[min(max(k, oldest), len(values) - 1)]).all()
    if options.get("return_to_go"):
        left = [s["reward"] * 0.9**k for k, s in enumerate(place[0].steps[place[1] :])] if place and acts else []
        assert row["return_to_go"] == pytest.approx(math.fsum(left), rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=["n-step", "stack", "both", "windows"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_each_step(world: tuple[World, Store], name: str, options: dict[str, Any]) -> None:
    made, store = world
    strategy: Any = STRATEGIES[name]
    if "windows" in options and name in ("tailed", "bootstrapped"):
        with pytest.raises(OptionError, match="tails and bootstrap"):
            store.sampler(strategy, batch_size=4, **options)
        return
    places = made.places()
    there = {row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()}
    seen: Counter[str] = Counter()
    batches = []
    for prefetch in (0, 2):
        sampler = store.sampler(strategy, batch_size=20, seed=5, prefetch=prefetch, **options)
        batches += [sampler.sample() for _ in range(2)]
    for every in batches:
        ids = every["row_id"]
        assert every["reward"].shape == ids.shape
        others = {"start_row_id", "weight", "length"}  # of a sequence
        if name == "first":
            assert every["log_prob"].shape == ids.shape[:1]
            others |= {"log_prob", "log_prob.valid"}
        batch = {key: value for key, value in every.items() if key not in others}
        before: tuple[Episode, int, int] | None = None
        for at in np.ndindex(*ids.shape):
            row, place, acts = pick_at(batch, at), None, False
            if int(ids[at]) in there:
                episode, t = places[int(ids[at])]
                oldest = min(k for k, each in enumerate(episode.ids) if each in there)
                place, acts = (episode, t, oldest), True
            elif at[-1] and before is not None and (name == "bootstrapped" or batch.get("mask", NO_MASK)[at]):
                # The observation behind the last step, or a final one.
                place = (before[0], before[1] + 1, before[2])
                seen["behind"] += 1
            seen["acts" if acts else "nothing"] += 1
            check_step(row, place, acts, options)
            before = place if acts else None
    assert seen["acts"] > 100
    assert (seen["behind"] > 0) == (name in ("tailed", "bootstrapped"))


def pick_at(batch: Any, at: tuple[int, ...]) -> Any:
    return {k: pick_at(v, at) for k, v in batch.items()} if isinstance(batch, dict) else batch[at].numpy()


def test_a_column_of_the_first_step_alone(world: tuple[World, Store]) -> None:
    _, store = world
    strategy = arrowrb.Sequences(4, first_only=("legal",))
    with pytest.raises(OptionError, match="'legal' is read of the first step alone"):
        store.sampler(strategy, batch_size=2, frame_stack={"legal": 2})
    with pytest.raises(OptionError, match="arrival"):
        store.sampler(arrowrb.Sequences(4, reward_alignment="arrival"), batch_size=2, n_step=2)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_hindsight_over_several_steps(goals: Store, n: int, prefetch: int) -> None:  # noqa: F811
    """All rewards that are summed are those under the other goal, up to the step that reaches it."""
    there = surviving(goals)
    by_id = {row_id: key for key, (_, _, row_id) in there.items()}
    options: dict[str, Any] = {"n_step": n, "gamma": GAMMA, "frame_stack": {"observation": 2}, "padding": "zero"}
    strategy = arrowrb.Hindsight(reward, terminated, fraction=0.7)
    sampler = goals.sampler(strategy, batch_size=100, seed=1, prefetch=prefetch, windows={"action": (0, 2)}, **options)
    short = 0
    for _ in range(6):
        batch = sampler.sample()
        assert batch["action_is_pad"].shape == (100, 2)
        for i, row_id in enumerate(batch["row_id"].tolist()):
            row, (episode, t) = pick(batch, i), by_id[row_id]
            first, last, _ = there[episode, t]
            count = min(n, last + 1 - t)
            goal = row["observation"]["desired_goal"][-1]
            wanted = [-5.0] * count
            if row["relabelled"]:
                wanted = [(t + k + 1) * 100 - float(goal[1]) for k in range(count)]
                if goal[1] <= t + count:
                    short += goal[1] < t + count
                    count = int(goal[1]) - t
                    wanted = wanted[:count]
                    assert row["terminated"]
                else:
                    assert not row["terminated"]
            assert row["num_steps"] == count
            assert row["discount"] == pytest.approx(GAMMA**count)
            assert row["reward"] == pytest.approx(sum(GAMMA**k * each for k, each in enumerate(wanted)))
            for prefix, end in (("", t), ("next_", t + count)):
                frames = row[f"{prefix}observation"]
                assert frames["achieved_goal"][1].tolist() == [episode, end]
                older = [episode, end - 1] if end - 1 >= first else [0, 0]
                assert frames["achieved_goal"][0].tolist() == older
                assert (frames["desired_goal"][1] == goal).all()
                assert (frames["desired_goal"][0] == (goal if end - 1 >= first else 0)).all()
    assert (short > 0) == (n > 1)


def test_hindsight_refuses_what_the_goal_decides(goals: Store) -> None:  # noqa: F811
    strategy = arrowrb.Hindsight(reward, terminated)
    for name in ("reward", "terminated", "observation", "observation.desired_goal"):
        with pytest.raises(OptionError, match="depends on the goal"):
            goals.sampler(strategy, batch_size=2, windows={name: (0, 2)})
    assert goals.sampler(strategy, batch_size=2, windows={"observation.achieved_goal": (0, 2)}).sample()
    with pytest.raises(OptionError, match="return_to_go"):
        goals.sampler(strategy, batch_size=2, return_to_go=1.0)


STRICT = {
    "uniform": arrowrb.Uniform(),
    "where": arrowrb.Where("reward > -1"),
    "weighted": arrowrb.Weighted("SELECT row_id, 1.0 AS weight FROM transitions WHERE reward > -1"),
    "sequences": arrowrb.Sequences(2, burn_in=2),
}


@pytest.mark.parametrize("name", STRICT)
def test_strict_leaves_out_what_lost_its_history(world: tuple[World, Store], name: str) -> None:
    """All others are drawn, each as likely."""
    made, store = world
    there = {row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()}
    allowed, lost = [], 0
    for row_id, (episode, t) in made.places().items():
        oldest = min((k for k, each in enumerate(episode.ids) if each in there), default=0)
        right = row_id in there
        if name in ("where", "weighted"):
            right = right and episode.steps[t]["reward"] > -1
        if name == "sequences":
            right = right and t + 2 <= len(episode.steps)
        whole = t - oldest >= min(t, 3 + 2 * (name == "sequences"))
        lost += right and not whole
        if right and whole:
            allowed.append(row_id)
    assert lost > 0
    options: dict[str, Any] = {"frame_stack": {"observation.b": 4}, "columns": ["observation.b"]}
    sampler = store.sampler(STRICT[name], batch_size=500, seed=0, strict=True, **options)
    counts: Counter[int] = Counter()
    for _ in range(40):
        batch = sampler.sample()
        counts.update((batch["start_row_id"] if name == "sequences" else batch["row_id"]).tolist())
    chi_square(counts, dict.fromkeys(allowed, counts.total() / len(allowed)))


def test_strict_options(tmp_path: Any) -> None:
    with Store.create(tmp_path / "store", plain_schema()) as store:
        store.extend(plain_batch(50))
        with pytest.raises(OptionError, match="strict is 1"):
            store.sampler(batch_size=2, strict=1)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="Give frame_stack"):
            store.sampler(batch_size=2, strict=True)
        episodes = arrowrb.Sequences(4, over="episodes")
        with pytest.raises(OptionError, match='over is "episodes"'):
            store.sampler(episodes, batch_size=2, strict=True, frame_stack={"observation": 2})
        for strategy in (arrowrb.Shuffled(), arrowrb.Episodes(), arrowrb.Prioritized()):
            with pytest.raises(OptionError, match="leaves out no rows"):
                store.sampler(strategy, batch_size=2, strict=True, frame_stack={"observation": 2})
        store.sampler(batch_size=2, strict=True, windows={"observation": (-1, 1)}).sample()


def test_strict_where_nothing_has_its_history(world: tuple[World, Store]) -> None:
    _, store = world
    condition = "step > 0 AND row_id IN (SELECT min(row_id) FROM transitions GROUP BY episode_id HAVING min(step) > 0)"
    for strategy in (arrowrb.Uniform(), arrowrb.Sequences(2)):
        sampler = store.sampler(
            arrowrb.Where(condition, strategy), batch_size=2, strict=True, frame_stack={"observation": 4}
        )
        with pytest.raises(EmptyError, match="has dropped nothing that frame stacks"):
            sampler.sample()


def test_episodes_that_are_too_short_are_counted(world: tuple[World, Store]) -> None:
    made, store = world
    there = {row_id for (row_id,) in store.sql("SELECT row_id FROM transitions").fetchall()}
    lengths = [left for episode in made.episodes if (left := sum(each in there for each in episode.ids))]
    for strategy, least in (
        (arrowrb.Sequences(7), 7),
        (arrowrb.Sequences(5, period=3), 5),
        (arrowrb.PrioritizedSequences(arrowrb.Sequences(6)), 6),
        (arrowrb.Where("reward > -9", arrowrb.Sequences(4)), 4),
        (arrowrb.Sequences(9, strict=False), 1),
        (arrowrb.Sequences(9, across_episodes=True), 1),
    ):
        sampler = store.sampler(strategy, batch_size=2)
        short = sum(length < least for length in lengths)
        assert sampler.info().num_short == short
        assert ("too short" in str(sampler.info())) == (short > 0)
    assert short == 0
    assert store.sampler(batch_size=2).info().num_short == 0
