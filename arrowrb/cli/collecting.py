"""Collecting from the command line: make or open the store, step, show how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import arrowrb
from arrowrb.errors import ArrowRBError, OptionError, StoreExistsError

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
    append: bool


class _Rate(ProgressColumn):
    """Transitions a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} transitions/s", style="progress.data.speed")


def collect_into(wanted: Wanted) -> bool:
    """Collect, and say on stdout what was stored.

    Returns:
        Whether Ctrl-C ended it; what was collected until then is stored.

    Raises:
        StoreExistsError: If the store exists and is not to be appended to.
        ArrowRBError: Whatever keeps the environment or the store from working.
    """
    exists = (wanted.path / "store.json").exists()
    if exists and not wanted.append:
        raise StoreExistsError(
            f"{wanted.path} is a store already. Add --append to go on with it, or choose another path."
        )
    store, collector = _append(wanted) if exists else _create(wanted)
    interrupted = False
    started = time.perf_counter()
    with store:
        try:
            with collector:
                _show(collector, wanted.frames)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            seconds = time.perf_counter() - started
            if collector.num_frames or interrupted:
                _report(store, collector.num_frames, seconds, interrupted)
    return interrupted


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


def _create(wanted: Wanted) -> tuple[Store, Collector]:
    """The environment comes first: a store is only made for one that works."""
    probe = _make(wanted, None)
    try:
        schema = arrowrb.Schema.from_env(probe.env, float64=wanted.float64 or "keep")
        store = arrowrb.Store.create(wanted.path, schema)
    except BaseException:
        probe.close()
        raise
    return store, _Owning(probe, _make(wanted, store, probe.env))


def _append(wanted: Wanted) -> tuple[Store, Collector]:
    store = arrowrb.Store.open(wanted.path, mode="a")
    try:
        if wanted.float64 not in (None, store.schema.float64):
            raise OptionError(
                f"--float64 is {wanted.float64}, but {wanted.path} was created with {store.schema.float64}. "
                "Leave it out, or choose another path."
            )
        collector = _make(wanted, store)
        try:
            _check_same(store.schema.env_id, collector.env, wanted.path)
        except BaseException:
            collector.close()
            raise
    except BaseException:
        store.close()
        raise
    return store, collector
