"""Does it hold at size? Writes CartPole-sized transitions of many lanes to a store, then checks and measures it.

    python benchmarks/scale.py --path /a/disk/with/room                 # 512 lanes, 50 million rows
    python benchmarks/scale.py --path /tmp/x --rows 200000 --lanes 16   # a small run

The lanes' episodes have different lengths; every observation says its lane, so that what is drawn can be checked.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from common import interleave, microseconds, show
from rich.progress import track

import arrowrb

STEPS_PER_BATCH = 64
NUM_DRAWS = 300


def make_schema() -> arrowrb.Schema:
    env = gymnasium.make("CartPole-v1")
    schema = arrowrb.Schema.from_env(env)
    env.close()
    return schema


def write(store: arrowrb.Store, num_lanes: int, num_batches: int) -> tuple[float, int]:
    """Write the batches. Returns seconds in `extend`, and the number of ends."""
    random = np.random.default_rng(1)
    lane = np.tile(np.arange(num_lanes, dtype=np.int32), STEPS_PER_BATCH)
    size = lane.size
    period = 9 + np.arange(num_lanes) % 91  # steps of an episode
    seconds, num_ends = 0.0, 0
    observation = np.zeros((STEPS_PER_BATCH + 1, num_lanes, 4), np.float32)
    observation[:, :, 0] = np.arange(num_lanes)
    for index in track(
        range(num_batches), description=f"writing {size * num_batches:,} rows", disable=not sys.stderr.isatty()
    ):
        step = index * STEPS_PER_BATCH + np.arange(STEPS_PER_BATCH)[:, None]
        observation[0] = observation[-1]
        observation[1:, :, 1:] = random.standard_normal((STEPS_PER_BATCH, num_lanes, 3), np.float32)
        terminated = ((step + 1) % period == 0).reshape(-1)
        batch = {
            "observation": observation[:-1].reshape(size, 4),
            "action": random.integers(0, 2, size),
            "reward": np.ones(size),
            "next_observation": observation[1:].reshape(size, 4),
            "terminated": terminated,
            "truncated": np.zeros(size, np.bool_),
        }
        num_ends += int(terminated.sum())
        began = time.perf_counter()
        store.extend(batch, lane=lane)
        seconds += time.perf_counter() - began
    return seconds, num_ends


def check_batch(batch: dict[str, torch.Tensor]) -> None:
    """A transition's two observations are of one lane."""
    if not torch.equal(batch["observation"][:, 0], batch["next_observation"][:, 0]):
        raise SystemExit("A transition joins observations of two lanes.")


def draw(store: arrowrb.Store, batch_size: int) -> float:
    """Median seconds of a batch."""
    sampler = store.sampler(batch_size=batch_size, seed=1)
    seconds = []
    for _ in range(NUM_DRAWS):
        began = time.perf_counter()
        batch = next(sampler)
        seconds.append(time.perf_counter() - began)
        check_batch(batch)
    return float(np.median(seconds))


def compare(big: Path, small: Path) -> None:
    """Print what each strategy takes of a batch of the large store, beside a small one of the same lanes."""
    strategies: dict[str, tuple[Any, int, float]] = {
        "Uniform": (arrowrb.Uniform(), 256, 1.5),
        "16 Sequences of 16": (arrowrb.Sequences(16), 16, 1.5),
        "Prioritized, sample and update": (arrowrb.Prioritized(), 256, 2.5),
    }
    errors = np.random.default_rng(0).exponential(size=256)

    def drawing(store: arrowrb.Store, strategy: Any, size: int) -> Callable[[], None]:
        sampler = store.sampler(strategy, batch_size=size, seed=1)

        def call() -> None:
            batch = sampler.sample()
            if isinstance(strategy, arrowrb.Prioritized):
                sampler.update(batch["row_id"], errors)

        return call

    table = []
    with arrowrb.Store.open(big) as one, arrowrb.Store.open(small) as other:
        for name, (strategy, size, target) in strategies.items():
            calls = {"big": drawing(one, strategy, size), "small": drawing(other, strategy, size)}
            seconds = interleave(calls, rounds=NUM_DRAWS // 3, repeats=10)
            ratio = np.median(seconds["big"]) / np.median(seconds["small"])
            table.append((name, microseconds(seconds["small"]), microseconds(seconds["big"]), f"{ratio:.2f} x", target))
        rows = [f"{len(store):,}" for store in (other, one)]
    show("A batch, by rows in the store", ("", *rows, "ratio", "target"), table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="a new folder for the store")
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--lanes", type=int, default=512)
    parser.add_argument("--keep", action="store_true", help="do not remove the store at the end")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    num_batches = -(-options.rows // (options.lanes * STEPS_PER_BATCH))
    num_rows = num_batches * options.lanes * STEPS_PER_BATCH
    rows = []

    def time_of(name: str, began: float, more: str = "") -> None:
        rows.append((name, f"{time.perf_counter() - began:,.3f} s", more))

    began = time.perf_counter()
    with arrowrb.Store.create(options.path, make_schema()) as store:
        seconds, num_ends = write(store, options.lanes, num_batches)
        time_of("writing, all in all", began, f"{num_rows / (time.perf_counter() - began):,.0f} rows/s")
        rows.append(("  in extend", f"{seconds:,.3f} s", f"{num_rows / seconds:,.0f} rows/s"))
        began = time.perf_counter()
        store.flush()
        time_of("flush", began)
    for mode in ("a", "r"):
        began = time.perf_counter()
        with arrowrb.Store.open(options.path, mode=mode) as store:
            if len(store) != num_rows:
                raise SystemExit(f"{len(store):,} transitions are there, expected {num_rows:,}.")
            time_of(f'opening, mode="{mode}"', began)
            began = time.perf_counter()
            check_batch(store.sample(256, seed=1))
            time_of("  first batch of 256", began)
            if mode == "a":
                continue
            for batch_size in (256, 4096):
                each = draw(store, batch_size)
                rows.append((f"  batch of {batch_size:,}", f"{each * 1e6:,.0f} us", f"{batch_size / each:,.0f} rows/s"))
            began = time.perf_counter()
            count, ends, lanes = store.sql(
                "SELECT count(*), count(*) FILTER (WHERE terminated), count(DISTINCT lane) FROM transitions"
            ).fetchall()[0]
            time_of("  SQL: rows, ends and lanes", began)
            if (count, ends, lanes) != (num_rows, num_ends, options.lanes):
                raise SystemExit(f"SQL counts {(count, ends, lanes)}, expected {(num_rows, num_ends, options.lanes)}.")
            began = time.perf_counter()
            (complete,) = store.sql("SELECT count(*) FROM episodes WHERE complete").fetchall()[0]
            time_of("  SQL: complete episodes", began, f"{complete:,}")
            if complete != num_ends:
                raise SystemExit(f"SQL counts {complete:,} complete episodes, expected {num_ends:,}.")
            (segments,) = store.sql("SELECT count(*) FROM segments").fetchall()[0]
    size = sum(file.stat().st_blocks * 512 for file in options.path.rglob("*") if file.is_file())
    rows.append(
        ("on disk", f"{size / 2**30:.2f} GiB", f"{size / num_rows:.1f} bytes a transition, {segments:,} segments")
    )
    small = options.path.with_name(options.path.name + "-small")
    with arrowrb.Store.create(small, make_schema()) as store:
        write(store, options.lanes, max(1, num_batches // 50))
    show(f"Scale: {options.lanes:,} lanes, {num_rows:,} CartPole-sized rows; all counts agree", ("", "", ""), rows)
    compare(options.path, small)
    shutil.rmtree(small)
    if not options.keep:
        shutil.rmtree(options.path)


if __name__ == "__main__":
    main()
