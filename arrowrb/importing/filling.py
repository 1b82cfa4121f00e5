"""Filling: rows from elsewhere go into a store in commits of some thousand.

States of an import into a new store, and what a crash in each leaves:

1. *filling*: the rows go into a store of its own in a hidden folder beside the target. A crash leaves that folder,
   which says by its name that it is none.
2. *renamed*: it is whole and durable, and has the target's name.

Into a store that is there already the commits are visible one by one: what an interruption leaves is a part of the
rows, each commit whole, with the last episode cut.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from .. import files
from ..engine import check_path, is_store, outside_stores
from ..errors import ColumnError, FullError, OptionError, SchemaError, StoreExistsError
from ..events import MAX_EPISODE, external
from ..schema import Rows, Schema
from ..store import Store

_CHUNK_BYTES: Final = 8 << 20
_LEAST_CHUNK_ROWS: Final = 64
_MOST_CHUNK_ROWS: Final = 1 << 14

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import or a merge did.

    Attributes:
        path: the store's directory.
        num_transitions: that were added.
        num_left_out: transitions of the source that have no next observation, and so were left out.
    """

    path: Path
    num_transitions: int
    num_left_out: int


def check_progress(progress: Any) -> None:
    """Refuse what cannot be called."""
    if progress is not None and not callable(progress):
        raise OptionError(f"progress is {progress!r}, expected a function of the rows that are done, and all.")


def chunk_rows(schema: Schema) -> int:
    """Rows a commit: some megabytes."""
    return max(_LEAST_CHUNK_ROWS, min(_MOST_CHUNK_ROWS, _CHUNK_BYTES // schema.row_bytes))


@contextlib.contextmanager
def filling(
    target: Any, schema: Callable[[], Schema], limits: Mapping[str, int | None], *, exact: bool
) -> Iterator[tuple[Store, Path]]:
    """The store to fill, open for writing, and its path: one that is there, or a new one that appears when it is whole.

    Args:
        target: a `Store`, or a path where there is none.
        schema: makes the schema of a new store.
        limits: of a new store, as `Store.create` takes them; those that are None are not given.
        exact: whether the schema of a store that is there must be that one.

    Raises:
        StoreExistsError: if something is at the path.
        SchemaError: if the schemas differ.
        OptionError: if limits are given for a store that is there.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    if isinstance(target, Store):
        if given:
            raise OptionError(f"{next(iter(given))} is given, but {target.path} is there. Leave it out.")
        target._engine.check_writable()  # one package
        if exact:
            check_same(target.schema, schema(), f"{target.path}")
        yield target, target.path
        return
    path = _check_new(check_path(target))
    made = schema()
    try:
        with (
            files.publishing_folder(path) as folder,
            Store.create(folder, made, sync_interval=None, **given) as store,
        ):
            yield store, path
    except FullError as error:
        raise FullError(error.errno, "No room left for the new store. Nothing of it is kept", str(path)) from error


def check_same(schema: Schema, other: Schema, place: str) -> None:
    """Refuse rows of another schema than the store's."""
    lines = schema.differences(other)
    if lines:
        raise SchemaError(f"The schema of {place} is another: {'; '.join(lines[:5])}.")


def _check_new(path: Path) -> Path:
    with files.explaining(path, "looking at the target"):
        path = outside_stores(path)
        if is_store(path):
            raise StoreExistsError(
                f"{path} is a store already. Open it with mode='a' and give that to add to it, or choose another path."
            )
        files.check_vacant(path)
    return path


class Filler:
    """Commits rows, and keeps their episodes apart from those that the store has.

    Episode ids stay as they are in a store without rows; else the first free id is added to each. When it is left,
    the running episodes of the lanes that were used are cut.

    Args:
        store: open for writing.
        total: the rows that are expected, for the progress.
        progress: called with the rows that are done, and all.
        done: rows that were done before.
    """

    def __init__(self, store: Store, total: int, progress: Progress | None, done: int = 0) -> None:
        self.num_transitions = 0
        self._engine = store._engine  # one package
        records = self._engine.snapshot().records
        self._shift = max(record.next_episode for record in records) if any(r.watermark for r in records) else 0
        self._total, self._progress = total, progress
        self._done = done
        self._lanes: set[int] = set()

    def __enter__(self) -> Filler:
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    def cut(self) -> None:
        """End what runs: the rows that come next are of other episodes."""
        self._engine.cut(sorted(self._lanes))

    def add(self, rows: Rows, seeds: tuple[tuple[int, int], ...] = ()) -> None:
        """Commit rows.

        Args:
            rows: in the order of each episode, and all of an episode before the next of its lane.
            seeds: (row, seed) of the first rows of episodes that were reset with one.
        """
        if not rows.num_rows:
            return
        if rows.episode_id is not None and self._shift:
            most = int(rows.episode_id.max())
            if most > MAX_EPISODE - self._shift:
                raise ColumnError(
                    f"Column 'episode_id' has the value {most}, expected 0 to {MAX_EPISODE - self._shift}: the store "
                    f"has {self._shift} already, behind which these come. Number them anew."
                )
            rows = replace(rows, episode_id=rows.episode_id + self._shift)
        lanes = {0} if rows.lane is None else set(np.unique(rows.lane).tolist())
        events = external(rows, self._engine.clock(), True, seeds)
        if not lanes <= self._lanes:
            self._engine.check_lanes(lanes)
            self._engine.cut(sorted(lanes - self._lanes))  # what runs there is not what goes on
            self._lanes |= lanes
        self._engine.ingest_external(events)
        self.num_transitions += rows.num_rows

    def tell(self, count: int) -> None:
        """Say that so many rows more are done."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total))
