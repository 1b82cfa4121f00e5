"""HalfCheetah and Pong all the way: collect, move to Parquet, sample, ask, export, and back into a store.

    python examples/two_tiers.py                 # HalfCheetah-v5 and ALE/Pong-v5
    python examples/two_tiers.py --env HalfCheetah-v5 --frames 1000000

The hot tier holds a tenth of the rows. At each step what comes out is held against what went in: counts of the store,
of SQL and of the files, drawn rewards against those that the collector gave, the imported store against the first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ale_py
import duckdb
import gymnasium
import numpy as np

import arrowrb

FRAMES = {"HalfCheetah-v5": 200_000, "ALE/Pong-v5": 20_000}
BATCH_SIZE, BATCHES, AHEAD = 256, 64, 15
COMPARED = "SELECT count(*), sum(reward), sum(step), sum(episode_id * step) FROM transitions"


@contextmanager
def timed(what: str, rows: int) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    print(f"  {what:<44}{seconds:>8.2f} s{rows / seconds:>14,.0f} rows/s")


def check(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"{what}: found {found}, expected {expected}.")


def run(env_id: str, frames: int, folder: Path) -> None:
    print(f"{env_id}, {frames:,} transitions, a hot tier of {max(frames // 10, 1000):,} rows")
    env = gymnasium.make(env_id)
    made = arrowrb.Store.create(folder / "store", arrowrb.Schema.from_env(env), hot_rows=max(frames // 10, 1000))
    with made as store:
        ids, rewards = [], []
        collector = arrowrb.Collector(env, frames_per_batch=1000, total_frames=frames, store=store, seed=1)
        with timed("collected, moving what is old", frames), collector:
            for batch in collector:
                ids.append(batch["row_id"].to_numpy())
                rewards.append(batch["reward"].to_numpy())
            store.flush()
        row_ids, reward = np.concatenate(ids), np.concatenate(rewards)
        with timed("moved the rest that is due", frames):
            store.maintain()
        info = store.info()
        print(f"  {info.cold_rows:,} rows are cold: {info.cold_bytes / 1e6:,.1f} MB of Parquet")
        check("transitions", len(store), frames)

        sampler = store.sampler(batch_size=BATCH_SIZE, prefetch=AHEAD, seed=1)
        of = dict(zip(row_ids.tolist(), reward.tolist(), strict=True))
        with timed("drawn uniformly, both tiers", BATCHES * BATCH_SIZE):
            drawn = [next(sampler) for _ in range(BATCHES)]
        for each in drawn:
            check("rewards drawn", each["reward"].tolist(), [of[row] for row in each["row_id"].tolist()])

        with timed("asked in SQL", frames):
            counted = store.sql(COMPARED).fetchall()
        check("transitions in SQL", counted[0][0], frames)
        with timed("exported", frames):
            written = store.export(folder / "out")
        print(f"  files: {len(written.files)}, {written.num_bytes / 1e6:,.1f} MB")
        found = duckdb.sql(f"SELECT count(*) FROM '{folder}/out/*.parquet'").fetchall()
        check("rows in the files", found, [(frames,)])
        with timed("read everything to verify it", frames):
            check("problems", store.verify().problems, ())
    with timed("imported into a new store", frames):
        arrowrb.import_parquet(folder / "out", folder / "back")
    with arrowrb.Store.open(folder / "back") as back:
        again = back.sql(COMPARED).fetchall()
    check("what came back", np.allclose(again, counted), True)
    print("  all counts and rows agree\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Two environments through both tiers and out of them, checked.")
    parser.add_argument("--env", choices=list(FRAMES), help="only this one")
    parser.add_argument("--frames", type=int, help="transitions (default: 200,000 and 20,000)")
    options = parser.parse_args(arguments)
    if options.frames is not None and options.frames < 1:
        parser.error("--frames must be at least 1")
    gymnasium.register_envs(ale_py)
    with tempfile.TemporaryDirectory() as scratch:
        here = Path.cwd()
        os.chdir(scratch)  # MuJoCo leaves a log in the working folder
        try:
            for env_id in [options.env] if options.env else FRAMES:
                run(env_id, options.frames or FRAMES[env_id], Path(scratch) / env_id.replace("/", "-"))
        finally:
            os.chdir(here)


if __name__ == "__main__":
    main()
