"""How long does a uniform batch take, as torch tensors, out of a million HalfCheetah-sized transitions?

arrowrb reads mapped files; the yardstick is NumPy arrays in RAM, one `take` a column. Targets: at most 0.80 of its time
for 256 rows, 0.65 for 4,096; at most 0.40 of the fastest peer, and 0.15 of TorchRL with its mapped storage.
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

NUMPY, MAPPED = "NumPy arrays in RAM", "TorchRL, memory-mapped"
TARGETS = {256: 0.80, 4096: 0.65}


def _drawing(sampler: arrowrb.Sampler) -> Callable[[], Any]:
    return partial(next, iter(sampler))


def _targets(seconds: Any, names: list[str], batch_size: int) -> list[tuple[str, float, float]]:
    """What was to be reached: beside whom, what was measured, and the target."""
    ours = np.median(seconds["arrowrb"])
    medians = {name: float(ours / np.median(seconds[name])) for name in (NUMPY, *names)}
    found = [(NUMPY, medians[NUMPY], TARGETS[batch_size])] if batch_size in TARGETS else []
    if names and batch_size == 256:
        fastest = max(names, key=medians.__getitem__)
        found.append((f"{fastest}, the fastest peer", medians[fastest], 0.40))
        if MAPPED in names:
            found.append((MAPPED, medians[MAPPED], 0.15))
    return found


def measure(transitions: Any, folder: Path, batch_size: int, rounds: int, with_peers: bool) -> None:
    """Print the table of one batch size and dtype."""
    dtype = str(transitions.observation.dtype)
    contestants: dict[str, Callable[[], Any]] = {}
    notes: dict[str, str] = {}
    with fill_store(folder / f"{dtype}-{batch_size}", transitions, halfcheetah_schema(dtype)) as store:
        reader = arrowrb.Store.open(store.path)
        yardstick = peers.numpy_arrays(transitions, folder)
        contestants[NUMPY] = partial(yardstick.draw, batch_size)
        contestants["arrowrb"] = _drawing(store.sampler(batch_size=batch_size, seed=1))
        contestants["arrowrb, reader"] = _drawing(reader.sampler(batch_size=batch_size, seed=1))
        notes = {NUMPY: yardstick.note, "arrowrb": "mapped files", "arrowrb, reader": 'mode="r", looks for commits'}
        if dtype == "float64":
            contestants['arrowrb, float64="float32"'] = _drawing(
                store.sampler(batch_size=batch_size, seed=1, float64="float32")
            )
            notes['arrowrb, float64="float32"'] = "cast in the gather"
        built, missing = peers.build(transitions, folder / f"{dtype}-{batch_size}-peers") if with_peers else ([], [])
        for peer in built:
            contestants[peer.name] = partial(peer.draw, batch_size)
            notes[peer.name] = peer.note
        repeats = max(1, 8_192 // batch_size)
        seconds = interleave(contestants, rounds=rounds, repeats=repeats)
        reader.close()
    yard = np.median(seconds[NUMPY])
    rows = [
        (name, microseconds(values), spread(values), f"{np.median(values) / yard:.2f} x", notes[name])
        for name, values in sorted(seconds.items(), key=lambda item: float(np.median(item[1])))
    ]
    rows += [(name, "not installed", "", "", "") for name in missing]
    show(
        f"Uniform: {transitions.num_rows:,} transitions, observation {dtype}[17], batch {batch_size:,}",
        ("", "median", "10 to 90 %", "to NumPy", ""),
        rows,
        [
            *(
                f"Target at most {target} x {name}: {'reached' if ratio <= target else 'missed'} ({ratio:.2f} x)."
                for name, ratio, target in _targets(seconds, [peer.name for peer in built], batch_size)
            ),
            f"{rounds} interleaved rounds of {repeats}; files are in the page cache.",
        ],
        seconds=seconds,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for dtype in options.dtypes:
        transitions = halfcheetah_transitions(options.rows, dtype)
        for batch_size in options.batch_sizes:
            with tempfile.TemporaryDirectory() as folder:
                measure(transitions, Path(folder), batch_size, options.rounds, not options.no_peers)


if __name__ == "__main__":
    main()
