"""Sources: Parquet files as one sequence of rows, and where in them the columns of a store are.

A column of the store is looked up under its own name (``observation``, ``next_observation.camera``, ``reward``),
unless the caller names another: of one column, of a field within a struct (``obs.state``), or of several columns of
numbers that make one vector.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ..engine import check_path, enclosing_store
from ..errors import ArrowRBError, ColumnError, CorruptError, OptionError, SchemaError, StoreError
from ..files import explaining
from ..schema import Schema

_SCHEMA_KEY: Final = b"arrowrb.schema"
_NAMED: Final = 12
Names = Mapping[str, "str | Sequence[str] | None"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a column is: a column of the file, and the fields to go down within it. Several make a vector.

    Attributes:
        paths: of each part.
        is_vector: whether the parts make one column of vectors.
    """

    paths: tuple[tuple[str, ...], ...]
    is_vector: bool = False


class ParquetSource:
    """Files of one kind, in order.

    Args:
        source: a file, a folder (all ``*.parquet`` in it, at any depth), a pattern with ``*``, or a list of those.
    """

    def __init__(self, source: Any) -> None:
        self.files = find_files(source)
        if not self.files:
            raise OptionError(f"source is {source!r}, expected one file or more.")
        self.num_rows = 0
        for number, path in enumerate(self.files):
            with opened(path) as file:
                self.num_rows += file.metadata.num_rows
                if number == 0:
                    self.schema = file.schema_arrow

    def described(self) -> Schema | None:
        """The schema that an export of ours has in its metadata."""
        text = (self.schema.metadata or {}).get(_SCHEMA_KEY)
        if text is None:
            return None
        try:
            return Schema.from_json(json.loads(text))
        except (ValueError, RecursionError) as error:
            if isinstance(error, SchemaError):
                raise
            raise CorruptError(f"{self.files[0]} has a damaged schema of arrowrb in its metadata: {error}.") from None

    def find(self, name: str, columns: Names) -> Place | None:
        """Where a column of the store is; None where the files have none.

        Args:
            name: of the store's column, with ``next_`` before that of a next observation.
            columns: the caller's names.

        Raises:
            ColumnError: if the caller names a column that is not there.
        """
        given = columns.get(name)
        if given is None and name in columns:
            return None
        if given is None:
            for root in ("observation", "next_observation", "action"):
                if name.startswith(root + ".") and isinstance(columns.get(root), str):
                    given = f"{columns[root]}{name[len(root) :]}"
        if given is None:
            path = _locate(self.schema, name)
            return None if path is None else Place((path,))
        parts = [given] if isinstance(given, str) else list(given)
        found = [_locate(self.schema, part) for part in parts]
        for part, path in zip(parts, found, strict=True):
            if path is None:
                there = ", ".join(map(repr, self.schema.names[:_NAMED]))
                raise ColumnError(f"Column {part!r}, given for {name!r}, is not in {self.files[0]}, which has {there}.")
        return Place(tuple(path for path in found if path is not None), not isinstance(given, str))

    def lacks(self, name: str) -> ColumnError:
        """The error for a column that must be there and is not."""
        there = ", ".join(map(repr, self.schema.names[:_NAMED]))
        return ColumnError(
            f"Column {name!r} is not in {self.files[0]}, which has {there}. Say which it is: "
            f"columns={{{name!r}: ...}}, or --column {name}=... on the command line."
        )

    def tables(self, path: Path, places: Mapping[str, Place], num_rows: int) -> Iterator[pa.Table]:
        """Some rows of a file after others, with the store's names.

        Raises:
            ColumnError: if the file lacks a column that the first has, or has it of another type.
            CorruptError: if it cannot be read.
        """
        tops = list(dict.fromkeys(way[0] for place in places.values() for way in place.paths))
        with opened(path) as file:
            for top in tops:
                index, kind = file.schema_arrow.get_all_field_indices(top), self.schema.field(top).type
                if len(index) != 1 or file.schema_arrow.field(index[0]).type != kind:
                    raise ColumnError(
                        f"{path} has no column {top!r} of type {kind}, which {self.files[0]} has. Import files of "
                        "one kind together."
                    )
            for batch in file.iter_batches(batch_size=num_rows, columns=tops):
                arrays = {name: _take(batch, place, name) for name, place in places.items()}
                yield pa.table(arrays) if arrays else pa.table({"": pa.nulls(batch.num_rows)})


@contextlib.contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file, closed at the end; whatever is wrong with it is an error of ours that names it."""
    try:
        # Opened by Python, whose names of files may be any bytes.
        with open(path, "rb") as content, pq.ParquetFile(content, page_checksum_verification=True) as file:
            yield file
    except ArrowRBError:
        raise
    except (pa.ArrowException, OSError, UnicodeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error
        raise CorruptError(f"{path} is no Parquet file, or damaged: {error}.") from error


def find_files(source: Any) -> tuple[Path, ...]:
    """The Parquet files of a source, numbers in their names in order of value.

    Raises:
        StoreError: if there are none.
    """
    if isinstance(source, list | tuple):
        return tuple(path for each in source for path in find_files(each))
    path = check_path(source, "source", "the path of Parquet files or of a folder of them")
    if source in ("", b""):
        raise OptionError("source is empty, expected the path of Parquet files or of a folder of them.")
    with explaining(path, "looking for Parquet files"):
        if path.is_dir():
            inside = (each for each in path.rglob("*.parquet") if each.is_file())
            found = [each for each in inside if not _is_hidden(each.relative_to(path))]
        elif path.exists():
            if not path.is_file():
                raise StoreError(f"{path} is a pipe or a device, expected a Parquet file or a folder of such.")
            found = [path]
        else:
            found = [Path(each) for each in glob.glob(str(path), recursive=True) if os.path.isfile(each)]
        for each in found:
            store = enclosing_store(each)
            if store is not None:
                raise StoreError(f"{each} belongs to the store {store}. Merge that, or export it first.")
    if not found:
        raise StoreError(f"{path} is no Parquet file and no folder of such. Check the path.")
    return tuple(sorted(found, key=_natural))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _natural(path: Path) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece), "") if piece.isdecimal() and piece.isascii() else (-1, piece) for piece in pieces]


def _locate(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """The way to a column: its own name, or that of a struct and, behind a dot, of a field in it."""
    count = schema.names.count(name)
    if count > 1:
        raise ColumnError(f"Column {name!r} is in the files {count} times. Rename them.")
    if count:
        return (name,)
    for top in schema.names:
        if name.startswith(top + "."):
            rest = _descend(schema.field(top).type, name[len(top) + 1 :])
            if rest is not None:
                return (top, *rest)
    return None


def _descend(kind: pa.DataType, name: str) -> tuple[str, ...] | None:
    if not pa.types.is_struct(kind):
        return None
    for field in kind:
        if field.name == name:
            return (name,)
        if name.startswith(field.name + "."):
            rest = _descend(field.type, name[len(field.name) + 1 :])
            if rest is not None:
                return (field.name, *rest)
    return None


def _take(batch: pa.RecordBatch, place: Place, name: str) -> pa.Array:
    parts = [_field(batch.column(path[0]), path[1:]) for path in place.paths]
    return stack(parts, name) if place.is_vector else parts[0]


def _field(array: pa.Array, path: Iterable[str]) -> pa.Array:
    import pyarrow.compute as pc

    for name in path:
        array = pc.struct_field(array, name)
    return array


def stack(parts: Sequence[pa.Array], name: str) -> pa.Array:
    """Columns of numbers as one column of vectors."""
    import numpy as np

    for part in parts:
        kind = part.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ColumnError(f"Column {name!r} is made of several, expected numbers in each, got {kind}.")
        if part.null_count:
            raise ColumnError(f"Column {name!r} is made of several, one of which has {part.null_count} nulls.")
    values = np.stack([part.to_numpy(zero_copy_only=False) for part in parts], axis=1)
    for place, part in enumerate(parts):
        if values.dtype.kind == "f" and pa.types.is_integer(part.type):
            whole = np.asarray(part)
            exact = 1 << (np.finfo(values.dtype).nmant + 1)
            if whole.size and not (whole.min() >= -exact and whole.max() <= exact):
                raise ColumnError(
                    f"Column {name!r} is made of several, of which number {place} is {part.type} and others are not: "
                    f"{values.dtype} does not hold all of its values. Cast them first."
                )
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), len(parts))
