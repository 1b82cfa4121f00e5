"""What users give and take: row ids in any form, and record batches as tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ColumnError
from ..schema import Column
from ..schema.arrays import column_numpy
from ..schema.columns import DTYPES

if TYPE_CHECKING:
    import torch


def as_row_ids(value: Any, name: str = "row_ids", like: str = "") -> NDArray[np.int64]:
    """Row ids given as an array, a tensor or a column, as int64[n]; or other such numbers, and what they are like."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    elif hasattr(value, "column_names"):
        raise ColumnError(
            f"{name} is a {type(value).__name__} of {list(value.column_names)}, expected one column. "
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
            f"{name} has shape {array.shape} and dtype {array.dtype}, expected one dimension of int64. "
            + (f"Give {like}." if like else "Take row ids from a batch, or from SELECT row_id FROM transitions.")
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


def pad(batch: dict[str, Any], lengths: NDArray[np.int64]) -> dict[str, Any]:
    """Runs that lie end to end, [steps, *shape], side by side: [n, longest, *shape], with ``mask``."""
    import torch

    mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).to(batch["row_id"].device)

    def padded(value: Any, fill: int = 0) -> Any:
        if isinstance(value, dict):
            return {name: padded(each) for name, each in value.items()}
        if isinstance(value, tuple):
            return tuple(padded(each) for each in value)
        whole = value.new_full((*mask.shape, *value.shape[1:]), fill)
        whole[mask] = value
        return whole

    side = {name: padded(value, -1 if name == "row_id" else 0) for name, value in batch.items() if name != "length"}
    return {**side, "length": batch["length"], "mask": mask}


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
