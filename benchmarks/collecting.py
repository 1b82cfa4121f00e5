"""How much of Gymnasium's own speed is left when CartPole is collected into a store?

The bare loops only step, and reset where the environment asks for it: one draws actions from the action space at each
step, the other beforehand in bulk, as the Collector does. The targets are of the second, which is the stricter: 0.85
for one lane, 0.6 for 8 sync lanes and for 64 lanes of `vector_entry_point`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from common import show
from torch import nn

import arrowrb

ENV_ID = "CartPole-v1"


@dataclass(frozen=True)
class Setting:
    """One way to run CartPole."""

    name: str
    num_envs: int
    mode: str | None
    frames: int
    frames_per_batch: int
    target: float


SETTINGS = (
    Setting("1 lane", 1, None, 50_000, 2_000, 0.85),
    Setting("8 lanes, sync", 8, "sync", 80_000, 4_000, 0.6),
    Setting("64 lanes, vector_entry_point", 64, "vector_entry_point", 640_000, 16_000, 0.6),
)


def make(setting: Setting) -> Any:
    if setting.mode is None:
        return gymnasium.make(ENV_ID)
    return gymnasium.make_vec(ENV_ID, num_envs=setting.num_envs, vectorization_mode=setting.mode)


def run_bare(setting: Setting, bulk: bool) -> float:
    """Transitions a second of the bare loop; steps that only reset a lane are none."""
    env = make(setting)
    env.reset(seed=1)
    env.action_space.seed(1)
    num_steps = setting.frames // setting.num_envs
    shape = () if setting.mode is None else (setting.num_envs,)
    random = np.random.default_rng(1)
    frames = 0
    began = time.perf_counter()
    actions = random.integers(0, 2, (num_steps, *shape)) if bulk else None
    if setting.mode is None:
        for index in range(num_steps):
            action = env.action_space.sample() if actions is None else actions[index]
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        frames = num_steps
    else:
        resets = 0
        for index in range(num_steps):
            action = env.action_space.sample() if actions is None else actions[index]
            _, _, terminated, truncated, _ = env.step(action)
            resets += np.count_nonzero(terminated | truncated)  # the next step of these lanes is a reset
        frames = num_steps * setting.num_envs - resets
    seconds = time.perf_counter() - began
    env.close()
    return frames / seconds


def run_collector(setting: Setting, folder: Path, policy: Any) -> float:
    """Transitions a second into a new store, one commit a batch; making environment and store is not counted."""
    frames = setting.frames if policy is None else setting.frames // 5
    env = make(setting)
    with (
        arrowrb.Store.create(folder / str(time.monotonic_ns()), arrowrb.Schema.from_env(env)) as store,
        arrowrb.Collector(
            env,
            policy,
            frames_per_batch=setting.frames_per_batch,
            total_frames=frames,
            store=store,
            seed=1,
        ) as collector,
    ):
        began = time.perf_counter()
        for _ in collector:
            pass
        seconds = time.perf_counter() - began
        if len(store) != frames:
            raise SystemExit(f"{len(store):,} transitions are there, expected {frames:,}.")
    env.close()
    return frames / seconds


class TorchPolicy:
    """A small network, greedy."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def __call__(self, observation: Any) -> Any:
        """Actions of all lanes."""
        with torch.no_grad():
            return self.network(torch.from_numpy(observation)).argmax(dim=1).numpy()


def run_bare_policy(setting: Setting, policy: TorchPolicy) -> float:
    """The bare loop with the same network."""
    env = make(setting)
    observation, _ = env.reset(seed=1)
    num_steps = setting.frames // 5 // setting.num_envs
    resets = 0
    began = time.perf_counter()
    for _ in range(num_steps):
        if setting.mode is None:
            observation, _, terminated, truncated, _ = env.step(policy(observation[None])[0])
            if terminated or truncated:
                observation, _ = env.reset()
        else:
            observation, _, terminated, truncated, _ = env.step(policy(observation))
            resets += np.count_nonzero(terminated | truncated)
    seconds = time.perf_counter() - began
    env.close()
    return (num_steps * setting.num_envs - resets) / seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    policy = TorchPolicy()
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for setting in SETTINGS:
            runs: dict[str, Callable[[Setting], float]] = {
                "bare loop, action_space.sample()": lambda s: run_bare(s, bulk=False),
                "bare loop, actions in bulk": lambda s: run_bare(s, bulk=True),
                "arrowrb Collector into a store": lambda s: run_collector(s, folder, None),
                "bare loop, torch policy": lambda s: run_bare_policy(s, policy),
                "arrowrb Collector, torch policy": lambda s: run_collector(s, folder, policy),
            }
            rates: dict[str, list[float]] = {name: [] for name in runs}
            run_collector(setting, folder, None)  # loads the compiled kernels
            for _ in range(options.rounds):
                for name, run in runs.items():
                    rates[name].append(run(setting))
            medians = {name: float(np.median(values)) for name, values in rates.items()}
            sample, bulk, ours, bare_policy, our_policy = medians.values()
            rows.append((setting.name, "", "", ""))
            rows.append(("  bare loop, action_space.sample()", f"{sample:,.0f}", f"{sample / bulk:.2f}", ""))
            rows.append(("  bare loop, actions in bulk", f"{bulk:,.0f}", "1", ""))
            rows.append(("  arrowrb Collector into a store", f"{ours:,.0f}", f"{ours / bulk:.2f}", f"{setting.target}"))
            rows.append(("  bare loop, torch policy", f"{bare_policy:,.0f}", "1", ""))
            rows.append(
                ("  arrowrb Collector, torch policy", f"{our_policy:,.0f}", f"{our_policy / bare_policy:.2f}", "")
            )
            notes.append(f"{setting.name}: {setting.frames:,} frames, one commit every {setting.frames_per_batch:,}.")
    show(
        f"Collecting {ENV_ID}: transitions a second, median of {options.rounds} interleaved rounds",
        ("", "a second", "to the bare loop", "target"),
        rows,
        [*notes, "A torch policy is Linear 4-64-64-2, asked at every vector step; a fifth of the frames."],
    )


if __name__ == "__main__":
    main()
