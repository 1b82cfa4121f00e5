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
from numpy.typing import NDArray

from .. import files
from ..engine import check_path, is_store, outside_stores
from ..errors import ColumnError, FullError, OptionError, SchemaError, StoreExistsError
from ..events import BEGIN, MAX_EPISODE, Events, external
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
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
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


@dataclass(frozen=True, slots=True)
class Behind:
    """Of some transitions, what lies behind each.

    Attributes:
        is_tail: whether its episode ends or is cut there, bool[n].
        time: when, int64[n]; None if it is not known.
    """

    is_tail: NDArray[np.bool_]
    time: NDArray[Any] | None


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
        self._shift = records[self._engine.shard].next_episode if any(r.watermark for r in records) else 0
        self._total, self._progress = total, progress
        self._done = done
        self._lanes: dict[int, tuple[bool, int | None]] = {}  # whether the last row's episode was cut, and when

    def __enter__(self) -> Filler:
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    def cut(self) -> None:
        """End what runs: the rows that come next are of other episodes."""
        at: dict[int | None, list[int]] = {}
        for lane, (_, time) in sorted(self._lanes.items()):
            at.setdefault(time, []).append(lane)
        for time, lanes in at.items():
            self._engine.cut(lanes, time)

    def add(self, rows: Rows, seeds: tuple[tuple[int, int], ...] = (), behind: Behind | None = None) -> None:
        """Commit rows.

        Args:
            rows: in the order of each episode, and all of an episode before the next of its lane.
            seeds: (row, seed) of the first rows of episodes that were reset with one.
            behind: what is known of the rows behind them; None where only the rows themselves tell.
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
        events = external(rows, self._engine.clock(), True)
        lanes = set(np.unique(events.lane).tolist())
        if not lanes <= set(self._lanes):
            self._engine.check_lanes(lanes)
            self._engine.cut(sorted(lanes - set(self._lanes)))  # what runs there is not what goes on
        begin, cut_time = self._follow(events, behind or Behind(np.zeros(rows.num_rows, np.bool_), rows.time))
        self._engine.ingest_external(replace(events, begin=begin, cut_time=cut_time, seeds=seeds))
        self.num_transitions += rows.num_rows

    def _follow(self, events: Events, behind: Behind) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """How rows begin, and when what they cut was cut, by the rows before them in their lanes."""
        cut, time = behind.is_tail, behind.time
        order = np.argsort(events.lane, kind="stable")
        lane = events.lane[order]
        firsts, lasts = np.diff(lane, prepend=-1) != 0, np.diff(lane, append=-1) != 0
        before = self._lanes
        known = [before.get(each, (False, None)) for each in lane[firsts].tolist()]
        after_cut = np.zeros(lane.size, np.bool_)
        after_cut[1:] = cut[order][:-1]
        after_cut[firsts] = [was_cut for was_cut, _ in known]
        begin, cut_time = events.begin.copy(), None
        begin[order[after_cut]] = BEGIN
        if time is not None:
            times = np.empty(lane.size, np.int64)
            times[1:] = time[order][:-1]
            own = events.time[order][firsts]
            times[firsts] = [own[i] if at is None else at for i, (_, at) in enumerate(known)]
            cut_time = np.empty_like(times)
            cut_time[order] = times
        ends = [None] * lane.size if time is None else time[order].tolist()
        for place in np.flatnonzero(lasts).tolist():
            before[int(lane[place])] = bool(cut[order[place]]), ends[place]
        return begin, cut_time

    def tell(self, count: int) -> None:
        """Say that so many rows more are done."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total))
