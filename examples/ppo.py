"""PPO with synchronous workers: all of them collect for each batch, under one version of the policy.

    python examples/ppo.py                               # CartPole-v1 to a mean return of 475
    python examples/ppo.py --env InvertedPendulum-v5     # to 900
    python examples/ppo.py --store runs/ppo              # keeps the transitions, and goes on with them

Workers write what they see, and the log probability of what they did, into shards of one store; the learner reads what
has come since its last look, in the order of episodes. An episode that the time limit cut short, or that goes on, is
bootstrapped with the value of its true next observation; one that terminated is not. What a worker's last vector step
brought beyond its share, three transitions at most, opens the next batch: they are of the version before, and so are
their log probabilities. `steps_per_batch` would leave none over.

PPO: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, with a clipped objective and annealed step sizes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

import arrowrb

GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2
EPISODES = 20  # of an evaluation


@dataclass(frozen=True)
class Setting:
    """What suits an environment."""

    target: float
    num_envs: int
    frames_per_batch: int
    epochs: int
    minibatch: int
    learning_rate: float
    total_frames: int


SETTINGS = {
    "CartPole-v1": Setting(475.0, 4, 1_024, 6, 128, 1e-3, 300_000),
    "InvertedPendulum-v5": Setting(900.0, 4, 2_048, 8, 128, 1e-3, 300_000),
}


def layers(inputs: int, outputs: int, scale: float) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
    for layer, gain in ((network[0], 2**0.5), (network[2], 2**0.5), (network[4], scale)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return network


class Policy(nn.Module):
    """Actions drawn from a categorical distribution or a Gaussian; the workers have copies of it."""

    def __init__(self, observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> None:
        super().__init__()
        self.discrete = isinstance(action, gymnasium.spaces.Discrete)
        outputs = int(action.n) if self.discrete else int(np.prod(action.shape))  # type: ignore[attr-defined]
        self.network = layers(int(np.prod(observation.shape or ())), outputs, 0.01)
        self.log_std = nn.Parameter(torch.full((outputs,), -0.5))

    def distribution(self, observation: Tensor) -> torch.distributions.Distribution:
        """Over the actions of observations [n, ...]."""
        given = self.network(observation.float())
        if self.discrete:
            return torch.distributions.Categorical(logits=given)
        return torch.distributions.Independent(torch.distributions.Normal(given, self.log_std.exp()), 1)

    def forward(self, observation: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What a worker does: actions, and their log probabilities as an extra of the transition."""
        distribution = self.distribution(observation)
        action = distribution.sample()
        return action, {"log_prob": distribution.log_prob(action)}

    def best(self, observation: Any) -> Any:
        """The likeliest actions, for an evaluation."""
        with torch.no_grad():
            given = self.network(torch.as_tensor(observation).float())
        return (given.argmax(-1) if self.discrete else given).numpy()


def learn(batch: dict[str, Tensor], policy: Policy, critic: nn.Module, optimizer: Any, setting: Setting) -> None:
    """Some epochs over what all workers have collected."""
    observation = batch["observation"].float()
    with torch.no_grad():
        value = critic(observation).squeeze(-1)
        next_value = critic(batch["next_observation"].float()).squeeze(-1)
    flags = batch["terminated"], batch["run_end"]
    advantage, returns = arrowrb.gae(batch["reward"], value, next_value, *flags, gamma=GAMMA, lam=LAMBDA)
    for _ in range(setting.epochs):
        for rows in torch.randperm(len(observation)).split(setting.minibatch):
            distribution = policy.distribution(observation[rows])
            ratio = (distribution.log_prob(batch["action"][rows]) - batch["log_prob"][rows]).exp()
            gain = advantage[rows]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            loss = -torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean()
            loss = loss + 0.5 * nn.functional.mse_loss(critic(observation[rows]).squeeze(-1), returns[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*policy.parameters(), *critic.parameters()], 0.5)
            optimizer.step()


def open_store(path: Path, env_id: str) -> arrowrb.Store:
    if (path / "store.json").exists():
        return arrowrb.Store.open(path, mode="a")
    with gymnasium.make(env_id) as env:
        schema = arrowrb.Schema.from_env(env, float64="float32", extras={"log_prob": arrowrb.Extra("float32")})
    return arrowrb.Store.create(path, schema)


def train(store: arrowrb.Store, env_id: str, num_workers: int, total_frames: int | None, seed: int) -> bool:
    """Collect and learn in turn until evaluations reach the target; returns whether they did."""
    setting = SETTINGS[env_id]
    torch.manual_seed(seed)
    policy = Policy(store.schema.observation_space, store.schema.action_space)
    critic = layers(int(np.prod(store.schema.observation_space.shape or ())), 1, 1.0)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=setting.learning_rate, eps=1e-5)
    total = total_frames or setting.total_frames
    mark, began = store.watermark(), time.perf_counter()
    with arrowrb.Collector(
        env_id,
        policy,
        num_envs=setting.num_envs,
        num_workers=num_workers,
        frames_per_batch=setting.frames_per_batch,
        total_frames=total,
        store=store,
        seed=seed,
    ) as collector:
        for iteration, _ in enumerate(collector):
            batch, mark = store.since(mark)
            for group in optimizer.param_groups:
                group["lr"] = setting.learning_rate * (1 - collector.num_frames / total)
            learn(batch, policy, critic, optimizer, setting)
            collector.update_policy()
            if iteration % 5 != 4 and collector.num_frames < total:
                continue
            told = arrowrb.evaluate(policy.best, env_id, num_episodes=EPISODES, seed=10_000 + iteration)
            seconds = time.perf_counter() - began
            print(
                f"{collector.num_frames:>8,} frames  version {collector.policy_version:>4}  {EPISODES} greedy episodes "
                f"return {told.mean_return:7.1f}  {seconds:5.1f} s",
                flush=True,
            )
            if told.mean_return >= setting.target:
                other = arrowrb.evaluate(policy.best, env_id, num_episodes=EPISODES, seed=50_000)
                print(f"{EPISODES} others return {other.mean_return:.1f}", flush=True)
                if other.mean_return >= setting.target:
                    return True
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train PPO from workers that collect side by side.")
    parser.add_argument("--env", choices=sorted(SETTINGS), default="CartPole-v1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--total-frames", type=int, help="give up after so many")
    parser.add_argument("--store", type=Path, help="made where there is none (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.workers < 1 or options.seed < 0 or (options.total_frames or 1) < 1:
        parser.error("--workers and --total-frames are numbers from 1 on, --seed from 0 on")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        path = options.store or Path(scratch) / "ppo"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_store(path, options.env) as store:
            solved = train(store, options.env, options.workers, options.total_frames, options.seed)
            print("Solved." if solved else "Not solved.", "What each version of the policy reached in its episodes:")
            store.sql(
                "SELECT policy_version // 5 * 5 AS version, count(*) AS episodes, "
                'round(avg("return"), 1) AS mean_return '
                "FROM (SELECT episode_id, max(policy_version) AS policy_version FROM transitions GROUP BY 1) "
                "JOIN episodes USING (episode_id) WHERE complete GROUP BY 1 ORDER BY 1"
            ).show()
    return 0 if solved else 1


if __name__ == "__main__":
    raise SystemExit(main())
