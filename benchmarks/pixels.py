"""How long does a batch of stacked frames take, with the next ones, of Atari-sized transitions, and what do they weigh?

256 x (4, 84, 84) uint8. arrowrb and the peers' de-duplicating modes keep single frames, or each stack once, and put
stacks together when they are drawn; the peers' usual modes keep both stacks of each transition. Targets: at most 0.4 of
the fastest peer in its usual mode, at a seventh of the bytes or less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import peers
import torch
from common import interleave, microseconds, show, spread
from numpy.typing import NDArray

import arrowrb

FRAMES, SIDE, ACTIONS, EPISODE_LENGTH = 4, 84, 6, 500
TARGET, TARGET_BYTES = 0.4, 1 / 7


@dataclass(frozen=True)
class Play:
    """Transitions by the frames that their stacks are made of.

    Attributes:
        frames: single ones, uint8[n, 84, 84]: those of an episode lie in a row, its final one last.
        stack: which frames the stacks of the observations are, int64[rows, 4]; likewise ``next_stack``.
    """

    frames: NDArray[np.uint8]
    stack: NDArray[np.int64]
    next_stack: NDArray[np.int64]
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]

    @property
    def num_rows(self) -> int:
        """Transitions."""
        return len(self.action)

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """None is."""
        return np.zeros(self.num_rows, np.bool_)


def play(num_rows: int) -> Play:
    """Random frames in episodes of one length."""
    random = np.random.default_rng(1)
    row = np.arange(num_rows)
    episode, step = row // EPISODE_LENGTH, row % EPISODE_LENGTH
    first = episode * (EPISODE_LENGTH + 1)
    back = np.arange(1 - FRAMES, 1)
    stacks = [first[:, None] + np.maximum(0, (step + shift)[:, None] + back) for shift in (0, 1)]
    return Play(
        random.integers(0, 256, (int(stacks[1].max()) + 1, SIDE, SIDE), np.uint8),
        stacks[0],
        stacks[1],
        random.integers(0, ACTIONS, num_rows),
        random.standard_normal(num_rows, np.float32),
        step == EPISODE_LENGTH - 1,
    )


def spaces(frames: int | None) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    """Of single frames, or of stacks."""
    shape = (SIDE, SIDE) if frames is None else (frames, SIDE, SIDE)
    return gymnasium.spaces.Box(0, 255, shape, np.uint8), gymnasium.spaces.Discrete(ACTIONS)


def fill(path: Path, made: Play) -> arrowrb.Store:
    """A store of the single frames."""
    store = arrowrb.Store.create(path, arrowrb.Schema.from_spaces(*spaces(None), reward=("float32", ())))
    for first in range(0, made.num_rows, EPISODE_LENGTH):
        rows = slice(first, first + EPISODE_LENGTH)
        store.extend(
            {
                "observation": made.frames[made.stack[rows, -1]],
                "next_observation": made.frames[made.next_stack[rows, -1]],
                "action": made.action[rows],
                "reward": made.reward[rows],
                "terminated": made.terminated[rows],
                "truncated": made.truncated[rows],
            }
        )
    store.flush()
    return store


def check(batch: dict[str, torch.Tensor]) -> None:
    """Stacks of neighbours share all but one frame."""
    observation, following = batch["observation"], batch["next_observation"]
    if observation.shape[1:] != (FRAMES, SIDE, SIDE) or not torch.equal(observation[:, 1:], following[:, :-1]):
        raise SystemExit("The stacks are not those of neighbours.")


def measure(made: Play, folder: Path, batch_size: int, rounds: int) -> None:
    """Print the table."""
    usual, missing = peers.build_pixels(made, folder / "peers")
    frugal, missing_frugal = peers.build_frugal_pixels(made)
    with fill(folder / "store", made) as store:
        sampler = store.sampler(batch_size=batch_size, frame_stack={"observation": FRAMES}, seed=1)
        check(sampler.sample())
        contestants: dict[str, Callable[[], Any]] = {"arrowrb": sampler.sample}
        contestants |= {peer.name: lambda peer=peer: peer.draw(batch_size) for peer in (*usual, *frugal)}
        weights = {"arrowrb": made.num_rows * (store.info().bytes_per_transition or 0.0)}
        weights |= {peer.name: peer.num_bytes for peer in (*usual, *frugal)}
        notes = {"arrowrb": "mapped files, single frames"} | {peer.name: peer.note for peer in (*usual, *frugal)}
        seconds = interleave(contestants, rounds=rounds, repeats=2)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    rows = [
        (name, microseconds(seconds[name]), spread(seconds[name]), f"{weights[name] / made.num_rows:,.0f}", notes[name])
        for name in sorted(medians, key=medians.__getitem__)
    ]
    rows += [(name, "not installed", "", "", "") for name in (*missing, *missing_frugal)]
    told = []
    if usual:
        best = min(usual, key=lambda peer: medians[peer.name])
        ratio, share = medians["arrowrb"] / medians[best.name], weights["arrowrb"] / best.num_bytes
        told.append(
            f"{ratio:.2f} x {best.name}, the fastest in its usual mode (target {TARGET}: "
            f"{'reached' if ratio <= TARGET else 'missed'}), at {share:.3f} of its bytes (target {TARGET_BYTES:.3f}: "
            f"{'reached' if share <= TARGET_BYTES else 'missed'})."
        )
    show(
        f"Pixels: {batch_size} x ({FRAMES}, {SIDE}, {SIDE}) uint8 with next, of {made.num_rows:,} transitions",
        ("", "median", "10 to 90 %", "bytes a row", ""),
        rows,
        [*told, "Bytes of arrowrb are those of the rows; room on disk is set aside for the next ones."],
        seconds=seconds,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="the peers' usual modes take 56 kB each")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(play(options.rows), Path(folder), options.batch_size, options.rounds)


if __name__ == "__main__":
    main()
