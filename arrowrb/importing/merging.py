"""Stores of one schema into one: their rows are copied as they are, in the order in which they came."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..engine import Snapshot, check_path, tables
from ..errors import OptionError, StoreExistsError
from ..rows import Kind, row_id_base
from ..schema import Rows, Schema
from ..store import Store
from .filling import Behind, Filler, Imported, Progress, check_progress, check_same, chunk_rows, filling

_KEPT: Final = {
    "lane": tables.LANE,
    "episode_id": tables.EPISODE,
    "step": tables.STEP,
    "time": tables.TIME,
    "policy_version": tables.POLICY,
}


def merge(
    sources: Any,
    target: Any,
    *,
    hot_rows: int | None = None,
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Add the transitions of stores to another: one after the other, each in the order in which its rows came.

    Lanes, steps, times, policy versions and seeds stay; episode ids stay in a store that has no rows yet, and are
    shifted beyond its own where it has. Row ids and ordinals are the target's. Episodes that are cut or still running
    are cut at the same place; what a source has evicted stays behind.

    Args:
        sources: a `Store` or the path of one, or a list of those.
        target: a `Store` that is open for writing, or the path of a new one, which appears when it is whole.
        hot_rows: of a new store, see `Store.create`; likewise `max_rows`.
        max_rows: see `Store.create`.
        progress: called with the transitions that are added, and all.

    Raises:
        SchemaError: if the schemas differ.
        StoreNotFoundError: if a source is no store.
        StoreExistsError: if there is something at the path of a new store, or a source is the target.
    """
    check_progress(progress)
    given = [sources] if isinstance(sources, Store | str | os.PathLike) else sources
    if not isinstance(given, Sequence) or isinstance(given, bytes) or not given:
        raise OptionError(f"sources is {sources!r}, expected stores or their paths.")
    with contextlib.ExitStack() as stack:
        stores = [each if isinstance(each, Store) else stack.enter_context(Store.open(each)) for each in given]
        place = target.path if isinstance(target, Store) else check_path(target, "target")
        for store in stores:
            check_same(stores[0].schema, store.schema, str(stores[0].path))
            if os.path.realpath(store.path) == os.path.realpath(place):
                raise StoreExistsError(f"{store.path} is a source and the target. Name another store.")

        def make_schema() -> Schema:
            return stores[0].schema

        limits = {"hot_rows": hot_rows, "max_rows": max_rows}
        with filling(target, make_schema, limits, exact=True) as (into, path):
            engines = [store._engine for store in stores]  # one package
            snapshots = [engine.snapshot() for engine in engines]
            total = sum(snapshot.num_transitions for snapshot in snapshots)
            added = 0
            for engine, snapshot in zip(engines, snapshots, strict=True):
                seeds = {entry.episode_id: entry.seed for entry in engine.read_seeds(snapshot)}
                with Filler(into, total, progress, added) as filler:
                    for shard in range(len(snapshot.records)):
                        for rows, behind in _read(snapshot, shard, chunk_rows(into.schema)):
                            filler.add(rows, _pop_seeds(rows, seeds), behind)
                            filler.tell(rows.num_rows)
                added += filler.num_transitions
            return Imported(path, added, 0)


def _pop_seeds(rows: Rows, seeds: dict[int, int]) -> tuple[tuple[int, int], ...]:
    """Seeds of the episodes that come for the first time in these rows."""
    if not seeds or rows.episode_id is None:
        return ()
    episodes, first = np.unique(rows.episode_id, return_index=True)
    pairs = zip(first.tolist(), episodes.tolist(), strict=True)
    return tuple((place, seeds.pop(episode)) for place, episode in pairs if episode in seeds)


def _read(snapshot: Snapshot, shard: int, size: int) -> Iterator[tuple[Rows, Behind]]:
    """The transitions of a shard in order of arrival, some at a time."""
    row_ids, schema = _in_order(snapshot, shard), snapshot.layout.schema
    places = {column.name: place for place, column in enumerate(schema.columns)}
    observation = [(places[column.name], 0) for column in schema.observation_columns]
    following = [(place, 1) for place, _ in observation]
    outcome = [(places[column.name], 0) for column in schema.transition_columns]
    about = [(place, 0) for place in _KEPT.values()]
    kind, time = (tables.KIND, 1), (tables.TIME, 1)
    wanted = [*observation, *following, *outcome, *about, kind, time]
    for first in range(0, row_ids.size, size):
        located = snapshot.locate(row_ids[first : first + size])
        of = snapshot.read(located, wanted)
        rows = Rows(
            located.row_ids.size,
            tuple(of[key] for key in observation),
            tuple(of[key] for key in following),
            tuple(of[key] for key in outcome),
            **{name: of[place, 0] for name, place in _KEPT.items()},
        )
        # Behind the newest row of a running episode there is nothing yet.
        until = np.where(of[kind] == int(Kind.NONE), of[tables.TIME, 0], of[time])
        yield rows, Behind(of[kind] == int(Kind.CUT), until)


def _in_order(snapshot: Snapshot, shard: int) -> NDArray[np.int64]:
    """Row ids of all transitions of a shard, by ordinal."""
    row_ids, ordinals = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for slot, view in enumerate(snapshot.layout.views):
        if view.shard == shard:
            positions = np.flatnonzero(snapshot.visible_kinds(slot) == int(Kind.TRANSITION))
            row_ids.append(positions + row_id_base(view.shard, view.entry.number))
            ordinals.append(snapshot.column(slot, tables.ORDINAL)[positions])
    joined: NDArray[np.int64] = np.concatenate(row_ids)[np.argsort(np.concatenate(ordinals), kind="stable")]
    return joined
