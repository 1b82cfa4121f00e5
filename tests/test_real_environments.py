"""HalfCheetah and Pong through all of it: collect, move, sample, ask, export."""

from __future__ import annotations

from pathlib import Path

import ale_py
import duckdb
import gymnasium
import numpy as np
import pytest

from arrowrb.collector import Collector
from arrowrb.schema import Schema
from arrowrb.store import Store
from tests.test_tiers import create, settle, small_segments
from tests.worlds import Logged, episodes_of

__all__ = ["small_segments"]  # a fixture
gymnasium.register_envs(ale_py)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("env_id", "frames"), [("HalfCheetah-v5", 2500), ("ALE/Pong-v5", 900)])
def test_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env_id: str, frames: int) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log in the working folder
    log: list[object] = []
    env = Logged(gymnasium.make(env_id), log)
    with create(tmp_path / "store", Schema.from_env(env), hot_rows=1) as store:
        with Collector(env, frames_per_batch=100, total_frames=frames, store=store, seed=1) as collector:
            ids = np.concatenate([batch["row_id"].to_numpy() for batch in collector])
        settle(store)
        happened = [
            (episode.observations[k], episode.observations[k + 1])
            for episode in episodes_of(log)
            for k in range(len(episode.observations) - 1)
        ]
        assert store.info().cold_rows > frames // 3
        with Store.open(store.path, cache_bytes=1 << 20) as reader:
            for each in (store, reader):
                batch = each.gather(ids)
                for k in (0, 1, frames // 2, frames - 1):
                    assert batch["observation"][k].numpy().tobytes() == np.asarray(happened[k][0]).tobytes()
                    assert batch["next_observation"][k].numpy().tobytes() == np.asarray(happened[k][1]).tobytes()
                for drawn, _ in zip(each.sampler(batch_size=32, prefetch=3, seed=0), range(8), strict=False):
                    again = each.gather(drawn["row_id"])
                    assert all((drawn[name] == again[name]).all() for name in drawn)
                count, total = each.sql("SELECT count(*), sum(reward) FROM transitions").fetchall()[0]
                assert (count, total) == (frames, pytest.approx(float(batch["reward"].sum())))
            done = reader.export(tmp_path / "out", rows="steps", images="list")
        found = duckdb.sql(f"SELECT count(*), count(action), sum(reward) FROM '{tmp_path}/out/*.parquet'").fetchall()[0]
        assert found == (done.num_rows, frames, pytest.approx(total))
