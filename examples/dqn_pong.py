"""DQN on ALE/Pong-v5 from pixels: single frames are stored once, in two tiers; stacks of four are made when drawn.

    python examples/dqn_pong.py                      # a short run: about a minute
    python examples/dqn_pong.py --frames 1000000     # a real one, many hours on a CPU; kill it and go on at any time

Frames are grey, cropped to the court and halved to 80 x 80. Most of them lie in Parquet soon; training draws over both
tiers alike. The policy sees stacks, too, which the collector makes.

DQN: Mnih et al. 2015, https://doi.org/10.1038/nature14236.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import arrowrb

NAME = "agent"  # of the checkpoint and of the sampler
FRAMES_SEEN = 4
GAMMA, LEARNING_RATE = 0.99, 1e-4
BATCH_SIZE = 32
FRAMES_PER_PHASE, UPDATES_PER_PHASE = 128, 32
RANDOM_FRAMES = 1_000
EXPLORATION_FRAMES, LAST_EPSILON = 100_000, 0.05
TARGET_EVERY = 1_000
PHASES_PER_REPORT = 8
SIDE = 80


def make_env() -> gymnasium.Env[Any, Any]:
    """Pong with frames uint8[80, 80]."""
    gymnasium.register_envs(ale_py)
    env = gymnasium.make("ALE/Pong-v5", obs_type="grayscale")
    space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)
    return gymnasium.wrappers.TransformObservation(env, lambda frame: frame[34:194:2, ::2].copy(), space)


def make_network(num_actions: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(FRAMES_SEEN, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 8 * 8, 256), nn.ReLU(), nn.Linear(256, num_actions),
    )  # fmt: skip


class EpsilonGreedy:
    """The policy that collects: mostly the best action, sometimes any."""

    def __init__(self, q_network: nn.Module, num_actions: int, seed: int) -> None:
        self.q_network = q_network
        self.num_actions = num_actions
        self.epsilon = 1.0
        self.random = np.random.default_rng(seed)

    def __call__(self, observation: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Stacks [lanes, 4, 80, 80] to actions [lanes]."""
        explore = self.random.random(len(observation)) < self.epsilon
        anything = self.random.integers(self.num_actions, size=len(observation))
        if explore.all():
            return anything
        with torch.no_grad():
            action = self.q_network(torch.from_numpy(observation).float() / 255).argmax(dim=1).numpy()
        return np.where(explore, anything, action)


class Agent:
    """Two networks and an optimizer, kept in a checkpoint of the store."""

    def __init__(self, num_actions: int) -> None:
        self.num_updates = 0
        self.q_network, self.target_network = make_network(num_actions), make_network(num_actions)
        self.target_network.load_state_dict(self.q_network.state_dict())
        self.optimizer = torch.optim.Adam(self.q_network.parameters(), lr=LEARNING_RATE)

    def update(self, batch: dict[str, Tensor]) -> float:
        """One step of gradient descent on a batch; returns the loss."""
        with torch.no_grad():
            behind = self.target_network(batch["next_observation"].float() / 255).amax(dim=1)
            target = batch["reward"].float() + GAMMA * ~batch["terminated"] * behind
        value = self.q_network(batch["observation"].float() / 255).gather(1, batch["action"][:, None]).squeeze(1)
        loss = nn.functional.smooth_l1_loss(value, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.num_updates += 1
        if self.num_updates % TARGET_EVERY == 0:
            self.target_network.load_state_dict(self.q_network.state_dict())
        return float(loss.detach())

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


def train(store: arrowrb.Store, agent: Agent, frames: int, seed: int) -> None:
    """Collect and update in turn until so many frames were collected."""
    num_actions = int(store.schema.action_space.n)
    policy = EpsilonGreedy(agent.q_network, num_actions, seed + len(store))
    sampler = store.sampler(
        batch_size=BATCH_SIZE, frame_stack={"observation": FRAMES_SEEN}, prefetch=15, seed=seed + len(store), name=NAME
    )
    began, num_before, losses = time.perf_counter(), len(store), [0.0]
    with arrowrb.Collector(
        make_env(),
        policy,
        frame_stack={"observation": FRAMES_SEEN},
        frames_per_batch=FRAMES_PER_PHASE,
        total_frames=frames,
        store=store,
        seed=seed,
    ) as collector:
        for phase, _ in enumerate(collector, start=1):
            policy.epsilon = max(LAST_EPSILON, 1.0 - len(store) / EXPLORATION_FRAMES)
            if len(store) >= RANDOM_FRAMES:
                losses = [agent.update(next(sampler)) for _ in range(UPDATES_PER_PHASE)]
                collector.policy_version = agent.num_updates
            if phase % PHASES_PER_REPORT and collector.num_frames < frames:
                continue
            agent.save(store)
            rate = (len(store) - num_before) / (time.perf_counter() - began)
            told = f"{len(store):>8,} frames  {agent.num_updates:>7,} updates  loss {np.mean(losses):.4f}"
            print(f"{told}  epsilon {policy.epsilon:.2f}  {rate:,.0f} frames/s", flush=True)
    print(f"drawn: {sampler.info()}")


def open_store(path: Path) -> arrowrb.Store:
    if (path / "store.json").exists():
        return arrowrb.Store.open(path, mode="a")
    path.parent.mkdir(parents=True, exist_ok=True)
    # So few frames in the mapped tier that most are in Parquet soon.
    return arrowrb.Store.create(path, arrowrb.Schema.from_env(make_env()), hot_rows=2_000, max_rows=1_000_000)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train DQN on ALE/Pong-v5 pixels from an arrowrb store.")
    parser.add_argument("--store", type=Path, default=Path("runs/dqn-pong"), help="gone on with if it exists")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--frames", type=int, default=6_000, help="so many in this run")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    with open_store(options.store) as store:
        agent = Agent(int(store.schema.action_space.n))
        if store.checkpoints():
            agent.load(store)
            print(f"Going on from {options.store}: {len(store):,} frames, {agent.num_updates:,} updates.")
        try:
            train(store, agent, options.frames, options.seed)
        except KeyboardInterrupt:
            agent.save(store)
            print("Interrupted: run it again and it goes on from here.")
            return 130
        store.maintain()
        info = store.info()
        on_disk = (info.cold_bytes + info.allocated_bytes) / len(store)
        usual = 2 * FRAMES_SEEN * SIDE * SIDE
        print(f"{info.cold_rows:,} of {info.num_rows:,} rows are in Parquet.")
        print(f"A transition takes {on_disk:,.0f} bytes; two stacks of {FRAMES_SEEN} frames would take {usual:,}.")
        print(store)
    return 0


if __name__ == "__main__":
    sys.exit(main())
