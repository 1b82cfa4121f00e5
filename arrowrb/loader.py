"""Batches: rows gathered into torch tensors, and record batches turned into them.

A batch's tensors are views into one stretch of memory (a slab), which is used again only once nobody holds any of
them: whoever keeps a batch, or a view of a part of it, keeps it unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .engine import Snapshot
from .errors import ColumnError, OptionError
from .samplers import LAST, ROW, Place, Reading
from .schema import Column, Schema, Tree
from .schema.arrays import column_numpy
from .schema.columns import DTYPES

if TYPE_CHECKING:
    import torch

_ALIGNMENT: Final = 64
_KEPT_SLABS: Final = 4
FLOAT64_CHOICES: Final = ("keep", "float32")

Extra = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]
_OWN: Final = Place()
_NO_PLACES: Final[Mapping[str, Place]] = {}


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of a batch: which column it reads, from which row, and as what."""

    column: int  # place in the schema
    place: Place
    shift: int  # 1 reads the row behind: the next observation
    item_bytes: int  # in the batch
    dtype: np.dtype[Any]  # of the memory in the batch
    shape: tuple[int, ...]
    cast: bool  # float64 to float32
    bfloat16: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a batch: the outputs of its leaves and how they nest."""

    name: str
    outputs: tuple[Output, ...]
    tree: Tree | None  # None: the one output as it is


def batch_entries(
    schema: Schema,
    columns: Sequence[str] | None,
    float64: str,
    places: Mapping[str, Place] = _NO_PLACES,
    own: Place = _OWN,
) -> tuple[Entry, ...]:
    """What a batch holds.

    Args:
        schema: the store's schema.
        columns: names to read; None reads all but the system columns. A name is one of a batch (``observation``,
            ``next_observation``, ``action``, ``reward``, ``terminated``, ``truncated``, an extra, ``next_<extra>``),
            a leaf of it (``observation.camera``), or a system column (``episode_id``, ``step``, ...).
        float64: ``keep``, or ``float32`` to cast float64 columns on the way.
        places: of the columns that are not read from the rows themselves.
        own: the place of all others.
    """
    if not isinstance(float64, str) or float64 not in FLOAT64_CHOICES:
        raise OptionError(f"float64 is {float64!r}, expected one of {', '.join(map(repr, FLOAT64_CHOICES))}.")
    if isinstance(columns, str):
        raise OptionError(f"columns is the string {columns!r}, expected a list of names. Write columns=[{columns!r}].")
    known = _known_entries(schema, float64, places, own)
    if columns is None:
        return tuple(known[name] for name in _default_names(schema))
    try:
        names = list(dict.fromkeys(columns))
    except TypeError:
        raise OptionError(f"columns is {columns!r}, expected a list of names, or None for all.") from None
    chosen: dict[str, Entry] = {}
    for name in names:
        if name == "row_id":
            continue  # always there
        if name not in known:
            raise ColumnError(f"Column {name!r} is unknown, expected one of {', '.join(known)}.")
        chosen[name] = known[name]
        mask = _mask_of(schema, name)
        if mask is not None:
            chosen[mask] = known[mask]  # without it a missing value could not be told from 0
    return tuple(chosen.values())


def _mask_of(schema: Schema, name: str) -> str | None:
    """The flags of a nullable column, under the name that goes with it."""
    for prefix in ("", "next_"):
        mask = schema.masks.get(name.removeprefix(prefix))
        if mask is not None and name.startswith(prefix):
            return prefix + mask
    return None


def _default_names(schema: Schema) -> list[str]:
    names = ["observation", "action", "reward", "next_observation", "terminated", "truncated"]
    system = {column.name for column in schema.columns[:9]}
    leaves = {column.name for column in schema.columns if column.name.split(".")[0] in ("observation", "action")}
    for column in schema.columns:
        if column.name not in system and column.name not in leaves and column.name != "reward":
            names.append(column.name)
            if column.owner == "observation":
                names.append("next_" + column.name)
    return names


def _known_entries(schema: Schema, float64: str, places: Mapping[str, Place], own: Place) -> dict[str, Entry]:
    """Every name that a batch can hold."""
    known: dict[str, Entry] = {}
    groups = {"observation": schema.observation_tree, "action": schema.action_tree}
    leaves: dict[str, list[tuple[int, Column]]] = {name: [] for name in groups}
    singles: list[tuple[int, Column]] = []
    for place, column in enumerate(schema.columns):
        head = column.name.split(".")[0]
        (leaves[head] if head in groups else singles).append((place, column))
    for shift, prefix in ((0, ""), (1, "next_")):
        for head, tree in groups.items():
            if shift == 0 or head == "observation":
                outputs = tuple(
                    _output(place, column, shift, float64, places.get(prefix + column.name, own))
                    for place, column in leaves[head]
                )
                known[prefix + head] = Entry(prefix + head, outputs, tree)
                for (_, column), output in zip(leaves[head], outputs, strict=True):
                    known.setdefault(prefix + column.name, Entry(prefix + column.name, (output,), None))
        for place, column in singles:
            if shift == 0 or column.owner == "observation":
                name = prefix + column.name
                output = _output(place, column, shift, float64, places.get(name, own))
                known[name] = Entry(name, (output,), None)
    return known


def _output(column: int, spec: Column, shift: int, float64: str, place: Place) -> Output:
    cast = float64 == "float32" and spec.dtype == "float64"
    dtype = np.dtype("float32") if cast else spec.storage
    if spec.dtype == "bool":
        dtype = np.dtype(np.bool_)
    size = spec.num_elements * dtype.itemsize * (place.repeat or 1)
    shape = spec.shape if place.repeat is None else (place.repeat, *spec.shape)
    shift = shift if place.group in (ROW, LAST) else 0  # other groups say themselves which rows are behind
    return Output(column, place, shift, size, dtype, shape, cast, spec.dtype == "bfloat16")


class _Slab:
    """Memory of one batch, with a tensor over each part of it.

    Batches get aliases of these tensors, never the tensors themselves, so the storage's count of users says whether
    anybody still holds the batch, a part of it, or a view of either.
    """

    __slots__ = ("_idle_count", "_storage", "address", "row_ids", "size", "tables", "tensors")

    tables: dict[str, NDArray[np.int64]]  # what the gather kernel reads, with targets in this slab, by group

    def __init__(
        self, torch: Any, outputs: Sequence[Output], offsets: Sequence[int], shape: Shape, pinned: bool
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
            self.tensors.append(part.view(_torch_dtype(torch, output)).view(-1, *output.shape)[:count])
        row_ids = whole[offsets[-1] :].view(torch.int64)[:num_ids].view(shape)
        self.tensors.append(row_ids)
        self.row_ids: NDArray[np.int64] = memory[offsets[-1] :].view(np.int64)[:num_ids]
        self._storage = whole.untyped_storage()
        del whole, part, row_ids  # from here on only what the slab keeps counts
        self._idle_count = _users(torch, self._storage)

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


def _torch_dtype(torch: Any, output: Output) -> Any:
    return torch.bfloat16 if output.bfloat16 else getattr(torch, output.dtype.name)


class Loader:
    """Gathers located rows into batches of one make. Not thread-safe: use one a thread.

    Args:
        schema: the store's schema.
        columns, float64: see `batch_entries`.
        device: a torch device that batches are moved to; from pinned memory where CUDA exists.
        places: of the columns that are not read from the rows themselves, by name.
        computed: columns that come with what is to be read, in place of those of the store.
        length: of sequences, where these are drawn: so many rows each.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        columns: Sequence[str] | None = None,
        float64: str = "keep",
        device: Any = None,
        places: Mapping[str, Place] = _NO_PLACES,
        computed: Collection[str] = (),
        length: int | None = None,
    ) -> None:
        import torch

        self._torch = torch
        entries = batch_entries(schema, columns, float64, places, Place(ROW, length))
        self._entries = tuple(entry for entry in entries if entry.name not in computed)
        dtypes = {e.name: _torch_dtype(torch, e.outputs[0]) for e in entries if e.name in computed}
        self._computed = {name: dtypes.get(name) for name in computed}
        self._length = length
        self._outputs = [output for entry in self._entries for output in entry.outputs]
        self._items = [schema.columns[output.column].item_bytes for output in self._outputs]
        try:
            self._device = None if device is None else torch.device(device)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise OptionError(f"device is {device!r}, expected a torch device: {str(error).splitlines()[0]}") from None
        if self._device is not None and self._device.type == "cuda" and not torch.cuda.is_available():
            raise OptionError(f"device is {device!r}, but torch finds no CUDA device here. Use device=None, or 'cpu'.")
        self._pinned = self._device is not None and self._device.type == "cuda" and torch.cuda.is_available()
        self._slabs: list[_Slab] = []
        self._count = -1
        self._offsets: list[int] = []
        self._tables: dict[str, NDArray[np.int64]] = {}

    def load(self, snapshot: Snapshot, reading: Reading) -> dict[str, Any]:
        """Read rows into a new batch: name -> tensor [n, *shape], nested where the space is, with ``row_id``."""
        slab = self._read(snapshot, reading)
        return self._add(self._assemble(slab.tensors), reading.columns, 0, self._count)

    def load_many(self, snapshot: Snapshot, reading: Reading, batch_size: int) -> list[dict[str, Any]]:
        """Read rows for several batches of one size in one go; their tensors are parts of one slab."""
        tensors = self._read(snapshot, reading).tensors
        return [
            self._add(self._assemble([tensor[first:stop] for tensor in tensors]), reading.columns, first, stop)
            for first in range(0, self._count, batch_size)
            for stop in (first + batch_size,)
        ]

    def _add(self, batch: dict[str, Any], columns: Extra, first: int, stop: int) -> dict[str, Any]:
        """Add columns that were not read from the store."""
        for name, array in columns.items():
            tensor = self._torch.from_numpy(array[first:stop])
            if name in self._computed:
                dtype = self._computed[name]
                if dtype is None:
                    continue  # not wanted
                tensor = tensor.to(dtype)
            batch[name] = tensor if self._device is None else tensor.to(self._device, copy=True)
        return batch

    def _read(self, snapshot: Snapshot, reading: Reading) -> _Slab:
        """Gather rows into a slab."""
        row_ids = reading.groups[ROW].row_ids
        count = row_ids.size // (self._length or 1)
        if count != self._count:
            self._lay_out(count)
        slab = self._take_slab()
        for group, table in slab.tables.items():
            snapshot.gather(reading.groups[group], table)
        for group, blank in reading.blanks.items():
            self._blank(slab, group, blank)
        slab.row_ids[:] = row_ids
        return slab

    def _blank(self, slab: _Slab, group: str, blank: NDArray[np.bool_]) -> None:
        """Zero what stands for rows that there are none of."""
        if blank.any():
            places = self._torch.from_numpy(blank)
            for output, tensor in zip(self._outputs, slab.tensors, strict=False):
                if output.place.group == group:
                    tensor.view(places.numel(), -1)[places] = 0

    def _lay_out(self, count: int) -> None:
        """Decide where each output lies in a slab for so many rows, and the tables that the kernel reads."""
        offsets, place = [], 0
        for output in self._outputs:
            offsets.append(place)
            place += -(-max(count, 1) * output.item_bytes // _ALIGNMENT) * _ALIGNMENT
        rows: dict[str, list[tuple[int, ...]]] = {}
        for output, item, offset in zip(self._outputs, self._items, offsets, strict=True):
            rows.setdefault(output.place.group, []).append((output.column, output.shift, item, output.cast, offset))
        self._tables = {group: np.array(each, np.int64).reshape(-1, 5) for group, each in rows.items()}
        self._offsets = [*offsets, place]
        self._count = count
        self._slabs = []

    def _take_slab(self) -> _Slab:
        """Memory that nobody holds: a kept slab that only we refer to, or a fresh one."""
        for slab in self._slabs:
            if slab.idle(self._torch):
                return slab
        shape = (self._count,) if self._length is None else (self._count, self._length)
        slab = _Slab(self._torch, self._outputs, self._offsets, shape, self._pinned)
        slab.tables = {group: table + np.array([0, 0, 0, 0, slab.address]) for group, table in self._tables.items()}
        if len(self._slabs) >= _KEPT_SLABS:
            self._slabs.pop(0)
        self._slabs.append(slab)
        return slab

    def _assemble(self, parts: Sequence[Any]) -> dict[str, Any]:
        if self._device is None:
            tensors = [tensor.detach() for tensor in parts]
        else:
            # A copy even where the slab lies on that device already: the slab is used again.
            tensors = [tensor.to(self._device, non_blocking=self._pinned, copy=True) for tensor in parts]
            if self._pinned:
                self._torch.cuda.current_stream(self._device).synchronize()
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


def as_row_ids(value: Any) -> NDArray[np.int64]:
    """Row ids given as an array, a tensor or a column, as int64[n]."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    elif hasattr(value, "column_names"):
        raise ColumnError(
            f"row_ids is a {type(value).__name__} of {list(value.column_names)}, expected one column. "
            'Give table["row_id"].'
        )
    elif hasattr(value, "combine_chunks"):
        value = value.combine_chunks().to_numpy(zero_copy_only=False)
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.zeros((0, 0), object)  # lists of different lengths
    if array.ndim == 1 and array.dtype == np.int64 and array.flags.c_contiguous and array.flags.writeable:
        return array
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ColumnError(
            f"row_ids has shape {array.shape} and dtype {array.dtype}, expected one dimension of int64. "
            "Take row ids from a batch, or from SELECT row_id FROM transitions."
        )
    return np.require(array, np.int64, ("C", "W"))  # kernels take writable arrays; Arrow gives others


def to_torch(batch: pa.RecordBatch | pa.Table) -> dict[str, torch.Tensor]:
    """Turn a record batch of a collector, or numbers out of SQL, into tensors: name -> tensor [n, *shape].

    Names stay as they are (``observation.camera``). A nullable column of a collector, and any column with nulls, comes
    with a mask ``<name>.valid``, and zeros where it is null. The tensors are copies.

    Vectors out of SQL are flat, and images are bytes, which this refuses: select ``row_id`` and gather them instead.
    """
    import torch

    if not isinstance(batch, pa.RecordBatch | pa.Table):
        raise ColumnError(f"batch is a {type(batch).__name__}, expected a pyarrow RecordBatch or Table.")
    tensors: dict[str, Any] = {}
    for field, array in zip(batch.schema, batch.columns, strict=True):
        column = _column_of(field)
        values = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        nullable = field.nullable and b"dtype" in (field.metadata or {})  # as a collector declares it
        if values.null_count or nullable:
            valid = values.is_valid().to_numpy(zero_copy_only=False)
            tensors[field.name + ".valid"] = torch.from_numpy(valid.copy())
            whole = np.zeros((len(values), *column.shape), column.storage)
            whole[valid] = column_numpy(column, values.drop_null(), field.name)
        else:
            whole = np.array(column_numpy(column, values, field.name))
        if column.dtype == "bool":
            whole = whole.astype(np.bool_)
        tensor = torch.from_numpy(whole.view(np.int16) if column.dtype == "bfloat16" else whole)
        tensors[field.name] = tensor.view(torch.bfloat16) if column.dtype == "bfloat16" else tensor
    return tensors


def _column_of(field: pa.Field) -> Column:
    """The column that an Arrow field describes: by its metadata where it is ours, else by its type."""
    metadata: Mapping[bytes, bytes] = field.metadata or {}
    if b"dtype" in metadata and b"shape" in metadata:
        shape = tuple(int(size) for size in json.loads(metadata[b"shape"]))
        return Column(field.name, metadata[b"dtype"].decode(), shape, "transition")
    kind, shape = field.type, ()
    if isinstance(kind, pa.FixedShapeTensorType):
        kind, shape = kind.value_type, tuple(kind.shape)
    elif pa.types.is_fixed_size_list(kind):
        kind, shape = kind.value_type, (kind.list_size,)
    try:
        dtype = np.dtype(kind.to_pandas_dtype()).name
    except (NotImplementedError, TypeError):
        dtype = ""
    if dtype not in DTYPES:
        raise ColumnError(
            f"Column {field.name!r} has Arrow type {field.type}, expected numbers, flags or fixed-size lists of them. "
            "Select other columns, or cast it."
        )
    return Column(field.name, dtype, shape, "transition")
