"""Gathering rows into tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..engine import Snapshot
from ..errors import ColumnError, OptionError
from ..samplers import ROW, Columns, Need, Place, Reading
from ..schema import Schema
from .entries import NO_PLACES, Output, batch_entries, needed_outputs
from .slabs import Slab

_ALIGNMENT: Final = 64
_KEPT_SLABS: Final = 4
NO_NEEDS: Final[Mapping[str, Need]] = {}


class Loader:
    """Gathers located rows into batches of one make. Not thread-safe: use one a thread.

    Args:
        schema: the store's schema.
        columns, float64: see `batch_entries`.
        device: a torch device that batches are moved to; from pinned memory where CUDA exists.
        places: of the columns that are not read from the rows themselves, by name.
        computed: columns that come with what is to be read, in place of those of the store.
        needs: what to read for columns that are computed, by name.
        length: of sequences, where these are drawn: so many rows each.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        columns: Sequence[str] | None = None,
        float64: str = "keep",
        device: Any = None,
        places: Mapping[str, Place] = NO_PLACES,
        computed: Collection[str] = (),
        needs: Mapping[str, Need] = NO_NEEDS,
        length: int | None = None,
    ) -> None:
        import torch

        self._torch = torch
        entries = batch_entries(schema, columns, float64, places, _own_place(length))
        self._entries = tuple(entry for entry in entries if entry.name not in computed)
        wanted = {entry.name: entry.outputs[0] for entry in entries if entry.name in computed}
        self._computed = {name: wanted.get(name) for name in computed}
        flat = all(entry.tree is None or entry.tree.is_leaf for entry in self._entries)
        self._names = [*(entry.name for entry in self._entries), "row_id"] if flat else None
        self._length = length
        self._narrow = float64 == "float32"
        self._outputs = [output for entry in self._entries for output in entry.outputs]
        self._needed = needed_outputs(schema, needs)
        self._items = [schema.columns[output.column].item_bytes for output in (*self._outputs, *self._needed)]
        try:
            self._device = None if device is None else torch.device(device)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise OptionError(f"device is {device!r}, expected a torch device: {str(error).splitlines()[0]}") from None
        if self._device is not None and self._device.type == "cuda" and not torch.cuda.is_available():
            raise OptionError(f"device is {device!r}, but torch finds no CUDA device here. Use device=None, or 'cpu'.")
        self._pinned = self._device is not None and self._device.type == "cuda" and torch.cuda.is_available()
        self._slabs: list[Slab] = []
        self._count = -1
        self._offsets: list[int] = []
        self._tables: dict[str, NDArray[np.int64]] = {}

    def load(self, snapshot: Snapshot, reading: Reading) -> dict[str, Any]:
        """Read rows into a new batch: name -> tensor [n, *shape], nested where the space is, with ``row_id``."""
        slab = self._read(snapshot, reading)
        columns = _all_columns(slab, reading)
        batch = self._assemble(slab.tensors)
        return self._add(batch, columns, 0, self._count) if columns else batch

    def load_many(self, snapshot: Snapshot, reading: Reading, sizes: list[int]) -> list[dict[str, Any]]:
        """Read rows for several batches of these sizes in one go; their tensors are parts of one slab."""
        slab = self._read(snapshot, reading)
        columns, stops = _all_columns(slab, reading), accumulate(sizes)
        return [
            self._add(self._assemble(tensors), columns, stop - size, stop)
            for tensors, size, stop in zip(slab.split(self._torch, sizes), sizes, stops, strict=True)
        ]

    def _add(self, batch: dict[str, Any], columns: Columns, first: int, stop: int) -> dict[str, Any]:
        """Add columns that were not read from the store."""
        for name, array in columns.items():
            part = array if first == 0 and stop == len(array) else array[first:stop]
            if name in self._computed:
                output = self._computed[name]
                if output is None:
                    continue  # not wanted
                tensor = self._torch.from_numpy(part.astype(self._computed_dtype(output, part), copy=False))
                tensor = tensor.bfloat16() if output.bfloat16 else tensor
            elif name in batch:
                raise ColumnError(f"{name!r} is an extra of the store, and what this sampler adds. Choose columns=.")
            else:
                narrow = self._narrow and part.dtype == np.float64
                tensor = self._torch.from_numpy(part.astype(np.float32) if narrow else part)
            batch[name] = tensor if self._device is None else tensor.to(self._device, copy=True)
        return batch

    def _computed_dtype(self, output: Output, values: NDArray[Any]) -> Any:
        """That of the column; but sums of whole numbers, times powers of a discount, stay what they are."""
        if output.bfloat16:
            return values.dtype
        if values.dtype.kind == "f" and output.dtype.kind != "f":
            return np.float32 if self._narrow else values.dtype
        return output.dtype

    def _read(self, snapshot: Snapshot, reading: Reading) -> Slab:
        """Gather rows into a slab."""
        row_ids = reading.groups[ROW].row_ids
        count = row_ids.size // (self._length or 1)
        if count != self._count:
            self._lay_out(count)
        slab = self._take_slab()
        for group, table in slab.tables.items():
            if group in reading.groups:  # else it is not needed
                snapshot.gather(reading.groups[group], table)
        for name, (at, values) in reading.patches.items():
            self._patch(slab, name, at, values)
        for group, blank in reading.blanks.items():
            self._blank(slab, group, blank)
        slab.row_ids[:] = row_ids
        return slab

    def _patch(self, slab: Slab, name: str, at: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Put values in place of those of some rows."""
        for output, tensor in zip(self._outputs, slab.tensors, strict=False):
            if output.name == name:
                each = values.reshape(at.size, *(1 for _ in output.place.dims), *values.shape[1:])
                tensor[self._torch.from_numpy(at)] = self._torch.from_numpy(each).to(tensor.dtype)

    def _blank(self, slab: Slab, group: str, blank: NDArray[np.bool_]) -> None:
        """Zero what stands for rows that there are none of."""
        if blank.any():
            places = self._torch.from_numpy(blank)
            for output, tensor in zip(self._outputs, slab.tensors, strict=False):
                if output.place.group == group:
                    tensor.view(places.numel(), -1)[places] = 0

    def _lay_out(self, count: int) -> None:
        """Decide where each output lies in a slab for so many rows, and the tables that the kernel reads."""
        offsets, place = [], 0
        outputs = (*self._outputs, *self._needed)
        for output in outputs:
            offsets.append(place)
            place += -(-max(count, 1) * output.item_bytes // _ALIGNMENT) * _ALIGNMENT
        rows: dict[str, list[tuple[int, ...]]] = {}
        for output, item, offset in zip(outputs, self._items, offsets, strict=True):
            rows.setdefault(output.place.group, []).append((output.column, output.shift, item, output.cast, offset))
        self._tables = {group: np.array(each, np.int64).reshape(-1, 5) for group, each in rows.items()}
        self._offsets = [*offsets, place]
        self._count = count
        self._slabs = []

    def _take_slab(self) -> Slab:
        """Memory that nobody holds: a kept slab that only we refer to, or a fresh one."""
        for slab in self._slabs:
            if slab.idle(self._torch):
                return slab
        shape = (self._count,) if self._length is None else (self._count, self._length)
        slab = Slab(self._torch, self._outputs, self._needed, self._offsets, shape, self._pinned)
        slab.tables = {group: table + np.array([0, 0, 0, 0, slab.address]) for group, table in self._tables.items()}
        if len(self._slabs) >= _KEPT_SLABS:
            self._slabs.pop(0)
        self._slabs.append(slab)
        return slab

    def _assemble(self, parts: Sequence[Any]) -> dict[str, Any]:
        if self._device is None:
            tensors = [tensor.data for tensor in parts]  # aliases, in two thirds of the time of detach()
        else:
            # A copy even where the slab lies on that device already: the slab is used again.
            tensors = [tensor.to(self._device, non_blocking=self._pinned, copy=True) for tensor in parts]
            if self._pinned:
                self._torch.cuda.current_stream(self._device).synchronize()
        if self._names is not None:
            return dict(zip(self._names, tensors, strict=True))
        batch: dict[str, Any] = {}
        place = 0
        for entry in self._entries:
            if entry.tree is None or entry.tree.is_leaf:
                batch[entry.name] = tensors[place]
                place += 1
            else:
                stop = place + len(entry.outputs)
                batch[entry.name] = entry.tree.build(tensors[place:stop])
                place = stop
        batch["row_id"] = tensors[place]
        return batch


def _own_place(length: int | None) -> Place:
    """Where columns are read that have no other place."""
    return Place(ROW) if length is None else Place(ROW, (length,))


def _all_columns(slab: Slab, reading: Reading) -> Columns:
    """What the batch has beside what was read."""
    return reading.columns if reading.finish is None else {**reading.columns, **reading.finish(slab.needed)}
