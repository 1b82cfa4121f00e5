"""Imports and merges: what went in comes out the same, in stores that are whole or not there."""

from __future__ import annotations

import copy
import os
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import arrowrb
from arrowrb.cli import app
from arrowrb.errors import (
    ColumnError,
    CorruptError,
    OptionError,
    SchemaError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
    UsageError,
)
from arrowrb.importing import filling, import_parquet, merge
from arrowrb.importing.steps import Successors
from arrowrb.schema import Schema
from arrowrb.store import Store
from tests.test_exporting import rich_store
from tests.test_sql import rich_schema
from tests.test_tiers import small_segments
from tests.worlds import World

__all__ = ["small_segments"]  # a fixture

COMPARED = "SELECT * EXCLUDE (row_id, ordinal) FROM transitions ORDER BY episode_id, step, time"


def shown(store: Store, query: str = COMPARED) -> list[str]:
    """Rows as text, in which NaN equals NaN."""
    return [repr(row) for row in store.sql(query).fetchall()]


def episodes(store: Store) -> list[str]:
    return shown(store, 'SELECT episode_id, lane, seed, length, "return", ended_by FROM episodes ORDER BY episode_id')


# -- what we export --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hot_rows", [None, 1])
@pytest.mark.parametrize("images", ["binary", "list"])
def test_an_export_comes_back_as_it_was(tmp_path: Path, hot_rows: int | None, images: str) -> None:
    with rich_store(tmp_path / "store", hot_rows) as store:
        store.export(tmp_path / "out", images=images, file_bytes=1_000_000)
        done = arrowrb.import_parquet(tmp_path / "out", tmp_path / "back")
        assert (done.path, done.num_transitions, done.num_left_out) == (tmp_path / "back", len(store), 0)
        with Store.open(tmp_path / "back") as back:
            assert back.schema == store.schema
            assert shown(back) == shown(store)
            assert back.verify()
            # Bits, through the other way out.
            ours = store.sql("SELECT row_id FROM transitions ORDER BY episode_id, step, time").arrow()["row_id"]
            theirs = back.sql("SELECT row_id FROM transitions ORDER BY episode_id, step, time").arrow()["row_id"]
            left, right = store.gather(ours.to_numpy()), back.gather(theirs.to_numpy())
            assert_same_bits({**left, "row_id": 0}, {**right, "row_id": 0})


def assert_same_bits(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_same_bits(left[name], right[name])
    elif isinstance(left, tuple | list):
        for a, b in zip(left, right, strict=True):
            assert_same_bits(a, b)
    elif hasattr(left, "contiguous"):
        import torch

        assert left.dtype == right.dtype
        assert torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def test_an_export_of_steps_comes_back(tmp_path: Path) -> None:
    """All but the newest transition of an episode that still ran: its next observation is not in the files."""
    with rich_store(tmp_path / "store", None) as store:
        running = store.sql("SELECT count(*) FROM episodes WHERE ended_by = 'running'").fetchall()[0][0]
        assert running
        store.export(tmp_path / "out", rows="steps")
        done = arrowrb.import_parquet(tmp_path / "out", tmp_path / "back")
        assert done.num_left_out == running
        assert done.num_transitions == len(store) - running
        newest = "SELECT episode_id, max(step) FROM transitions GROUP BY 1"
        running_ids = "SELECT episode_id FROM episodes WHERE ended_by = 'running'"
        left = f"(episode_id, step) IN ({newest}) AND episode_id IN ({running_ids})"
        with Store.open(tmp_path / "back") as back:
            assert shown(back) == shown(store, COMPARED.replace("ORDER", f"WHERE NOT ({left}) ORDER"))
            assert back.verify()


# -- anybody's Parquet -----------------------------------------------------------------------------------------------


def foreign(count: int = 60, length: int = 7) -> pa.Table:
    """Steps as others write them: one observation a row, numbered episodes, the end on the last row."""
    rng = np.random.default_rng(5)
    state = rng.normal(size=(count, 3)).astype(np.float32)
    step = np.arange(count) % length
    return pa.table(
        {
            "obs": pa.FixedSizeListArray.from_arrays(pa.array(state.reshape(-1)), 3),
            "act": pa.array(rng.integers(0, 4, count)),
            "rew": pa.array(rng.normal(size=count)),
            "done": pa.array(step == length - 1),
            "episode_index": pa.array(np.arange(count) // length),
            "frame_index": pa.array(step),
            "when": pa.array(np.arange(count), pa.timestamp("ms", tz="UTC")),
            "note": pa.array(["x"] * count),
        }
    )


NAMES = {
    "observation": "obs",
    "action": "act",
    "reward": "rew",
    "terminated": "done",
    "episode_id": "episode_index",
    "step": "frame_index",
    "time": "when",
}


def test_steps_of_others(tmp_path: Path) -> None:
    table = foreign()
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=11)
    done = arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", columns=NAMES)
    data = table.to_pydict()
    keep = [i for i in range(59) if data["episode_index"][i] == data["episode_index"][i + 1]]
    assert (done.num_transitions, done.num_left_out) == (len(keep), 60 - len(keep))
    with Store.open(tmp_path / "store") as store:
        assert store.schema.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
        rows = store.sql("SELECT * FROM transitions ORDER BY ordinal").arrow().to_pylist()
        for row, i in zip(rows, keep, strict=True):
            assert list(row["observation"]) == data["obs"][i]
            assert list(row["next_observation"]) == data["obs"][i + 1]
            assert (row["action"], row["reward"]) == (data["act"][i], data["rew"][i])
            assert (row["episode_id"], row["step"], row["time"]) == (i // 7, i % 7, i * 1000)
        ends = store.sql("SELECT DISTINCT ended_by FROM episodes").fetchall()
        assert ends == [("cut",)]  # the step that ended each has no next observation


def test_the_last_step_is_kept_with_its_own_observation_where_that_is_asked_for(tmp_path: Path) -> None:
    table = foreign(56)
    pq.write_table(table, tmp_path / "data.parquet")
    done = arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", columns=NAMES, final="repeat")
    assert (done.num_transitions, done.num_left_out) == (56, 0)
    with Store.open(tmp_path / "store") as store:
        query = "SELECT observation = next_observation, count(*) FROM transitions WHERE terminated GROUP BY 1"
        assert store.sql(query).fetchall() == [(True, 8)]
        assert store.sql("SELECT DISTINCT ended_by, length FROM episodes").fetchall() == [("terminated", 7)]


def test_ends_tell_episodes_where_nothing_numbers_them(tmp_path: Path) -> None:
    pq.write_table(foreign(56).drop_columns(["episode_index", "frame_index"]), tmp_path / "data.parquet")
    names = {name: given for name, given in NAMES.items() if name not in ("episode_id", "step")}
    done = arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", columns=names)
    assert (done.num_transitions, done.num_left_out) == (48, 8)
    del names["terminated"]
    with pytest.raises(ColumnError, match="where episodes end"):
        arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "other", columns=names)
    assert not (tmp_path / "other").exists()


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_successors_against_a_model(data: Any) -> None:
    """Lanes side by side, tables of any size, final observations or none, ids or none."""
    lanes, numbered = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    has_finals, final = data.draw(st.booleans()), data.draw(st.sampled_from(["drop", "repeat"]))
    streams: list[list[dict[str, Any]]] = []
    expected: dict[int, list[tuple[int, int]]] = {}
    left_out, counter, episode = 0, 0, 0
    for lane in range(lanes):
        stream: list[dict[str, Any]] = []
        expected[lane] = []
        for _ in range(data.draw(st.integers(0, 4))):
            length, tailed = data.draw(st.integers(1, 4)), has_finals and data.draw(st.booleans())
            ended = data.draw(st.booleans()) if numbered else True
            for step in range(length + tailed):
                is_final = step == length
                row = {"observation": counter, "reward": None if is_final else 1.0, "lane": lane, "episode_id": episode}
                stream.append({**row, "step": step, "terminated": None if is_final else ended and step == length - 1})
                if step < length - 1 or (step == length - 1 and tailed):
                    expected[lane].append((counter, counter + 1))
                elif not is_final and final == "repeat":
                    expected[lane].append((counter, counter))
                elif not is_final:
                    left_out += 1
                counter += 1
            episode += 1
        streams.append(stream)
    rows: list[dict[str, Any]] = []
    while any(streams):
        lane = data.draw(st.sampled_from([lane for lane, stream in enumerate(streams) if stream]))
        rows.append(streams[lane].pop(0))
    names = ["observation", "reward", "terminated", *(["lane"] if lanes > 1 else [])]
    names += ["episode_id", "step"] if numbered else []
    kinds = {"observation": pa.int64(), "reward": pa.float64(), "terminated": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in names])
    successors, got = Successors(["observation"], final), []
    while rows:
        size = data.draw(st.integers(1, 5))
        got.append(successors.feed(pa.Table.from_pylist([{n: r[n] for n in names} for r in rows[:size]], schema)))
        rows = rows[size:]
    rest = successors.finish()
    found: dict[int, list[tuple[int, int]]] = {lane: [] for lane in range(lanes)}
    for joined in [*got, *([] if rest is None else [rest])]:
        for row in joined.transitions.to_pylist():
            found[row.get("lane", 0)].append((row["observation"], row["next_observation"]))
    assert found == expected
    assert successors.num_left_out == left_out


@pytest.mark.parametrize("chunk", [2, 1000])
def test_cuts_and_their_times_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Also where the same episode goes on behind them with the next step and bits, and where rows stand alone."""
    monkeypatch.setattr(filling, "_LEAST_CHUNK_ROWS", chunk)
    monkeypatch.setattr(filling, "_MOST_CHUNK_ROWS", chunk)
    schema = Schema.from_spaces(spaces.Box(-9, 99, (1,), np.float32), spaces.Discrete(2))

    def batch(first: int, stop: int, episode: int) -> dict[str, Any]:
        values, count = np.arange(first, stop + 1, dtype=np.float32)[:, None], stop - first
        flags = {"terminated": [False] * count, "truncated": [False] * count}
        given = {"episode_id": [episode] * count, "step": range(first, stop), "reward": [1.0] * count}
        return {"observation": values[:-1], "next_observation": values[1:], "action": [0] * count, **flags, **given}

    with Store.create(tmp_path / "one", schema) as store:
        store.extend(batch(0, 4, 7))
    with Store.open(tmp_path / "one", mode="a") as store:  # closing cut that one
        store.extend(batch(4, 8, 7))
        store.extend(batch(0, 3, 9), lane=1, contiguous=False)
        store.extend(batch(0, 5, 10), lane=2)
    with Store.open(tmp_path / "one") as store:
        store.export(tmp_path / "out", rows="steps")
    time.sleep(0.01)
    merge(tmp_path / "one", tmp_path / "merged")
    import_parquet(tmp_path / "out", tmp_path / "imported")
    told = []
    for name in ("one", "merged", "imported"):
        with Store.open(tmp_path / name) as store:
            tails = store.sql("SELECT episode_id, step, kind, time FROM steps WHERE kind <> 1 ORDER BY ALL").fetchall()
            ends = store.sql("SELECT episode_id, ended_by, started_at, ended_at FROM episodes ORDER BY ALL").fetchall()
            told.append((tails, ends))
    assert [tail[:2] for tail in told[0][0]] == [(7, 4), (7, 8), (9, 1), (9, 2), (9, 3), (10, 5)]
    assert told[1] == told[0]
    assert told[2] == told[0]


def test_structs_lists_and_several_columns(tmp_path: Path) -> None:
    count = 10
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "state": pa.array([{"pos": [float(i), 2.0], "inner": {"speed": i}} for i in range(count)]),
            "vx": pa.array(rng.normal(size=count)),
            "vy": pa.array(rng.normal(size=count)),
            "reward": pa.array(rng.normal(size=count).astype(np.float32)),
            "terminated": pa.array([0.0] * 9 + [1.0]),
            "log_prob": pa.array([None, *rng.normal(size=count - 1)]),
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    names = {"observation": "state", "action": ["vx", "vy"]}
    done = arrowrb.import_parquet(
        tmp_path / "data.parquet", tmp_path / "store", columns=names, extras=["log_prob"], final="repeat"
    )
    assert done.num_transitions == count
    with Store.open(tmp_path / "store") as store:
        assert store.schema.observation_space == spaces.Dict(
            {
                "pos": spaces.Box(-np.inf, np.inf, (2,), np.float64),
                "inner": spaces.Dict({"speed": spaces.Box(-(2**63), 2**63 - 1, (), np.int64)}),
            }
        )
        assert store.schema.reward == ("float32", ())
        batch = store.gather(store.sql("SELECT row_id FROM transitions ORDER BY step").arrow()["row_id"].to_numpy())
        assert batch["observation"]["inner"]["speed"].tolist() == list(range(count))
        assert batch["observation"]["pos"].tolist() == [[float(i), 2.0] for i in range(count)]
        assert np.array_equal(batch["action"].numpy(), np.stack([table["vx"], table["vy"]], axis=1))
        assert batch["log_prob.valid"].tolist() == [False] + [True] * 9
        assert batch["terminated"].tolist() == [False] * 9 + [True]


def test_an_environment_knows_the_spaces(tmp_path: Path) -> None:
    """Bytes get their shape, actions their bounds, from the schema that is given."""
    images = np.random.default_rng(0).integers(0, 255, (20, 4, 5), np.uint8)
    table = pa.table(
        {
            "observation": pa.array([image.tobytes() for image in images], pa.binary()),
            "action": pa.array(np.arange(20) % 3),
            "reward": pa.array(np.zeros(20)),
            "terminated": pa.array(np.zeros(20, np.bool_)),
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(ColumnError, match="give the schema"):
        arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store")
    schema = Schema.from_spaces(spaces.Box(0, 255, (4, 5), np.uint8), spaces.Discrete(3))
    done = arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", schema=schema)
    assert (done.num_transitions, done.num_left_out) == (19, 1)
    with Store.open(tmp_path / "store") as store:
        assert store.schema == schema
        rows = store.sql("SELECT row_id FROM transitions ORDER BY step").arrow()["row_id"].to_numpy()
        assert np.array_equal(store.gather(rows)["next_observation"].numpy(), images[1:])


def test_an_import_adds_to_a_store_and_keeps_episodes_apart(tmp_path: Path) -> None:
    pq.write_table(foreign(), tmp_path / "data.parquet")
    arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", columns=NAMES)
    with Store.open(tmp_path / "store", mode="a") as store:
        before = shown(store)
        arrowrb.import_parquet(tmp_path / "data.parquet", store, columns=NAMES)
        assert len(store) == 2 * len(before)
        counts = store.sql("SELECT episode_id, count(*) FROM transitions GROUP BY 1 ORDER BY 1").fetchall()
        assert counts == [(i, 6 if i % 9 < 8 else 3) for i in range(18)]
        assert store.verify()


@pytest.mark.parametrize("kind", ["int8", "float32", "bool"])
def test_ends_and_numbers_of_any_type(tmp_path: Path, kind: str) -> None:
    table = foreign(56)
    done = table["done"].to_numpy().astype(kind)
    table = table.set_column(table.column_names.index("done"), "done", pa.array(done))
    numbers = pa.array(table["episode_index"].to_numpy().astype(np.float64))
    table = table.set_column(table.column_names.index("episode_index"), "episode_index", numbers)
    pq.write_table(table, tmp_path / "data.parquet")
    for number, dropped in enumerate(((), ("episode_id", "step"))):
        names = {name: given for name, given in NAMES.items() if name not in dropped}
        path = tmp_path / f"store{number}"
        done = arrowrb.import_parquet(tmp_path / "data.parquet", path, columns=names, final="repeat")
        with Store.open(path) as store:
            assert store.sql("SELECT DISTINCT ended_by, length FROM episodes").fetchall() == [("terminated", 7)]


def test_names_of_any_bytes_and_metadata_that_say_nothing(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with open(folder / "1.parquet", "wb") as file:
        pq.write_table(foreign(), file)
    assert arrowrb.import_parquet(folder, tmp_path / "store", columns=NAMES).num_transitions == 51
    with pytest.raises(StoreError):
        arrowrb.import_parquet("x" * 5000, tmp_path / "other", columns=NAMES)
    with pytest.raises(StoreError):
        arrowrb.import_parquet(folder, tmp_path / ("x" * 5000), columns=NAMES)
    for dtype, shape in (
        ("foo", "[]"),
        ("object", "[]"),
        ("float32", "[1e400]"),
        ("float32", "[-1]"),
        ("float32", "{"),
    ):
        field = pa.field("obs", foreign().schema.field("obs").type, metadata={"dtype": dtype, "shape": shape})
        pq.write_table(foreign().cast(foreign().schema.set(0, field)), tmp_path / "told.parquet")
        with pytest.raises(SchemaError, match="by its metadata"):
            arrowrb.import_parquet(tmp_path / "told.parquet", tmp_path / "other", columns=NAMES)


def test_a_store_is_no_data_set_and_holds_none(tmp_path: Path) -> None:
    pq.write_table(foreign(), tmp_path / "data.parquet")
    with rich_store(tmp_path / "store", 1) as store:
        inside = next((tmp_path / "store").rglob("*.parquet"))
        for source in (tmp_path / "store", inside, tmp_path):
            with pytest.raises(StoreError, match="belongs to the store"):
                arrowrb.import_parquet(source, tmp_path / "new")
        with pytest.raises(StoreExistsError, match="lies inside the store"):
            arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store/new", columns=NAMES)
        assert store.verify()


# -- Minari ----------------------------------------------------------------------------------------------------------


def nest(items: list[Any]) -> Any:
    """A list of nested values as nested lists."""
    if isinstance(items[0], dict):
        return {key: nest([item[key] for item in items]) for key in items[0]}
    if isinstance(items[0], tuple):
        return tuple(nest([item[place] for item in items]) for place in range(len(items[0])))
    return np.array(items)


def make_minari(data_format: str, env: gymnasium.Env[Any, Any], count: int) -> tuple[Any, list[Any]]:
    """A data set made by Minari, and what really happened."""
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for number in range(count):
        observation, info = env.reset(seed=number)
        env.action_space.seed(number)
        observations, infos, actions, outcomes = [copy.deepcopy(observation)], [info["score"]], [], []
        while True:
            actions.append(env.action_space.sample())
            observation, *outcome, info = env.step(actions[-1])
            observations.append(copy.deepcopy(observation))
            infos.append(info["score"])
            outcomes.append(outcome)
            if outcome[1] or outcome[2] or len(actions) >= 30:
                break
        rewards, terminations, truncations = (list(each) for each in zip(*outcomes, strict=True))
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number + 100,
                observations=nest(observations),
                actions=nest(actions),
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
                infos={"score": np.array(infos)[:, None]},  # Minari does not read scalars back from Arrow files
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about authors and the like
        dataset = minari.create_dataset_from_buffers(
            dataset_id="arrowrb/test-v0",
            buffer=buffers,
            action_space=env.action_space,
            observation_space=env.observation_space,
            data_format=data_format,
        )
    return dataset, buffers


class Scored(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Always tells a score."""

    def reset(self, **options: Any) -> Any:
        observation, _ = self.env.reset(**options)
        return observation, {"score": -1.0}

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, reward, terminated, truncated, {"score": 2 * float(reward)}


@pytest.mark.parametrize(
    ("data_format", "nested", "by"),
    [("hdf5", False, "object"), ("hdf5", True, "path"), ("arrow", False, "id"), ("arrow", True, "object")],
)
def test_a_minari_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str, nested: bool, by: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    dataset, buffers = make_minari(data_format, Scored(World(nested=nested)), 12)
    source = {"object": dataset, "path": tmp_path / "minari/arrowrb/test-v0", "id": "arrowrb/test-v0"}[by]
    info = {"score": ("float64", (1,)), "absent": "int64"}
    done = arrowrb.import_minari(source, tmp_path / "store", info=info)
    assert done.num_transitions == sum(map(len, buffers))
    with Store.open(tmp_path / "store") as store:
        assert store.schema.observation_space == dataset.observation_space
        assert store.verify()
        summaries = store.sql("SELECT episode_id, seed, length, ended_by FROM episodes ORDER BY 1").fetchall()
        for buffer, (number, seed, length, how) in zip(buffers, summaries, strict=True):
            assert (number, seed, length) == (buffer.id, buffer.seed, len(buffer))
            flags = [
                w for w, on in (("terminated", buffer.terminations[-1]), ("truncated", buffer.truncations[-1])) if on
            ]
            assert how == (" and ".join(flags) or "cut")
            query = f"SELECT row_id FROM transitions WHERE episode_id = {number} ORDER BY step"
            batch = store.gather(store.sql(query).arrow()["row_id"].to_numpy())
            tree = store.schema.observation_tree
            for ours, theirs in zip(tree.leaves(batch["observation"]), tree.leaves(buffer.observations), strict=True):
                assert np.array_equal(ours.numpy(), theirs[:-1])
            following = zip(tree.leaves(batch["next_observation"]), tree.leaves(buffer.observations), strict=True)
            for ours, theirs in following:
                assert np.array_equal(ours.numpy(), theirs[1:])
            tree = store.schema.action_tree
            for ours, theirs in zip(tree.leaves(batch["action"]), tree.leaves(buffer.actions), strict=True):
                assert np.array_equal(ours.numpy(), theirs)
            assert batch["reward"].tolist() == buffer.rewards
            assert batch["score"].tolist() == buffer.infos["score"][1:].tolist()
            assert not batch["absent.valid"].any()


def test_a_minari_data_set_that_is_not_there_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    with pytest.raises(StoreNotFoundError, match="minari download"):
        arrowrb.import_minari("arrowrb/none-v0", tmp_path / "store")
    with pytest.raises(OptionError, match="MinariDataset"):
        arrowrb.import_minari(7, tmp_path / "store")
    make_minari("hdf5", Scored(World()), 3)
    data = tmp_path / "minari/arrowrb/test-v0/data/main_data.hdf5"
    content = bytearray(data.read_bytes())
    for damaged in (content[: len(content) // 2], b"", bytes(1000), b"x" * len(content)):
        data.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"test-v0|MinariDataset"):
            arrowrb.import_minari("arrowrb/test-v0", tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == ["minari"]


# -- merging ---------------------------------------------------------------------------------------------------------


def collected(path: Path, seed: int, **options: Any) -> Store:
    env = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync")
    store = Store.create(path, Schema.from_env(env), **options)
    with arrowrb.Collector(env, frames_per_batch=50, total_frames=700, seed=seed, store=store) as collector:
        for _ in collector:
            pass
    env.close()
    return store


@pytest.mark.usefixtures("small_segments")
def test_stores_are_merged_as_they_came(tmp_path: Path) -> None:
    stores = [collected(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    stores[1].flush()
    done = arrowrb.merge(stores, tmp_path / "both", hot_rows=1000)
    assert done.num_transitions == 1400
    with Store.open(tmp_path / "both") as both:
        assert both.verify()
        most = stores[0].sql("SELECT max(episode_id) FROM episodes").fetchall()[0][0] + 1
        query = "SELECT * EXCLUDE (row_id, ordinal) FROM transitions ORDER BY ordinal"
        moved = query.replace("(row_id, ordinal)", "(row_id, ordinal) REPLACE (episode_id + {} AS episode_id)")
        assert shown(both, query) == [*shown(stores[0], query), *shown(stores[1], moved.format(most))]
        columns = 'lane, seed, length, "return", ended_by'
        ours = shown(both, f"SELECT {columns} FROM episodes ORDER BY episode_id")
        theirs = [
            row for store in stores for row in shown(store, f"SELECT {columns} FROM episodes ORDER BY episode_id")
        ]
        assert ours == [row.replace("'running'", "'cut'") for row in theirs]
    for store in stores:
        store.close()


@pytest.mark.parametrize("hot_rows", [None, 1])
def test_every_dtype_is_merged_bit_for_bit(tmp_path: Path, hot_rows: int | None) -> None:
    with rich_store(tmp_path / "store", hot_rows) as store:
        arrowrb.merge(tmp_path / "store", tmp_path / "copy")
        with Store.open(tmp_path / "copy") as copied:
            query = "SELECT row_id FROM transitions ORDER BY ordinal"
            left, right = (s.gather(s.sql(query).arrow()["row_id"].to_numpy()) for s in (store, copied))
            assert_same_bits({**left, "row_id": 0}, {**right, "row_id": 0})
            assert shown(copied) == shown(store)


def test_a_merge_goes_on_where_a_store_is(tmp_path: Path) -> None:
    with collected(tmp_path / "a", 1) as a, collected(tmp_path / "b", 2) as b:
        done = arrowrb.merge([b], a)
        assert (done.num_transitions, len(a)) == (700, 1400)
        assert a.verify()
        env = gymnasium.make("CartPole-v1")
        with arrowrb.Collector(env, frames_per_batch=50, total_frames=50, store=a) as collector:
            list(collector)
            with pytest.raises(UsageError, match="belongs to a recorder"):
                arrowrb.merge(b, a)
        assert len(a) == 1450


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    with collected(tmp_path / "a", 1) as a, Store.create(tmp_path / "b", rich_schema()) as b:
        for sources, target, error, text in (
            ([a, b], tmp_path / "new", SchemaError, "schema"),
            (b, a, SchemaError, "schema"),
            (a, a, StoreExistsError, "source and the target"),
            (tmp_path / "none", tmp_path / "new", StoreNotFoundError, "no store"),
            ([], tmp_path / "new", OptionError, "sources"),
            (a, tmp_path / "b", StoreExistsError, "a store already"),
            (a, tmp_path, StoreExistsError, "something else"),
        ):
            with pytest.raises(error, match=text):
                arrowrb.merge(sources, target)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="hot_rows is given"):
            arrowrb.merge(tmp_path / "b", a, hot_rows=1000)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


# -- what is wrong ---------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, table: pa.Table, text: str, **options: Any) -> None:
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(ColumnError, match=text):
        arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", **{"columns": NAMES, **options})
    assert sorted(os.listdir(tmp_path)) == ["data.parquet"]


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    table = foreign()

    def with_column(name: str, values: Any) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, values)

    refused(tmp_path, table, "'rewards', given for 'reward', is not in", columns={**NAMES, "reward": "rewards"})
    refused(tmp_path, table.drop_columns(["rew"]), "'rew', given for 'reward'")
    refused(tmp_path, table, "columns names 'rewards'", columns={**NAMES, "rewards": "rew"})
    refused(tmp_path, table, "Column 'observation' is not in", columns={})
    refused(tmp_path, with_column("act", pa.array(["left"] * 60)), "'action' is of type string")
    refused(tmp_path, with_column("obs", pa.array([[1.0], *[[1.0, 2.0]] * 59])), "unequal length")
    refused(tmp_path, with_column("obs", pa.array([[0.0], None, *[[1.0]] * 58])), "1 nulls")
    refused(tmp_path, with_column("done", pa.array([0.5] * 60)), "'terminated'")
    refused(tmp_path, with_column("done", pa.array([None, *[False] * 59])), "nulls")
    refused(tmp_path, with_column("done", pa.array(["no"] * 60)), "'terminated' is of type string")
    refused(tmp_path, with_column("done", pa.array([2] * 60)), "other values than 0 and 1")
    refused(tmp_path, with_column("frame_index", pa.array([0.5] * 60)), "'step' of type double")
    refused(tmp_path, with_column("episode_index", pa.array(["a"] * 60)), "'episode_id' is of type string")
    refused(tmp_path, with_column("episode_index", pa.array([None, *[1] * 59])), "'episode_id' has 1 nulls")
    refused(tmp_path, with_column("episode_index", pa.array([-1] * 60)), "'episode_id' has the value -1")
    refused(tmp_path, with_column("episode_index", pa.array([0, 0, 1, 1, 0, 0] * 10)), "episode 0 comes again")
    small = Schema.from_spaces(spaces.Box(-9, 9, (3,), np.float32), spaces.Discrete(2))
    refused(tmp_path, table, "a Discrete space", schema=small)
    other = Schema.from_spaces(spaces.Box(-9, 9, (4,), np.float32), spaces.Discrete(4))
    refused(tmp_path, table, r"'observation' has shape", schema=other)
    for columns in ([], {"reward": 3}, {"reward": []}, {3: "rew"}):
        with pytest.raises(OptionError, match="columns"):
            arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", columns=columns)  # type: ignore[arg-type]
    for wrong in ({"extras": [3]}, {"extras": 5}, {"progress": 5}, {"final": np.zeros(2)}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", **wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="final"):
        arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", final="zero")


def test_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(foreign(), tmp_path / "data/1.parquet")
    for wrong in (foreign().drop_columns(["rew"]), foreign().set_column(2, "rew", pa.array(np.arange(60)))):
        pq.write_table(wrong, tmp_path / "data/2.parquet")
        with pytest.raises(ColumnError, match=r"2\.parquet has no column 'rew' of type double"):
            arrowrb.import_parquet(tmp_path / "data", tmp_path / "store", columns=NAMES)
    assert sorted(os.listdir(tmp_path)) == ["data"]


def test_damaged_files(tmp_path: Path) -> None:
    pq.write_table(foreign(5000), tmp_path / "data.parquet", compression="none", write_page_checksum=True)
    content = (tmp_path / "data.parquet").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 1
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-3], bytes(flipped), b"PAR1" * 9):
        (tmp_path / "data.parquet").write_bytes(damaged)
        with pytest.raises(CorruptError, match=r"data\.parquet"):
            arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", columns=NAMES)
    for source in (tmp_path / "none", tmp_path / "*.json", tmp_path, "\0", 7, []):
        if source == tmp_path:
            os.unlink(tmp_path / "data.parquet")
        with pytest.raises((StoreError, OptionError)):
            arrowrb.import_parquet(source, tmp_path / "store")
    assert os.listdir(tmp_path) == []


def test_an_interrupted_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_MOST_CHUNK_ROWS", 500)
    pq.write_table(foreign(5000), tmp_path / "data.parquet")

    def interrupt(done: int, total: int) -> None:
        assert total == 5000
        if done > 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arrowrb.import_parquet(tmp_path / "data.parquet", tmp_path / "store", columns=NAMES, progress=interrupt)
    assert os.listdir(tmp_path) == ["data.parquet"]
    pq.write_table(foreign(10), tmp_path / "small.parquet")
    arrowrb.import_parquet(tmp_path / "small.parquet", tmp_path / "store", columns=NAMES)
    with Store.open(tmp_path / "store", mode="a") as store:
        with pytest.raises(KeyboardInterrupt):
            arrowrb.import_parquet(tmp_path / "data.parquet", store, columns=NAMES, progress=interrupt)
        assert store.verify()
        running = store.sql("SELECT count(*) FROM episodes WHERE ended_by = 'running'").fetchall()
        assert running == [(0,)]
        assert 2000 < len(store) < 5000


# -- the command line ------------------------------------------------------------------------------------------------


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = tmp_path / "data.parquet", tmp_path / "store"
    pq.write_table(foreign(56), data)
    given = [part for name, column in NAMES.items() for part in ("--column", f"{name}={column}")]
    assert "48 transitions" in run("import", data, store, *given)
    assert "8 more have no next observation" in run("import", data, tmp_path / "other", *given)
    assert "a store already" in run("import", data, store, *given, code=1)
    assert "56 transitions" in run("import", data, store, *given, "--append", "--final", "repeat")
    assert "152 transitions" in run("merge", store, tmp_path / "other", tmp_path / "both")
    assert "104 transitions" in run("merge", store, tmp_path / "other")
    with Store.open(tmp_path / "other") as other, Store.open(tmp_path / "both") as both:
        assert len(other) == len(both) == 152
        other.export(tmp_path / "out")
    assert "152 transitions" in run("import", tmp_path / "out", tmp_path / "back")
    assert "merge" in run("import", store, tmp_path / "again", code=1)
    run("import", data, tmp_path / "again", "--column", "reward", code=2)
    run("merge", store, code=2)
    cart = tmp_path / "cart.parquet"
    with collected(tmp_path / "cart", 1) as made:
        made.export(tmp_path / "cart_out")
        pq.write_table(pq.read_table(tmp_path / "cart_out").replace_schema_metadata(None), cart)
        run("import", cart, tmp_path / "cart_back", "--env", "CartPole-v1", "--max-rows", 100_000)
        with Store.open(tmp_path / "cart_back") as back:
            assert back.schema == made.schema
            assert shown(back) == shown(made)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    _, buffers = make_minari("hdf5", Scored(World()), 3)
    for source, name in (("arrowrb/test-v0", "id"), (tmp_path / "minari/arrowrb/test-v0", "path")):
        assert f"{sum(map(len, buffers))} transitions" in run("import", source, tmp_path / f"minari_{name}")
    assert "no/such-v0" in run("import", "no/such-v0", tmp_path / "none", code=1)
