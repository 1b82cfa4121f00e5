"""Exports: readable without arrowrb, in the order of a data set, whole or not there."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import duckdb
import gymnasium
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from arrowrb.cli import app
from arrowrb.errors import ArrowRBError, FullError, QueryError, StoreExistsError
from arrowrb.export import writing
from arrowrb.schema import Extra, Schema
from arrowrb.store import Store
from tests.plain_store import plain_batch
from tests.test_sql import rich_schema, write_rich
from tests.test_tiers import create, fill, settle, small_segments

__all__ = ["small_segments"]  # a fixture


def rich_store(path: Path, hot_rows: int | None) -> Store:
    store = create(path, rich_schema(), hot_rows=hot_rows)
    rng = np.random.default_rng(1)
    for lane in (0, 3, 1, 0, 3) * 6:
        write_rich(store, rng, 45, lane)
    settle(store)
    return store


@pytest.mark.parametrize("hot_rows", [None, 1])
@pytest.mark.parametrize("rows", ["transitions", "steps"])
def test_an_export_holds_what_sql_shows(tmp_path: Path, hot_rows: int | None, rows: str) -> None:
    with rich_store(tmp_path / "store", hot_rows) as store:
        done = store.export(tmp_path / "out", rows=rows, images="binary")
        shown = store.sql(f"SELECT * FROM {rows}").arrow()
        assert done.num_rows == shown.num_rows
    whole = pq.read_table(tmp_path / "out")
    names = {"observation.Twin_1": "observation.Twin", "observation.twin_2": "observation.twin"}
    names |= {f"next_{a}": f"next_{b}" for a, b in names.items()}
    rows_of = {row["row_id"]: row for row in whole.to_pylist()}
    for row in shown.to_pylist():
        other = rows_of[row["row_id"]]
        for name, value in row.items():
            if name != "kind":
                assert _same(value, other[names.get(name, name)]), name
    order = [(row["episode_id"], row["step"]) for row in whole.to_pylist()]
    episodes = list(dict.fromkeys(episode for episode, _ in order))
    assert order == sorted(order, key=lambda each: (episodes.index(each[0]), each[1]))
    first = {episode: row["ordinal"] for row in reversed(whole.to_pylist()) for episode in [row["episode_id"]]}
    assert [first[episode] for episode in episodes] == sorted(first.values())


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (left != left and right != right)
    return bool(left == right)


def test_others_read_it(tmp_path: Path) -> None:
    with create(tmp_path / "store", hot_rows=1) as store:
        ids = fill(store, 1500)
        rewards = store.gather(ids)["reward"].numpy()
        done = store.export(tmp_path / "out", rows="steps")
    assert [path.name for path in done.files] == ["part-00000.parquet"]
    pattern = str(tmp_path / "out" / "*.parquet")
    frames = (
        pd.read_parquet(tmp_path / "out"),
        pl.read_parquet(pattern).to_pandas(),
        duckdb.sql(f"FROM '{pattern}'").df(),
    )
    for frame in frames:
        shown = frame[frame["reward"].notna()]
        assert (shown["reward"].to_numpy() == rewards).all()
        assert (shown["row_id"].to_numpy() == ids).all()
        assert np.stack(frame["observation"]).shape == (len(frame), 4)
        tails = frame[frame["reward"].isna()]
        assert len(tails) == 1500 // 7
        assert tails["terminated"].isna().all()
    metadata = pq.read_schema(done.files[0]).metadata
    assert Schema.from_json(json.loads(metadata[b"arrowrb.schema"])) == store.schema


@pytest.mark.parametrize("rows", ["transitions", "steps"])
@pytest.mark.parametrize("images", ["binary", "list"])
def test_hugging_face_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, images: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    with rich_store(tmp_path / "store", 1) as store:
        store.export(tmp_path / "out", rows=rows, images=images)
    files = str(tmp_path / "out" / "*.parquet")
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    expected = pq.read_table(tmp_path / "out")
    assert found.column_names == expected.column_names
    for name in expected.column_names:
        for value, other in zip(found.with_format("arrow")[name], expected[name].to_pylist(), strict=True):
            assert _same(value.as_py(), other), name


def test_polars_reads_vectors_that_are_missing(tmp_path: Path) -> None:
    count = 21_000  # in pages of 20,000
    schema = Schema.from_spaces(
        gymnasium.spaces.Box(-9, 9, (), np.float32),
        gymnasium.spaces.Box(-1, 1, (6,), np.float32),
        extras={"goal": Extra("int64", (2,), nullable=True)},
    )
    observation = np.arange(count + 1, dtype=np.float32)
    batch = {
        "observation": observation[:-1],
        "next_observation": observation[1:],
        "action": np.random.default_rng(3).standard_normal((count, 6)).astype(np.float32),
        "reward": observation[1:],
        "terminated": np.arange(1, count + 1) % 1000 == 0,
        "truncated": np.zeros(count, np.bool_),
    }
    with Store.create(tmp_path / "store", schema) as store:
        store.extend(batch)
        for extra in range(8):  # how many rows there are decides whether it would fail
            done = store.export(tmp_path / str(extra), rows="steps", where=f"ordinal <= {20_001 + extra}")
            found, expected = pl.read_parquet(done.files[0]), pq.read_table(done.files[0])
            assert 0 < found["action"].null_count() == found["reward"].null_count() < done.num_rows
            for name in expected.column_names:
                assert found[name].to_list() == expected[name].to_pylist()


def test_a_part_of_it_in_files_of_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_LEAST_FILE_BYTES", 1000)
    monkeypatch.setattr(writing, "_GROUP_BYTES", 1000)
    with create(tmp_path / "store", hot_rows=1) as store:
        fill(store, 1500)
        told: list[tuple[int, int]] = []
        best = 'episode_id IN (SELECT episode_id FROM episodes ORDER BY "return" DESC LIMIT 20) -- the best'
        done = store.export(
            tmp_path / "out", where=best, file_bytes=3000, progress=lambda done, total: told.append((done, total))
        )
        assert done.num_rows == 140
        assert len(done.files) > 1
        assert told[-1] == (140, 140)
        assert len(told) == 3
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert done.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
        expected = store.sql('SELECT sum("return") FROM (FROM episodes ORDER BY "return" DESC LIMIT 20)').fetchall()
        found = duckdb.sql(f"SELECT sum(reward) FROM '{tmp_path}/out/*.parquet'").fetchall()
        assert found[0][0] == pytest.approx(expected[0][0])
        none = store.export(tmp_path / "none", where="reward > 1e9")
        assert (none.num_rows, len(none.files)) == (0, 1)
        assert pq.read_table(tmp_path / "none").num_rows == 0


def test_images_as_lists(tmp_path: Path) -> None:
    with rich_store(tmp_path / "store", 1) as store:
        store.export(tmp_path / "binary")
        store.export(tmp_path / "list", images="list")
    binary, listed = (pq.read_table(tmp_path / name) for name in ("binary", "list"))
    for one, other in zip(
        binary["observation.camera"].to_pylist(), listed["observation.camera"].to_pylist(), strict=True
    ):
        assert list(one) == other


def test_refusals(tmp_path: Path) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 200)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        (tmp_path / "file").touch()
        for target in ("full", "file"):
            with pytest.raises(StoreExistsError, match="empty"):
                store.export(tmp_path / target)
        with pytest.raises(QueryError):
            store.export(tmp_path / "out", where="no_such_column > 3")
        for where in (
            "1 = 1); DROP TABLE x; SELECT (1",
            "true) UNION ALL SELECT 'x' WHERE (true",
            "true) LIMIT (5",
            "",
            "   ",
        ):
            with pytest.raises(QueryError):
                store.export(tmp_path / "out", where=where)
        with pytest.raises(StoreExistsError, match="inside the store"):
            store.export(store.path / "out")
        for options in (
            {"format": "csv"},
            {"rows": "episodes"},
            {"images": "png"},
            {"file_bytes": 5},
            {"compression": "rar"},
            {"where": 3},
        ):
            with pytest.raises(ArrowRBError):
                store.export(tmp_path / "out", **options)
        assert {path.name for path in tmp_path.iterdir()} == {"store", "full", "file"}


@pytest.mark.parametrize("last", [1, 7])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    monkeypatch.setattr(writing, "_GROUP_BYTES", 1000)
    told: list[int] = []

    def stop(done: int, total: int) -> None:
        told.append(done)
        if len(told) == last:
            raise KeyboardInterrupt

    with create(tmp_path / "store") as store:
        fill(store, 2000)
        with pytest.raises(KeyboardInterrupt):
            store.export(tmp_path / "out", progress=stop)
    assert len(told) == last
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("failing", ["encode_group", "write", "sync"])
def test_a_failure_in_any_thread_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setattr(writing, "_GROUP_BYTES", 1000)
    monkeypatch.setattr(writing, "_SYNC_BYTES", 2000)
    calls: list[threading.Thread] = []

    def fails(*arguments: Any) -> Any:
        if not threading.current_thread().name.startswith(("arrowrb-export", "MainThread")):
            return original(*arguments)  # the writer's own
        calls.append(threading.current_thread())
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    with create(tmp_path / "store") as store:
        fill(store, 2000)
        place, name = {
            "encode_group": (writing, "encode_group"),
            "write": (writing.Stitched, "add"),
            "sync": (os, "fdatasync"),
        }[failing]
        original = getattr(place, name)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fails)
            with pytest.raises(FullError, match="No room left while exporting"):
                store.export(tmp_path / "out")
        assert len(calls) >= 5
        assert (threading.main_thread() in calls) == (failing == "write")
        assert [path.name for path in tmp_path.iterdir()] == ["store"]
        assert store.export(tmp_path / "out").num_rows == 2000


def test_files_are_the_same_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_LEAST_FILE_BYTES", 1000)
    monkeypatch.setattr(writing, "_GROUP_BYTES", 2000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    with rich_store(tmp_path / "store", 1) as store:
        contents = []
        for threads in (1, 4):
            monkeypatch.setattr(writing, "_MOST_THREADS", threads)
            done = store.export(tmp_path / str(threads), file_bytes=40_000)
            contents.append([path.read_bytes() for path in done.files])
        rows = store.sql("SELECT row_id FROM transitions").arrow()["row_id"]
    assert contents[0] == contents[1]
    assert len(contents[0]) > 2
    tables = [pq.read_table(pa.BufferReader(content))["row_id"] for content in contents[0]]
    assert sorted(row for table in tables for row in table.to_pylist()) == sorted(rows.to_pylist())


def test_targets_through_links_and_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 200)
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert store.export(tmp_path / "link").num_rows == 200
        assert list((tmp_path / "real").iterdir())
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert store.export(".").num_rows == 200


def test_duckdb_reads_short_floats(tmp_path: Path) -> None:
    with rich_store(tmp_path / "store", 1) as store:
        store.export(tmp_path / "out")
        for files in (tmp_path / "out" / "*.parquet", store.path / "shards/00000/segments/*.parquet"):
            assert len(duckdb.sql(f"SELECT * FROM '{files}'").fetchall()) > 100


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path, rich_schema()) as store:
        write_rich(store, np.random.default_rng(0), 500, 0)
    out = str(tmp_path / "out")
    result = CliRunner().invoke(app, ["export", str(path), out, "--rows", "steps", "--where", "step < 3"])
    assert result.exit_code == 0, result.output
    assert "steps in 1 file," in result.output
    again = CliRunner().invoke(app, ["export", str(path), out])
    assert again.exit_code == 1
    assert "not empty" in again.stderr


def test_maintaining(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with create(path) as store:
        fill(store, 3000)
    before = {each: each.stat().st_mtime_ns for each in path.rglob("*")}
    result = CliRunner().invoke(app, ["maintain", str(path), "--hot-rows", "1000", "--dry-run", "-f", "json"])
    assert result.exit_code == 0, result.output
    assert {each["action"] for each in json.loads(result.stdout)} == {"demote"}
    assert {each: each.stat().st_mtime_ns for each in path.rglob("*")} == before
    with Store.open(path, mode="a", hot_rows=1000) as store:
        store.maintain()
        assert store.maintain(dry_run=True) == []
        assert store.info().allocated_rows <= 1000
        assert store.info().num_segments["cold"] > 20
        assert len(store) == 3000
        batch = plain_batch(3000)
        assert sorted(store.sample(5000, seed=1)["reward"].unique().tolist())[0] >= batch["reward"].min()
