"""Writing an export: groups of rows are gathered and encoded by several threads, and go into files of a target size.

All files are written into a hidden folder beside the target, and synced; then the folder takes the target's name. An
interrupted export leaves at most that hidden folder, which says by its name that it is none.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import files, sql
from ..engine import Engine, Snapshot
from ..errors import CorruptError, OptionError, StoreExistsError
from .encoding import Output, encode_group, fields_of, outputs_of
from .ordering import keep_only, order_rows
from .stitching import MAGIC, Stitched

_RowIds = NDArray[np.int64]

FORMATS: Final = ("parquet",)
ROWS: Final = ("transitions", "steps")
IMAGES: Final = ("binary", "list")
COMPRESSIONS: Final = ("lz4", "zstd", "snappy", "gzip", "none")
_GROUP_BYTES: Final = 8 << 20
_MOST_GROUP_ROWS: Final = 1 << 16
_LEAST_FILE_BYTES: Final = 1_000_000
_MOST_THREADS: Final = 4
_SYNC_BYTES: Final = 32 << 20


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
    outputs = outputs_of(engine.schema, steps=rows == "steps", images=images)
    with files.explaining(path, "exporting"):
        with files.publishing_folder(path) as folder:
            folder.mkdir(parents=True)
            names = _write(snapshot, row_ids, outputs, folder, file_bytes, compression, progress)
            files.sync_directory(folder)
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
        files.check_vacant(path)
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
    row_ids = order_rows(sql.read_live_runs(snapshot), steps=rows == "steps")
    if chosen is None:
        return snapshot, row_ids
    kept = keep_only(row_ids, chosen)
    if kept.size != chosen.size:
        raise CorruptError(f"{chosen.size:,} rows were chosen, {kept.size:,} are found. Run `arrowrb verify`.")
    return snapshot, kept


def _write(
    snapshot: Snapshot,
    row_ids: NDArray[np.int64],
    outputs: list[Output],
    folder: Path,
    file_bytes: int,
    compression: str,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Write the files; returns their names."""
    fields = fields_of(outputs, json.dumps(snapshot.layout.schema.to_json()))
    row_bytes = sum(output.column.item_bytes for output in outputs)
    step = max(64, min(_MOST_GROUP_ROWS, min(_GROUP_BYTES, file_bytes) // max(row_bytes, 1)))
    parts = [row_ids[first : first + step] for first in range(0, max(row_ids.size, 1), step)]
    encode = partial(encode_group, snapshot, outputs, fields, compression)
    done = 0

    def report(position: int) -> bool:
        """Count a group that was written; returns whether its file is full."""
        nonlocal done
        done = min(done + step, row_ids.size)
        if progress is not None:
            progress(done, row_ids.size)
        return position >= file_bytes

    names: list[str] = []
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads, "arrowrb-export") as pool:
        groups = _ahead(pool, encode, parts, threads + 1)
        while done < row_ids.size or not names:
            names.append(f"part-{len(names):05d}.parquet")
            _write_file(folder / names[-1], groups, report)
    return names


def _ahead(
    pool: ThreadPoolExecutor,
    encode: Callable[[NDArray[np.int64]], pa.Buffer],
    parts: list[NDArray[np.int64]],
    most: int,
) -> Iterator[pa.Buffer]:
    """Groups in their order, encoded by several threads; at most ``most`` of them are in memory."""
    running: deque[Future[pa.Buffer]] = deque()
    for part in parts:
        running.append(pool.submit(encode, part))
        if len(running) == most:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _write_file(path: Path, groups: Iterator[pa.Buffer], report: Callable[[int], bool]) -> None:
    """Write groups into a Parquet file until ``report``, called with its size so far, says that it is full; sync it.

    Most of it is synced while the rest is encoded, so that the disk and the processors are at work together.
    """
    stitched = Stitched()
    synced = stitched.position
    syncing: Future[None] | None = None
    with open(path, "xb") as file, ThreadPoolExecutor(1, "arrowrb-export-sync") as background:
        file.write(MAGIC)
        for group in groups:
            file.write(stitched.add(memoryview(group)))
            if report(stitched.position):
                break
            if stitched.position - synced >= _SYNC_BYTES and (syncing is None or syncing.done()):
                if syncing is not None:
                    syncing.result()
                file.flush()
                synced, syncing = stitched.position, background.submit(os.fdatasync, file.fileno())
        file.write(stitched.finish())
        file.flush()
        if syncing is not None:
            syncing.result()
        files.sync_descriptor(file.fileno(), path)
