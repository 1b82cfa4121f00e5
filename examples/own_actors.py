"""Actor processes of one's own that fill one store side by side, and a learner that draws from all of them meanwhile.

    python examples/own_actors.py

Each actor opens the store for writing with a shard of its own; no row goes through a pipe. Run it again with the same
--store, and with any number of actors: each goes on with the shard of its name. Kill one: what it wrote stays.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import gymnasium
import numpy as np

import arrowrb

NUM_ENVS, BATCH_SIZE = 4, 256


def act(path: Path, number: int, frames: int) -> None:
    """What an actor process does: step environments, and record what happens in the shard of its name."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=NUM_ENVS, vectorization_mode="sync")
    random = np.random.default_rng()
    with arrowrb.Store.open(path, mode="a", shard=f"actor-{number}") as store, store.recorder(envs) as recorder:
        observation, info = envs.reset()
        recorder.reset(observation, info)
        for _ in range(-(-frames // NUM_ENVS)):
            # Your policy. This one leans against the pole, the more surely the larger the actor's number is.
            wise = (observation[:, 2] + observation[:, 3] > 0).astype(np.int64)
            action = np.where(random.random(NUM_ENVS) < 1 / (1 + number), random.integers(0, 2, NUM_ENVS), wise)
            observation, reward, terminated, truncated, info = envs.step(action)
            recorder.step(action, observation, reward, terminated, truncated, info)
    envs.close()


def learn(store: arrowrb.Store, actors: Sequence[BaseProcess]) -> int:
    """Draw batches as long as an actor is at work; returns how many."""
    sampler = store.sampler(batch_size=BATCH_SIZE)
    batches = 0
    while any(actor.is_alive() for actor in actors):
        if len(store) == 0:
            time.sleep(0.01)
            continue
        sampler.sample()  # your update
        batches += 1
    return batches


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Actor processes that fill one store side by side.")
    parser.add_argument("--store", type=Path, help="the store, made where there is none (default: a temporary one)")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--frames", type=int, default=20_000, help="of each actor")
    options = parser.parse_args(arguments)
    if options.actors < 1 or options.frames < 1:
        parser.error("--actors and --frames are numbers from 1 on")
    with tempfile.TemporaryDirectory() as scratch:
        path = options.store or Path(scratch) / "own-actors"
        if not path.exists():
            with gymnasium.make("CartPole-v1") as env:
                arrowrb.Store.create(path, arrowrb.Schema.from_env(env)).close()
        with arrowrb.Store.open(path) as store:
            before, began = len(store), time.perf_counter()
            context = multiprocessing.get_context("spawn")
            actors = [context.Process(target=act, args=(path, n, options.frames)) for n in range(options.actors)]
            for actor in actors:
                actor.start()
            batches = learn(store, actors)
            seconds = time.perf_counter() - began
            print(
                f"{len(store) - before:,} transitions by {options.actors} actors, and {batches:,} batches of "
                f"{BATCH_SIZE} drawn meanwhile, in {seconds:.1f} s; {len(store):,} transitions in all\n"
            )
            store.sql(
                "SELECT row_id >> 48 AS shard, count(*) AS transitions, count(DISTINCT episode_id) AS episodes, "
                "round(count(*) / count(DISTINCT episode_id), 1) AS mean_length FROM transitions GROUP BY 1 ORDER BY 1"
            ).show()
            failed = [actor.name for actor in actors if actor.exitcode]
    if failed:
        print(f"Ended with an error: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
