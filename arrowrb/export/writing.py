"""Writing an export: rows are gathered some thousand at a time and go into Parquet files of a target size.

All files are written into a hidden folder beside the target, and synced; then the folder takes the target's name. An
interrupted export leaves at most that hidden folder, which says by its name that it is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .. import files, kernels, sql
from ..engine import Engine, Located, Snapshot
from ..errors import CorruptError, OptionError, StoreExistsError
from ..rows import POSITION_BITS, SHARD_SHIFT, Kind
from ..schema import Column, Schema
from ..tiers.cold import encodings
from .ordering import keep_only, order_rows

FORMATS: Final = ("parquet",)
ROWS: Final = ("transitions", "steps")
IMAGES: Final = ("binary", "list")
COMPRESSIONS: Final = ("lz4", "zstd", "snappy", "gzip", "none")
_KIND: Final = 6
_SHOWN_SYSTEM: Final = (0, 1, 3, 2, 4, 5)  # ordinal, time, lane, episode_id, step, policy_version
_GROUP_BYTES: Final = 8 << 20
_MOST_GROUP_ROWS: Final = 1 << 16
_LEAST_FILE_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: the folder.
        files: in the order of the data set.
        num_rows: in all of them.
        num_bytes: of all of them.
    """

    path: Path
    files: tuple[Path, ...]
    num_rows: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Output:
    """A column of the export: which column of the store it is, of which row, and as what."""

    field: pa.Field
    column: Column
    place: int
    shift: int
    mask: int  # place of the valid flags, or -1


def export(
    engine: Engine,
    path: Path,
    *,
    format: str = "parquet",  # noqa: A002
    where: str | None = None,
    rows: str = "transitions",
    images: str = "binary",
    file_bytes: int = 256 << 20,
    compression: str = "lz4",
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write what is visible now, or a part of it, as Parquet files; see `Store.export`."""
    _check(format, rows, images, file_bytes, compression)
    path = _check_target(path, engine.path)
    snapshot, row_ids = _choose(engine, rows, where)
    outputs = _outputs(engine.schema, steps=rows == "steps", images=images)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with files.explaining(path, "exporting"):
        try:
            temporary.mkdir(parents=True)
            names = _write(snapshot, row_ids, outputs, temporary, file_bytes, compression, progress)
            files.sync_directory(temporary)
            os.rename(temporary, path)  # onto nothing, or an empty folder
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        files.sync_directory(path.parent)
        written = tuple(path / name for name in names)
        return Exported(path, written, row_ids.size, sum(each.stat().st_size for each in written))


def _check(kind: str, rows: str, images: str, file_bytes: int, compression: str) -> None:
    for name, value, choices in (
        ("format", kind, FORMATS),
        ("rows", rows, ROWS),
        ("images", images, IMAGES),
        ("compression", compression, COMPRESSIONS),
    ):
        if not isinstance(value, str) or value not in choices:
            raise OptionError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}.")
    number = isinstance(file_bytes, int | np.integer) and not isinstance(file_bytes, bool)
    if not number or file_bytes < _LEAST_FILE_BYTES:
        raise OptionError(f"file_bytes is {file_bytes!r}, expected a whole number of at least {_LEAST_FILE_BYTES:,}.")


def _check_target(path: Path, store: Path) -> Path:
    """The folder to write, without links; refused before anything is read for it."""
    with files.explaining(path, "looking at the target"):
        path = Path(os.path.realpath(path))
        if path.is_relative_to(os.path.realpath(store)):
            raise StoreExistsError(f"{path} lies inside the store. Choose a folder beside it.")
        if path.is_mount():
            raise StoreExistsError(f"{path} is where a disk is mounted. Name a folder to make in it.")
        if path.exists() and not path.is_dir():
            raise StoreExistsError(f"{path} is a file, expected a folder to make or an empty one. Choose another path.")
        if path.is_dir() and any(path.iterdir()):
            raise StoreExistsError(f"{path} is not empty. Export into a new or an empty folder.")
    return path


def _choose(engine: Engine, rows: str, where: str | None) -> tuple[Snapshot, NDArray[np.int64]]:
    """A snapshot, and the row ids of the export in order."""
    chosen = None
    if where is None:
        snapshot = engine.snapshot()
    else:
        if not isinstance(where, str):
            raise OptionError(f'where is {where!r}, expected a condition in SQL such as "reward > 0".')
        sql.check_condition(where)
        query = sql.run(engine, f"SELECT row_id FROM {rows} WHERE (\n{where}\n)")
        snapshot, chosen = query.snapshot, query.arrow()["row_id"].to_numpy()
    row_ids = order_rows(sql.read_live_runs(snapshot, engine.path), steps=rows == "steps")
    if chosen is None:
        return snapshot, row_ids
    kept = keep_only(row_ids, chosen)
    if kept.size != chosen.size:
        raise CorruptError(f"{chosen.size:,} rows were chosen, {kept.size:,} are found. Run `arrowrb verify`.")
    return snapshot, kept


def _outputs(schema: Schema, *, steps: bool, images: str) -> list[_Output]:
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
        field = pa.field(name, _type(column, images), nullable=nullable, metadata=metadata)
        outputs.append(_Output(field, column, places[column.name], shift, places.get(masks.get(column.name, ""), -1)))
    return outputs


def _type(column: Column, images: str) -> pa.DataType:
    """Flags are booleans, vectors fixed-size lists, images bytes or lists."""
    if column.encoding == "binary" and (images == "binary" or column.item_bytes == 0):
        return pa.binary(column.item_bytes)
    element = {"bool": pa.bool_(), "bfloat16": pa.float32()}.get(column.dtype, pa.from_numpy_dtype(column.storage))
    if not column.shape:
        return element
    return pa.list_(pa.field("element", element, nullable=False), column.num_elements)


def _write(
    snapshot: Snapshot,
    row_ids: NDArray[np.int64],
    outputs: list[_Output],
    folder: Path,
    file_bytes: int,
    compression: str,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Write the files; returns their names."""
    fields = pa.schema([pa.field("row_id", pa.int64(), nullable=False), *(output.field for output in outputs)])
    described = json.dumps(snapshot.layout.schema.to_json())
    fields = fields.with_metadata({"arrowrb.schema": described})
    row_bytes = sum(output.column.item_bytes for output in outputs)
    step = max(64, min(_MOST_GROUP_ROWS, min(_GROUP_BYTES, file_bytes) // max(row_bytes, 1)))
    names: list[str] = []
    with ThreadPoolExecutor(1, "arrowrb-export") as pool:  # gathers the next rows while these are written
        read = partial(_gather, snapshot, outputs=outputs, fields=fields)
        first, following = 0, pool.submit(read, row_ids[:step])
        while first < row_ids.size or not names:
            names.append(f"part-{len(names):05d}.parquet")
            with _writer(folder / names[-1], fields, outputs, compression) as (writer, sink):
                while first < row_ids.size and sink.tell() < file_bytes:
                    batch = following.result()
                    first += batch.num_rows
                    following = pool.submit(read, row_ids[first : first + step])
                    writer.write_batch(batch, row_group_size=step)
                    if progress is not None:
                        progress(first, row_ids.size)
    return names


@contextlib.contextmanager
def _writer(path: Path, fields: pa.Schema, outputs: list[_Output], compression: str) -> Iterator[tuple[Any, Any]]:
    """A Parquet file to write, synced when it is whole."""
    with (
        pa.OSFile(str(path), "wb") as sink,
        pq.ParquetWriter(
            sink,
            fields,
            compression=compression,
            use_dictionary=False,
            column_encoding=encodings(fields),
            write_page_checksum=True,
            write_statistics=[output.field.name for output in outputs if not output.column.shape],
        ) as writer,
    ):
        yield writer, sink
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        files.sync_descriptor(descriptor, path)
    finally:
        os.close(descriptor)


def _gather(
    snapshot: Snapshot, row_ids: NDArray[np.int64], outputs: list[_Output], fields: pa.Schema
) -> pa.RecordBatch:
    """Rows of the export, whatever tier they lie in."""
    ids = np.array(row_ids, np.int64)
    slots, positions = np.empty(ids.size, np.int64), np.empty(ids.size, np.int64)
    layout = snapshot.layout
    kernels.locate(ids, layout.shard_table, layout.slot_table, SHARD_SHIFT, POSITION_BITS, slots, positions)
    located = Located(slots, positions, ids)
    # All columns in one pass, their valid flags and the kinds (to tell tails) among them.
    reads = [(output.place, output.shift) for output in outputs]
    reads += [(output.mask, output.shift) for output in outputs if output.mask >= 0]
    reads = list(dict.fromkeys([*reads, (_KIND, 0)]))
    columns = layout.schema.columns
    values = {
        (place, shift): np.empty((ids.size, *columns[place].shape), columns[place].storage) for place, shift in reads
    }
    table = [
        (place, shift, columns[place].item_bytes, 0, array.__array_interface__["data"][0])
        for (place, shift), array in values.items()
    ]
    snapshot.gather(located, np.array(table, np.int64))
    is_transition = values[_KIND, 0] == int(Kind.TRANSITION)
    arrays = [pa.Array.from_buffers(pa.int64(), ids.size, [None, pa.py_buffer(ids)])]
    for output in outputs:
        valid = None
        if output.mask >= 0:
            valid = values[output.mask, output.shift] != 0
        if output.column.owner == "transition" and not is_transition.all():
            valid = is_transition if valid is None else valid & is_transition
        arrays.append(_array(output, values[output.place, output.shift], valid))
    return pa.RecordBatch.from_arrays(arrays, schema=fields)


def _array(output: _Output, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> pa.Array:
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
