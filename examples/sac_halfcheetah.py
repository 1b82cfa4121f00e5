"""SAC on HalfCheetah-v5 from an arrowrb store, which is also its checkpoint.

    python examples/sac_halfcheetah.py                  # a short run that is killed in the middle, and goes on
    python examples/sac_halfcheetah.py --steps 45000    # about ten minutes; a return of 400 and more

The first form trains in a process of its own, kills it with SIGKILL, starts it again and says what was kept: all
transitions that had been collected, and the agent as of its last checkpoint. The second goes on with --store.

SAC: Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905, with the automatic temperature.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import arrowrb

ENV_ID = "HalfCheetah-v5"
NAME = "agent"  # of the checkpoint and of the sampler
GAMMA, TARGET_RATE = 0.99, 0.005
LEARNING_RATE = 1e-3
BATCH_SIZE, HIDDEN = 256, 256
RANDOM_STEPS = 2_000
STEPS_PER_PHASE, UPDATES_PER_PHASE = 64, 32
PHASES_PER_REPORT = 15

LATEST = 'SELECT avg("return") FROM (FROM episodes WHERE complete ORDER BY ended_at DESC LIMIT 3)'


def make_network(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Actor(nn.Module):
    """A squashed Gaussian, whose actions lie between -1 and 1."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        super().__init__()
        self.network = make_network(num_inputs, HIDDEN, HIDDEN, 2 * num_actions)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations before squashing, [n, num_actions] each."""
        mean, log_std = self.network(observation).chunk(2, dim=-1)
        return mean, torch.exp(log_std.clamp(-5.0, 2.0))

    def sample(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log probabilities, [n]."""
        normal = torch.distributions.Normal(*self(observation))
        raw = normal.rsample()
        action = torch.tanh(raw)
        # log(1 - tanh(x) ** 2), in a form that does not lose its digits
        squashing = 2.0 * (np.log(2.0) - raw - nn.functional.softplus(-2.0 * raw))
        return action, (normal.log_prob(raw) - squashing).sum(dim=-1)


class Agent:
    """An actor, two critics and their slow copies, a temperature, and three optimizers."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        self.num_updates = 0
        self.actor = Actor(num_inputs, num_actions)
        sizes = (num_inputs + num_actions, HIDDEN, HIDDEN, 1)
        self.critics = nn.ModuleList(make_network(*sizes) for _ in range(2))
        self.targets = nn.ModuleList(make_network(*sizes) for _ in range(2))
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.target_entropy = -float(num_actions)
        learned = (self.actor.parameters(), self.critics.parameters(), [self.log_alpha])
        self.optimizers = [torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True) for parameters in learned]

    def act(self, observation: NDArray[np.float32], *, greedy: bool = False) -> NDArray[np.float32]:
        """Observations [lanes, 17] to actions [lanes, 6]."""
        with torch.no_grad():
            given = torch.from_numpy(observation).float()
            action = torch.tanh(self.actor(given)[0]) if greedy else self.actor.sample(given)[0]
        return action.numpy()

    def update(self, batch: dict[str, Tensor]) -> None:
        """One step of gradient descent of each part on a batch, just as the store gives it."""
        observation, action, behind = batch["observation"], batch["action"], batch["next_observation"]
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            following, log_prob = self.actor.sample(behind)
            value = torch.minimum(*(self.value(critic, behind, following) for critic in self.targets))
            # The time limit is no end for the agent: the mask is `terminated` alone.
            target = batch["reward"] + GAMMA * ~batch["terminated"] * (value - alpha * log_prob)
        errors = [nn.functional.mse_loss(self.value(critic, observation, action), target) for critic in self.critics]
        self.descend(1, errors[0] + errors[1])
        sampled, log_prob = self.actor.sample(observation)
        value = torch.minimum(*(self.value(critic, observation, sampled) for critic in self.critics))
        self.descend(0, (alpha * log_prob - value).mean())
        self.descend(2, -(self.log_alpha * (log_prob.detach() + self.target_entropy)).mean())
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), TARGET_RATE)
        self.num_updates += 1

    @staticmethod
    def value(critic: nn.Module, observation: Tensor, action: Tensor) -> Tensor:
        """What a critic says of actions, [n]."""
        value: Tensor = critic(torch.cat([observation, action], dim=-1)).squeeze(-1)
        return value

    def descend(self, which: int, loss: Tensor) -> None:
        """One step of an optimizer."""
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    def save(self, store: arrowrb.Store) -> None:
        """One point of the rows and of all that it has learned from them."""
        modules = {"actor": self.actor, "critics": self.critics, "targets": self.targets}
        tensors = {name: module.state_dict() for name, module in modules.items()}
        tensors["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        tensors["log_alpha"] = self.log_alpha.detach()
        store.checkpoint(NAME, tensors=tensors, state={"num_updates": self.num_updates})

    def load(self, store: arrowrb.Store) -> None:
        """Go on from the checkpoint."""
        tensors, state = store.restore(NAME)
        self.num_updates = state["num_updates"]
        for name in ("actor", "critics", "targets"):
            getattr(self, name).load_state_dict(tensors[name])
        for optimizer, told in zip(self.optimizers, tensors["optimizers"], strict=True):
            optimizer.load_state_dict(told)
        self.log_alpha.data.copy_(tensors["log_alpha"])


def open_store(path: Path) -> arrowrb.Store:
    if (path / "store.json").exists():
        return arrowrb.Store.open(path, mode="a")
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = arrowrb.Schema.from_env(gymnasium.make(ENV_ID), float64="float32")
    return arrowrb.Store.create(path, schema, max_rows=1_000_000)


def train(store: arrowrb.Store, agent: Agent, steps: int, seed: int) -> None:
    """Collect and update in turn until the store has so many steps."""
    # Seeded by what there is, so that a run that goes on does not draw the same noise again.
    torch.manual_seed(seed + len(store))
    sampler = store.sampler(batch_size=BATCH_SIZE, seed=seed + len(store), prefetch=4, name=NAME)
    began, num_before = time.perf_counter(), len(store)
    with arrowrb.Collector(
        ENV_ID,
        agent.act,
        frames_per_batch=STEPS_PER_PHASE,
        total_frames=max(1, steps - len(store)),
        init_random_frames=max(0, RANDOM_STEPS - len(store)),
        store=store,
        seed=seed,
    ) as collector:
        for phase, _ in enumerate(collector, start=1):
            if len(store) >= RANDOM_STEPS:
                for _ in range(UPDATES_PER_PHASE):
                    agent.update(next(sampler))
                collector.policy_version = agent.num_updates
            if phase % PHASES_PER_REPORT == 0 or len(store) >= steps:
                agent.save(store)
                answer = store.sql(
                    'SELECT avg("return") FROM (FROM episodes WHERE complete ORDER BY ended_at DESC LIMIT 3)'
                )
                latest = (answer.fetchone() or (None,))[0]
                rate = (len(store) - num_before) / (time.perf_counter() - began)
                told = "none has ended" if latest is None else f"latest 3 episodes {latest:8.1f}"
                print(
                    f"{len(store):>8,} steps  {agent.num_updates:>7,} updates  {told}  {rate:,.0f} steps/s", flush=True
                )


def run(path: Path, steps: int, seed: int) -> int:
    """Train until the store has so many steps, and evaluate."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    with open_store(path) as store:
        agent = Agent(int(np.prod(store.schema.observation_space.shape)), int(store.schema.action_space.shape[0]))
        if store.checkpoints():
            agent.load(store)
            print(f"Going on from {path}: {len(store):,} steps, {agent.num_updates:,} updates.", flush=True)
        elif len(store):
            print(f"Going on from {path}: {len(store):,} steps, but no agent; a new one learns from them.", flush=True)
        try:
            if len(store) < steps:
                train(store, agent, steps, seed)
        except KeyboardInterrupt:
            agent.save(store)
            print(f"Interrupted: run it again with --store {path} and it goes on from here.")
            return 130
        told = arrowrb.evaluate(lambda seen: agent.act(seen, greedy=True), ENV_ID, num_episodes=3, seed=1_000)
        print(f"{len(store):,} steps: 3 greedy episodes return {told.mean_return:.1f}")
        print(store)
    return 0


def kill_and_go_on(folder: Path, steps: int, seed: int) -> int:
    """Train in a process that is killed in the middle, and go on in another."""
    path = folder / "store"
    command = [sys.executable, __file__, "--steps", str(steps), "--store", str(path), "--seed", str(seed)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        print("  " + line, end="")
        if int(line.split()[0].replace(",", "")) >= steps * 0.6:
            time.sleep(1.0)  # so that it is in the middle of something
            child.send_signal(signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    with arrowrb.Store.open(path) as store:
        checkpoint = store.checkpoints()[-1]
        print(f"Killed. The store has {len(store):,} steps, {len(store) - checkpoint.num_transitions:,} of them after")
        print(f"checkpoint {checkpoint.name!r}; {'nothing is damaged' if store.verify() else 'it is damaged'}.")
        kept = len(store)
    status = subprocess.run(command, check=False).returncode
    with arrowrb.Store.open(path) as store:
        print(f"None of the {kept:,} steps is lost: " + str(kept <= len(store)))
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train SAC on HalfCheetah-v5 from an arrowrb store.")
    parser.add_argument(
        "--steps", type=int, help="train until the store has so many (default: a short run, killed once)"
    )
    parser.add_argument("--store", type=Path, default=Path("runs/sac-halfcheetah"), help="gone on with if it exists")
    parser.add_argument("--short-steps", type=int, default=6_000, help="of the short run")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.steps is not None:
        return run(options.store, options.steps, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        return kill_and_go_on(Path(folder), options.short_steps, options.seed)


if __name__ == "__main__":
    sys.exit(main())
