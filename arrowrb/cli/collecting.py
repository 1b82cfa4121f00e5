"""Collecting from the command line: make or open the store, step, show how far it is.

With workers the store is open for reading here, since they write it: so another process may write beside them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import arrowrb
from arrowrb.errors import ArrowRBError, EnvironmentFault, OptionError, StoreExistsError, WorkerError

if TYPE_CHECKING:
    from arrowrb.collector import Collector
    from arrowrb.store import Store


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of `arrowrb collect`."""

    env_id: str
    path: Path
    frames: int
    num_envs: int
    vectorization_mode: str | None
    frames_per_batch: int
    seed: int | None
    float64: str | None
    env_kwargs: Mapping[str, Any]
    hot_rows: int | None
    max_rows: int | None
    append: bool
    workers: int = 0
    sync: bool = True
    restart_workers: int = 0


class _Rate(ProgressColumn):
    """Transitions a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} transitions/s", style="progress.data.speed")


class _OfAll(ProgressColumn):
    """A column that is empty in the line of a single worker."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return Text() if task.fields.get("of_one") else self._column(task)


def is_store(path: Path) -> bool:
    """Whether there is a store, without loading what opening one needs."""
    return (path / "store.json").exists()


def collect_into(wanted: Wanted) -> bool:
    """Collect, and say what was stored.

    Returns:
        Whether all was collected; else Ctrl-C ended it, and what was collected until then is stored.

    Raises:
        StoreExistsError: If the store exists and is not to be appended to.
        ArrowRBError: Whatever keeps the environment or the store from working.
    """
    exists = is_store(wanted.path)
    if exists and not wanted.append:
        raise StoreExistsError(
            f"{wanted.path} is a store already. Add --append to go on with it, or choose another path."
        )
    done = False
    with ExitStack() as stack:
        store, collector = _append(wanted, stack) if exists else _create(wanted, stack)
        before, started = _committed(store), time.perf_counter()
        try:
            _run(collector, store, wanted)
            done = True
        except KeyboardInterrupt:
            pass
        finally:
            collector.close()  # workers have committed until now
            _report(store, collector, _committed(store) - before, time.perf_counter() - started, done)
    return done


def _make(wanted: Wanted, env: Any = None, **options: Any) -> Collector:
    """A collector of the environment that is wanted; of `env` where that is made already."""
    if env is None:
        options |= {
            "num_envs": wanted.num_envs,
            "vectorization_mode": wanted.vectorization_mode,
            "env_kwargs": wanted.env_kwargs,
        }
    try:
        return arrowrb.Collector(
            wanted.env_id if env is None else env,
            frames_per_batch=wanted.frames_per_batch,
            total_frames=wanted.frames,
            seed=wanted.seed,
            **options,
        )
    except Exception as error:  # making an environment runs code of others
        what = f"The environment {wanted.env_id!r} cannot be made with {dict(wanted.env_kwargs)}"
        raise _plainly(error, OptionError, what) from error


def _start_workers(wanted: Wanted, store: Store) -> Collector:
    how = {"num_workers": wanted.workers, "sync": wanted.sync, "restart_workers": wanted.restart_workers}
    return _make(wanted, store=store, **how)


def _create(wanted: Wanted, stack: ExitStack) -> tuple[Store, Collector]:
    """The environment comes first: a store is only created for one that works."""
    first = stack.enter_context(_make(wanted))
    schema = arrowrb.Schema.from_env(first.env, float64=wanted.float64 or "keep")
    made = arrowrb.Store.create(wanted.path, schema, hot_rows=wanted.hot_rows, max_rows=wanted.max_rows)
    store = stack.enter_context(made)
    if wanted.workers:
        made.close()
        first.close()
        store = stack.enter_context(arrowrb.Store.open(wanted.path, hot_rows=wanted.hot_rows))
        return store, stack.enter_context(_start_workers(wanted, store))
    return store, stack.enter_context(_make(wanted, first.env, store=store))


def _append(wanted: Wanted, stack: ExitStack) -> tuple[Store, Collector]:
    if wanted.max_rows is not None:
        raise OptionError(f"--max-rows is fixed when a store is created, and {wanted.path} is there. Leave it out.")
    mode = "r" if wanted.workers else "a"
    store = stack.enter_context(arrowrb.Store.open(wanted.path, mode=mode, hot_rows=wanted.hot_rows))
    if wanted.float64 not in (None, store.schema.float64):
        raise OptionError(
            f"--float64 is {wanted.float64}, but {wanted.path} was created with {store.schema.float64}. "
            "Leave it out, or choose another path."
        )
    # Workers make their environments themselves: this one is only looked at.
    into: dict[str, Any] = {"schema": store.schema} if wanted.workers else {"store": store}
    collector = stack.enter_context(_make(wanted, **into))
    known, made = store.schema.env_id, getattr(collector.env.spec, "id", None)
    if None not in (known, made) and known != made:
        raise OptionError(f"The environment is {made!r}, but {wanted.path} holds {known!r}. Choose another path.")
    if wanted.workers:
        collector.close()
        collector = stack.enter_context(_start_workers(wanted, store))
    return store, collector


def _run(collector: Collector, store: Store, wanted: Wanted) -> None:
    progress = Progress(
        TextColumn("{task.description}"),
        _OfAll(BarColumn()),
        TextColumn("{task.completed:,}"),
        _Rate(),
        _OfAll(TimeRemainingColumn()),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with progress:
        names = [f"worker-{number}" for number in range(wanted.workers)]
        shards = {writer.name: writer.shard for writer in store.info().writers}
        before = store.watermark().shards
        lines = {shards[name]: progress.add_task(name, total=None, of_one=True) for name in names}
        task = progress.add_task(wanted.env_id, total=None if wanted.frames < 0 else wanted.frames)
        try:
            for batch in collector:
                progress.advance(task, batch.num_rows)
                if lines and not progress.disable:
                    now = store.watermark().shards
                    for shard, line in lines.items():
                        progress.update(line, completed=now[shard][1] - before[shard][1])
        except Exception as error:  # stepping an environment runs code of others
            raise _plainly(error, EnvironmentFault, f"{wanted.env_id} failed") from error


def _plainly(error: Exception, kind: type[ArrowRBError], what: str) -> Exception:
    """An error that is told in one line. What code of others raised in a worker is printed, with its traceback."""
    told = error.__cause__ if isinstance(error.__cause__, WorkerError) else error
    trace = isinstance(told, WorkerError) and "\n" in str(told)
    if isinstance(error, ArrowRBError | OSError) and not (trace and told is error):
        return error
    if not trace:
        return kind(f"{what}: {type(error).__name__}: {error}")
    print(told, file=sys.stderr)
    return kind(f"{what} in a worker: {str(told).strip().splitlines()[-1]}")


def _committed(store: Store) -> int:
    """Transitions that a store has ever taken."""
    return sum(count for _, count in store.watermark().shards)


def _report(store: Store, collector: Collector, count: int, seconds: float, done: bool) -> None:
    """The last line: on stdout, or on stderr where the job ended early."""
    rate = f", {count / seconds:,.0f} a second" if count else ""
    again = collector.num_restarts
    restarts = f" Workers were started again {again:,} time{'s' * (again != 1)}." if again else ""
    print(
        f"{'Collected' if done else 'Ended early after'} {count:,} transitions in {seconds:.1f} s{rate}.{restarts} "
        f"{store.path} now holds {len(store):,} transitions of {store.info().num_episodes:,} episodes.",
        file=sys.stdout if done else sys.stderr,
    )
