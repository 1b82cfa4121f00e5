"""What the benchmarks share: interleaved rounds, HalfCheetah-sized transitions, tables."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

import arrowrb

OBSERVATION_SIZE, ACTION_SIZE, EPISODE_LENGTH = 17, 6, 1000


@dataclass(frozen=True)
class Transitions:
    """HalfCheetah-sized transitions: episodes of 1,000 steps, each ended by the time limit."""

    observation: NDArray[Any]
    action: NDArray[Any]
    reward: NDArray[Any]
    next_observation: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    @property
    def num_rows(self) -> int:
        """How many."""
        return len(self.reward)

    @property
    def num_bytes(self) -> int:
        """Of all six arrays."""
        return sum(array.nbytes for array in vars(self).values())

    def part(self, first: int, stop: int) -> dict[str, NDArray[Any]]:
        """A batch for `Store.extend`; views."""
        return {name: array[first:stop] for name, array in vars(self).items()}


def halfcheetah_transitions(num_rows: int, dtype: str = "float32", seed: int = 1) -> Transitions:
    """Random numbers in the shape of HalfCheetah's transitions, where each next observation is the following one."""
    random = np.random.default_rng(seed)
    observation = random.standard_normal((num_rows + 1, OBSERVATION_SIZE), np.float32).astype(dtype)
    truncated = np.arange(1, num_rows + 1) % EPISODE_LENGTH == 0
    next_observation = observation[1:].copy()
    next_observation[truncated] += 1  # a final observation is not the next episode's first
    return Transitions(
        observation[:-1],
        random.uniform(-1, 1, (num_rows, ACTION_SIZE)).astype(np.float32),
        random.standard_normal(num_rows, np.float32),
        next_observation,
        np.zeros(num_rows, np.bool_),
        truncated,
    )


def spaces(dtype: str = "float32") -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """HalfCheetah's spaces."""
    observation = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.dtype(dtype).type)
    return observation, gymnasium.spaces.Box(-1, 1, (ACTION_SIZE,), np.float32)


def halfcheetah_schema(dtype: str = "float32", **options: Any) -> arrowrb.Schema:
    """The schema of these transitions, with a float32 reward."""
    return arrowrb.Schema.from_spaces(*spaces(dtype), reward=("float32", ()), **options)


def fill_store(path: Path, transitions: Transitions, schema: arrowrb.Schema, **options: Any) -> arrowrb.Store:
    """A new store that holds the transitions, open for writing and flushed."""
    store = arrowrb.Store.create(path, schema, **options)
    for first in range(0, transitions.num_rows, 10 * EPISODE_LENGTH):
        store.extend(transitions.part(first, first + 10 * EPISODE_LENGTH))
    store.flush()
    return store


def interleave(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, repeats: int = 1
) -> dict[str, NDArray[np.float64]]:
    """Call all contestants in turn, in an order that moves on each round, so that none has the quiet moments alone.

    Returns:
        Seconds a call, float64[rounds], by name. One round before them is not measured.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-1, rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            call = contestants[name]
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            if index >= 0:
                seconds[name].append((time.perf_counter() - began) / repeats)
    return {name: np.array(values) for name, values in seconds.items()}


def show(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    notes: Sequence[str] = (),
    *,
    seconds: Mapping[str, NDArray[np.float64]] | None = None,
) -> None:
    """Print one table: the first column to the left, the others to the right.

    Args:
        title: above it.
        columns: their names.
        rows: of the table.
        notes: lines beneath it.
        seconds: what was measured, by name: the medians are drawn as bars beneath it.
    """
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(str(value) for value in row))
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
    if seconds:
        console.print(_plot({name: float(np.median(values)) for name, values in seconds.items()}))
    for note in notes:
        console.print(note, highlight=False)
    console.print(
        f"[dim]{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"torch {torch.__version__} on {torch.get_num_threads()} thread(s). Good as ratios only.[/dim]\n"
    )


def _plot(medians: Mapping[str, float]) -> Table:
    """Medians as bars, the shortest first."""
    plot = Table(box=None, show_header=False, padding=(0, 1))
    plot.add_column(justify="right", no_wrap=True)
    plot.add_column(width=72)
    longest = max(medians.values())
    for name, seconds in sorted(medians.items(), key=lambda item: item[1]):
        color = "green" if name.startswith("arrowrb") else "default"
        plot.add_row(name, Bar(longest, 0, seconds, width=72, color=color))
    return plot


def microseconds(values: NDArray[np.float64]) -> str:
    """The median."""
    return f"{np.median(values) * 1e6:,.0f} us"


def spread(values: NDArray[np.float64]) -> str:
    """From the fastest tenth of the rounds to the slowest; wide where something else took the cores."""
    low, high = np.percentile(values, [10, 90]) * 1e6
    return f"{low:,.0f} to {high:,.0f}"
