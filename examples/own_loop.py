"""A training loop of one's own, in CleanRL's manner, with a recorder beside the vector environment.

    python examples/own_loop.py

Two lines make a loop record: `recorder.reset` after `envs.reset`, and `recorder.step` after `envs.step`. Every step is
visible to every reader at once. Autoreset, final observations and truncation are the recorder's business.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium

import arrowrb

NUM_ENVS = 8
BATCH_SIZE = 256


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Record a loop over 8 CartPoles, then sample and ask in SQL.")
    parser.add_argument("--store", type=Path, help="a new folder for the store (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=2_000, help="vector steps")
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as scratch:
        envs = gymnasium.make_vec("CartPole-v1", num_envs=NUM_ENVS, vectorization_mode="sync")
        envs.action_space.seed(1)
        path = options.store or Path(scratch) / "own-loop"
        with arrowrb.Store.create(path, arrowrb.Schema.from_env(envs)) as store:
            recorder = store.recorder(envs)
            observation, info = envs.reset(seed=1)
            recorder.reset(observation, info, seed=1)
            began = time.perf_counter()
            for _ in range(options.steps):
                action = envs.action_space.sample()  # your policy
                observation, reward, terminated, truncated, info = envs.step(action)
                recorder.step(action, observation, reward, terminated, truncated, info)
            seconds = time.perf_counter() - began
            recorder.close()
            print(
                f"{len(store):,} transitions in {options.steps:,} vector steps: {len(store) / seconds:,.0f} a second\n"
            )

            batch = store.sample(BATCH_SIZE, seed=1)
            print("A batch to train on:")
            for name, tensor in batch.items():
                print(f"  {name:<17}{tensor.dtype!s:<15}{tuple(tensor.shape)}")

            print("\nReturns, by lane:")
            store.sql(
                'SELECT lane, count(*) AS episodes, avg("return") AS mean_return, max("return") AS best '
                "FROM episodes WHERE complete GROUP BY lane ORDER BY lane"
            ).show()
            print("Where the pole leans when it falls, and what was done about it:")
            store.sql(
                "SELECT action, count(*) AS falls, avg(abs(next_observation[3])) AS mean_angle "
                "FROM transitions WHERE terminated GROUP BY action ORDER BY action"
            ).show()
            print(store)
        envs.close()


if __name__ == "__main__":
    main()
