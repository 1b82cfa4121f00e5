"""Parts of Rainbow on CartPole-v1: prioritized replay, 3-step returns, double Q-learning and a dueling network.

    python examples/rainbow_cartpole.py

Priorities are the store's: kill this at any moment and run it again, and it goes on with the transitions, their
priorities and the agent of the last checkpoint. Solved means that 20 greedy episodes return 475 or more in the mean.

Rainbow: Hessel et al. 2018, https://arxiv.org/abs/1710.02298. Prioritized replay: Schaul et al. 2016,
https://arxiv.org/abs/1511.05952. Dueling networks: Wang et al. 2016, https://arxiv.org/abs/1511.06581.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import arrowrb

ENV_ID = "CartPole-v1"
NAME = "agent"  # of the checkpoint and of the sampler
GAMMA, N_STEP = 0.99, 3
LEARNING_RATE = 1e-3
BATCH_SIZE = 64
FRAMES_PER_PHASE, UPDATES_PER_PHASE = 256, 128
RANDOM_FRAMES = 1_000
EXPLORATION_FRAMES, LAST_EPSILON = 8_000, 0.04
TARGET_RATE = 0.01
PHASES_PER_REPORT = 4
NUM_EPISODES = 20
STRATEGY = arrowrb.Prioritized(alpha=0.5, beta=0.4, eps=1e-3, beta_final=1.0, beta_batches=20_000)


class Dueling(nn.Module):
    """The value of a state, and how much better or worse each action is than the mean one."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.value, self.advantage = nn.Linear(128, 1), nn.Linear(128, num_actions)

    def forward(self, observation: Tensor) -> Tensor:
        """Values of actions, [n, num_actions]."""
        features = self.body(observation)
        advantage: Tensor = self.advantage(features)
        value: Tensor = self.value(features)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


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
        self.q_network, self.target_network = (Dueling(num_inputs, num_actions) for _ in range(2))
        self.target_network.load_state_dict(self.q_network.state_dict())
        self.optimizer = torch.optim.Adam(self.q_network.parameters(), lr=LEARNING_RATE, fused=True)

    def update(self, batch: dict[str, Tensor]) -> Tensor:
        """One step of gradient descent; returns the temporal-difference errors, [n]."""
        with torch.no_grad():
            best = self.q_network(batch["next_observation"]).argmax(dim=1, keepdim=True)
            behind = self.target_network(batch["next_observation"]).gather(1, best).squeeze(1)
            # `reward` sums up to 3 steps, `discount` is gamma to the power of how many, and `terminated` and
            # `next_observation` are those of the last of them.
            target = batch["reward"].float() + batch["discount"] * ~batch["terminated"] * behind
        value = self.q_network(batch["observation"]).gather(1, batch["action"][:, None]).squeeze(1)
        td_error = target - value
        loss = (batch["weight"] * nn.functional.smooth_l1_loss(value, target, reduction="none")).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.q_network.parameters(), 10.0)
        self.optimizer.step()
        for slow, fast in zip(self.target_network.parameters(), self.q_network.parameters(), strict=True):
            slow.data.lerp_(fast.data, TARGET_RATE)
        self.num_updates += 1
        return td_error.detach()

    def save(self, store: arrowrb.Store) -> None:
        """One point of the rows, their priorities, and all that it has learned from them."""
        modules = {"q": self.q_network, "target": self.target_network, "optimizer": self.optimizer}
        tensors = {name: module.state_dict() for name, module in modules.items()}
        store.checkpoint(NAME, tensors=tensors, state={"num_updates": self.num_updates})

    def load(self, store: arrowrb.Store) -> None:
        """Go on from the checkpoint."""
        tensors, state = store.restore(NAME)
        self.num_updates = state["num_updates"]
        self.q_network.load_state_dict(tensors["q"])
        self.target_network.load_state_dict(tensors["target"])
        self.optimizer.load_state_dict(tensors["optimizer"])


def is_solved(agent: Agent, num_actions: int, target: float) -> bool:
    """Whether 20 greedy episodes, which are not recorded, reach the target; 3 tell whether it is worth the time."""
    greedy = EpsilonGreedy(agent.target_network, num_actions, seed=0)
    for num_episodes, seed in ((3, 3_000), (NUM_EPISODES, 1_000)):
        mean_return = arrowrb.evaluate(greedy, ENV_ID, num_episodes=num_episodes, seed=seed).mean_return
        print(f"           {num_episodes} greedy episodes return {mean_return:.1f}")
        if mean_return < target:
            return False
    return True


def train(store: arrowrb.Store, agent: Agent, frames: int, target: float, seed: int) -> bool:
    """Collect and update in turn until the target is reached or the frames are used up."""
    num_actions = int(store.schema.action_space.n)
    policy = EpsilonGreedy(agent.q_network, num_actions, seed=seed + len(store))
    sampler = store.sampler(
        STRATEGY, batch_size=BATCH_SIZE, n_step=N_STEP, gamma=GAMMA, seed=seed + len(store), name=NAME
    )
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
        for phase, _ in enumerate(collector, start=1):
            policy.epsilon = max(LAST_EPSILON, 1.0 - len(store) / EXPLORATION_FRAMES)
            if len(store) >= RANDOM_FRAMES:
                for _ in range(UPDATES_PER_PHASE):
                    batch = next(sampler)
                    sampler.update(batch["row_id"], agent.update(batch))
                collector.policy_version = agent.num_updates
            if phase % PHASES_PER_REPORT and collector.num_frames < frames:
                continue
            rate = (len(store) - num_before) / (time.perf_counter() - began)
            print(f"{len(store):>8,} frames  {agent.num_updates:>7,} updates  {rate:,.0f} frames/s", flush=True)
            print(f"           {sampler.info()}")
            agent.save(store)
            if is_solved(agent, num_actions, target):
                return True
    return False


def open_store(path: Path) -> arrowrb.Store:
    if (path / "store.json").exists():
        return arrowrb.Store.open(path, mode="a")
    path.parent.mkdir(parents=True, exist_ok=True)
    return arrowrb.Store.create(path, arrowrb.Schema.from_env(gymnasium.make(ENV_ID)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train parts of Rainbow on CartPole-v1 from an arrowrb store.")
    parser.add_argument("--store", type=Path, default=Path("runs/rainbow-cartpole"), help="gone on with if it exists")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-frames", type=int, default=60_000, help="at most so many in this run")
    parser.add_argument("--target-return", type=float, default=475.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # networks this small are slower on several
    torch.manual_seed(options.seed)
    began = time.perf_counter()
    with open_store(options.store) as store:
        num_actions = int(store.schema.action_space.n)
        agent = Agent(int(np.prod(store.schema.observation_space.shape)), num_actions)
        if store.checkpoints():
            agent.load(store)
            print(f"Going on from {options.store}: {len(store):,} transitions, {agent.num_updates:,} updates.")
        try:
            solved = train(store, agent, options.total_frames, options.target_return, options.seed)
        except KeyboardInterrupt:
            agent.save(store)
            print("Interrupted: run it again and it goes on from here.")
            return 130
        word = "Solved" if solved else "Not solved"
        print(f"{word}: {len(store):,} frames in the store, {time.perf_counter() - began:.0f} s.")
        print(store)
    return 0 if solved else 1


if __name__ == "__main__":
    sys.exit(main())
