"""The log of a named sampler: which rows went into which batch, with what weight.

``samples-<n>.arrow`` in the sampler's folder are Arrow files whose space is allocated and which are filled in place, as
segments are, so any Arrow reader opens them at any moment. A row of a batch is: ``batch``, which counts from 1 on over
all that a sampler of this name ever gave; ``batch_size``, how many rows the batch has; ``row_id``; ``watermark``, up to
which commit of its shard the batch could see; what was drawn beside the row, such as ``weight``, or ``hidden.<name>``
where only views see it; and ``check``, a hash of all this and of the place in the file. Rows that are not filled are
zero bytes. The file's metadata say how the batches were read: one that is read otherwise has another file.

A batch counts if all its rows are there and agree with their checks. So whatever moment a process dies at, its log has
every batch that was handed out before, and nothing else; after a power failure the newest batches may be missing that
the system had not written out, but none is wrong: a file is synced when the second one after it begins, and whoever
takes the folder next clears what is left of batches that are not whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import files
from ..errors import ArrowRBError, CorruptError, RowError, UsageError
from ..schema import Column
from ..tiers import hot
from .sampler_folders import SamplerFolder, sampler_folders

_LEAST_ROWS: Final = 1 << 8  # of the first file; each further one has twice as many,
_MOST_ROWS: Final = 1 << 17  # up to this, unless one batch has more
_NAME: Final = re.compile(r"samples-(\d{8})\.arrow")
_OWN: Final = (("batch", "int64"), ("batch_size", "int32"), ("row_id", "int64"), ("watermark", "int64"))
_CHECK: Final = ("check", "uint32")
_HIDDEN: Final = "hidden."
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying loses nothing
_HALF: Final = np.uint64(32)
_REMEDY: Final = "`arrowrb repair` sets it aside; the batches in it are forgotten then."

Columns = Mapping[str, NDArray[Any]]

SAMPLES: Final = pa.schema(
    [
        ("sampler", pa.run_end_encoded(pa.int32(), pa.string())),
        ("batch", pa.int64()),
        ("place", pa.int32()),
        ("row_id", pa.int64()),
        ("weight", pa.float32()),
    ]
)


class Logged(NamedTuple):
    """One batch of a log.

    Attributes:
        row_ids: int64[n], in the batch's order.
        watermarks: int64[n], of each row's shard when they were drawn.
        columns: what was drawn beside them and shown.
        hidden: likewise, and not shown.
        reading: how the batch was read, in words; empty where that is not known.
    """

    row_ids: NDArray[np.int64]
    watermarks: NDArray[np.int64]
    columns: Columns
    hidden: Columns
    reading: str


@dataclass(frozen=True, slots=True)
class _Fields:
    columns: tuple[Column, ...]
    reading: str

    @classmethod
    def of(cls, told: Columns, reading: str) -> _Fields:
        """Of a log that says this beside what all say."""
        names = [*_OWN, *((name, array.dtype.name) for name, array in told.items()), _CHECK]
        return cls(tuple(Column(name, dtype, (), "row") for name, dtype in names), reading)

    @property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema([column.field() for column in self.columns], {hot.NOTE: self.reading.encode()})


def name_of(number: int) -> str:
    """The name of a log's file."""
    return f"samples-{number:08d}.arrow"


def log_files(folder: Path) -> dict[int, Path]:
    """The files of a sampler's log by number, the oldest first."""
    found = {}
    with files.explaining(folder, "looking for a log"):
        for path in folder.iterdir():
            named = _NAME.fullmatch(path.name)
            if named is not None:
                found[int(named[1])] = path
    return dict(sorted(found.items()))


def _identity(store_id: str, sampler: str, number: int) -> str:
    return f"{store_id}/{sampler}/samples/{number}"


def _end(values: NDArray[Any]) -> int:
    """Behind the last value that is not zero."""
    found = np.flatnonzero(values != 0)  # of a copy: they may be written meanwhile
    return int(found[-1]) + 1 if found.size else 0


class _Chunk:
    """One mapped file of a log."""

    def __init__(self, path: Path, identity: str, *, writable: bool = False) -> None:
        schema, rows, _, size = hot.read_shape(path)
        fields = _fields_of(schema, path)
        self._segment = hot.open_segment(path, fields, identity, rows, size, writable=writable)
        self.fields, self.rows = fields, rows
        self.columns = {column.name: self._segment.column(place) for place, column in enumerate(fields.columns)}

    @property
    def mapped(self) -> hot.HotSegment:
        """The file."""
        return self._segment

    def checks(self, first: int, stop: int) -> NDArray[np.uint32]:
        """What ``check`` has to be."""
        mixed = np.arange(first + 1, stop + 1, dtype=np.uint64)
        for name, values in self.columns.items():
            if name != _CHECK[0]:
                mixed ^= values[first:stop].view(f"u{values.itemsize}")
                mixed *= _FACTOR
                mixed ^= mixed >> _HALF
        check: NDArray[np.uint32] = (mixed * _FACTOR >> _HALF).astype(np.uint32)
        return check

    def right(self) -> NDArray[np.bool_]:
        """Which rows agree with their checks, up to the last that does."""
        stop = _end(self.columns["check"])
        right: NDArray[np.bool_] = (self.checks(0, stop) == self.columns["check"][:stop]) & (
            self.columns["batch"][:stop] > 0
        )
        return right[: _end(right)]

    def whole(self) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        """Which rows are those of batches that are whole, up to the last of these; and their places in the batch."""
        right = self.right()
        if not right.size:
            return right, np.zeros(0, np.int32)
        batch, size = self.columns["batch"][: right.size], self.columns["batch_size"]
        first = np.flatnonzero(np.append(True, batch[1:] != batch[:-1]))
        counts = np.diff(np.append(first, right.size))
        whole = np.logical_and.reduceat(right, first) & (counts == size[first])
        place = np.arange(right.size) - first.repeat(counts)
        kept = whole.repeat(counts)
        stop = _end(kept)
        return kept[:stop], place[:stop].astype(np.int32)

    def find_wrong(self, *, is_newest: bool) -> int | None:
        """The first row that holds something, and is none of a batch that is whole.

        Args:
            is_newest: among the log's files: then one more batch may have been begun behind those that are whole.
        """
        whole, _ = self.whole()
        wrong = np.zeros(self.rows, np.bool_)
        for values in self.columns.values():
            wrong |= values != 0
        wrong[: whole.size] &= ~whole
        begun = np.flatnonzero(wrong[whole.size :]) + whole.size
        sizes, numbers = self.columns["batch_size"][begun], self.columns["batch"][begun]
        most = int(sizes.max(initial=0)) or begun.size
        if is_newest and begun.size <= most and np.unique(numbers[numbers != 0]).size <= 1:
            wrong[begun] = False
        return int(wrong.argmax()) if wrong.any() else None

    def clear(self) -> int:
        """Leave nothing of batches that are not whole; returns up to where there are such that are."""
        whole, _ = self.whole()
        for values in self.columns.values():
            values[: whole.size][~whole] = 0
            values[whole.size :] = 0
        return whole.size


def _fields_of(schema: pa.Schema, path: Path) -> _Fields:
    """The columns of a log's file, which have to be such as a log has."""
    columns = []
    try:
        for field in schema:
            told = field.metadata or {}
            column = Column(field.name, told[b"dtype"].decode(), (), "row")
            if json.loads(told[b"shape"]) != [] or field.type != column.arrow_type:
                raise ValueError(column.name)
            columns.append(column)
        reading = (schema.metadata or {}).get(hot.NOTE, b"").decode()
    except (KeyError, ValueError, RecursionError) as error:  # names that are no text among them
        raise CorruptError(f"{path} is damaged: a column is none of a log ({error!r}). {_REMEDY}") from None
    told_names = [(column.name, column.dtype) for column in columns]
    if tuple(told_names[: len(_OWN)]) != _OWN or told_names[-1] != _CHECK:
        raise CorruptError(f"{path} is damaged: its columns are not those of a log. {_REMEDY}")
    return _Fields(tuple(columns), reading)


class SampleLog:
    """Writes the log of one sampler.

    Args:
        folder: of the sampler, held.
        keep: how many of the newest rows to keep at least; None for all.
        reading: how batches are read, in words.
    """

    def __init__(self, folder: SamplerFolder, keep: int | None, reading: str) -> None:
        self._folder = folder
        self._reading = reading
        self._keep = keep
        self._pid = os.getpid()
        self._chunk: _Chunk | None = None
        self._number = self._filled = self._newest = 0
        for number, path in reversed(log_files(folder.path).items()):
            chunk = self._open(number, path)
            stop = chunk.clear()
            if self._chunk is None:
                self._number, self._chunk, self._filled = number, chunk, stop
            if stop and not self._newest:
                self._newest = int(chunk.columns["batch"][stop - 1])
            if self._newest and number < self._number:
                break  # what is older was synced

    def _open(self, number: int, path: Path) -> _Chunk:
        return _Chunk(path, _identity(self._folder.store_id, self._folder.path.name, number), writable=True)

    @property
    def newest(self) -> int:
        """The number of the newest batch; 0 where there is none."""
        return self._newest

    def append(self, row_ids: NDArray[np.int64], watermarks: NDArray[np.int64], told: Columns, hidden: Columns) -> int:
        """Log one batch; returns its number.

        Raises:
            FullError: if there is no room for it; nothing is logged then.
        """
        if os.getpid() != self._pid:
            raise UsageError(
                f"The log belongs to process {self._pid}, from which this one was forked. Start processes by spawn, "
                "and make the sampler in them."
            )
        beside = {**told, **{_HIDDEN + name: values for name, values in hidden.items()}}
        fields, count, chunk = _Fields.of(beside, self._reading), row_ids.size, self._chunk
        if chunk is None or chunk.fields != fields or self._filled + count > chunk.rows:
            chunk = self._begin_file(fields, count)
        first, stop = self._filled, self._filled + count
        own = (self._newest + 1, count, row_ids, watermarks)
        for (name, _), values in zip(_OWN, own, strict=True):
            chunk.columns[name][first:stop] = values
        for name, array in beside.items():
            chunk.columns[name][first:stop] = array
        chunk.columns["check"][first:stop] = chunk.checks(first, stop)
        self._filled, self._newest = stop, self._newest + 1
        return self._newest

    def _begin_file(self, fields: _Fields, count: int) -> _Chunk:
        number, folder = self._number + 1, self._folder
        before, path = folder.path / name_of(number - 2), folder.path / name_of(number)
        if folder.durable and before.exists():
            files.sync_file(before)
        rows = max(count, min(_MOST_ROWS, _LEAST_ROWS << min(number - 1, 32)))
        hot.create(path, fields, _identity(folder.store_id, folder.path.name, number), rows, rows, sync=folder.durable)
        chunk = self._chunk = self._open(number, path)
        self._number, self._filled = number, 0
        if self._keep is not None:
            self._drop_oldest(self._keep)
        return chunk

    def _drop_oldest(self, keep: int) -> None:
        """Remove files, as long as the others have so many rows."""
        kept = 0
        for number, path in reversed(log_files(self._folder.path).items()):
            if kept >= keep:
                with files.explaining(path, "removing a log's oldest part"):
                    path.unlink()
            else:
                kept += self._open(number, path).whole()[0].size


def _chunks(folder: Path, store_id: str) -> Iterator[_Chunk]:
    for number, path in log_files(folder).items():
        try:
            yield _Chunk(path, _identity(store_id, folder.name, number))
        except ArrowRBError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # which has gone meanwhile
                raise


def newest_batch(folder: Path, store_id: str) -> tuple[int, int] | None:
    """The number of the newest batch of a sampler's log, which may be written just now, and how many rows it has.

    Looks at the newest file alone, so that it costs little. None where there is no batch.
    """
    for number, path in reversed(log_files(folder).items()):
        try:
            chunk = _Chunk(path, _identity(store_id, folder.name, number))
        except ArrowRBError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # which has gone meanwhile
                raise
            continue
        stop = _end(chunk.columns["batch"])
        if stop:
            return int(chunk.columns["batch"][stop - 1]), int(chunk.columns["batch_size"][stop - 1])
    return None


def read_batch(store: Path, store_id: str, sampler: str, number: int) -> Logged:
    """One batch out of a sampler's log, which may be written meanwhile.

    Raises:
        RowError: if it is not in it.
        CorruptError: if the log is damaged.
    """
    folder = next((each for each in sampler_folders(store) if each.name == sampler), None)
    newest = 0
    for chunk in _chunks(folder, store_id) if folder is not None else ():
        whole, _ = chunk.whole()
        batch = chunk.columns["batch"][: whole.size]
        newest = max(newest, int(batch[-1]) if whole.size else 0)
        at = np.flatnonzero(whole & (batch == number))
        if at.size:
            told = {name: values[at] for name, values in chunk.columns.items() if name != _CHECK[0]}
            for column in chunk.fields.columns:
                if column.dtype == "bool":
                    told[column.name] = told[column.name].astype(np.bool_)
            row_ids, watermarks = told["row_id"], told["watermark"]
            for name, _ in _OWN:
                del told[name]
            hidden = {name: told.pop(name) for name in list(told) if name.startswith(_HIDDEN)}
            shown = {name[len(_HIDDEN) :]: hidden[name] for name in hidden}
            return Logged(row_ids, watermarks, told, shown, chunk.fields.reading)
    has = f"its newest is {newest:,}" if newest else "it has none"
    raise RowError(f"Batch {number!r} is not in the log of sampler {sampler!r}: {has}.")


def read_samples(store: Path, store_id: str) -> pa.Table:
    """The batches in the logs of all samplers: a row for each of their rows, as `SAMPLES` says.

    Raises:
        CorruptError: if a log is damaged.
    """
    parts = [_shown(folder.name, chunk) for folder in sampler_folders(store) for chunk in _chunks(folder, store_id)]
    return pa.concat_tables([SAMPLES.empty_table(), *parts])


def _shown(sampler: str, chunk: _Chunk) -> pa.Table:
    whole, place = chunk.whole()
    rows = int(whole.sum())
    if rows == 0:
        return SAMPLES.empty_table()
    arrays: list[pa.Array] = [pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([sampler]))]
    for field in list(SAMPLES)[1:]:
        values = place if field.name == "place" else chunk.columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(rows, field.type))
        else:
            values = np.ascontiguousarray(values[: whole.size] if rows == whole.size else values[: whole.size][whole])
            arrays.append(pa.Array.from_buffers(field.type, rows, [None, pa.py_buffer(values)]))
    return pa.Table.from_arrays(arrays, schema=SAMPLES)


def find_damaged(store: Path, store_id: str) -> Iterator[tuple[Path, str]]:
    """Files of logs that cannot be used, or have rows that do not agree with their checks, and why.

    Not so the newest of them, as many as a batch has: a log may be written meanwhile, or its writer have died.
    """
    for folder in sampler_folders(store):
        every = log_files(folder)
        for number, path in every.items():
            try:
                chunk = _Chunk(path, _identity(store_id, folder.name, number))
                hot.check_beginning(chunk.mapped)
                row = chunk.find_wrong(is_newest=number == max(every))
                if row is not None:
                    yield path, f"{path} is damaged: row {row:,} does not agree with its check. {_REMEDY}"
            except ArrowRBError as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # which has gone meanwhile
                    yield path, str(error)
