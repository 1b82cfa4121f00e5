"""SAC with asynchronous workers: they collect while the learner learns, and a limiter keeps the two in step.

    python examples/async_sac.py                         # Pendulum-v1 to a mean return of -200
    python examples/async_sac.py --store runs/async      # keeps transitions and agent; run again, it goes on

Each worker writes a shard of one store, and takes a new policy between two steps; the learner draws from all. The
limiter belongs to the store: collecting waits where it is too far ahead of sampling, and the other way round. What each
version of the policy reached is asked in SQL, and drawn.

The agent is that of sac_halfcheetah.py. Versions of the policy go on, so that the curve is one over all runs. The curve
is drawn by matplotlib, which arrowrb itself does not need.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib as mpl
import numpy as np
import torch
from sac_halfcheetah import NAME, Actor, Agent
from torch import Tensor, nn

import arrowrb

ENV_ID = "Pendulum-v1"
TARGET, EPISODES = -200.0, 20
BATCH_SIZE, RANDOM_FRAMES = 128, 1_000
LIMITER = arrowrb.SampleToInsertRatio(samples_per_insert=BATCH_SIZE, min_size=RANDOM_FRAMES, tolerance=100 * BATCH_SIZE)
UPDATES_PER_VERSION, UPDATES_PER_EVALUATION = 50, 1_000

CURVE = """
SELECT version, avg("return") AS mean_return, count(*) AS episodes
FROM (SELECT episode_id, max(policy_version) AS version FROM transitions GROUP BY episode_id)
JOIN episodes USING (episode_id) WHERE complete GROUP BY version ORDER BY version
"""


class Explorer(nn.Module):
    """What the workers have a copy of: actions drawn from the actor's distribution, in the range of the environment."""

    def __init__(self, actor: Actor, largest: float) -> None:
        super().__init__()
        self.actor, self.largest = actor, largest

    def forward(self, observation: Tensor) -> Tensor:
        """Observations [lanes, 3] to actions [lanes, 1]."""
        return self.actor.sample(observation)[0] * self.largest


def open_store(path: Path) -> arrowrb.Store:
    if (path / "store.json").exists():
        return arrowrb.Store.open(path, mode="a")
    with gymnasium.make(ENV_ID) as env:
        schema = arrowrb.Schema.from_env(env)
    path.parent.mkdir(parents=True, exist_ok=True)
    return arrowrb.Store.create(path, schema, limiter=LIMITER)


def newest_version(store: arrowrb.Store) -> int:
    """Of the policy, in what was collected; 0 where nothing was."""
    (version,) = store.sql("SELECT coalesce(max(policy_version), 0) FROM transitions").fetchone() or (0,)
    return int(version)


def scaled(batch: dict[str, Tensor], largest: float) -> dict[str, Tensor]:
    """The agent's actions lie between -1 and 1, and its rewards should be of the order of 1."""
    return {**batch, "action": batch["action"] / largest, "reward": batch["reward"] / 8.0}


def train(store: arrowrb.Store, agent: Agent, num_workers: int, total_frames: int, seed: int) -> bool:
    """Learn while the workers collect; returns whether an evaluation reached the target."""
    largest = float(store.schema.action_space.high[0])
    explorer = Explorer(agent.actor, largest)
    sampler = store.sampler(
        batch_size=BATCH_SIZE,
        seed=seed + len(store),
        prefetch=4,
        name=NAME,
        transform=lambda batch: scaled(batch, largest),
    )

    def best(observation: Any) -> Any:
        return agent.act(observation, greedy=True) * largest

    began = time.perf_counter()
    with arrowrb.Collector(
        ENV_ID,
        explorer,
        num_workers=num_workers,
        sync=False,
        frames_per_batch=25,
        total_frames=total_frames,
        init_random_frames=max(0, RANDOM_FRAMES - len(store)),
        store=store,
        seed=seed,
    ) as collector:
        if len(store):  # what was collected before is of other policies
            collector.update_policy(version=newest_version(store) + 1)
        collector.start()
        while collector.running:
            agent.update(sampler.sample())
            if agent.num_updates % UPDATES_PER_VERSION == 0:
                collector.update_policy()
            if agent.num_updates % UPDATES_PER_EVALUATION == 0:
                agent.save(store)
                told = arrowrb.evaluate(best, ENV_ID, num_episodes=EPISODES, seed=agent.num_updates)
                print(
                    f"{len(store):>7,} transitions  {agent.num_updates:>6,} updates  {EPISODES} greedy episodes return "
                    f"{told.mean_return:8.1f}  {time.perf_counter() - began:5.1f} s",
                    flush=True,
                )
                if told.mean_return >= TARGET:
                    other = arrowrb.evaluate(best, ENV_ID, num_episodes=EPISODES, seed=1_000_000)
                    print(f"{EPISODES} others return {other.mean_return:.1f}", flush=True)
                    if other.mean_return >= TARGET:
                        return True
    return False


def draw(store: arrowrb.Store, path: Path) -> None:
    """The learning curve by version of the policy, as a PNG."""
    mpl.use("Agg")
    from matplotlib import pyplot

    rows = np.array(store.sql(CURVE).fetchall(), np.float64).reshape(-1, 3)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.scatter(
        rows[:, 0], rows[:, 1], s=6 + 3 * rows[:, 2], color="tab:blue", alpha=0.6, label="episodes of a version"
    )
    if len(rows) >= 10:
        width = max(3, len(rows) // 10)
        mean = np.convolve(rows[:, 1], np.ones(width) / width, mode="valid")
        axes.plot(rows[width - 1 :, 0], mean, color="tab:orange", label=f"mean of {width} versions")
    axes.axhline(TARGET, color="gray", linestyle="--", linewidth=1, label=f"target {TARGET:g}")
    axes.set(
        xlabel="policy version at the end of the episode", ylabel="mean return", title=f"{ENV_ID}: what was collected"
    )
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Learning curve: {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train SAC while workers collect.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--total-frames", type=int, default=30_000, help="give up after so many more")
    parser.add_argument("--store", type=Path, help="gone on with if it exists (default: a temporary one)")
    parser.add_argument("--plot", type=Path, default=Path("runs/async-sac.png"), help="where the learning curve goes")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.workers < 1 or options.total_frames < 1 or options.seed < 0:
        parser.error("--workers and --total-frames are numbers from 1 on, --seed from 0 on")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, open_store(options.store or Path(scratch) / "sac") as store:
        torch.manual_seed(options.seed + len(store))  # so that a run that goes on does not draw the same noise again
        agent = Agent(3, 1)
        if store.checkpoints():
            agent.load(store)
            print(f"Going on with {len(store):,} transitions, {agent.num_updates:,} updates.", flush=True)
        elif len(store):
            print(f"Going on with {len(store):,} transitions, but no agent; a new one learns from them.", flush=True)
        try:
            solved = train(store, agent, options.workers, options.total_frames, options.seed)
        except KeyboardInterrupt:
            print("Interrupted: run it again with the same --store and it goes on from here.")
            return 130
        finally:
            agent.save(store)
        print("Solved." if solved else "Not solved.")
        store.sql("SELECT inserts, samples, round(ratio, 1) AS samples_per_insert, state FROM limiter").show()
        draw(store, options.plot)
    return 0 if solved else 1


if __name__ == "__main__":
    raise SystemExit(main())
