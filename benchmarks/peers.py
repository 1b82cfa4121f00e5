"""The peers, each filled with the same transitions: how they draw a batch as torch tensors, and the bytes they hold.

A peer that is not installed is left out by `build` and named, so that a table can say so.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Transitions, spaces


@dataclass(frozen=True)
class Peer:
    """One buffer.

    Attributes:
        draw: Draws a batch of this size uniformly, as torch tensors.
        num_bytes: What it allocated for the transitions.
        note: What is particular about it.
    """

    name: str
    draw: Callable[[int], object]
    num_bytes: int
    note: str = ""


def numpy_arrays(transitions: Transitions, _: Path) -> Peer:
    """The yardstick: an array a column, one `take` each by a ready random index."""
    random = np.random.default_rng(1)
    columns = list(vars(transitions).values())

    def draw(size: int) -> object:
        index = random.integers(0, transitions.num_rows, size)
        return [torch.from_numpy(column.take(index, axis=0)) for column in columns]

    return Peer("NumPy arrays in RAM", draw, transitions.num_bytes, "one take a column")


def cpprb(transitions: Transitions, _: Path) -> Peer:
    """A buffer of C++ ring buffers."""
    from cpprb import ReplayBuffer

    names = {
        "obs": transitions.observation,
        "act": transitions.action,
        "rew": transitions.reward,
        "next_obs": transitions.next_observation,
        "done": transitions.terminated.astype(np.float32),
        "cut": transitions.truncated.astype(np.float32),
    }
    described = {name: {"shape": array.shape[1:] or 1, "dtype": array.dtype} for name, array in names.items()}
    buffer = ReplayBuffer(transitions.num_rows, described)
    buffer.add(**names)

    def draw(size: int) -> object:
        return {name: torch.from_numpy(array) for name, array in buffer.sample(size).items()}

    return Peer("cpprb", draw, sum(array.nbytes for array in names.values()))


def stable_baselines3(transitions: Transitions, _: Path) -> Peer:
    """Its ReplayBuffer: NumPy arrays, one environment."""
    from stable_baselines3.common.buffers import ReplayBuffer

    buffer = ReplayBuffer(transitions.num_rows, *spaces(str(transitions.observation.dtype)), device="cpu")
    buffer.observations[:, 0], buffer.next_observations[:, 0] = transitions.observation, transitions.next_observation
    buffer.actions[:, 0], buffer.rewards[:, 0] = transitions.action, transitions.reward
    buffer.dones[:, 0], buffer.timeouts[:, 0] = transitions.truncated, transitions.truncated
    buffer.full = True
    arrays = [buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards]
    size = sum(array.nbytes for array in (*arrays, buffer.dones, buffer.timeouts))
    return Peer("Stable-Baselines3", buffer.sample, size, "dones float32")


def tianshou(transitions: Transitions, _: Path) -> Peer:
    """Its ReplayBuffer, drawn as tensors."""
    from tianshou.data import ReplayBuffer

    buffer = ReplayBuffer.from_data(
        obs=transitions.observation,
        act=transitions.action,
        rew=transitions.reward,
        terminated=transitions.terminated,
        truncated=transitions.truncated,
        done=transitions.truncated,
        obs_next=transitions.next_observation,
    )

    def draw(size: int) -> object:
        batch, _ = buffer.sample(size)
        return batch.to_torch_() if hasattr(batch, "to_torch_") else batch.to_torch()

    return Peer("tianshou", draw, transitions.num_bytes + transitions.num_rows, "done beside the flags")


def _torchrl(transitions: Transitions, storage: Any, name: str, note: str) -> Peer:
    from tensordict import TensorDict
    from torchrl.data import TensorDictReplayBuffer

    logging.getLogger("torchrl").setLevel(logging.WARNING)  # importing it has set another level
    buffer = TensorDictReplayBuffer(storage=storage)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(transitions).items()}
    buffer.extend(TensorDict(tensors, batch_size=[transitions.num_rows]))
    return Peer(name, buffer.sample, transitions.num_bytes + 8 * transitions.num_rows, note)


def torchrl_memory(transitions: Transitions, _: Path) -> Peer:
    """TorchRL over tensors in RAM."""
    from torchrl.data import LazyTensorStorage

    storage = LazyTensorStorage(transitions.num_rows)
    return _torchrl(transitions, storage, "TorchRL, RAM", "LazyTensorStorage, with index")


def torchrl_mapped(transitions: Transitions, folder: Path) -> Peer:
    """TorchRL over memory-mapped tensors."""
    from torchrl.data import LazyMemmapStorage

    storage = LazyMemmapStorage(transitions.num_rows, scratch_dir=str(folder / "torchrl"))
    return _torchrl(transitions, storage, "TorchRL, memory-mapped", "LazyMemmapStorage, with index")


PEERS: dict[str, Callable[[Transitions, Path], Peer]] = {
    "cpprb": cpprb,
    "tianshou": tianshou,
    "Stable-Baselines3": stable_baselines3,
    "TorchRL, RAM": torchrl_memory,
    "TorchRL, memory-mapped": torchrl_mapped,
}


def build(transitions: Transitions, folder: Path) -> tuple[list[Peer], list[str]]:
    """The peers that are installed, and the names of those that are not."""
    return _build({name: partial(make, transitions, folder) for name, make in PEERS.items()})


def _build(makers: Mapping[str, Callable[[], Peer]]) -> tuple[list[Peer], list[str]]:
    built, missing = [], []
    for name, make in makers.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                built.append(make())
        except ImportError:
            missing.append(name)
    return built, missing


def cpprb_prioritized(transitions: Transitions, priorities: Any, alpha: float, beta: float) -> Peer:
    """Its C++ sum tree."""
    from cpprb import PrioritizedReplayBuffer

    names = {
        "obs": transitions.observation,
        "act": transitions.action,
        "rew": transitions.reward,
        "next_obs": transitions.next_observation,
        "done": transitions.terminated.astype(np.float32),
        "cut": transitions.truncated.astype(np.float32),
    }
    described = {name: {"shape": array.shape[1:] or 1, "dtype": array.dtype} for name, array in names.items()}
    buffer = PrioritizedReplayBuffer(transitions.num_rows, described, alpha=alpha)
    buffer.add(**names, priorities=priorities)
    errors = np.random.default_rng(0).exponential(size=4096)

    def draw(size: int) -> object:
        drawn = buffer.sample(size, beta)
        tensors = {name: torch.from_numpy(array) for name, array in drawn.items() if name != "indexes"}
        buffer.update_priorities(drawn["indexes"], errors[:size])
        return tensors

    return Peer("cpprb", draw, 0)


def tianshou_prioritized(transitions: Transitions, priorities: Any, alpha: float, beta: float) -> Peer:
    """Its sum tree in Numba."""
    from tianshou.data import PrioritizedReplayBuffer, ReplayBuffer

    filled = ReplayBuffer.from_data(
        obs=transitions.observation,
        act=transitions.action,
        rew=transitions.reward,
        terminated=transitions.terminated,
        truncated=transitions.truncated,
        done=transitions.truncated,
        obs_next=transitions.next_observation,
    )
    buffer = PrioritizedReplayBuffer(transitions.num_rows, alpha=alpha, beta=beta)
    buffer._meta, buffer._size = filled._meta, transitions.num_rows
    index = np.arange(transitions.num_rows)
    buffer.init_weight(index)
    buffer.update_weight(index, priorities)
    errors = np.random.default_rng(0).exponential(size=4096)

    def draw(size: int) -> object:
        batch, indices = buffer.sample(size)
        tensors = batch.to_torch_() if hasattr(batch, "to_torch_") else batch.to_torch()
        buffer.update_weight(indices, errors[:size])
        return tensors

    return Peer("tianshou", draw, 0)


def torchrl_prioritized(transitions: Transitions, priorities: Any, alpha: float, beta: float) -> Peer:
    """TorchRL over tensors in RAM, with its C++ segment tree."""
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer

    logging.getLogger("torchrl").setLevel(logging.WARNING)
    storage = LazyTensorStorage(transitions.num_rows)
    try:
        buffer = TensorDictPrioritizedReplayBuffer(alpha=alpha, beta=beta, storage=storage)
    except RuntimeError as error:
        raise ImportError("its C++ segment tree is not for this version of torch") from error
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(transitions).items()}
    buffer.extend(TensorDict(tensors, batch_size=[transitions.num_rows]))
    buffer.update_priority(torch.arange(transitions.num_rows), torch.from_numpy(priorities).float())
    errors = torch.from_numpy(np.random.default_rng(0).exponential(size=4096).astype(np.float32))

    def draw(size: int) -> object:
        batch = buffer.sample(size)
        buffer.update_priority(batch["index"], errors[:size])
        return batch

    return Peer("TorchRL, RAM", draw, 0)


PRIORITIZED = {
    "cpprb": cpprb_prioritized,
    "tianshou": tianshou_prioritized,
    "TorchRL, RAM": torchrl_prioritized,
}


def build_prioritized(
    transitions: Transitions, priorities: Any, alpha: float, beta: float
) -> tuple[list[Peer], list[str]]:
    """The peers that draw by priority and are installed, and the names of those that are not."""
    return _build({name: partial(make, transitions, priorities, alpha, beta) for name, make in PRIORITIZED.items()})


def torchrl_sequences(transitions: Transitions, length: int) -> Peer:
    """TorchRL's slices over tensors in RAM; draws so many steps in all."""
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer

    logging.getLogger("torchrl").setLevel(logging.WARNING)
    sampler = SliceSampler(slice_len=length, end_key="truncated", cache_values=True)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(transitions.num_rows), sampler=sampler)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(transitions).items()}
    buffer.extend(TensorDict(tensors, batch_size=[transitions.num_rows]))
    return Peer("TorchRL, SliceSampler", buffer.sample, 0)


def build_sequences(transitions: Transitions, length: int) -> tuple[list[Peer], list[str]]:
    """The peers that draw sequences and are installed, and the names of those that are not."""
    return _build({"TorchRL, SliceSampler": partial(torchrl_sequences, transitions, length)})


def _stacked(made: Any) -> dict[str, Any]:
    """Both stacks of each transition, as the peers' usual modes keep them."""
    return {"obs": made.frames[made.stack], "next_obs": made.frames[made.next_stack]}


def cpprb_pixels(made: Any, _: Path) -> Peer:
    """A ring buffer of both stacks."""
    from cpprb import ReplayBuffer

    names = {**_stacked(made), "act": made.action, "rew": made.reward, "done": made.terminated.astype(np.float32)}
    described = {name: {"shape": array.shape[1:] or 1, "dtype": array.dtype} for name, array in names.items()}
    buffer = ReplayBuffer(made.num_rows, described)
    buffer.add(**names)

    def draw(size: int) -> object:
        return {name: torch.from_numpy(array) for name, array in buffer.sample(size).items()}

    return Peer("cpprb", draw, sum(array.nbytes for array in names.values()))


def stable_baselines3_pixels(made: Any, _: Path, *, frugal: bool = False) -> Peer:
    """Its ReplayBuffer; the frugal one keeps each stack once, and takes the next one from the row behind."""
    import gymnasium
    from stable_baselines3.common.buffers import ReplayBuffer

    shape = (made.stack.shape[1], *made.frames.shape[1:])
    box = gymnasium.spaces.Box(0, 255, shape, np.uint8)
    buffer = ReplayBuffer(
        made.num_rows,
        box,
        gymnasium.spaces.Discrete(6),
        device="cpu",
        optimize_memory_usage=frugal,
        handle_timeout_termination=not frugal,
    )
    buffer.observations[:, 0] = made.frames[made.stack]
    if not frugal:
        buffer.next_observations[:, 0] = made.frames[made.next_stack]
    buffer.actions[:, 0, 0], buffer.rewards[:, 0], buffer.dones[:, 0] = made.action, made.reward, made.terminated
    buffer.full = True
    size = buffer.observations.nbytes + (0 if frugal else buffer.next_observations.nbytes)
    name = "Stable-Baselines3" + (", optimize_memory_usage" if frugal else "")
    return Peer(name, buffer.sample, size, "each stack once; a final one is lost" if frugal else "both stacks")


def tianshou_pixels(made: Any, _: Path) -> Peer:
    """Its ReplayBuffer of both stacks, drawn as tensors."""
    from tianshou.data import ReplayBuffer

    stacks = _stacked(made)
    buffer = ReplayBuffer.from_data(
        obs=stacks["obs"],
        act=made.action,
        rew=made.reward,
        terminated=made.terminated,
        truncated=made.truncated,
        done=made.terminated,
        obs_next=stacks["next_obs"],
    )

    def draw(size: int) -> object:
        batch, _ = buffer.sample(size)
        return batch.to_torch_() if hasattr(batch, "to_torch_") else batch.to_torch()

    return Peer("tianshou", draw, sum(array.nbytes for array in stacks.values()), "both stacks")


def _torchrl_pixels(made: Any, storage: Any, name: str, note: str) -> Peer:
    from tensordict import TensorDict
    from torchrl.data import TensorDictReplayBuffer

    logging.getLogger("torchrl").setLevel(logging.WARNING)
    buffer = TensorDictReplayBuffer(storage=storage)
    columns = {"act": made.action, "rew": made.reward, "terminated": made.terminated}
    arrays = {**_stacked(made), **columns}
    tensors = {each: torch.from_numpy(np.ascontiguousarray(array)) for each, array in arrays.items()}
    buffer.extend(TensorDict(tensors, batch_size=[made.num_rows]))
    return Peer(name, buffer.sample, sum(array.nbytes for array in arrays.values()), note)


def torchrl_pixels_memory(made: Any, _: Path) -> Peer:
    """TorchRL over tensors in RAM."""
    from torchrl.data import LazyTensorStorage

    return _torchrl_pixels(made, LazyTensorStorage(made.num_rows), "TorchRL, RAM", "both stacks")


def torchrl_pixels_mapped(made: Any, folder: Path) -> Peer:
    """TorchRL over memory-mapped tensors."""
    from torchrl.data import LazyMemmapStorage

    storage = LazyMemmapStorage(made.num_rows, scratch_dir=str(folder / "torchrl-pixels"))
    return _torchrl_pixels(made, storage, "TorchRL, memory-mapped", "both stacks")


PIXELS: dict[str, Callable[[Any, Path], Peer]] = {
    "cpprb": cpprb_pixels,
    "tianshou": tianshou_pixels,
    "Stable-Baselines3": stable_baselines3_pixels,
    "TorchRL, RAM": torchrl_pixels_memory,
    "TorchRL, memory-mapped": torchrl_pixels_mapped,
}


def build_pixels(made: Any, folder: Path) -> tuple[list[Peer], list[str]]:
    """The peers in their usual mode that are installed, and the names of those that are not."""
    return _build({name: partial(make, made, folder) for name, make in PIXELS.items()})


def cpprb_frugal(made: Any) -> Peer:
    """Its compression of stacks, and of next observations; stacks are the last dimension there."""
    from cpprb import ReplayBuffer

    frames, (height, width) = made.stack.shape[1], made.frames.shape[1:]
    described = {
        "obs": {"shape": (height, width, frames), "dtype": np.uint8},
        "act": {"dtype": np.int64},
        "rew": {"dtype": np.float32},
        "done": {"dtype": np.float32},
    }
    buffer = ReplayBuffer(made.num_rows, described, next_of="obs", stack_compress="obs")
    for row in range(made.num_rows):
        buffer.add(
            obs=np.moveaxis(made.frames[made.stack[row]], 0, -1),
            next_obs=np.moveaxis(made.frames[made.next_stack[row]], 0, -1),
            act=made.action[row],
            rew=made.reward[row],
            done=float(made.terminated[row]),
        )
        if made.terminated[row]:
            buffer.on_episode_end()

    def draw(size: int) -> object:
        return {name: torch.from_numpy(array) for name, array in buffer.sample(size).items()}

    return Peer("cpprb, next_of, stack_compress", draw, made.frames.nbytes, "single frames")


def tianshou_frugal(made: Any) -> Peer:
    """It keeps the newest frame of each stack, and looks for the others and the next ones."""
    from tianshou.data import Batch, ReplayBuffer

    buffer = ReplayBuffer(made.num_rows, stack_num=made.stack.shape[1], ignore_obs_next=True, save_only_last_obs=True)
    for row in range(made.num_rows):
        buffer.add(
            Batch(
                obs=made.frames[made.stack[row]],
                act=made.action[row],
                rew=made.reward[row],
                terminated=made.terminated[row],
                truncated=False,
                obs_next=made.frames[made.next_stack[row]],
                info={},
            )
        )

    def draw(size: int) -> object:
        batch, _ = buffer.sample(size)
        return batch.to_torch_() if hasattr(batch, "to_torch_") else batch.to_torch()

    return Peer("tianshou, stack_num, ignore_obs_next", draw, made.frames.nbytes, "single frames; a final one is lost")


FRUGAL_PIXELS: dict[str, Callable[[Any], Peer]] = {
    "cpprb, next_of, stack_compress": cpprb_frugal,
    "tianshou, stack_num, ignore_obs_next": tianshou_frugal,
    "Stable-Baselines3, optimize_memory_usage": partial(stable_baselines3_pixels, _=Path(), frugal=True),
}


def build_frugal_pixels(made: Any) -> tuple[list[Peer], list[str]]:
    """The peers in modes that keep less, and the names of those that are not installed."""
    return _build({name: partial(make, made) for name, make in FRUGAL_PIXELS.items()})
