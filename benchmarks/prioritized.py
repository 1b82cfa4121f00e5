"""How long do a prioritized batch and its update take, out of a million HalfCheetah-sized transitions?

Each contestant draws 256 transitions by priority, with importance weights, as torch tensors, and gives them new
priorities. Priorities are those of an exponential distribution at first, so that no draw is like another. Target: at
most 0.45 of the fastest peer's time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from common import fill_store, halfcheetah_schema, halfcheetah_transitions, interleave, microseconds, show, spread

import arrowrb

TARGET = 0.45
ALPHA, BETA = 0.6, 0.4


def _work(sampler: arrowrb.Sampler, errors: torch.Tensor) -> None:
    sampler.update(sampler.sample()["row_id"], errors)


def measure(transitions: Any, folder: Path, batch_size: int, rounds: int, with_peers: bool) -> None:
    """Print the table of one batch size."""
    rng = np.random.default_rng(0)
    priorities = rng.exponential(size=transitions.num_rows)
    errors = torch.from_numpy(rng.exponential(size=batch_size).astype(np.float32))
    contestants: dict[str, Callable[[], Any]] = {}
    notes = {"arrowrb": "in memory", "arrowrb, named": "priorities in mapped files", "arrowrb, uniform": "to compare"}
    with fill_store(folder / "store", transitions, halfcheetah_schema()) as store:
        row_ids = store.sql("SELECT row_id FROM transitions ORDER BY ordinal").arrow()["row_id"].to_numpy()
        for name, label in ((None, "arrowrb"), ("learner", "arrowrb, named")):
            strategy = arrowrb.Prioritized(alpha=ALPHA, beta=BETA)
            sampler = store.sampler(strategy, batch_size=batch_size, seed=1, name=name)
            sampler.update(row_ids, priority=priorities)
            contestants[label] = partial(_work, sampler, errors)
        contestants["arrowrb, uniform"] = store.sampler(batch_size=batch_size, seed=1).sample
        built, missing = peers.build_prioritized(transitions, priorities, ALPHA, BETA) if with_peers else ([], [])
        for peer in built:
            contestants[peer.name] = partial(peer.draw, batch_size)
            notes[peer.name] = peer.note
        seconds = interleave(contestants, rounds=rounds, repeats=max(1, 4096 // batch_size))
    fastest = min((np.median(seconds[peer.name]) for peer in built), default=np.nan)
    rows = [
        (name, microseconds(values), spread(values), f"{np.median(values) / fastest:.2f} x", notes[name])
        for name, values in sorted(seconds.items(), key=lambda item: float(np.median(item[1])))
    ]
    rows += [(name, "not installed", "", "", "") for name in missing]
    ratio = np.median(seconds["arrowrb, named"]) / fastest
    show(
        f"Prioritized: {transitions.num_rows:,} transitions, batch {batch_size:,}, sample and update",
        ("", "median", "10 to 90 %", "to the fastest peer", ""),
        rows,
        [
            f"Target at most {TARGET} x: {'reached' if ratio <= TARGET else 'missed'} ({ratio:.2f} x).",
            f"{rounds} rounds.",
        ],
        seconds=seconds,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transitions = halfcheetah_transitions(options.rows)
    for batch_size in options.batch_sizes:
        with tempfile.TemporaryDirectory() as folder:
            measure(transitions, Path(folder), batch_size, options.rounds, not options.no_peers)


if __name__ == "__main__":
    main()
