"""DQN on CartPole-v1, trained from an arrowrb store until it is solved; then the store is asked how it went.

    python examples/dqn_cartpole.py

Solved means that 20 greedy episodes return 475 or more in the mean, and 20 others do so too; if not, the exit status
is 1. Run it again and it goes on from where it was: the transitions are in the store, and the agent in its checkpoint.

DQN: Mnih et al. 2015, https://doi.org/10.1038/nature14236. Hyperparameters as in RL Baselines3 Zoo.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import arrowrb

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ENV_ID = "CartPole-v1"
NAME = "agent"  # of the checkpoint and of the sampler
GAMMA = 0.99
LEARNING_RATE = 2.3e-3
BATCH_SIZE = 64
FRAMES_PER_PHASE = 256
UPDATES_PER_PHASE = 128
RANDOM_FRAMES = 1_000
EXPLORATION_FRAMES, LAST_EPSILON = 8_000, 0.04
TARGET_RATE = 0.01
PHASES_PER_REPORT = 4
NUM_EPISODES = 20

CURVE = """
    SELECT sum(length) OVER (ORDER BY ended_at, episode_id) AS frames, "return"
    FROM episodes WHERE complete ORDER BY frames
"""
DECILES = """
    SELECT decile, count(*) AS episodes, sum(length) AS frames, avg("return") AS mean_return, max("return") AS best
    FROM (SELECT *, ntile(10) OVER (ORDER BY ended_at, episode_id) AS decile FROM episodes WHERE complete)
    GROUP BY decile ORDER BY decile
"""
LATEST = 'SELECT avg("return") FROM (FROM episodes WHERE complete ORDER BY ended_at DESC LIMIT 10)'


class EpsilonGreedy:
    """The policy that collects: mostly the best action, sometimes any."""

    def __init__(self, q_network: nn.Module, num_actions: int, seed: int, epsilon: float = 0.0) -> None:
        self.q_network = q_network
        self.num_actions = num_actions
        self.epsilon = epsilon
        self.random = np.random.default_rng(seed)

    def __call__(self, observation: NDArray[np.float32]) -> NDArray[np.int64]:
        """Observations [lanes, 4] to actions [lanes]."""
        with torch.no_grad():
            action = self.q_network(torch.from_numpy(observation)).argmax(dim=1).numpy()
        explore = self.random.random(action.shape) < self.epsilon
        return np.where(explore, self.random.integers(self.num_actions, size=action.shape), action)


class Agent:
    """Two networks and an optimizer, kept in a checkpoint of the store."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        self.num_updates = 0
        self.q_network = make_network(num_inputs, num_actions)
        self.target_network = make_network(num_inputs, num_actions)
        self.target_network.load_state_dict(self.q_network.state_dict())
        self.optimizer = torch.optim.Adam(self.q_network.parameters(), lr=LEARNING_RATE, fused=True)

    def update(self, batch: dict[str, Tensor]) -> None:
        """One step of gradient descent on a batch, just as the store gives it."""
        with torch.no_grad():
            next_value = self.target_network(batch["next_observation"]).amax(dim=1)
            # An episode cut short by the time limit has not ended for the agent: the mask is `terminated` alone.
            target = batch["reward"].float() + GAMMA * ~batch["terminated"] * next_value
        value = self.q_network(batch["observation"]).gather(1, batch["action"][:, None]).squeeze(1)
        loss = nn.functional.smooth_l1_loss(value, target)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.q_network.parameters(), 10.0)
        self.optimizer.step()
        for slow, fast in zip(self.target_network.parameters(), self.q_network.parameters(), strict=True):
            slow.data.lerp_(fast.data, TARGET_RATE)
        self.num_updates += 1

    def save(self, store: arrowrb.Store) -> None:
        """One point of the rows and of all that it has learned from them."""
        tensors = {
            "q": self.q_network.state_dict(),
            "target": self.target_network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        store.checkpoint(NAME, tensors=tensors, state={"num_updates": self.num_updates})

    def load(self, store: arrowrb.Store) -> None:
        """Go on from the checkpoint."""
        tensors, state = store.restore(NAME)
        self.num_updates = state["num_updates"]
        self.q_network.load_state_dict(tensors["q"])
        self.target_network.load_state_dict(tensors["target"])
        self.optimizer.load_state_dict(tensors["optimizer"])


def make_network(num_inputs: int, num_actions: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_actions)
    )


def evaluate(agent: Agent, num_actions: int, seed: int, num_episodes: int = NUM_EPISODES) -> float:
    """The mean return of greedy episodes, which are not recorded.

    The target network acts: a running mean of the other, it does not swing from one update to the next.
    """
    greedy = EpsilonGreedy(agent.target_network, num_actions, seed)
    return arrowrb.evaluate(greedy, ENV_ID, num_episodes=num_episodes, seed=seed).mean_return


def is_solved(agent: Agent, num_actions: int, target: float) -> bool:
    """Whether the target is reached in 20 episodes, and then in 20 others; 3 tell whether it is worth the time."""
    glance = evaluate(agent, num_actions, seed=3_000, num_episodes=3)
    if glance < target:
        print(f"           3 greedy episodes return {glance:.1f}")
        return False
    mean_return = evaluate(agent, num_actions, seed=1_000)
    print(f"           {NUM_EPISODES} greedy episodes return {mean_return:.1f}")
    if mean_return < target:
        return False
    other = evaluate(agent, num_actions, seed=2_000)
    print(f"           {NUM_EPISODES} others return {other:.1f}")
    return other >= target


def train(store: arrowrb.Store, agent: Agent, frames: int, target: float | None, seed: int) -> bool:
    """Collect and update in turn until the target is reached or the frames are used up."""
    num_actions = int(store.schema.action_space.n)
    # Seeded by what there is, so that a run that goes on does not take the same actions again.
    policy = EpsilonGreedy(agent.q_network, num_actions, seed=seed + len(store))
    sampler = store.sampler(batch_size=BATCH_SIZE, seed=seed + len(store), name=NAME)
    began, num_before = time.perf_counter(), len(store)
    with arrowrb.Collector(
        ENV_ID,
        policy,
        frames_per_batch=FRAMES_PER_PHASE,
        total_frames=frames,
        init_random_frames=max(0, RANDOM_FRAMES - len(store)),
        store=store,
        seed=seed,
    ) as collector:
        collector.policy_version = agent.num_updates
        for phase, _ in enumerate(collector, start=1):
            policy.epsilon = max(LAST_EPSILON, 1.0 - len(store) / EXPLORATION_FRAMES)
            if len(store) >= RANDOM_FRAMES:
                for _ in range(UPDATES_PER_PHASE):
                    agent.update(next(sampler))
                collector.policy_version = agent.num_updates
            last = collector.num_frames >= frames
            if phase % PHASES_PER_REPORT and not last:
                continue
            answer = store.sql(LATEST).fetchone()
            latest = (answer and answer[0]) or 0.0
            print(
                f"{len(store):>8,} frames  {agent.num_updates:>7,} updates  epsilon {policy.epsilon:.2f}  "
                f"latest 10 episodes {latest:6.1f}  "
                f"{(len(store) - num_before) / (time.perf_counter() - began):,.0f} frames/s",
                flush=True,
            )
            agent.save(store)
            if target is not None and is_solved(agent, num_actions, target):
                return True
    return target is None


def draw_curve(store: arrowrb.Store, path: Path, target: float) -> None:
    """Ask the store for its own learning curve, print it and draw it."""
    print("\nThe learning curve, by decile of the episodes (SQL over the store):")
    store.sql(DECILES).show()
    curve = store.sql(CURVE).fetchall()
    if not curve:
        print("No episode is complete yet: nothing to draw.")
        return
    frames, returns = np.array(curve, np.float64).T
    window = min(20, len(returns))
    mean = np.convolve(returns, np.ones(window) / window, mode="valid")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(frames, returns, ".", color="0.7", markersize=4, label="an episode")
    axes.plot(frames[window - 1 :], mean, color="tab:blue", label=f"mean of {window} episodes")
    axes.axhline(target, color="tab:green", linestyle="--", linewidth=1, label=f"solved: {target:g}, greedy")
    axes.set(title=f"DQN on {ENV_ID}", xlabel="frames", ylabel="return while exploring", ylim=(0, None))
    axes.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"drawn to {path}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train DQN on CartPole-v1 from an arrowrb store.")
    parser.add_argument(
        "--store", type=Path, default=Path("runs/dqn-cartpole"), help="its folder; gone on with if it exists"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-frames", type=int, help="at most so many in this run (default: 100,000)")
    parser.add_argument("--target-return", type=float, default=475.0)
    parser.add_argument("--no-target", action="store_true", help="train for --total-frames, evaluate nothing")
    parser.add_argument("--plot", type=Path, help="where the learning curve goes (default: beside the store, .png)")
    options = parser.parse_args(arguments)
    if options.total_frames is not None and options.total_frames < 1:
        parser.error(f"--total-frames is {options.total_frames}, expected 1 or more")
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}, expected 0 or more")
    return options


def open_store(path: Path) -> arrowrb.Store:
    if (path / "store.json").exists():
        return arrowrb.Store.open(path, mode="a")
    env = gymnasium.make(ENV_ID)
    path.parent.mkdir(parents=True, exist_ok=True)
    return arrowrb.Store.create(path, arrowrb.Schema.from_env(env))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(1)  # networks this small are slower on several
    torch.manual_seed(options.seed)
    began = time.perf_counter()
    target = None if options.no_target else options.target_return
    with open_store(options.store) as store:
        num_actions = int(store.schema.action_space.n)
        agent = Agent(int(np.prod(store.schema.observation_space.shape)), num_actions)
        solved = False
        if store.checkpoints():
            agent.load(store)
            print(f"Going on from {options.store}: {len(store):,} transitions, {agent.num_updates:,} updates.")
            if target is not None and is_solved(agent, num_actions, target):
                solved = True
                print(f"It is solved already (target {target:g}).")
                target = None
        elif len(store):
            print(
                f"Going on from {options.store}: {len(store):,} transitions, but no agent; a new one learns from them."
            )
        if not solved or options.total_frames is not None:
            try:
                reached = train(store, agent, options.total_frames or 100_000, target, options.seed)
                solved = solved or (reached and target is not None)
            except KeyboardInterrupt:
                print("Interrupted: run it again and it goes on from here.")
                agent.save(store)
                return 130
        if not options.no_target:
            word = "Solved" if solved else "Not solved"
            print(f"{word}: {len(store):,} frames in the store, {time.perf_counter() - began:.0f} s.")
        draw_curve(store, options.plot or options.store.with_name(options.store.name + ".png"), options.target_return)
        print(store)
    return 0 if solved or options.no_target else 1


if __name__ == "__main__":
    sys.exit(main())
