"""A stand-in for the engine: a plain list of rows, placed one by one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from arrowrb.arrival import find_info
from arrowrb.events import BEGIN, CONTINUE, Events
from arrowrb.schema import Schema
from arrowrb.schema.arrays import arrow_values


class Ledger:
    """Takes events as an engine does."""

    def __init__(self, schema: Schema, times_opened: int = 3, shard: int = 2) -> None:
        self.schema, self.times_opened, self.shard = schema, times_opened, shard
        self.rows: list[dict[str, Any]] = []
        self.running: dict[int, dict[str, Any]] = {}
        self.cuts: list[int] = []  # row ids after which an episode was cut
        self.seeds: dict[int, int] = {}
        self.claimed: set[int] = set()
        self.claims: Counter[int] = Counter()
        self.commits = 0
        self.episodes = 0
        self._now = 1000
        self.fail: BaseException | None = None

    def clock(self) -> int:
        self._now += 7
        return self._now

    def wait_to_commit(self) -> None:
        """Return at once."""

    def ingest(self, events: Events) -> np.ndarray:
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        row_ids = []
        for e in range(len(events.lane)):
            lane = int(events.lane[e])
            assert lane in self.claimed
            assert events.begin[e] in (CONTINUE, BEGIN)
            if events.begin[e] == BEGIN:
                self._cut(lane)
                self.running[lane] = {
                    "id": self.episodes,
                    "step": 0,
                    "at": self._observation(events, events.observation[e]),
                }
                self.episodes += 1
            state = self.running[lane]
            following = self._observation(events, events.next_observation[e])
            k = int(events.row[e])
            row = {
                "lane": lane,
                "episode_id": state["id"],
                "step": state["step"],
                "time": int(events.time[e]),
                "policy_version": int(events.policy_version[e]),
                "observation": state["at"],
                "next_observation": following,
                "outcome": [np.array(array[k]) for array in events.outcome],
            }
            row_ids.append(len(self.rows))
            events.episode_id[e], events.step[e] = state["id"], state["step"]
            self.rows.append(row)
            state["step"], state["at"], state["row"] = state["step"] + 1, following, row_ids[-1]
            if row["outcome"][0] or row["outcome"][1]:
                del self.running[lane]
        self.commits += 1
        return np.array(row_ids, np.int64)

    @staticmethod
    def _observation(events: Events, index: Any) -> list[np.ndarray]:
        index = int(index)
        source = events.arrived if index >= 0 else events.final
        return [np.array(array[index if index >= 0 else ~index]) for array in source]

    def _cut(self, lane: int) -> None:
        if lane in self.running:
            self.cuts.append(self.running.pop(lane)["row"])

    def cut(self, lanes: Sequence[int]) -> None:
        for lane in lanes:
            self._cut(lane)

    def claim_lanes(self, count: int, first: int | None = None) -> int:
        start = (max(self.claimed) + 1 if self.claimed else 0) if first is None else first
        self.claimed.update(range(start, start + count))
        self.claims.update(range(start, start + count))
        return start

    def times_claimed(self, lane: int) -> int:
        return self.claims[lane]

    def release_lanes(self, first: int, count: int) -> None:
        self.cut(range(first, first + count))
        self.claimed.difference_update(range(first, first + count))

    def note_seeds(self, pairs: Sequence[tuple[int, int | None]]) -> None:
        self.seeds.update({lane: seed for lane, seed in pairs if seed is not None})


class LedgerStore:
    """What a collector needs of a store."""

    def __init__(self, schema: Schema, **options: Any) -> None:
        self._engine = Ledger(schema, **options)
        self.schema = schema


def rows_of(schema: Schema, batch: Any) -> list[dict[str, Any]]:
    """A record batch as rows of the ledger's form."""
    names = batch.schema.names
    values = {}
    for name in names:
        bare = name.removeprefix("next_") if name.startswith("next_") else name
        if bare in ("row_id", "lane", "episode_id", "step", "time", "policy_version"):
            values[name] = batch.column(name).to_numpy()
            continue
        column = schema.column(bare)
        stored, valid = arrow_values(column, batch.column(name), name)
        values[name] = stored if column.dtype != "bool" else stored.astype(np.uint8)
        if bare in schema.masks:
            flags = np.ones(len(stored), np.uint8) if valid is None else valid.astype(np.uint8)
            values[f"{name}.valid"] = flags
    rows = []
    for i in range(batch.num_rows):
        row = {name: int(values[name][i]) for name in names if name in ("row_id", "lane", "episode_id", "step", "time")}
        row["policy_version"] = int(values["policy_version"][i])
        row["observation"] = [np.array(values[c.name][i]) for c in schema.observation_columns]
        row["next_observation"] = [np.array(values["next_" + c.name][i]) for c in schema.observation_columns]
        row["outcome"] = [np.array(values[c.name][i]) for c in schema.transition_columns]
        rows.append(row)
    return rows


def same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def expected_rows(schema: Schema, episode: Any) -> list[dict[str, Any]]:
    """What must be recorded of an episode that really happened."""
    rows = []
    for step, action in enumerate(episode.actions):
        outcome = [*episode.flags[step], *schema.action_tree.leaves(action), episode.rewards[step]]
        tail = schema.transition_columns[len(outcome) :]
        row = {
            "step": step,
            "observation": _observed(schema, episode, step),
            "next_observation": _observed(schema, episode, step + 1),
            "outcome": _stored(schema.transition_columns, outcome) + _entries(schema, tail, episode.infos[step + 1]),
        }
        rows.append(row)
    return rows


def _observed(schema: Schema, episode: Any, step: int) -> list[np.ndarray]:
    leaves = schema.observation_tree.leaves(episode.observations[step])
    tail = schema.observation_columns[len(leaves) :]
    return _stored(schema.observation_columns, leaves) + _entries(schema, tail, episode.infos[step])


def _stored(columns: Any, values: Any) -> list[np.ndarray]:
    return [np.asarray(value).astype(column.storage) for column, value in zip(columns, values, strict=False)]


def _entries(schema: Schema, columns: Any, info: Any) -> list[np.ndarray]:
    made: list[np.ndarray] = []
    for column in columns:
        if column.name in schema.masks.values():
            continue
        value = find_info(info, column.name)[0]
        present = value is not None
        stored = np.zeros(column.shape, column.storage)
        if present:
            stored = np.asarray(value).astype(column.cast_from or column.dtype).astype(column.storage)
        made.append(stored)
        if column.name in schema.masks:
            made.append(np.asarray(present, np.uint8))
    return made


def check_lane(schema: Schema, rows: list[dict[str, Any]], episodes: list[Any], *, most_missing: int = 0) -> None:
    """The rows of a lane are the first transitions of what happened, none left out, each exactly right."""
    wanted = [(number, row) for number, episode in enumerate(episodes) for row in expected_rows(schema, episode)]
    assert len(wanted) - most_missing <= len(rows) <= len(wanted)
    ids: dict[int, int] = {}
    for row, (number, expected) in zip(rows, wanted, strict=False):
        assert row["step"] == expected["step"]
        assert ids.setdefault(number, row["episode_id"]) == row["episode_id"]
        for part in ("observation", "next_observation", "outcome"):
            columns = schema.transition_columns if part == "outcome" else schema.observation_columns
            for column, got, right in zip(columns, row[part], expected[part], strict=True):
                assert same(got, right), (column.name, part, expected["step"], got, right)
    assert len(set(ids.values())) == len(ids)


def by_lane(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    lanes: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        lanes.setdefault(row["lane"], []).append(copy.copy(row))
    return lanes
