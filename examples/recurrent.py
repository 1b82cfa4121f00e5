"""A recurrent Q-network, trained from sequences with burn-in, on an environment that needs memory.

    python examples/recurrent.py

At the first step of an episode a signal is seen, -1 or 1, and never again; at the last step the action has to be the
one that it asked for. Without memory the mean return is 0. The policy's state is an extra of the store, recorded at
each step; sequences begin with the state that the policy had there, and warm up by a few steps, as in R2D2
(Kapturowski et al. 2019, https://openreview.net/forum?id=r1lyTjAqYX). Solved means a mean return of 0.9.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

import arrowrb

STEPS = 16  # of an episode
HIDDEN = 32
GAMMA, LEARNING_RATE, TARGET_RATE = 0.95, 2e-3, 0.02
BATCH_SIZE, FRAMES_PER_PHASE, UPDATES_PER_PHASE = 64, 320, 40
SEQUENCES = arrowrb.Sequences(6, strict=False, period=3, burn_in=4, bootstrap=True, first_only=("hidden",))
STRATEGY = arrowrb.PrioritizedSequences(SEQUENCES, arrowrb.Prioritized(alpha=0.6, beta=0.4, eps=1e-3))


class Recall(gymnasium.Env[Any, Any]):
    """Remember the first observation until the last step."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.signal, self.step_number = 0, 0

    def observe(self) -> np.ndarray:
        """The signal at first, else 0; and whether the next action counts."""
        shown = self.signal if self.step_number == 0 else 0
        return np.array([shown, float(self.step_number == STEPS - 1)], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Another signal."""
        super().reset(seed=seed, options=options)
        self.signal, self.step_number = int(self.np_random.choice([-1, 1])), 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """1 for the right action at the last step, -1 for the wrong one."""
        last = self.step_number == STEPS - 1
        reward = float(self.signal * (1 if action == 1 else -1)) if last else 0.0
        self.step_number += 1
        return self.observe(), reward, last, False, {}


class Network(nn.Module):
    """A GRU, and values of actions out of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(2, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, observation: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Values [n, steps, 2] and the last state [n, HIDDEN], of observations [n, steps, 2] and a first state."""
        features, last = self.cell(observation, hidden[None])
        return self.head(features), last[0]


class Policy:
    """Acts by the network; its state is zeroed where an episode begins, and recorded with each observation."""

    def __init__(self, network: Network, seed: int) -> None:
        self.network = network
        self.epsilon = 1.0
        self.random = np.random.default_rng(seed)

    def initial_state(self, num_lanes: int) -> Tensor:
        """Zeros."""
        return torch.zeros(num_lanes, HIDDEN)

    def act(self, step: arrowrb.Step) -> tuple[Any, dict[str, Any], Tensor]:
        """Actions, the state before them as an extra, and the state after."""
        observation = torch.as_tensor(step.observation)
        hidden = self.initial_state(len(observation)) if step.state is None else torch.as_tensor(step.state)
        with torch.no_grad():
            values, after = self.network(observation[:, None], hidden)
        action = values[:, 0].argmax(dim=1).numpy()
        explore = self.random.random(action.shape) < self.epsilon
        action = np.where(explore, self.random.integers(2, size=action.shape), action)
        return action, {"hidden": hidden.numpy()}, after


def update(network: Network, target: Network, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> Any:
    """One step of gradient descent on sequences; returns temporal-difference errors and which of them count."""
    observation, hidden = batch["observation"], batch["hidden"]
    values, _ = network(observation, hidden)
    with torch.no_grad():
        # Double Q-learning over neighbouring steps; the bootstrap step is the last one's next observation.
        behind = target(observation, hidden)[0][:, 1:].gather(2, values[:, 1:].argmax(dim=2, keepdim=True)).squeeze(2)
        reward, terminated = batch["reward"][:, :-1].float(), batch["terminated"][:, :-1]
        wanted = reward + GAMMA * ~terminated * behind
    chosen = values[:, :-1].gather(2, batch["action"][:, :-1, None]).squeeze(2)
    # What warms up is not learned from, nor is what is not there.
    counts = (batch["mask"] & ~batch["is_burn_in"])[:, :-1]
    td_error = (wanted - chosen) * counts
    loss = (batch["weight"][:, None] * td_error.square()).sum() / counts.sum()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()
    for slow, fast in zip(target.parameters(), network.parameters(), strict=True):
        slow.data.lerp_(fast.data, TARGET_RATE)
    return td_error.detach(), counts


def train(store: arrowrb.Store, frames: int, seed: int) -> bool:
    """Collect and update in turn until it is solved or the frames are used up."""
    network, target = Network(), Network()
    target.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    policy = Policy(network, seed)
    sampler = store.sampler(STRATEGY, batch_size=BATCH_SIZE, seed=seed)
    vector = gymnasium.vector.SyncVectorEnv([Recall] * 8)
    with arrowrb.Collector(
        vector, policy, frames_per_batch=FRAMES_PER_PHASE, total_frames=frames, store=store, seed=seed
    ) as collector:
        for phase, _ in enumerate(collector, start=1):
            policy.epsilon = max(0.05, 1.0 - phase / 30)
            for _ in range(UPDATES_PER_PHASE):
                batch = next(sampler)
                td_error, counts = update(network, target, optimizer, batch)
                sampler.update(batch["start_row_id"], td_error, mask=counts | ~counts.any(1, keepdim=True))
            if phase % 10 == 0:
                greedy = Policy(network, seed)
                greedy.epsilon = 0.0
                told = arrowrb.evaluate(greedy, Recall(), num_episodes=40, seed=1_000).mean_return
                print(f"{len(store):>7,} frames  40 greedy episodes return {told:5.2f}", flush=True)
                if told >= 0.9:
                    return True
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a recurrent Q-network from sequences with burn-in.")
    parser.add_argument("--frames", type=int, default=60_000, help="at most so many")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    began = time.perf_counter()
    schema = arrowrb.Schema.from_env(
        Recall(), extras={"hidden": arrowrb.Extra("float32", (HIDDEN,), owner="observation", nullable=True)}
    )
    with tempfile.TemporaryDirectory() as folder, arrowrb.Store.create(Path(folder) / "store", schema) as store:
        solved = train(store, options.frames, options.seed)
        print(f"{'Solved' if solved else 'Not solved'}: {len(store):,} frames, {time.perf_counter() - began:.0f} s.")
    return 0 if solved else 1


if __name__ == "__main__":
    sys.exit(main())
