"""arrowrb at work: collect, follow from a second process, sample, ask in SQL, export, train. Run it by `make demo`.

Every number that it prints was measured in this run. By default all files lie in a temporary folder that is removed at
the end; `--keep FOLDER` keeps them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import gymnasium
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

import arrowrb

NUM_FRAMES = 200_000
NUM_LANES = 8
NUM_BATCHES = 1_000
BATCH_SIZE = 256
DQN_FRAMES = 6_000
HOT_ROWS = NUM_FRAMES // 4
DRAWN_AHEAD = 31

RETURN_BY_DECILE = """
    SELECT decile, count(*) AS episodes, avg("return") AS mean_return, max("return") AS best
    FROM (SELECT "return", ntile(10) OVER (ORDER BY ended_at) AS decile FROM episodes WHERE complete)
    GROUP BY decile ORDER BY decile
"""
ACTIONS_BY_OUTCOME = """
    SELECT CASE WHEN terminated THEN 'the pole falls' ELSE 'it stays up' END AS outcome,
           count(*) AS steps,
           avg(CAST(action = 0 AS INT)) AS left_share,
           avg(CAST((action = 1) = (observation[3] > 0) AS INT)) AS towards_the_lean,
           avg(abs(observation[3])) * 180 / pi() AS degrees
    FROM transitions GROUP BY ALL ORDER BY steps DESC
"""
TIERS = """
    SELECT tier, state, count(*), sum(num_transitions), sum(num_rows), sum(rows), sum(bytes)
    FROM segments GROUP BY ALL ORDER BY min(segment)
"""
BEST_TENTH = """
    episode_id IN (
        SELECT episode_id FROM (SELECT episode_id, ntile(10) OVER (ORDER BY "return" DESC) AS tenth FROM episodes)
        WHERE tenth = 1
    )
"""
READ_BACK = """
    SELECT count(*), count(DISTINCT episode_id), sum(reward) / count(DISTINCT episode_id), max(step) + 1 FROM '{}'
"""
FOLLOWED = 'SELECT count(*), (SELECT avg("return") FROM episodes WHERE complete) FROM transitions'

console = Console(highlight=False, width=min(Console().width, 100))


def human_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def say(content: Any) -> None:
    console.print(Padding(content, (0, 0, 0, 3), expand=False))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    say(f"[bold]{title}")
    say(table)


def head(title: str) -> None:
    console.print(Rule(f"[bold]{title}", align="left"))


# -- the second process ----------------------------------------------------------------------------------------------


def follow(path: Path, stop: int) -> None:
    """What the second process does: look, ask in SQL, tell; until it sees `stop` transitions."""
    with arrowrb.Store.open(path) as store:
        store.sql(FOLLOWED).fetchall()  # loads DuckDB
        print(json.dumps({"pid": os.getpid()}), flush=True)
        while True:
            seen = len(store)
            before = time.perf_counter()
            count, mean_return = store.sql(FOLLOWED).fetchall()[0]
            milliseconds = 1000 * (time.perf_counter() - before)
            print(json.dumps([time.time(), seen, count, mean_return, milliseconds]), flush=True)
            if count >= stop:
                return
            time.sleep(0.4)


@contextlib.contextmanager
def follower(path: Path, stop: int, log: Path) -> Any:
    """A second process that follows the store; yields its pid once it is ready."""
    command = [sys.executable, __file__, "--follow", str(path), str(stop)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            while process.poll() is None and not log.read_text().endswith("\n"):
                time.sleep(0.02)
            yield process.pid
            process.wait(timeout=30)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        sys.exit(f"The second process ended with status {process.returncode}.")


# -- the parts of the job --------------------------------------------------------------------------------------------


def warm_up() -> None:
    """Load what is loaded once a process, and compiled once an installation, so that it is in no rate below."""
    before = time.perf_counter()
    env = gymnasium.make("CartPole-v1")
    with (
        arrowrb.Store.temporary(arrowrb.Schema.from_env(env)) as store,
        arrowrb.Collector(env, total_frames=100, store=store, seed=0) as collector,
    ):
        for _ in collector:
            store.sample(8)
    env.close()
    seconds = time.perf_counter() - before
    say(f"[dim]Ready in {seconds:.1f} s: imports, and at the first run the compilation of kernels.")


def collect(folder: Path) -> tuple[Path, str]:
    head("1  Collect, while a second process follows")
    env = gymnasium.make("CartPole-v1")
    path, log = folder / "random", folder / "follower.jsonl"
    columns = (
        TextColumn("   CartPole-v1, random actions"),
        BarColumn(30),
        TextColumn("{task.completed:,}"),
        TimeRemainingColumn(),
    )
    with arrowrb.Store.create(path, arrowrb.Schema.from_env(env), hot_rows=HOT_ROWS) as store:
        with follower(path, NUM_FRAMES, log) as pid:
            started = time.time()
            with (
                arrowrb.Collector(
                    "CartPole-v1",
                    num_envs=NUM_LANES,
                    frames_per_batch=2000,
                    total_frames=NUM_FRAMES,
                    store=store,
                    seed=0,
                ) as collector,
                Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
            ):
                task = progress.add_task("", total=NUM_FRAMES)
                for batch in collector:
                    progress.advance(task, batch.num_rows)
            seconds = time.time() - started
        info = store.info()
    env.close()
    on_disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    rate = f"{NUM_FRAMES / seconds:,.0f} transitions/s"
    say(f"{NUM_FRAMES:,} transitions, {info.num_episodes:,} episodes, {NUM_LANES} lanes, {seconds:.1f} s: [bold]{rate}")
    say(f"{info.bytes_per_transition:.1f} bytes a transition: each observation is stored once")
    cold = f"{human_bytes(info.cold_bytes)} of it {info.cold_rows:,} rows in Parquet"
    say(f"{human_bytes(on_disk)} on disk, {cold}")
    console.print()
    show_followed(log, started, seconds, pid)
    return path, rate


def show_followed(log: Path, started: float, seconds: float, pid: int) -> None:
    seen = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    if [each[2] for each in seen] != sorted(each[2] for each in seen):
        sys.exit("The second process saw a count that went back.")
    during = [each for each in seen if each[0] - started < seconds]
    picked = [during[round(i * (len(during) - 1) / 4)] for i in range(5)] if len(during) >= 5 else during
    rows = [
        [f"{max(0.0, at - started):.1f} s", f"{count:,}", "" if mean is None else f"{mean:.2f}", f"{ms:.0f} ms"]
        for at, _, count, mean, ms in [*picked, seen[-1]]
    ]
    show(
        f"Process {pid} followed: {len(seen)} looks, here {len(rows)} of them; no count went back",
        ["after", "transitions", "mean return", "SQL took"],
        rows,
    )


def sample(path: Path) -> str:
    head("2  Sample torch tensors")
    with arrowrb.Store.open(path) as store:
        sampler = store.sampler(batch_size=BATCH_SIZE, prefetch=DRAWN_AHEAD, seed=0)
        batch = next(sampler)
        before = time.perf_counter()
        for _ in range(NUM_BATCHES):
            batch = next(sampler)
        seconds = time.perf_counter() - before
    size = sum(tensor.nbytes for tensor in batch.values())
    each = f"{1e6 * seconds / NUM_BATCHES:,.0f} us a batch"
    million = NUM_BATCHES * BATCH_SIZE / seconds / 1e6
    say(f"{NUM_BATCHES:,} batches of {BATCH_SIZE}, {DRAWN_AHEAD} drawn ahead, in {seconds:.3f} s: [bold]{each}")
    say("Uniform over mapped files and Parquet; what is decoded stays in a cache")
    say(f"{million:,.1f} million transitions/s, {human_bytes(NUM_BATCHES * size / seconds)}/s")
    console.print()
    rows = [[name, str(tensor.dtype), str(tuple(tensor.shape))] for name, tensor in batch.items()]
    show("A batch", ["name", "dtype", "shape"], rows)
    return each


def ask(path: Path) -> str:
    head("3  Ask in SQL")
    times = []
    with arrowrb.Store.open(path) as store:

        def answer(query: str) -> list[Any]:
            before = time.perf_counter()
            rows: list[Any] = store.sql(query).fetchall()
            times.append(1000 * (time.perf_counter() - before))
            return rows

        rows = [[f"{d}", f"{n:,}", f"{mean:.2f}", f"{best:.0f}"] for d, n, mean, best in answer(RETURN_BY_DECILE)]
        title = f"Does the return change over time? ({times[-1]:.0f} ms; random actions: it should not)"
        show(title, ["decile of time", "episodes", "mean return", "best"], rows)
        rows = [
            [outcome, f"{steps:,}", f"{left:.1%}", f"{lean:.1%}", f"{degrees:.1f}"]
            for outcome, steps, left, lean, degrees in answer(ACTIONS_BY_OUTCOME)
        ]
        title = f"What was done just before the pole fell? ({times[-1]:.0f} ms)"
        show(title, ["outcome", "transitions", "pushed left", "towards lean", "lean (deg)"], rows)
        rows = [
            [tier, state, f"{count}", f"{transitions:,}", f"{used:,}", f"{allocated:,}", human_bytes(size)]
            for tier, state, count, transitions, used, allocated, size in answer(TIERS)
        ]
        title = f"Where does it all lie? ({times[-1]:.0f} ms; the hot tier may have {HOT_ROWS:,} rows)"
        show(title, ["tier", "state", "segments", "transitions", "rows", "allocated", "bytes"], rows)
    return ", ".join(f"{each:.0f} ms" for each in times)


def export(path: Path, folder: Path) -> str:
    head("4  Export the best tenth of the episodes, and read it with DuckDB alone")
    before = time.perf_counter()
    with arrowrb.Store.open(path) as store:
        written = store.export(folder / "best", where=BEST_TENTH)
    seconds = time.perf_counter() - before
    rows, episodes, mean, longest = duckdb.sql(READ_BACK.format(folder / "best" / "*.parquet")).fetchall()[0]
    if rows != written.num_rows:
        sys.exit(f"DuckDB read {rows:,} rows, expected {written.num_rows:,}.")
    told = f"{rows:,} transitions of {episodes:,} episodes, {human_bytes(written.num_bytes)}"
    say(f"{told} in {len(written.files)} file, {seconds:.2f} s")
    say(f"DuckDB, without arrowrb: mean return {mean:.1f}, the longest episode has {longest} steps")
    console.print()
    return told


def train(folder: Path) -> str:
    head("5  Train from a store, for a short while (examples/dqn_cartpole.py)")
    script, path = Path(__file__).parent / "dqn_cartpole.py", folder / "dqn"
    options = ["--store", str(path), "--total-frames", str(DQN_FRAMES), "--no-target", "--seed", "1"]
    before, shown = time.perf_counter(), True
    with subprocess.Popen([sys.executable, str(script), *options], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            shown = shown and bool(line.strip())  # after an empty line comes its own account, here we draw ours
            if shown:
                console.print(Text(f"   {line.strip()}", style="dim"), soft_wrap=True)
    seconds = time.perf_counter() - before
    if process.returncode:
        sys.exit(f"{script.name} ended with status {process.returncode}.")
    with arrowrb.Store.open(path) as store:
        rows = store.sql(RETURN_BY_DECILE).fetchall()
        frames = len(store)
    best = max(mean for _, _, mean, _ in rows)
    console.print()
    show(
        f"Its learning curve, asked of its own store ({frames:,} transitions, {seconds:.0f} s)",
        ["decile of time", "mean return", ""],
        [
            [f"{decile}", f"{mean:.1f}", Text("█" * max(1, round(40 * mean / best)), style="green")]
            for decile, _, mean, _ in rows
        ],
    )
    return f"{rows[0][2]:.0f} to {rows[-1][2]:.0f}"


def run(folder: Path, kept: bool) -> None:
    started = time.perf_counter()
    about = (
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores. "
        "Every number below was measured in this run."
    )
    console.print(Panel(about, title=f"[bold]arrowrb {arrowrb.__version__}", title_align="left"))
    warm_up()
    path, collected = collect(folder)
    sampled = sample(path)
    asked = ask(path)
    exported = export(path, folder)
    trained = train(folder)
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in (
        ("collected", f"{NUM_FRAMES:,} transitions, {collected}"),
        ("sampled", f"{NUM_BATCHES:,} batches of {BATCH_SIZE}, {sampled}"),
        ("asked", f"three questions in {asked}"),
        ("exported", exported),
        ("trained", f"DQN on {DQN_FRAMES:,} frames, mean return of a decile from {trained}"),
        ("in all", f"{time.perf_counter() - started:.0f} s"),
        ("files", f"kept in {folder}" if kept else "removed; --keep FOLDER keeps them"),
    ):
        table.add_row(f"[bold]{label}", value)
    console.print(Panel(table, title="[bold]Done", title_align="left"))
    if kept:
        console.print(f'Go on: arrowrb sql {path} "SELECT * FROM episodes ORDER BY length DESC LIMIT 5"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for the files")
    parser.add_argument("--follow", nargs=2, metavar=("STORE", "STOP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow is not None:
        follow(Path(options.follow[0]), int(options.follow[1]))
    elif options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        run(options.keep, kept=True)
    else:
        with tempfile.TemporaryDirectory(prefix="arrowrb-demo-") as folder:
            run(Path(folder), kept=False)


if __name__ == "__main__":
    main()
