"""SQL against a plain Python model of what was written, against `gather`, and against people who want to do harm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from arrowrb.schema import Extra, Schema
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema

SPACES = gym.spaces


@dataclass
class Episode:
    """What the model knows of one episode."""

    lane: int
    rows: list[int] = field(default_factory=list)  # places in the model's list of transitions
    end: str = "running"


def rich_schema() -> Schema:
    observation = SPACES.Dict(
        {
            "camera": SPACES.Box(0, 255, (2, 3), np.uint8),
            "a.b": SPACES.Box(-1, 1, (3,), np.float64),
            'say "hi"': SPACES.Tuple((SPACES.Discrete(5, start=-2), SPACES.MultiBinary(3))),
            "Twin": SPACES.Box(-9, 9, (), np.float32),
            "twin": SPACES.Box(-9, 9, (), np.int16),
        }
    )
    action = SPACES.Tuple((SPACES.Discrete(4), SPACES.Box(-1, 1, (2,), np.float16)))
    extras = {
        "log_prob": Extra("float32", nullable=True),
        "flag": Extra("bool"),
        "flags": Extra("bool", (3,)),
        "memory": Extra("float16", (2,), owner="observation", nullable=True),
        "brain": Extra("bfloat16", owner="observation"),
        "wide": Extra("bfloat16", (2, 2)),
        "big": Extra("uint64"),
    }
    return Schema.from_spaces(observation, action, extras=extras)


def leaf_names(schema: Schema) -> list[str]:
    masks = set(schema.masks.values())
    return [column.name for column in schema.columns[7:] if column.name not in masks]


def random_columns(schema: Schema, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Random bytes for every column of a schema, where any bytes are a value."""
    columns = {}
    for column in schema.columns[7:]:
        if column.name in schema.discrete_bounds:
            start, n = schema.discrete_bounds[column.name]
            values = rng.integers(start, start + n, (count, *column.shape)).astype(column.storage)
        elif column.dtype == "bool" or column.name in ('observation.say "hi".1',):
            values = rng.integers(0, 2, (count, *column.shape)).astype(column.storage)
        else:
            size = count * column.item_bytes
            values = np.frombuffer(rng.bytes(size), column.storage).reshape(count, *column.shape).copy()
        columns[column.name] = values
    return columns


def write_rich(store: Store, rng: np.random.Generator, count: int, lane: int) -> tuple[dict[str, Any], np.ndarray]:
    """Write rows that go on from each other; returns the batch by its flat names, and row ids."""
    schema = store.schema
    whole = random_columns(schema, rng, count + 1)
    batch: dict[str, Any] = {name: values[:-1] for name, values in whole.items()}
    batch["terminated"] = rng.random(count) < 0.1
    batch["truncated"] = rng.random(count) < 0.05
    for column in schema.observation_columns:
        behind = whole[column.name][1:]
        batch["next_" + column.name] = behind
    for name, mask in schema.masks.items():
        prefixes = ("", "next_") if schema.column(name).owner == "observation" else ("",)
        for prefix in prefixes:
            valid = batch[prefix + mask] = batch[prefix + mask].astype(np.bool_)
            batch[prefix + name] = np.where(
                valid.reshape(-1, *[1] * len(schema.column(name).shape)), batch[prefix + name], 0
            )
            batch[prefix + name] = batch[prefix + name].astype(schema.column(name).storage)
    return batch, store.extend({**batch}, lane=lane)


def widened(values: np.ndarray, dtype: str) -> np.ndarray:
    """What SQL should hold for a column's values."""
    if dtype == "bfloat16":
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "float16":
        return values.view(np.float16).astype(np.float32)
    return values.astype(np.bool_) if dtype == "bool" else values


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Bit for bit, but for which NaN a short float's NaN became."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.kind == "f":
        unsigned = f"u{left.dtype.itemsize}"
        return bool(np.all((left.view(unsigned) == right.view(unsigned)) | (np.isnan(left) & np.isnan(right))))
    return bool(np.all(left == right))


def sql_values(table: Any, name: str, column: Any) -> tuple[np.ndarray, np.ndarray]:
    """A column of a result as NumPy: values [n, *shape] (zeros where NULL), and whether they are there."""
    array = table[name].combine_chunks()
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if column.encoding == "binary":
        zero = bytes(column.item_bytes)
        joined = b"".join(zero if value is None else value for value in array.to_pylist())
        return np.frombuffer(joined, column.storage).reshape(-1, *column.shape), valid
    dtype = {"bool": np.dtype(np.bool_), "float16": np.dtype("f4"), "bfloat16": np.dtype("f4")}.get(
        column.dtype, column.storage
    )
    whole = np.zeros((len(array), *column.shape), dtype)
    kept = array.drop_null()
    flat = kept.flatten() if column.shape else kept
    assert flat.null_count == 0
    whole[valid] = flat.to_numpy(zero_copy_only=False).reshape(-1, *column.shape)
    assert (flat.type == "bool") == (column.dtype == "bool")
    return whole, valid


def test_transitions_hold_what_was_written_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    schema = rich_schema()
    with Store.temporary(schema) as store:
        parts = [write_rich(store, rng, int(rng.integers(1, 60)), lane) for lane in (0, 3, 1, 0, 3) * 8]
        ids = np.concatenate([part[1] for part in parts])
        table = store.sql("SELECT * FROM transitions ORDER BY ordinal").arrow()
        assert np.array_equal(table["row_id"].to_numpy(), ids)
        # Names that differ in case only are numbered, all of them: none could be told by its own.
        numbers = {"observation.Twin": 1, "observation.twin": 2}
        twin = {prefix + name: f"{prefix}{name}_{n}" for name, n in numbers.items() for prefix in ("", "next_")}
        assert not set(twin) & set(table.column_names)
        gathered = store.gather(ids, columns=[*leaf_names(schema), *_next_names(schema)])
        for prefix in ("", "next_"):
            for column in schema.columns[7:]:
                if column.name in schema.masks.values() or (prefix and column.owner != "observation"):
                    continue
                name = prefix + column.name
                expected = widened(np.concatenate([part[0][name] for part in parts]), column.dtype)
                got, valid = sql_values(table, twin.get(name, name), column)
                assert same(got, expected), name
                mask = schema.masks.get(column.name)
                there = np.concatenate([part[0][prefix + mask] for part in parts]) if mask else np.ones(len(ids), bool)
                assert np.array_equal(valid, there), name
                tensor = gathered[name]
                bits = tensor.view(_torch_bits()).numpy() if column.dtype == "bfloat16" else tensor.numpy()
                assert same(got, widened(bits, column.dtype)), name
        assert [name for name in table.column_names if name.endswith(".valid")] == []
        assert store.sql("SELECT count(*) FROM transitions WHERE log_prob IS NULL").fetchone() == (
            int(sum((~part[0]["log_prob.valid"]).sum() for part in parts)),
        )


def _next_names(schema: Schema) -> list[str]:
    masks = set(schema.masks.values())
    return ["next_" + column.name for column in schema.observation_columns if column.name not in masks]


def _torch_bits() -> Any:
    import torch

    return torch.int16


def test_the_columns_of_the_views() -> None:
    extras = {"legal": Extra("bool", (3,), owner="observation"), "log_prob": Extra("float32", nullable=True)}
    with Store.temporary(plain_schema(extras=extras)) as store:
        columns = "row_id ordinal time lane episode_id step policy_version observation action reward next_observation"
        assert store.sql("FROM transitions").columns == [
            *columns.split(),
            *("terminated", "truncated", "log_prob", "legal", "next_legal"),
        ]
        columns = "row_id kind ordinal time lane episode_id step policy_version observation action reward"
        assert store.sql("FROM steps").columns == [*columns.split(), "terminated", "truncated", "log_prob", "legal"]
        types = dict(store.sql("SELECT column_name, column_type FROM (DESCRIBE transitions)").fetchall())
        assert types["observation"] == types["next_observation"] == "FLOAT[4]"
        assert (types["legal"], types["terminated"], types["row_id"]) == ("BOOLEAN[3]", "BOOLEAN", "BIGINT")
        for view in ("transitions", "steps", "episodes", "segments"):
            assert "row_id" in store.sql(f"FROM {view}").columns
            assert store.sql(f"FROM {view}").fetchall() == []


def test_short_floats_are_exact_for_all_bit_patterns() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    halves = {"half": Extra("float16"), "brain": Extra("bfloat16")}
    halves |= {"halves": Extra("float16", (2,)), "brains": Extra("bfloat16", (2,))}
    with Store.temporary(plain_schema(extras=halves)) as store:
        columns = {"half": bits.view(np.float16), "brain": bits}
        columns |= {
            "halves": np.stack([bits, bits[::-1]], 1).view(np.float16),
            "brains": np.stack([bits[::-1], bits], 1),
        }
        store.extend(plain_batch(65536, **columns))
        table = store.sql("SELECT half, brain, halves, brains FROM transitions ORDER BY ordinal").arrow()
        for name in columns:
            column = store.schema.column(name)
            values, valid = sql_values(table, name, column)
            assert valid.all()
            assert same(values, widened(np.ascontiguousarray(columns[name]), column.dtype)), name


def test_special_rewards_keep_their_bits_and_compare_as_sql_does() -> None:
    rewards = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, 5e-324, 1.0])
    with Store.temporary(plain_schema()) as store:
        store.extend(plain_batch(7, reward=rewards))
        got = store.sql("SELECT reward FROM transitions ORDER BY ordinal").arrow()["reward"].to_numpy()
        assert np.array_equal(got.view(np.uint64), rewards.view(np.uint64))
        # NaN is the greatest number in SQL; a filter handed down to Arrow would lose it.
        assert store.sql("SELECT count(*) FROM transitions WHERE reward > 0.5").fetchone() == (3,)
        assert store.sql("SELECT count(*) FROM transitions WHERE reward = 'nan'::DOUBLE").fetchone() == (1,)


def test_steps_hold_final_observations_and_null_what_tails_lack() -> None:
    extras = {
        "legal": Extra("bool", (3,), owner="observation"),
        "log_prob": Extra("float32"),
        "note": Extra("int8", nullable=True),
    }
    with Store.temporary(plain_schema(extras=extras)) as store:
        masks = np.random.default_rng(0).integers(0, 2, (31, 3)).astype(np.bool_)
        batch = plain_batch(30, every=10, legal=masks[:-1], next_legal=masks[1:], log_prob=np.ones(30, np.float32))
        batch["note"] = np.ones(30, np.int8)
        store.extend(batch)
        store.extend({name: values[:1] for name, values in batch.items()}, lane=1, contiguous=False)
        tails = store.sql("SELECT * FROM steps WHERE kind <> 1 ORDER BY ordinal").arrow()
        assert tails["kind"].to_pylist() == [2, 2, 2, 4]
        assert tails["step"].to_pylist() == [10, 10, 10, 1]
        for name in ("action", "reward", "terminated", "truncated", "log_prob", "note"):
            assert tails[name].null_count == 4
        expected = batch["next_observation"][[9, 19, 29, 0]]
        assert np.array_equal(np.array(tails["observation"].to_pylist(), np.float32), expected)
        assert tails["legal"].to_pylist() == masks[[10, 20, 30, 1]].tolist()
        assert store.sql("SELECT count(*), count(reward), count(action) FROM steps").fetchall() == [(35, 31, 31)]


def model_episodes(store: Store) -> list[tuple[Any, ...]]:
    rows = store.sql(
        'SELECT episode_id, lane, started_at, ended_at, "return", length, ended_by, complete, row_id FROM episodes'
    ).fetchall()
    return sorted(rows)


def test_episodes_against_a_model_over_many_lanes_blocks_and_segments() -> None:
    rng = np.random.default_rng(3)
    lanes = 5
    now = 0
    episodes: dict[int, Episode] = {}
    rewards: list[float] = []
    times: list[int] = []
    next_id = 0
    running: dict[int, int] = {}
    ids: list[int] = []
    last = {lane: rng.normal(size=4).astype(np.float32) for lane in range(lanes)}
    with Store.temporary(plain_schema()) as store:
        for _ in range(120):
            count = int(rng.integers(1, 200))
            lane_of = rng.integers(0, lanes, count)
            now += 10
            batch = plain_batch(count, int(rng.integers(1 << 30)), time=np.full(count, now))
            batch["reward"] = rng.integers(-8, 9, count) / 4  # sums are exact
            batch["terminated"], batch["truncated"] = rng.random(count) < 0.001, rng.random(count) < 0.001
            for i, lane in enumerate(lane_of.tolist()):
                breaks = rng.random() < 0.002
                batch["observation"][i] = rng.normal(size=4).astype(np.float32) if breaks else last[lane]
                last[lane] = batch["next_observation"][i].copy()
                if breaks and lane in running:
                    episodes[running.pop(lane)].end = "cut"
                if lane not in running:
                    running[lane] = next_id
                    episodes[next_id] = Episode(lane)
                    next_id += 1
                episode = episodes[running[lane]]
                episode.rows.append(len(rewards))
                rewards.append(float(batch["reward"][i]))
                times.append(now)
                flags = [name for name in ("terminated", "truncated") if batch[name][i]]
                if flags:
                    episode.end = " and ".join(flags)
                    del running[lane]
            ids += store.extend(batch, lane=lane_of).tolist()
        store.flush()
        store._engine.writer_shard.wait_for_threads()
        assert store.sql("SELECT count(*) > 1, count(DISTINCT state) FROM segments").fetchall() == [(True, 2)]
        assert store.sql("SELECT max(num_runs) > 3, count(DISTINCT ended_by) > 3 FROM episodes").fetchall() == [
            (True, True)
        ]
        found = model_episodes(store)
        assert [row[0] for row in found] == sorted(episodes)
        for number, lane, started, ended, returned, length, end, complete, row_id in found:
            episode = episodes[number]
            assert (lane, length, end, row_id) == (episode.lane, len(episode.rows), episode.end, ids[episode.rows[0]])
            assert returned == sum(rewards[row] for row in episode.rows)
            assert started == times[episode.rows[0]]
            assert complete == (end not in ("running", "cut"))
            assert (ended is None) == (end == "running")
            if complete:
                assert ended == times[episode.rows[-1]]
        by_hand = "SELECT episode_id, sum(reward), count(*) FROM transitions GROUP BY 1 ORDER BY 1"
        assert store.sql(by_hand).fetchall() == [(row[0], row[4], row[5]) for row in found]
        # No transition is missing or doubled, whatever blocks and segments it lies in.
        assert store.sql("SELECT row_id FROM transitions ORDER BY ordinal").arrow()["row_id"].to_pylist() == ids


def test_episodes_of_vector_rewards_and_given_ids() -> None:
    with Store.temporary(plain_schema(reward=("float32", (2,)))) as store:
        batch = plain_batch(6, every=3, reward=np.arange(12, dtype=np.float32).reshape(6, 2))
        store.extend(batch | {"episode_id": np.array([70, 70, 70, 9, 9, 9])})
        rows = store.sql('SELECT episode_id, "return", terminated, truncated FROM episodes ORDER BY row_id').fetchall()
        assert [(row[0], list(row[1]), *row[2:]) for row in rows] == [
            (70, [6.0, 9.0], True, False),
            (9, [24.0, 27.0], True, False),
        ]


def test_an_episode_that_did_not_begin_at_its_first_step_is_not_complete() -> None:
    with Store.temporary(plain_schema()) as store:
        store.extend(plain_batch(4, every=4, episode_id=np.full(4, 5), step=np.arange(3, 7)))
        assert store.sql("SELECT length, ended_by, complete FROM episodes").fetchall() == [(4, "terminated", False)]


def test_segments_count_what_is_there() -> None:
    with Store.temporary(plain_schema()) as store:
        for seed in range(4):
            store.extend(plain_batch(3000, seed))
        segments = store.sql("FROM segments ORDER BY segment").df()
        assert segments["num_transitions"].sum() == len(store) == 12000
        assert segments["num_rows"].sum() == store.sql("SELECT max(ordinal) FROM steps").fetchone()[0]
        assert segments["first_ordinal"].min() == 1
        assert set(segments["state"]) <= {"open", "sealed"}
        assert (segments["rows"] >= segments["num_rows"]).all()
        for segment in segments.itertuples():
            file = next(store.path.rglob(segment.file))
            assert file.stat().st_size == segment.bytes
        inside = store.sql("SELECT row_id >> 24 AS s, count(*) FROM transitions GROUP BY 1 ORDER BY 1").fetchall()
        assert inside == [(row.segment, row.num_transitions) for row in segments.itertuples()]
