"""Memory of batches: a slab is one stretch, which is used again only once nobody holds any part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .entries import Output

Shape = tuple[int, ...]


class Slab:
    """Memory of one batch, with a tensor over each part of it.

    Batches get aliases of these tensors, never the tensors themselves, so the storage's count of users says whether
    anybody still holds the batch, a part of it, or a view of either. ``needed`` are columns that no batch shows.
    """

    __slots__ = (
        "_idle_count",
        "_parts",
        "_sizes",
        "_storage",
        "address",
        "needed",
        "row_ids",
        "size",
        "tables",
        "tensors",
    )

    tables: dict[str, NDArray[np.int64]]  # what the gather kernel reads, with targets in this slab, by group

    def __init__(
        self,
        torch: Any,
        outputs: Sequence[Output],
        needed: Sequence[Output],
        offsets: Sequence[int],
        shape: Shape,
        pinned: bool,
    ) -> None:
        count, num_ids = shape[0], int(np.prod(shape))
        self.size = offsets[-1] + 8 * max(num_ids, 1)
        memory = torch.empty(self.size, dtype=torch.uint8, pin_memory=pinned).numpy()
        self.address: int = memory.__array_interface__["data"][0]
        whole = torch.from_numpy(memory)
        self.tensors = []
        part = whole
        for output, offset in zip(outputs, offsets, strict=False):
            part = whole[offset : offset + max(count, 1) * output.item_bytes]
            self.tensors.append(part.view(torch_dtype(torch, output)).view(-1, *output.shape)[:count])
        self.needed: dict[str, NDArray[Any]] = {}
        for output, offset in zip(needed, offsets[len(outputs) :], strict=False):
            stop = offset + count * output.item_bytes
            self.needed[output.name] = memory[offset:stop].view(output.dtype).reshape(count, *output.shape)
        row_ids = whole[offsets[-1] :].view(torch.int64)[:num_ids].view(shape)
        self.tensors.append(row_ids)
        self.row_ids: NDArray[np.int64] = memory[offsets[-1] :].view(np.int64)[:num_ids]
        self._sizes: list[int] = []
        self._parts: list[tuple[Any, ...]] = []
        self._storage = whole.untyped_storage()
        del whole, part, row_ids  # from here on only what the slab keeps counts
        self._idle_count = _users(torch, self._storage)

    def split(self, torch: Any, sizes: list[int]) -> list[tuple[Any, ...]]:
        """The tensors of batches of these sizes, one behind the other; made once, as that takes longer than aliases."""
        if sizes != self._sizes:
            users = _users(torch, self._storage)
            self._parts.clear()
            self._parts = list(zip(*(tensor.split(sizes) for tensor in self.tensors), strict=True))
            self._sizes = list(sizes)
            if self._idle_count:
                self._idle_count += _users(torch, self._storage) - users
        return self._parts

    def idle(self, torch: Any) -> bool:
        """Whether nobody but this slab refers to its memory."""
        if self._idle_count == 0 or _users(torch, self._storage) != self._idle_count:
            return False
        # Sharing a tensor with another process moves its storage elsewhere; such a slab is never used again.
        return bool(self._storage.data_ptr() == self.address)


def _users(torch: Any, storage: Any) -> int:
    """How many tensors share a storage; 0 where this version of torch does not tell (slabs are then used once)."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return 0 if count is None else int(count(storage._cdata))


def torch_dtype(torch: Any, output: Output) -> Any:
    """The dtype of an output's tensor."""
    return torch.bfloat16 if output.bfloat16 else getattr(torch, output.dtype.name)
