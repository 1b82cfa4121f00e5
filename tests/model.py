"""An independent model of a store: plain Python lists of rows, and a reader of hot files that uses only pyarrow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import spaces

from arrowrb.schema import Extra, Schema

TRANSITION, FINAL, CONTINUED, CUT = 1, 2, 3, 4

SCHEMA = Schema.from_spaces(
    spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (3,), np.float32), "b": spaces.Box(0, 255, (2, 2), np.uint8)}),
    spaces.Discrete(5),
    extras={"legal": Extra("bool", (3,), owner="observation"), "log_prob": Extra("float32", nullable=True)},
)
OBSERVATION = ("observation.a", "observation.b", "legal")
OUTCOME = ("terminated", "truncated", "action", "reward", "log_prob", "log_prob.valid")


@dataclass(frozen=True)
class Row:
    """One committed row without its place: what every row of kind 1, 2 and 4 must be, in order of commit."""

    kind: int
    lane: int
    episode: int
    step: int
    observation: bytes
    outcome: bytes | None = None  # of a transition
    following: bytes | None = None


@dataclass
class Running:
    episode: int
    step: int
    observation: bytes


@dataclass
class Model:
    """What a store must hold after the same calls."""

    rows: list[Row] = field(default_factory=list)
    running: dict[int, Running] = field(default_factory=dict)
    next_episode: int = 0
    num_episodes: int = 0
    num_breaks: int = 0

    @property
    def transitions(self) -> list[Row]:
        return [row for row in self.rows if row.kind == TRANSITION]

    def cut(self, lanes=None):
        for lane in sorted(self.running if lanes is None else lanes):
            now = self.running.pop(lane, None)
            if now is not None:
                self.rows.append(Row(CUT, lane, now.episode, now.step, now.observation))

    def external(self, lane, observation, following, outcome, ended, *, episode=None, step=None, contiguous=True):
        """One row of `extend`."""
        now = self.running.get(lane)
        goes_on = now is not None and contiguous
        goes_on = goes_on and episode in (None, now.episode) and step in (None, now.step)
        if goes_on and now.observation != observation:
            self.num_breaks += 1
            goes_on = False
        if not goes_on:
            self.begin(lane, observation, episode=episode, step=step)
        self.step(lane, following, outcome, ended)
        if not contiguous:
            self.cut([lane])

    def begin(self, lane, observation, *, episode=None, step=None):
        self.cut([lane])
        number = self.next_episode if episode is None else episode
        self.next_episode = max(self.next_episode, number + 1)
        self.num_episodes += 1
        self.running[lane] = Running(number, 0 if step is None else step, observation)

    def step(self, lane, following, outcome, ended):
        now = self.running.pop(lane)
        self.rows.append(Row(TRANSITION, lane, now.episode, now.step, now.observation, outcome, following))
        if ended:
            self.rows.append(Row(FINAL, lane, now.episode, now.step + 1, following))
        else:
            self.running[lane] = Running(now.episode, now.step + 1, following)


def row_bytes(columns, index) -> bytes:
    """The bytes of one row of some columns, in order."""
    return b"".join(np.ascontiguousarray(column[index]).tobytes() for column in columns)


# -- batches that random tests write -----------------------------------------------------------------------------


def random_observations(rng, count):
    """Columns in storage order; NaN, infinities and negative zeros of every bit pattern among them."""
    a = rng.integers(0, 1 << 32, (count, 3), dtype=np.uint32).view(np.float32)
    a[rng.random(count) < 0.2] = np.nan
    b = rng.integers(0, 256, (count, 2, 2), dtype=np.uint8)
    return [a, b, rng.integers(0, 2, (count, 3), dtype=np.uint8)]


def random_outcomes(rng, count, *, end=0.15):
    valid = rng.integers(0, 2, count, dtype=np.uint8)
    log_prob = rng.normal(size=count).astype(np.float32) * valid
    log_prob[valid == 0] = 0.0
    return [
        (rng.random(count) < end).astype(np.uint8),
        (rng.random(count) < end).astype(np.uint8),
        rng.integers(0, 5, count),
        rng.normal(size=count),
        log_prob,
        valid,
    ]


def as_batch(observation, following, outcome):
    """The same as `Store.extend` takes it."""
    terminated, truncated, action, reward, log_prob, valid = outcome
    return {
        "observation": {"a": observation[0], "b": observation[1]},
        "next_observation": {"a": following[0], "b": following[1]},
        "legal": observation[2].astype(bool),
        "next_legal": following[2].astype(bool),
        "terminated": terminated.astype(bool),
        "truncated": truncated.astype(bool),
        "action": action,
        "reward": reward,
        "log_prob": log_prob,
        "log_prob.valid": valid.astype(bool),
    }


def of_batch(batch):
    """(observation, outcome, following) bytes of each row of a batch of tensors."""
    observation = [batch["observation"]["a"], batch["observation"]["b"], batch["legal"]]
    following = [batch["next_observation"]["a"], batch["next_observation"]["b"], batch["next_legal"]]
    outcome = [batch[name] for name in OUTCOME]
    return list(zip(*(_bytes_of_rows(columns) for columns in (observation, outcome, following)), strict=True))


def _bytes_of_rows(columns):
    arrays = [np.ascontiguousarray(column.numpy()) for column in columns]
    if len(arrays[0]) == 0:
        return []
    whole = np.concatenate([array.reshape(len(array), -1).view(np.uint8) for array in arrays], axis=1)
    return [row.tobytes() for row in whole]


# -- hot files, by bare pyarrow ----------------------------------------------------------------------------------


@dataclass
class Segment:
    """All allocated rows of one segment's file, as bytes and numbers."""

    entry: dict
    system: dict[str, np.ndarray]
    observation: list[bytes]
    outcome: list[bytes]
    base: int

    @property
    def block_rows(self) -> int:
        return self.entry["block_rows"]


def read_manifest(store: Path) -> dict:
    """The manifest of the first shard, by nothing of ours."""
    content = (store / "shards" / "00000" / "manifest.json").read_bytes()
    return json.loads(content.split(b"\n")[1])


def _raw(array) -> np.ndarray:
    """[rows, bytes of an item]"""
    rows = len(array)
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    assert storage.null_count == 0
    values = storage.flatten() if pa.types.is_fixed_size_list(storage.type) else storage
    buffer = values.buffers()[-1]
    if pa.types.is_fixed_size_binary(storage.type):
        size = storage.type.byte_width
    else:
        size = values.type.bit_width // 8 * (len(values) // rows)
    return np.frombuffer(buffer, np.uint8, rows * size).reshape(rows, size)


def read_raw(path: Path, entry: dict) -> dict[str, np.ndarray]:
    """The bytes of each column of a file, uint8[rows, bytes of an item], by position."""
    if entry["tier"] == "cold":
        return _read_parquet(path, entry)
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        return {name: _raw(batch.column(name)).copy() for name in batch.schema.names}


def _read_parquet(path: Path, entry: dict) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    assert table.num_rows == entry["num_rows"]
    positions = table["row_id"].to_numpy() & 0xFFFFFF
    assert (np.diff(positions) > 0).all()
    raw = {}
    for name in table.column_names[1:]:
        array = table[name].combine_chunks()
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        present = array.drop_null()
        values = _raw(present) if len(present) else np.zeros((0, array.type.bit_width // 8), np.uint8)
        assert valid.all() or name in OUTCOME
        raw[name] = np.zeros((entry["rows"], values.shape[1]), np.uint8)
        raw[name][positions[valid]] = values
    return raw


def read_segments(store: Path) -> list[Segment]:
    """Every segment that the manifest lists."""
    manifest = read_manifest(store)
    segments = []
    for entry in manifest["segments"]:
        path = store / "shards" / "00000" / "segments" / entry["name"]
        assert path.stat().st_size == entry["bytes"]
        raw = read_raw(path, entry)
        assert len(raw["kind"]) == entry["rows"]
        dtypes = {"ordinal": "<i8", "time": "<i8", "episode_id": "<i8", "lane": "<i4", "step": "<i4", "kind": "u1"}
        system = {name: raw[name].view(dtype)[:, 0] for name, dtype in dtypes.items()}
        observation = np.concatenate([raw[name] for name in OBSERVATION], axis=1)
        outcome = np.concatenate([raw[name] for name in OUTCOME], axis=1)
        segments.append(
            Segment(
                entry,
                system,
                [row.tobytes() for row in observation],
                [row.tobytes() for row in outcome],
                manifest["shard"] << 48 | entry["number"] << 24,
            )
        )
    return segments


def committed(segments, watermark):
    """(ordinal, segment, position) of every committed row, in order of ordinal."""
    found = []
    for segment in segments:
        ordinals = segment.system["ordinal"]
        visible = np.flatnonzero((ordinals >= 1) & (ordinals <= watermark))
        found += [(int(ordinals[position]), segment, int(position)) for position in visible]
    return sorted(found, key=lambda each: each[0])
