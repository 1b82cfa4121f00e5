"""A module's parameters and buffers in memory that processes share: one publishes versions, the others take them.

There are two slots, written in turn, and a count of versions that is raised once a slot is whole. Whoever takes one
reads the count, copies that slot, and looks at the count again: the slot is written over only by the version after the
next one, so where the count is the same, what was copied is whole. No locks: who dies in the middle leaves the version
before in force. What is written is in force only once it is released, which may be later.

The memory has no name in any folder. It goes with the last process that holds it.
"""

from __future__ import annotations

import copy
import mmap
import os
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arrowrb.collector.policies import is_module
from arrowrb.errors import OptionError

if TYPE_CHECKING:
    import torch

_ALIGNMENT: Final = 64
_HEADER: Final = 64  # int64: how many versions there were; the numbers of those in the two slots
_COUNT, _VERSIONS = 0, 1


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*(each.detach() for each in module.parameters()), *module.buffers()]


def _make_of(module: torch.nn.Module) -> dict[str, type]:
    """The types of a module and of those within it, by name."""
    return {name: type(each) for name, each in module.named_modules()}


def _told(kind: type | None) -> str:
    return "nothing" if kind is None else kind.__qualname__


def copied(policy: Any) -> Any:
    """A module as processes are given it, without gradients and in main memory; other policies as they are."""
    if not is_module(policy):
        return policy
    module: torch.nn.Module = copy.deepcopy(policy)
    return module.requires_grad_(False).cpu()


class SharedWeights:
    """Two slots for the tensors of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        """Lay out memory for a module of this make."""
        self._kinds = [(tuple(tensor.shape), tensor.dtype) for tensor in _tensors(module)]
        self._make = _make_of(module)
        size, offsets = self._offsets()
        self._descriptor = os.memfd_create("arrowrb-policy", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, _HEADER + 2 * size)
        self._map(offsets, size)
        self._written = 0  # versions, the one that is not released yet included

    def _offsets(self) -> tuple[int, list[int]]:
        size, offsets = 0, []
        for shape, dtype in self._kinds:
            offsets.append(size)
            num_bytes = int(np.prod(shape)) * dtype.itemsize
            size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return size, offsets

    def _map(self, offsets: list[int], size: int) -> None:
        import torch

        memory = mmap.mmap(self._descriptor, _HEADER + 2 * size)
        self._header = memoryview(memory)[:_HEADER].cast("q")
        self._slots = [
            [
                torch.frombuffer(
                    memory, dtype=dtype, count=int(np.prod(shape)), offset=_HEADER + slot * size + offset
                ).view(shape)
                if np.prod(shape)
                else torch.empty(shape, dtype=dtype)
                for (shape, dtype), offset in zip(self._kinds, offsets, strict=True)
            ]
            for slot in range(2)
        ]

    def __getstate__(self) -> dict[str, Any]:
        """What another process maps the same memory by; only while that is being started."""
        return {"descriptor": reduction.DupFd(self._descriptor), "kinds": self._kinds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._descriptor, self._kinds = state["descriptor"].detach(), state["kinds"]
        size, offsets = self._offsets()
        self._map(offsets, size)

    def write(self, module: torch.nn.Module, version: int) -> None:
        """Copy a module's tensors into the slot that nobody reads, over what was not released.

        Raises:
            OptionError: If it is of another make than the one that memory was laid out for, or has other tensors.
        """
        make = _make_of(module)
        for name in {**self._make, **make}:
            if make.get(name) is not self._make.get(name):
                raise OptionError(
                    f"policy has {_told(make.get(name))} {f'at {name!r}' if name else 'as its type'}, expected "
                    f"{_told(self._make.get(name))} as the one that the collector was made with: workers are sent "
                    "parameters and buffers alone. Make another collector for it."
                )
        tensors = _tensors(module)
        if [(tuple(tensor.shape), tensor.dtype) for tensor in tensors] != self._kinds:
            raise OptionError("policy has other parameters than the one that the collector was made with.")
        self._written = self._header[_COUNT]  # what the slot held is gone, also where this fails half-way
        count = self._written + 1
        slot = count & 1
        for target, tensor in zip(self._slots[slot], tensors, strict=True):
            target.copy_(tensor)
        self._header[_VERSIONS + slot] = version
        self._written = count

    def release(self) -> None:
        """Make what was written last the newest version."""
        self._header[_COUNT] = self._written

    @property
    def count(self) -> int:
        """How many versions were released."""
        return self._header[_COUNT]

    def take(self, module: torch.nn.Module) -> tuple[int, int]:
        """Copy the newest version into a module; returns the count of versions by then, and its number."""
        tensors = _tensors(module)
        while True:
            count = self._header[_COUNT]
            slot = count & 1
            version = self._header[_VERSIONS + slot]
            for tensor, source in zip(tensors, self._slots[slot], strict=True):
                tensor.copy_(source)
            if self._header[_COUNT] == count:
                return count, version

    def close(self) -> None:
        """Let go of the file; the memory goes with the tensors."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
