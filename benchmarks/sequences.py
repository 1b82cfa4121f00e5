"""How long do 16 sequences of 64 steps take, and 3-step returns, out of a million HalfCheetah-sized transitions?

The yardstick for sequences is NumPy's fancy indexing by 16 random starts, which does not look at where episodes end.
Targets: at most 0.5 of its time, and 0.015 of TorchRL's; 3-step returns at most 1.5 of the one-step draw.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from common import fill_store, halfcheetah_schema, halfcheetah_transitions, interleave, microseconds, show, spread

import arrowrb

COUNT, LENGTH = 16, 64
NUMPY, TORCHRL, OURS = "NumPy, fancy indexing", "TorchRL, SliceSampler", "arrowrb"


def measure(transitions: Any, folder: Path, rounds: int, with_peers: bool) -> None:
    """Print both tables."""
    rng = np.random.default_rng(1)
    columns = list(vars(transitions).values())

    def by_numpy() -> object:
        index = rng.integers(0, transitions.num_rows - LENGTH, COUNT)[:, None] + np.arange(LENGTH)
        return [torch.from_numpy(column[index]) for column in columns]

    with fill_store(folder / "store", transitions, halfcheetah_schema()) as store:
        contestants: dict[str, Callable[[], object]] = {
            NUMPY: by_numpy,
            OURS: store.sampler(arrowrb.Sequences(LENGTH), batch_size=COUNT, seed=1).sample,
            "arrowrb, along lanes": store.sampler(
                arrowrb.Sequences(LENGTH, across_episodes=True), batch_size=COUNT, seed=1
            ).sample,
        }
        built, missing = peers.build_sequences(transitions, LENGTH) if with_peers else ([], [])
        contestants |= {peer.name: lambda peer=peer: peer.draw(COUNT * LENGTH) for peer in built}
        seconds = interleave(contestants, rounds=rounds, repeats=10)
        yard = np.median(seconds[NUMPY])
        show(
            f"Sequences: {COUNT} of {LENGTH} steps out of {transitions.num_rows:,} transitions",
            ("", "median", "10 to 90 %", "to NumPy"),
            [
                *((n, microseconds(v), spread(v), f"{np.median(v) / yard:.2f} x") for n, v in seconds.items()),
                *((name, "not here", "", "") for name in missing),
            ],
            ["Targets at most 0.5 x NumPy, 0.015 x TorchRL.", f"{rounds} interleaved rounds of 10."],
            seconds=seconds,
        )
        drawn = {
            "one step": store.sampler(batch_size=256, seed=1).sample,
            "n_step=3": store.sampler(batch_size=256, seed=1, n_step=3).sample,
            "frame_stack=4": store.sampler(batch_size=256, seed=1, frame_stack={"observation": 4}).sample,
        }
        seconds = interleave(drawn, rounds=rounds, repeats=10)
        yard = np.median(seconds["one step"])
        show(
            "Uniform batches of 256",
            ("", "median", "10 to 90 %", "to one step"),
            [(n, microseconds(v), spread(v), f"{np.median(v) / yard:.2f} x") for n, v in seconds.items()],
            ["Target at most 1.5 x for n_step=3."],
            seconds=seconds,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(halfcheetah_transitions(options.rows), Path(folder), options.rounds, not options.no_peers)


if __name__ == "__main__":
    main()
