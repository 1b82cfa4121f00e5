"""Rows that follow each other over blocks, segments and tiers, against what SQL says of episodes and lanes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrowrb.engine import Engine, WriterOptions, segments
from arrowrb.retention import Limits
from arrowrb.samplers.chains import Chains, Steps
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.lanes import draw_lanes
from tests.plain_store import plain_schema

LENGTH = 9


class World:
    """Lanes whose episodes go on from call to call."""

    def __init__(self, rng: np.random.Generator, lanes: int) -> None:
        self.rng = rng
        self.now = {lane: self._observation() for lane in range(lanes)}

    def _observation(self) -> np.ndarray:
        return self.rng.normal(size=4).astype(np.float32)

    def batch(self, count: int, ends: float) -> dict[str, Any]:
        lanes = draw_lanes(self.rng, len(self.now), count)
        rows: dict[str, list[Any]] = {name: [] for name in ("observation", "next_observation", "terminated")}
        for lane in lanes.tolist():
            following, ended = self._observation(), bool(self.rng.random() < ends)
            for name, value in zip(rows, (self.now[lane], following, ended), strict=True):
                rows[name].append(value)
            self.now[lane] = self._observation() if ended else following
        named = {name: np.array(values) for name, values in rows.items()}
        zeros = np.zeros(count)
        return named | {
            "action": zeros.astype(np.int64),
            "reward": self.rng.normal(size=count),
            "truncated": zeros.astype(bool),
            "lane": lanes,
        }


def check(chains: Chains, store: Store, rng: np.random.Generator) -> None:
    while True:  # both of one moment: rows may go between them
        snapshot = store._engine.snapshot()
        table = store.sql("SELECT row_id, lane, episode_id, step, ordinal FROM transitions ORDER BY ordinal").fetchall()
        if store._engine.snapshot() is snapshot:
            break
    if not table:
        return
    by_lane: dict[int, list[int]] = {}
    by_episode: dict[int, dict[int, int]] = {}
    for row_id, lane, episode, step, _ in table:
        by_lane.setdefault(lane, []).append(row_id)
        by_episode.setdefault(episode, {})[step] = row_id
    chosen = [table[i] for i in rng.integers(0, len(table), 60)]
    rows = snapshot.locate(np.array([row[0] for row in chosen]))
    found = {
        "forward": chains.forward(snapshot, rows, LENGTH),
        "back": chains.back(snapshot, rows, LENGTH),
        "across": chains.forward(snapshot, rows, LENGTH, across=True),
    }
    for i, (row_id, lane, episode, step, _) in enumerate(chosen):
        after = [row_id]
        while len(after) < LENGTH and step + len(after) in by_episode[episode]:
            after.append(by_episode[episode][step + len(after)])
        assert ids(snapshot, found["forward"], i) == after + [after[-1]] * (LENGTH - len(after))
        assert found["forward"].counts[i] == len(after)
        before = [row_id]
        while len(before) < LENGTH and step - len(before) in by_episode[episode]:
            before.insert(0, by_episode[episode][step - len(before)])
        assert ids(snapshot, found["back"], i) == [before[0]] * (LENGTH - len(before)) + before
        assert found["back"].counts[i] == len(before)
        at = by_lane[lane].index(row_id)
        along = by_lane[lane][at : at + LENGTH]
        assert ids(snapshot, found["across"], i) == along + [along[-1]] * (LENGTH - len(along))


def ids(snapshot: Any, steps: Steps, i: int) -> list[int]:
    return [
        int(snapshot.layout.shapes[slot, 6]) + position
        for slot, position in zip(steps.places[0, i].tolist(), steps.places[1, i].tolist(), strict=True)
    ]


@pytest.mark.filterwarnings("ignore:.*do not go on where.*:UserWarning")
@pytest.mark.parametrize("seed", range(6))
def test_against_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    block_rows, lanes = int(rng.choice([2, 4, 16])), int(rng.choice([1, 3, 7]))

    def shape(*, num_lanes: int, **_: object) -> SegmentShape:
        return SegmentShape(4 * max(1, num_lanes) * block_rows, block_rows)

    monkeypatch.setattr(segments, "shape_segment", shape)
    path = tmp_path / "store"
    Store.create(path, plain_schema(), max_rows=1000).close()

    def open_store() -> Store:
        limits = Limits(hot_rows=300, max_rows=1000)
        return Store(Engine(path, writable=True, options=WriterOptions(0.02, limits=limits)))

    store, reader = open_store(), Store.open(path)
    world, chains, followed = World(rng, lanes), Chains(), Chains()
    for _ in range(50):
        act = rng.choice(["extend", "extend", "extend", "tidy", "open", "fresh"])
        if act == "extend":
            store.extend(world.batch(int(rng.integers(1, 80)), float(rng.choice([0.01, 0.1, 0.5]))))
        elif act == "tidy":
            store.maintain()
        elif act == "open":
            store.close()
            store, chains = open_store(), Chains()
        else:
            chains = Chains()
        check(chains, store, rng)
        if rng.random() < 0.3:
            check(followed, reader, rng)
    store.close()
    reader.close()


@pytest.mark.parametrize("seed", range(4))
def test_final_observations_are_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(segments, "shape_segment", lambda **_: SegmentShape(48, 4))
    with Store.create(tmp_path / "store", plain_schema()) as store:
        store.extend(World(rng, 3).batch(400, 0.1))
        snapshot, chains = store._engine.snapshot(), Chains()
        steps = store.sql("SELECT row_id, lane FROM steps ORDER BY ordinal").fetchall()
        starts = store.sql("SELECT row_id, lane FROM transitions ORDER BY ordinal").fetchall()
        chosen = [starts[i] for i in rng.integers(0, len(starts), 100)]
        rows = snapshot.locate(np.array([row_id for row_id, _ in chosen]))
        across = chains.forward(snapshot, rows, LENGTH, across=True, tails=True)
        for i, (row_id, lane) in enumerate(chosen):
            along = [other for other, of in steps if of == lane]
            at = along.index(row_id)
            expected = along[at : at + LENGTH]
            assert ids(snapshot, across, i) == expected + [expected[-1]] * (LENGTH - len(expected))
