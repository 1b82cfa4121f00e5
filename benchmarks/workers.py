"""How fast do worker processes collect, beside bare Gymnasium loops and TorchRL's collectors in processes?

Targets: 2 workers reach 0.9 of what two bare loops of HalfCheetah-v5 with random actions reach side by side, one worker
0.85 of one loop; with 8 sync lanes of CartPole-v1 a worker, 2 workers are 30 times as fast as TorchRL's multi-process
collector with its memory-mapped buffer; publishing 1 MB of weights takes the learner at most 1 ms; and its uniform draw
of 256 takes at most 1.3 times as long while one worker writes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from common import fill_store, halfcheetah_schema, halfcheetah_transitions, show
from torch import nn

import arrowrb

CHEETAH, CARTPOLE = "HalfCheetah-v5", "CartPole-v1"
LANES, WORKERS, WARM = 8, 2, 3


def bare_loop(env_id: str, frames: int, barrier: Any, results: Any) -> None:
    """What Gymnasium reaches by itself: actions drawn beforehand, resets where the environment asks for them."""
    with gymnasium.make(env_id) as env:
        env.reset(seed=1)
        space = env.action_space
        actions = np.random.default_rng(1).uniform(space.low, space.high, (frames, *space.shape)).astype(space.dtype)
        barrier.wait()
        began = time.perf_counter()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        results.put(frames / (time.perf_counter() - began))


def bare(count: int, frames: int) -> float:
    """Transitions a second of so many loops side by side, each in a process."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    loops = [context.Process(target=bare_loop, args=(CHEETAH, frames, barrier, results)) for _ in range(count)]
    for loop in loops:
        loop.start()
    rates = [results.get(timeout=600) for _ in loops]
    for loop in loops:
        loop.join()
    return float(sum(rates))


def collected(env_id: str, num_workers: int, frames: int, folder: Path, **options: Any) -> float:
    """Transitions a second of workers that run freely, once they are warm."""
    with gymnasium.make(env_id) as env:
        schema = arrowrb.Schema.from_env(env)
    with (
        arrowrb.Store.create(folder / f"{env_id}-{num_workers}-{time.monotonic_ns()}", schema) as store,
        arrowrb.Collector(
            env_id, num_workers=num_workers, sync=False, store=store, total_frames=frames, seed=1, **options
        ) as collector,
    ):
        for _ in range(WARM * num_workers):  # the first batch of a process loads what is compiled
            next(collector)
        before, began, seconds = collector.num_frames, time.perf_counter(), 0.0
        for _ in collector:
            seconds = time.perf_counter() - began  # to the last batch: then the workers close their shards
        if len(store) != frames:
            raise SystemExit(f"{len(store):,} transitions are there, expected {frames:,}.")
    return (frames - before) / seconds


def torchrl(frames: int, folder: Path) -> float | None:
    """The same of TorchRL, into its memory-mapped replay buffer; None where it is not installed."""
    try:
        from torchrl.collectors import MultiAsyncCollector
        from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer
        from torchrl.envs import GymEnv, SerialEnv
    except ImportError:
        return None
    buffer = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(frames, scratch_dir=str(folder / f"torchrl-{time.monotonic_ns()}"))
    )

    def make() -> Any:
        return SerialEnv(LANES, lambda: GymEnv(CARTPOLE))

    collector = MultiAsyncCollector(
        [make] * WORKERS, None, frames_per_batch=LANES * 125, total_frames=frames, num_threads=1
    )
    done, began, seconds = 0, 0.0, 0.0
    for number, batch in enumerate(collector):
        buffer.extend(batch.reshape(-1))
        if number < WARM * WORKERS:
            began = time.perf_counter()
        else:
            done += batch.numel()
            seconds = time.perf_counter() - began
    collector.shutdown()
    return done / seconds


def rates(rounds: int, frames: int, folder: Path) -> None:
    """Print how fast they collect."""
    measured: dict[str, list[float]] = {}

    def note(name: str, rate: float | None) -> None:
        if rate is not None:
            measured.setdefault(name, []).append(rate)

    for _ in range(rounds):
        note("HalfCheetah, 1 bare loop", bare(1, frames))
        note("HalfCheetah, 1 worker", collected(CHEETAH, 1, frames, folder, frames_per_batch=1000))
        note("HalfCheetah, 2 bare loops", bare(2, frames))
        note("HalfCheetah, 2 workers", collected(CHEETAH, 2, 2 * frames, folder, frames_per_batch=1000))
        lanes = {"num_envs": LANES, "frames_per_batch": LANES * 125}
        note("CartPole, 2 workers of 8 lanes", collected(CARTPOLE, WORKERS, 10 * frames, folder, **lanes))
        note("CartPole, TorchRL, 2 processes of 8", torchrl(frames, folder))
    middle = {name: float(np.median(values)) for name, values in measured.items()}
    rows = [
        (name, f"{middle[name]:,.0f}/s", f"{min(values):,.0f} to {max(values):,.0f}")
        for name, values in measured.items()
    ]
    notes = []
    for ours, theirs, target in (
        ("HalfCheetah, 1 worker", "HalfCheetah, 1 bare loop", 0.85),
        ("HalfCheetah, 2 workers", "HalfCheetah, 2 bare loops", 0.9),
        ("CartPole, 2 workers of 8 lanes", "CartPole, TorchRL, 2 processes of 8", 30.0),
    ):
        if theirs in middle:
            ratio = middle[ours] / middle[theirs]
            verdict = "reached" if ratio >= target else "missed"
            notes.append(f"{ours}: {ratio:.2f} x {theirs}; target at least {target:g} x: {verdict}.")
    show("Transitions a second", ("", "median", "range"), rows, [*notes, f"{rounds} rounds in turn."])


def _median(call: Callable[[], Any], count: int) -> float:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def publishing(folder: Path) -> None:
    """Print what publishing a megabyte costs the learner."""
    policy = nn.Sequential(nn.Linear(17, 500), nn.Tanh(), nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 6))
    num_bytes = sum(parameter.nbytes for parameter in policy.parameters())
    with gymnasium.make(CHEETAH) as env:
        schema = arrowrb.Schema.from_env(env)
    with (
        arrowrb.Store.create(folder / "publishing", schema) as store,
        arrowrb.Collector(CHEETAH, policy, num_workers=1, sync=False, store=store) as collector,
    ):
        next(collector)
        seconds = _median(collector.update_policy, 300)
    verdict = "reached" if seconds <= 1e-3 else "missed"
    show(
        "Publishing weights while a worker collects",
        ("", "median"),
        [(f"{num_bytes / 1e6:.2f} MB", f"{seconds * 1e3:.2f} ms")],
        [f"Target at most 1 ms: {verdict}."],
    )


def drawing(rows: int, rounds: int, folder: Path) -> None:
    """Print what a writer beside it costs the learner's draw."""
    transitions = halfcheetah_transitions(rows, "float64")
    quiet: list[float] = []
    busy: list[float] = []
    with fill_store(folder / "drawing", transitions, halfcheetah_schema("float64")) as store:
        sampler = store.sampler(batch_size=256, seed=1)
        for _ in range(rounds):
            quiet.append(_median(sampler.sample, 2000))
            with arrowrb.Collector(CHEETAH, num_workers=1, sync=False, store=store, frames_per_batch=200) as collector:
                collector.start()  # it runs by itself, also while nobody asks for its batches
                before = len(store)
                while len(store) < before + 5000:
                    time.sleep(0.01)
                busy.append(_median(sampler.sample, 2000))
    ratio = float(np.median(busy) / np.median(quiet))
    show(
        f"Uniform batches of 256 out of {rows:,}",
        ("", "median", "to quiet"),
        [
            ("nobody writes", f"{np.median(quiet) * 1e6:.0f} us", "1.00 x"),
            ("one worker writes", f"{np.median(busy) * 1e6:.0f} us", f"{ratio:.2f} x"),
        ],
        [f"Target at most 1.3 x: {'reached' if ratio <= 1.3 else 'missed'}."],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=60_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rates(options.rounds, options.frames, folder)
        publishing(folder)
        drawing(options.rows, options.rounds, folder)


if __name__ == "__main__":
    main()
