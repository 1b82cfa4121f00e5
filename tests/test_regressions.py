"""Cases that were wrong once: names that SQL reserves, seeds that stayed behind, masks that came and went."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import arrowrb


@pytest.fixture
def env():
    env = gymnasium.make("CartPole-v1")
    yield env
    env.close()


@pytest.mark.parametrize("word", ["end", "order", "select", "from", "case"])
@pytest.mark.parametrize("owner", ["transition", "observation"])
def test_extras_may_be_named_like_words_of_sql(env, word, owner):
    extra = arrowrb.Extra("int64", owner=owner, nullable=True)
    schema = arrowrb.Schema.from_spaces(env.observation_space, env.action_space, extras={word: extra})
    with arrowrb.Store.temporary(schema) as store:
        store.add(
            observation=np.zeros(4, np.float32),
            action=0,
            reward=1.0,
            next_observation=np.ones(4, np.float32),
            terminated=True,
            truncated=False,
            **{word: 7},
        )
        for view in ("transitions", "steps"):
            assert store.sql(f'SELECT "{word}" FROM {view} WHERE "{word}" IS NOT NULL').fetchall() == [(7,)]


def seeds(store):
    return [row[0] for row in store.sql("SELECT seed FROM episodes ORDER BY started_at, episode_id").fetchall()]


def test_a_reset_without_a_seed_forgets_the_one_before(env):
    with arrowrb.Store.temporary(arrowrb.Schema.from_env(env)) as store, store.recorder(env) as recorder:
        recorder.reset(*env.reset(seed=5), seed=5)
        recorder.reset(*env.reset())
        recorder.step(0, *env.step(0))
        recorder.reset(*env.reset(seed=6), seed=6)
        recorder.step(0, *env.step(0))
        assert seeds(store) == [None, 6]


def test_a_recorder_that_closes_takes_its_seeds_along(env):
    with arrowrb.Store.temporary(arrowrb.Schema.from_env(env)) as store:
        with store.recorder(env) as recorder:
            recorder.reset(*env.reset(seed=5), seed=5)
        with store.recorder(env) as recorder:
            recorder.reset(*env.reset())
            recorder.step(0, *env.step(0))
        assert seeds(store) == [None]


def test_a_collector_leaves_no_seeds_behind(env):
    with arrowrb.Store.temporary(arrowrb.Schema.from_env(env)) as store:
        for seed, total in ((0, 2), (None, 8)):
            with arrowrb.Collector(
                "CartPole-v1", num_envs=4, total_frames=total, frames_per_batch=total, store=store, seed=seed
            ) as collector:
                assert sum(batch.num_rows for batch in collector) == total
        found = seeds(store)
        assert None not in found[:2]
        assert set(found[2:]) == {None}


class Sometimes(gymnasium.Wrapper):
    def step(self, action):
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.count = getattr(self, "count", 0) + 1
        return observation, reward, terminated, truncated, {"s": True} if self.count > 6 else {}


def test_nullable_columns_always_have_a_mask(env):
    schema = arrowrb.Schema.from_env(env, info={"s": "bool"})
    with arrowrb.Collector(Sometimes(env), schema=schema, total_frames=12, frames_per_batch=3, seed=0) as collector:
        masks = [arrowrb.to_torch(batch)["s.valid"].tolist() for batch in collector]
    assert masks == [[False] * 3] * 2 + [[True] * 3] * 2


def test_a_recorder_refuses_actions_outside_the_space(env):
    with arrowrb.Store.temporary(arrowrb.Schema.from_env(env)) as store, store.recorder(env) as recorder:
        recorder.reset(*env.reset(seed=5), seed=5)
        observation, *rest = env.step(1)
        with pytest.raises(arrowrb.ArrowRBError, match="'action' has the value 9, expected 0 to 1"):
            recorder.step(9, observation, *rest)
        assert recorder.step(1, observation, *rest).size == 1
        assert len(store) == 1


def test_slips_get_errors_of_ours(env, tmp_path):
    schema = arrowrb.Schema.from_env(env)
    with arrowrb.Store.create(tmp_path / "store", schema) as store:
        with pytest.raises(arrowrb.ArrowRBError, match=r'Give table\["row_id"\]'):
            store.gather(store.sql("SELECT row_id FROM transitions").arrow())
        with pytest.raises(arrowrb.ArrowRBError, match="expected a pyarrow RecordBatch"):
            arrowrb.to_torch(3)
        with (
            arrowrb.Store.open(store.path) as reader,
            pytest.raises(arrowrb.ArrowRBError, match='opened with mode="r"'),
        ):
            reader.add()
    pendulum = gymnasium.make("Pendulum-v1")
    with (
        arrowrb.Store.temporary(schema) as store,
        pytest.raises(arrowrb.ArrowRBError, match=r"schema has dtype float32, shape \(4,\) and the environment has"),
    ):
        store.recorder(pendulum)
    pendulum.close()
