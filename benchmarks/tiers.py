"""What does the cold tier cost? Moving, size on disk, draws, SQL, collecting with a small hot tier; and an export?

Targets: 150 MB a second moved for HalfCheetah-sized rows and 500 for Pong's frames, on one core; at most 0.8 and 0.1 of
the raw bytes; draws of 256 from 95 % cold rows in 20 ms where nothing is in the cache (drawn ahead), and in twice the
time of hot ones where all is; an aggregate over 10 million rows, 90 % of them cold, in 1.5 times DuckDB's over one
plain Parquet file; collecting at 0.8 of the rate without a cold tier; exports of 200 MB a second.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ale_py
import duckdb
import gymnasium
import numpy as np
import pyarrow.parquet as pq
import torch
from common import Transitions, fill_store, halfcheetah_schema, halfcheetah_transitions, interleave, show

import arrowrb
from arrowrb.engine.paths import shard_paths
from arrowrb.engine.tiering import demote
from arrowrb.tiers import hot as hot_tier

gymnasium.register_envs(ale_py)
BATCH_SIZE = 256


def collect(path: Path, env_id: str, frames: int, **options: Any) -> arrowrb.Store:
    """A store of an environment with random actions."""
    env = gymnasium.make(env_id)
    store = arrowrb.Store.create(path, arrowrb.Schema.from_env(env), **options)
    with arrowrb.Collector(env, frames_per_batch=1000, total_frames=frames, store=store, seed=1) as collector:
        for _ in collector:
            pass
    env.close()
    store.flush()
    return store


def wait(store: arrowrb.Store) -> None:
    """Until the writer's threads have nothing to do."""
    writer = store._engine.writer_shard
    assert writer is not None
    writer.wait_for_threads()


def measure_moving(folder: Path) -> None:
    """Write sealed segments as Parquet once more, into another folder, as demotion does: synced and read back."""
    rows = []
    for name, env_id, frames, target_rate, target_size in (
        ("HalfCheetah-v5, float64", "HalfCheetah-v5", 120_000, 150, 0.8),
        ("ALE/Pong-v5, frames 210 x 160 x 3", "ALE/Pong-v5", 4_000, 500, 0.1),
    ):
        store = collect(folder / env_id.replace("/", "-"), env_id, frames)
        wait(store)
        writer = store._engine.writer_shard
        assert writer is not None
        state = writer.segments.state
        moved = raw = size = count = 0
        seconds = 0.0
        aside = folder / f"aside-{env_id.split('/')[-1]}" / "shards" / "00000"
        (aside / "segments").mkdir(parents=True)
        for entry in state.manifest.segments:
            if not entry.sealed or entry.tier != "hot" or entry.blocks is None:
                continue
            source = shard_paths(store.path, 0).segments / entry.blocks.name
            (aside / "segments" / entry.blocks.name).write_bytes(source.read_bytes())
            segment = state.hot[entry.number]
            assert isinstance(segment, hot_tier.HotSegment)
            paths, runs = shard_paths(aside.parent.parent, 0), []
            for _ in range(5):
                began = time.process_time()
                changed, _ = demote(paths, store.schema, store._engine.file.store_id, entry, segment, durable=True)
                runs.append(time.process_time() - began)
            seconds += float(np.median(runs))
            item = sum(column.item_bytes for column in store.schema.columns)
            moved += entry.num_rows * item
            raw += entry.num_transitions * raw_bytes(store.schema)
            size += changed.bytes
            count += entry.num_transitions
        rate = moved / seconds / 1e6
        rows.append(
            (
                name,
                f"{rate:,.0f} MB/s",
                f"{target_rate}",
                f"{size / count:,.1f}",
                f"{size / moved:.2f}",
                f"{size / raw:.2f}",
                f"{target_size}",
            )
        )
        store.close()
    show(
        "Moving segments to Parquet: written, synced, read back and compared; seconds of one core, median of five",
        ("", "moved", "target", "bytes a transition", "to the hot row", "to a transition's own", "target"),
        rows,
        ["A transition's own bytes: observation, action, reward, terminated, truncated, once each."],
    )


def raw_bytes(schema: arrowrb.Schema) -> int:
    """Bytes of a transition without what arrowrb adds, each observation once."""
    return sum(column.item_bytes for column in schema.columns[7:])


def fill(path: Path, transitions: Transitions, num_rows: int, **options: Any) -> arrowrb.Store:
    store = arrowrb.Store.create(path, halfcheetah_schema(), **options)
    for first in range(0, num_rows, 10_000):
        start = first % transitions.num_rows
        store.extend(transitions.part(start, start + 10_000))
    store.flush()
    wait(store)
    return store


def measure_draws(folder: Path, num_rows: int) -> None:
    transitions = halfcheetah_transitions(num_rows)
    hot = fill(folder / "hot", transitions, num_rows)
    cold = fill(folder / "cold", transitions, num_rows, hot_rows=num_rows // 20)
    cold.close()
    cached = arrowrb.Store.open(folder / "cold")
    bare = arrowrb.Store.open(folder / "cold", cache_bytes=0)
    share = cached.sql("SELECT sum(num_transitions) FROM segments WHERE tier = 'cold'").fetchall()[0][0] / num_rows
    samplers = {
        "hot": hot.sampler(batch_size=BATCH_SIZE, seed=1),
        "hot, 31 drawn ahead": hot.sampler(batch_size=BATCH_SIZE, seed=1, prefetch=31),
        f"{share:.0%} cold, all in the cache": cached.sampler(batch_size=BATCH_SIZE, seed=1),
        f"{share:.0%} cold, in the cache, 31 ahead": cached.sampler(batch_size=BATCH_SIZE, seed=1, prefetch=31),
        f"{share:.0%} cold, no cache, 31 ahead": bare.sampler(batch_size=BATCH_SIZE, seed=1, prefetch=31),
        f"{share:.0%} cold, no cache, 7 ahead": bare.sampler(batch_size=BATCH_SIZE, seed=1, prefetch=7),
    }
    calls: dict[str, Callable[[], object]] = {name: sampler.sample for name, sampler in samplers.items()}
    next(iter(cached.sampler(batch_size=1 << 16, seed=2)))  # fills the cache
    fast = {name: call for name, call in calls.items() if "no cache" not in name}
    seconds = interleave(fast, rounds=30, repeats=32)
    seconds |= interleave({name: call for name, call in calls.items() if "no cache" in name}, rounds=4, repeats=32)
    base = float(np.median(seconds["hot"]))
    show(
        f"Uniform batches of {BATCH_SIZE} out of {num_rows:,} HalfCheetah-sized transitions",
        ("", "a batch, median", "to hot", "target"),
        [
            (
                name,
                f"{np.median(values) * 1e6:,.0f} us",
                f"{np.median(values) / base:.2f} x",
                "2 x" if name.endswith("all in the cache") else "20 ms" if name.endswith("no cache, 31 ahead") else "",
            )
            for name, values in seconds.items()
        ],
    )
    for store in (hot, cached, bare):
        store.close()


def measure_sql(folder: Path, num_rows: int) -> None:
    transitions = halfcheetah_transitions(1_000_000)
    store = fill(folder / "sql", transitions, num_rows, hot_rows=num_rows // 10)
    names = "* EXCLUDE (next_observation)"
    plain = folder / "plain.parquet"
    with pq.ParquetWriter(plain, store.sql(f"SELECT {names} FROM transitions LIMIT 0").arrow().schema) as writer:
        edges = np.linspace(0, num_rows + num_rows // 500, 11).astype(int)
        for first, stop in itertools.pairwise(edges.tolist()):
            query = f"SELECT {names} FROM transitions WHERE ordinal > {first} AND ordinal <= {stop}"
            writer.write_table(store.sql(query).arrow())
    database = duckdb.connect()
    rows = []
    for name, query in (
        ("avg(reward)", "SELECT avg(reward), count(*) FROM {}"),
        ("return of each episode", "SELECT max(r) FROM (SELECT sum(reward) AS r FROM {} GROUP BY episode_id)"),
        ("a filter on two columns", "SELECT avg(reward) FROM {} WHERE truncated AND step > 500"),
        ("an element of a vector", "SELECT avg(observation[1]) FROM {}"),
    ):
        ours = query.format("transitions")
        theirs = query.format(f"'{plain}'")
        seconds = interleave(
            {
                "ours": lambda ours=ours: store.sql(ours).fetchall(),
                "theirs": lambda theirs=theirs: database.sql(theirs).fetchall(),
            },
            rounds=7,
        )
        mine, other = (float(np.median(seconds[each])) for each in ("ours", "theirs"))
        rows.append((name, f"{mine * 1e3:,.0f} ms", f"{other * 1e3:,.0f} ms", f"{mine / other:.2f} x", "1.5 x"))
    cold = store.sql("SELECT sum(num_transitions) FROM segments WHERE tier = 'cold'").fetchall()[0][0] / len(store)
    show(
        f"SQL over {len(store):,} transitions, {cold:.0%} of them cold, beside DuckDB over one Parquet file",
        ("", "arrowrb", "DuckDB, plain file", "ratio", "target"),
        rows,
    )
    store.close()


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    return 0


def measure_collecting(folder: Path, frames: int) -> None:
    rates: dict[str, list[float]] = {"all hot": [], "hot tier of a tenth": []}
    memory: list[int] = []
    for turn in range(2):
        for name, measured in rates.items():
            limit = None if name == "all hot" else frames // 10
            env = gymnasium.make_vec("CartPole-v1", num_envs=64, vectorization_mode="vector_entry_point")
            path = folder / f"{name.replace(' ', '-')}-{turn}"
            with (
                arrowrb.Store.create(path, arrowrb.Schema.from_env(env), hot_rows=limit) as store,
                arrowrb.Collector(env, frames_per_batch=16_000, total_frames=frames, store=store, seed=1) as collector,
            ):
                began = time.perf_counter()
                for index, _ in enumerate(collector):
                    if limit is not None and index % (frames // 16_000 // 8 + 1) == 0:
                        memory.append(anonymous_bytes())
                measured.append(frames / (time.perf_counter() - began))
    base = float(np.median(rates["all hot"]))
    show(
        f"Collecting {frames:,} CartPole transitions, 64 lanes",
        ("", "a second", "to all hot", "target"),
        [
            (name, f"{np.median(values):,.0f}", f"{np.median(values) / base:.2f}", "0.8" if "tenth" in name else "")
            for name, values in rates.items()
        ],
        ["Anonymous memory with the small hot tier, MiB: " + ", ".join(f"{each / 2**20:,.0f}" for each in memory)],
    )


def measure_exporting(folder: Path, num_rows: int, frames: int, rounds: int) -> None:
    """Write data sets, synced; bytes are those of the exported columns before they are encoded."""

    def made(name: str, dtype: str) -> arrowrb.Store:
        return fill_store(folder / name, halfcheetah_transitions(num_rows, dtype), halfcheetah_schema(dtype))

    stores: dict[str, Callable[[], arrowrb.Store]] = {
        f"{num_rows:,} HalfCheetah-sized, float32": lambda: made("float32", "float32"),
        f"{num_rows:,} HalfCheetah-sized, float64": lambda: made("float64", "float64"),
        f"{frames:,} of ALE/Pong-v5, 210 x 160 x 3": lambda: collect(folder / "pong", "ALE/Pong-v5", frames),
    }
    rows = []
    for name, make in stores.items():
        with make() as store:
            for shown in ("transitions", "steps"):
                seconds, used = [], []
                for turn in range(rounds):
                    target = folder / f"{store.path.name}-{shown}-{turn}"
                    began, before = time.perf_counter(), time.process_time()
                    done = store.export(target, rows=shown)
                    seconds.append(time.perf_counter() - began)
                    used.append(time.process_time() - before)
                    table = pq.read_schema(done.files[0])
                    shutil.rmtree(target)
                raw = done.num_rows * sum(exported_bytes(store.schema, each) for each in table.names)
                rows.append(
                    (
                        f"{name}, {shown}",
                        f"{raw / float(np.median(seconds)) / 1e6:,.0f} MB/s",
                        f"{raw / max(seconds) / 1e6:,.0f}",
                        "200",
                        f"{raw / float(np.median(used)) / 1e6:,.0f}",
                        f"{done.num_bytes / raw:.2f}",
                    )
                )
    show(
        f"Exports to Parquet: gathered, encoded and synced; median of {rounds}",
        ("", "written", "slowest", "target", "a core's second", "of the raw bytes"),
        rows,
    )


def exported_bytes(schema: arrowrb.Schema, name: str) -> int:
    """Bytes of a value of an exported column."""
    sizes = {column.name: column.item_bytes for column in schema.columns} | {"row_id": 8}
    return sizes[name if name in sizes else name.removeprefix("next_")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="for the draws")
    parser.add_argument("--sql-rows", type=int, default=10_000_000)
    parser.add_argument("--frames", type=int, default=5_000_000, help="for collecting")
    parser.add_argument("--export-rows", type=int, default=1_000_000)
    parser.add_argument("--export-frames", type=int, default=6_000)
    parser.add_argument("--only", choices=["moving", "draws", "sql", "collecting", "exporting"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("MUJOCO_GL", "disabled")
    jobs: dict[str, Callable[[Path], None]] = {
        "moving": measure_moving,
        "draws": lambda folder: measure_draws(folder, options.rows),
        "sql": lambda folder: measure_sql(folder, options.sql_rows),
        "collecting": lambda folder: measure_collecting(folder, options.frames),
        "exporting": lambda folder: measure_exporting(folder, options.export_rows, options.export_frames, 5),
    }
    for name, job in jobs.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as scratch:
                job(Path(scratch))


if __name__ == "__main__":
    main()
