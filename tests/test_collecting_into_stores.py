"""Recorder and collector with a real store: what was logged beneath is what the store gives back."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from arrowrb.collector import Collector
from arrowrb.errors import ReadOnlyError
from arrowrb.schema import Extra, Schema
from arrowrb.store import Store
from tests.ledger import by_lane, check_lane, rows_of
from tests.worlds import INFO, Maker, World, episodes_of


def schema_of(nested: bool) -> Schema:
    return Schema.from_env(World(nested=nested), info={**INFO, "legal": Extra("int8", (4,), "observation")})


def arrays(value: Any) -> Any:
    """Tensors of a batch as arrays."""
    if isinstance(value, dict):
        return {key: arrays(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(arrays(part) for part in value)
    return value.numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("nested", [False, True])
def test_the_store_gives_back_what_happened(tmp_path: Path, mode: AutoresetMode, nested: bool) -> None:
    maker = Maker(nested=nested)
    schema = schema_of(nested)
    with Store.create(tmp_path / "store", schema) as store:
        with Collector(maker, num_envs=3, frames_per_batch=50, store=store, seed=1, autoreset_mode=mode) as collector:
            found = [row for batch in itertools.islice(collector, 8) for row in rows_of(schema, batch)]
        lanes = by_lane(found)
        for lane, log in enumerate(maker.logs):
            check_lane(schema, lanes[lane], episodes_of(log), most_missing=1)
        assert len(store) == 400
        batch = arrays(store.gather([row["row_id"] for row in found]))
        tree = schema.observation_tree
        for side in ("observation", "next_observation"):
            for index, leaf in enumerate(tree.leaves(batch[side])):
                right = np.array([row[side][index] for row in found])
                assert leaf.tobytes() == right.tobytes()
        for index, name in enumerate(("terminated", "truncated")):
            assert batch[name].tolist() == [bool(row["outcome"][index]) for row in found]
        episodes = store.sql(
            "SELECT lane, seed, count(*) AS n FROM episodes GROUP BY ALL HAVING seed IS NOT NULL ORDER BY lane"
        ).fetchall()
        seeds = [int(np.random.SeedSequence(1, spawn_key=(1, 0, i)).generate_state(1)[0]) for i in range(3)]
        assert episodes == [(lane, seeds[lane], 1) for lane in range(3)]
    with Store.open(tmp_path / "store", mode="a") as store:
        maker.logs.clear()
        with Collector(maker, num_envs=3, store=store, seed=1, autoreset_mode=mode) as collector:
            next(collector)
        assert maker.logs[0][0][1] not in seeds
    with Store.open(tmp_path / "store", mode="r") as store, pytest.raises(ReadOnlyError):
        Collector(maker, store=store)


def test_a_recorder_of_a_store(tmp_path: Path) -> None:
    maker = Maker(nested=True, reuse=False)
    envs = SyncVectorEnv([maker] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    schema = Schema.from_env(envs)
    with Store.create(tmp_path / "store", schema) as store:
        recorder = store.recorder(envs)
        envs.action_space.seed(0)
        recorder.reset(*envs.reset(seed=2), seed=2)
        ids = []
        for _ in range(50):
            action = envs.action_space.sample()
            ids += recorder.step(action, *envs.step(action)).tolist()
        assert len(store) == len(ids) == 150
        batch = arrays(store.gather(ids))
        steps: list[list[Any]] = [[], [], []]
        for lane, log in enumerate(maker.logs):
            for episode in episodes_of(log):
                steps[lane] += itertools.pairwise(episode.observations)
        for index in range(150):
            before, after = steps[index % 3][index // 3]
            assert batch["observation"]["image"][index].tobytes() == before["image"].tobytes()
            assert batch["next_observation"]["a.b"][0][index].tobytes() == after["a.b"][0].tobytes()
        recorder.close()
        running = store.sql("SELECT count(*) FROM episodes WHERE ended_by = 'running'").fetchall()
        assert running == [(0,)]


def test_a_collector_holds_its_temporary_store() -> None:
    collector = Collector(World, store=Store.temporary(schema_of(False)))
    gc.collect()
    assert next(collector).num_rows == 200
    collector.close()


def test_a_collector_may_outlive_its_store(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", schema_of(False)) as store:
        collector = Collector(World, store=store)
        count = next(collector).num_rows
    collector.close()
    with Store.open(tmp_path / "store") as store:
        assert len(store) == count
