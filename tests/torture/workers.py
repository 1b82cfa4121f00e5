"""Workers of a collector that are killed: while they step, commit, seal, close, and while they are started."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import arrowrb
from arrowrb import Collector, Schema, Store
from tests.counting import Counting, check_counting

_FRAMES, _LANES = 30, 2


def killed(folder: Path, cases: int, part: int, parts: int) -> dict[str, int]:
    """Kill one of two workers at random moments: no row is lost, none comes twice, and the run goes on.

    Even parts collect synchronously, odd ones do not.
    """
    kills = cases // parts + (part < cases % parts)
    random = np.random.default_rng(part)
    path = folder / f"workers-{part}"
    schema = Schema.from_spaces(Counting.observation_space, Counting.action_space)
    ids: list[int] = []
    hit: set[int] = set()  # processes; each is killed once
    with (
        Store.create(path, schema, sync_interval=0.2) as store,
        Collector(
            lambda: Counting(pause=0.0003),
            num_envs=_LANES,
            num_workers=2,
            sync=part % 2 == 0,
            store=store,
            frames_per_batch=_FRAMES,
            restart_workers=kills,
        ) as collector,
    ):
        while collector.num_restarts < kills:
            batch = next(collector)
            assert batch.num_rows == _FRAMES, batch.num_rows
            ids += batch["row_id"].to_pylist()
            processes = [worker.process for worker in collector._source._workers]  # type: ignore[union-attr]
            chosen = processes[int(random.integers(2))]
            if chosen is not None and len(hit) < kills and chosen.pid not in hit and random.random() < 0.5:
                time.sleep(random.uniform(0, 0.02))
                hit.add(chosen.pid)
                chosen.kill()
        for _ in range(4):
            ids += next(collector)["row_id"].to_pylist()
        assert len(ids) == len(set(ids)) == collector.num_frames
    with Store.open(path) as store:
        stored = {row for (row,) in store.sql("SELECT row_id FROM transitions").fetchall()}
        assert set(ids) <= stored
        check_counting(store)
    found = arrowrb.verify(path)
    assert found, found
    return {"cases": kills, "rows": len(ids)}
