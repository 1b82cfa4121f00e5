"""What do the strategies cost beside the uniform draw, and how long does a learner wait for batches read ahead?

Batches of 256 out of a million HalfCheetah-sized transitions. Targets: a draw that SQL restricts at most 1.1 of the
unrestricted one, after the query; a learner whose step takes a millisecond waits less than 2 % of the time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import fill_store, halfcheetah_schema, halfcheetah_transitions, interleave, microseconds, show, spread

import arrowrb

SIZE, LENGTH = 256, 16


def compare(store: arrowrb.Store, rounds: int) -> None:
    """Print the time of a batch of each strategy."""
    half = "reward > (SELECT 0)"  # asked of all rows
    strategies: dict[str, Any] = {
        "Uniform": arrowrb.Uniform(),
        "Where, half of the rows": arrowrb.Where(half),
        "Where, one row of a thousand": arrowrb.Where("step % 1000 = 7"),
        "Weighted": arrowrb.Weighted("SELECT row_id, exp(reward) AS weight FROM transitions"),
        "Shuffled": arrowrb.Shuffled(),
        "Prioritized": arrowrb.Prioritized(),
    }
    samplers = {name: store.sampler(each, batch_size=SIZE, seed=1) for name, each in strategies.items()}
    seconds = interleave({name: each.sample for name, each in samplers.items()}, rounds=rounds, repeats=10)
    yard = np.median(seconds["Uniform"])
    show(
        f"Batches of {SIZE} out of {len(store):,} transitions",
        ("", "median", "10 to 90 %", "to uniform"),
        [(name, microseconds(each), spread(each), f"{np.median(each) / yard:.2f} x") for name, each in seconds.items()],
        ["Target at most 1.1 x for Where."],
        seconds=seconds,
    )
    sequences: dict[str, Any] = {
        "Sequences": arrowrb.Sequences(LENGTH),
        "along lanes, with tails": arrowrb.Sequences(LENGTH, across_episodes=True, tails=True),
        "period 8, burn-in 8, bootstrap": arrowrb.Sequences(LENGTH, period=8, burn_in=8, bootstrap=True),
        "PrioritizedSequences": arrowrb.PrioritizedSequences(arrowrb.Sequences(LENGTH, period=8)),
    }
    drawn = {name: store.sampler(each, batch_size=16, seed=1) for name, each in sequences.items()}
    seconds = interleave({name: each.sample for name, each in drawn.items()}, rounds=rounds, repeats=10)
    yard = np.median(seconds["Sequences"])
    show(
        f"Batches of 16 sequences of {LENGTH} steps",
        ("", "median", "10 to 90 %", "to Sequences"),
        [(name, microseconds(each), spread(each), f"{np.median(each) / yard:.2f} x") for name, each in seconds.items()],
        [],
    )


def compare_tiers(transitions: Any, folder: Path, rounds: int) -> None:
    """Print the time of a batch where 95 % of the rows are in Parquet, and few of them in the cache."""
    schema, rows = halfcheetah_schema(), transitions.num_rows
    hot_rows = max(1000, rows // 20)
    cache = rows * schema.row_bytes // 20
    with fill_store(folder / "two", transitions, schema, hot_rows=hot_rows) as store:
        store.maintain()
    with arrowrb.Store.open(folder / "two", cache_bytes=cache) as store, arrowrb.Store.open(folder / "store") as hot:
        share = store.info().cold_rows / store.info().num_rows
        samplers = {
            "all rows mapped": hot.sampler(batch_size=SIZE, seed=1),
            'cold="exact", prefetch=31': store.sampler(batch_size=SIZE, seed=1, prefetch=31),
            'cold="block"': store.sampler(batch_size=SIZE, seed=1, cold="block"),
            'cold="block", prefetch=7': store.sampler(batch_size=SIZE, seed=1, cold="block", prefetch=7),
        }
        for sampler in samplers.values():
            for _ in range(500):
                sampler.sample()
        seconds = interleave({name: each.sample for name, each in samplers.items()}, rounds=rounds, repeats=40)
        yard = np.median(seconds["all rows mapped"])
        show(
            f"Batches of {SIZE}, {share:.0%} of {rows:,} rows in Parquet, a cache of a twentieth of them",
            ("", "median", "10 to 90 %", "to mapped"),
            [(n, microseconds(each), spread(each), f"{np.median(each) / yard:.2f} x") for n, each in seconds.items()],
            ['Target at most 4 x for cold="block".'],
            seconds=seconds,
        )


def wait(store: arrowrb.Store, steps: int) -> None:
    """Print how much of its time a learner waits."""
    weights = torch.randn(900, 900)
    rows = []
    for name, prefetch in (("read when asked for", 0), ("prefetch=4", 4), ("prefetch=16", 16), ("prefetch=64", 64)):
        sampler = store.sampler(batch_size=SIZE, seed=1, prefetch=prefetch)
        for _ in range(50):
            sampler.sample()
        waited, worked = [], []
        for _ in range(steps):
            begin = time.perf_counter()
            sampler.sample()
            middle = time.perf_counter()
            torch.mm(weights[: _rows_for_a_millisecond(weights)], weights)
            waited.append(middle - begin)
            worked.append(time.perf_counter() - middle)
        share = sum(waited) / (sum(waited) + sum(worked))
        rows.append((name, microseconds(waited), microseconds(worked), f"{share:.1%}"))
    show(
        f"A learner of {steps:,} steps: torch's matrix product, one thread, about a millisecond",
        ("", "wait, median", "step, median", "of the time"),
        rows,
        ["Target less than 2 %."],
    )


_ROWS: list[int] = []


def _rows_for_a_millisecond(weights: torch.Tensor) -> int:
    """How large a product takes about a millisecond here."""
    if not _ROWS:
        torch.mm(weights, weights)
        begin = time.perf_counter()
        for _ in range(5):
            torch.mm(weights, weights)
        each = (time.perf_counter() - begin) / 5
        _ROWS.append(max(1, min(len(weights), int(len(weights) * 1e-3 / each))))
    return _ROWS[0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=3_000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transitions = halfcheetah_transitions(options.rows)
    with (
        tempfile.TemporaryDirectory() as folder,
        fill_store(Path(folder) / "store", transitions, halfcheetah_schema()) as store,
    ):
        compare(store, options.rounds)
        wait(store, options.steps)
        store.flush()
        compare_tiers(transitions, Path(folder), options.rounds)


if __name__ == "__main__":
    main()
