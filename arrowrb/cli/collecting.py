"""Collecting from the command line: make or open the store, step, show how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import arrowrb
from arrowrb.errors import ArrowRBError, EnvironmentFault, OptionError, StoreExistsError

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


class _Rate(ProgressColumn):
    """Transitions a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} transitions/s", style="progress.data.speed")


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
        started = time.perf_counter()
        try:
            _run(collector, wanted)
            done = True
        except KeyboardInterrupt:
            pass
        finally:
            _report(store, collector, time.perf_counter() - started, done)
    return done


def _make(wanted: Wanted, store: Store | None, env: Any = None) -> Collector:
    """A collector of the environment that is wanted; of `env` where that is made already."""
    how: dict[str, Any] = {}
    if env is None:
        how = {
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
            store=store,
            **how,
        )
    except (ArrowRBError, OSError):
        raise
    except Exception as error:  # making an environment runs code of others
        raise OptionError(
            f"The environment {wanted.env_id!r} cannot be made with {dict(wanted.env_kwargs)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _create(wanted: Wanted, stack: ExitStack) -> tuple[Store, Collector]:
    """The environment comes first: a store is only created for one that works."""
    env = stack.enter_context(_make(wanted, None)).env
    schema = arrowrb.Schema.from_env(env, float64=wanted.float64 or "keep")
    made = arrowrb.Store.create(wanted.path, schema, hot_rows=wanted.hot_rows, max_rows=wanted.max_rows)
    store = stack.enter_context(made)
    return store, stack.enter_context(_make(wanted, store, env))


def _append(wanted: Wanted, stack: ExitStack) -> tuple[Store, Collector]:
    if wanted.max_rows is not None:
        raise OptionError(f"--max-rows is fixed when a store is created, and {wanted.path} is there. Leave it out.")
    store = stack.enter_context(arrowrb.Store.open(wanted.path, mode="a", hot_rows=wanted.hot_rows))
    if wanted.float64 not in (None, store.schema.float64):
        raise OptionError(
            f"--float64 is {wanted.float64}, but {wanted.path} was created with {store.schema.float64}. "
            "Leave it out, or choose another path."
        )
    collector = stack.enter_context(_make(wanted, store))
    known, made = store.schema.env_id, getattr(collector.env.spec, "id", None)
    if None not in (known, made) and known != made:
        raise OptionError(f"The environment is {made!r}, but {wanted.path} holds {known!r}. Choose another path.")
    return store, collector


def _run(collector: Collector, wanted: Wanted) -> None:
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}"),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task(wanted.env_id, total=None if wanted.frames < 0 else wanted.frames)
        try:
            for batch in collector:
                progress.advance(task, batch.num_rows)
        except (ArrowRBError, OSError):
            raise
        except Exception as error:  # stepping an environment runs code of others
            raise EnvironmentFault(f"{wanted.env_id} failed: {type(error).__name__}: {error}") from error


def _report(store: Store, collector: Collector, seconds: float, done: bool) -> None:
    """The last line: on stdout, or on stderr where the job ended early."""
    count = collector.num_frames
    rate = f", {count / seconds:,.0f} a second" if count else ""
    print(
        f"{'Collected' if done else 'Ended early after'} {count:,} transitions in {seconds:.1f} s{rate}. "
        f"{store.path} now holds {len(store):,} transitions of {store.info().num_episodes:,} episodes.",
        file=sys.stdout if done else sys.stderr,
    )
