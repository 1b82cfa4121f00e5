"""What an export is made of: its columns, and groups of rows of them as Parquet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import kernels, parquet
from ..engine import Located, Snapshot
from ..errors import CorruptError
from ..rows import POSITION_BITS, SHARD_SHIFT, Kind
from ..schema import Column, Schema
from ..tiers.cold_writing import encodings

_KIND: Final = 6
_SHOWN_SYSTEM: Final = (0, 1, 3, 2, 4, 5)  # ordinal, time, lane, episode_id, step, policy_version


@dataclass(frozen=True, slots=True)
class Output:
    """A column of the export: which column of the store it is, of which row, and as what."""

    field: pa.Field
    column: Column
    place: int
    shift: int
    mask: int  # place of the valid flags, or -1


def outputs_of(schema: Schema, *, steps: bool, images: str) -> list[Output]:
    """The columns of the export, in the order of the SQL views."""
    places = {column.name: place for place, column in enumerate(schema.columns)}
    masks = schema.masks
    flags = set(masks.values())
    observed = [c for c in schema.observation_columns if c.name not in flags]
    followed = [c for c in schema.transition_columns if c.name not in flags]
    leaves = [c for c in observed if c.name not in schema.all_extras]
    first_extra = [c for c in followed if c.name in schema.all_extras]
    fixed = [c for c in followed if c.name in ("terminated", "truncated")]
    actions = [c for c in followed if c not in first_extra and c not in fixed]
    wanted = [(schema.columns[place], 0) for place in _SHOWN_SYSTEM]
    wanted += [(c, 0) for c in (*leaves, *actions)]
    wanted += [(c, 1) for c in leaves if not steps]
    wanted += [(c, 0) for c in (*fixed, *first_extra)]
    for c in observed:
        if c not in leaves:
            wanted += [(c, 0), *([] if steps else [(c, 1)])]
    outputs = []
    for column, shift in wanted:
        nullable = column.name in masks or (steps and column.owner == "transition")
        metadata = column.field().metadata
        name = ("next_" if shift else "") + column.name
        field = pa.field(name, _type(column, images, nullable=nullable), nullable=nullable, metadata=metadata)
        outputs.append(Output(field, column, places[column.name], shift, places.get(masks.get(column.name, ""), -1)))
    return outputs


def _type(column: Column, images: str, *, nullable: bool) -> pa.DataType:
    """Flags are booleans, vectors fixed-size lists, images bytes or lists.

    Where a list may be NULL, so may its elements by their type, though none is: polars 2.1 panics over lists that may
    be and elements that may not, in any other encoding than plain.
    """
    if column.encoding == "binary" and (images == "binary" or column.item_bytes == 0):
        return pa.binary(column.item_bytes)
    element = {"bool": pa.bool_(), "bfloat16": pa.float32()}.get(column.dtype, pa.from_numpy_dtype(column.storage))
    if not column.shape:
        return element
    return pa.list_(pa.field("element", element, nullable=nullable), column.num_elements)


def fields_of(outputs: list[Output], described: str) -> pa.Schema:
    """The schema of the files; ``described`` is the store's."""
    fields = [pa.field("row_id", pa.int64(), nullable=False), *(output.field for output in outputs)]
    return pa.schema(fields, metadata={"arrowrb.schema": described})


def encode_group(
    snapshot: Snapshot, outputs: list[Output], fields: pa.Schema, compression: str, row_ids: NDArray[np.int64]
) -> pa.Buffer:
    """A Parquet file of one row group."""
    return parquet.encoded(
        _gather(snapshot, row_ids, outputs, fields),
        vectors=compression == "lz4",
        compression=compression,
        use_dictionary=False,
        column_encoding=encodings(fields),
        write_page_checksum=True,
        # Arrow's defaults are for rows of single values: it goes through a vector's numbers 1,024 at a time.
        write_batch_size=1 << 16,
        data_page_size=1 << 19,
        write_statistics=[output.field.name for output in outputs if not output.column.shape],
    )


def _gather(snapshot: Snapshot, row_ids: NDArray[np.int64], outputs: list[Output], fields: pa.Schema) -> pa.RecordBatch:
    """Rows of the export, whatever tier they lie in."""
    ids = np.array(row_ids, np.int64)
    slots, positions = np.empty(ids.size, np.int64), np.empty(ids.size, np.int64)
    layout = snapshot.layout
    lost = kernels.locate(ids, layout.shard_table, layout.slot_table, SHARD_SHIFT, POSITION_BITS, slots, positions)
    if lost >= 0:
        raise CorruptError(f"Row {ids[lost]} lies in no segment. Run `arrowrb verify`.")
    located = Located(slots, positions, ids)
    # All columns in one pass, their valid flags and the kinds (to tell tails) among them.
    reads = [(output.place, output.shift) for output in outputs]
    reads += [(output.mask, output.shift) for output in outputs if output.mask >= 0]
    values = snapshot.read(located, [*reads, (_KIND, 0)])
    is_transition = values[_KIND, 0] == int(Kind.TRANSITION)
    required = any(output.column.owner == "transition" and not output.field.nullable for output in outputs)
    if required and not is_transition.all():
        wrong = int(ids[np.argmin(is_transition)])
        raise CorruptError(f"Row {wrong} is no transition, but the tables of episodes say so. Run `arrowrb verify`.")
    arrays = [pa.Array.from_buffers(pa.int64(), ids.size, [None, pa.py_buffer(ids)])]
    for output in outputs:
        valid = None
        if output.mask >= 0:
            valid = values[output.mask, output.shift] != 0
        if output.column.owner == "transition" and not is_transition.all():
            valid = is_transition if valid is None else valid & is_transition
        arrays.append(_array(output, values[output.place, output.shift], valid))
    return pa.RecordBatch.from_arrays(arrays, schema=fields)


def _array(output: Output, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> pa.Array:
    kind, count = output.field.type, len(values)
    bits = None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, count, [bits, pa.py_buffer(values)])
    element = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    if output.column.dtype == "bool":
        content = pa.py_buffer(np.packbits(values.reshape(-1) != 0, bitorder="little"))
    elif output.column.dtype == "bfloat16":
        content = pa.py_buffer(np.ascontiguousarray(values).astype(np.uint32) << np.uint32(16))
    else:
        content = pa.py_buffer(values)
    if element is kind:
        return pa.Array.from_buffers(kind, count, [bits, content])
    items = pa.Array.from_buffers(element, count * output.column.num_elements, [None, content])
    return pa.Array.from_buffers(kind, count, [bits], children=[items])
