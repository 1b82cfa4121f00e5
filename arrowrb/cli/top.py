"""A run, seen live: what `arrowrb.Monitor` finds, as tables that are drawn in place, or as lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

import arrowrb
from arrowrb.cli.printing import make_console, plain

if TYPE_CHECKING:
    from arrowrb.monitor import LogInfo, RunInfo, ShardInfo, Spread


def watch(path: Path, *, interval: float, once: bool, form: str) -> None:
    """Show a run until Ctrl-C, or once; see `arrowrb top`."""
    with arrowrb.Store.open(path) as store:
        seen = _look(arrowrb.Monitor(store), interval, once=once)
        if form == "json":
            for each in seen:
                print(json.dumps(plain(asdict(each)), allow_nan=False), flush=True)
        elif once or not sys.stdout.isatty():
            for each in seen:
                make_console().print(draw(each, time.time()))
                sys.stdout.flush()
        else:
            with Live(console=make_console(), auto_refresh=False) as live:
                for each in seen:
                    live.update(draw(each, time.time()), refresh=True)


def _look(monitor: arrowrb.Monitor, interval: float, *, once: bool) -> Iterator[RunInfo]:
    """The run, again and again; or once, after an interval, so that there are rates."""
    first = monitor.look()
    if not once:
        yield first
    while True:
        time.sleep(interval)
        yield monitor.look()
        if once:
            return


def draw(run: RunInfo, now: float) -> RenderableType:
    """The picture of a run; ``now`` in seconds since the epoch."""
    parts: list[RenderableType] = [_title(run), _counts(run), _shards(run.shards, now)]
    if run.samplers:
        parts.append(_samplers(run.samplers))
    return Group(*parts)


def _title(run: RunInfo) -> Text:
    alive = sum(shard.alive for shard in run.shards)
    dead = sum(shard.pid is not None and not shard.alive for shard in run.shards)
    title = Text(run.path, style="bold")
    title.append(f"  {run.env_id}" if run.env_id else "", style="none")
    title.append(f"  {alive} writing" if alive else "  nobody writes", style="green" if alive else "yellow")
    title.append(f"  {dead} died" if dead else "", style="red")
    return title


def _counts(run: RunInfo) -> Table:
    lines = {
        "in": f"{_rate(run.per_second)} transitions/s",
        "out": _out(run),
        "transitions": f"{run.num_transitions:,}, {run.num_evicted:,} dropped",
        "episodes": f"{run.num_episodes:,} begun, {run.num_running:,} running, {run.num_finished:,} seen to end, "
        f"{_rate(run.finished_per_second)}/s",
        "return": _spread(run.returns),
        "length": _spread(run.lengths),
        **dict(run.tiers.lines()),
        "policy": "-" if run.policy_version is None else f"version {run.policy_version:,}",
    }
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in lines.items():
        table.add_row(label, Text(value))
    return table


def _out(run: RunInfo) -> str:
    if run.num_sampled is None and not any(each.num_batches is not None for each in run.samplers):
        return "not counted"
    ratio = "" if run.replay_ratio is None else f", replay ratio {run.replay_ratio:,.2f}"
    total = "" if run.num_sampled is None else f", {run.num_sampled:,} in all"
    return f"{_rate(run.sampled_per_second)} rows/s{ratio}{total}"


def _shards(shards: tuple[ShardInfo, ...], now: float) -> Table:
    names = ("shard", "writer", "transitions", "/s", "running", "policy", "lag", "age")
    table = _table(names, left=2)
    for each in shards:
        age = "-" if each.last_write is None else _seconds(now - each.last_write)
        table.add_row(
            each.name,
            _process(each.pid, each.alive),
            f"{each.num_committed:,}",
            _rate(each.per_second),
            f"{each.num_running:,} of {each.num_lanes:,}" if each.num_lanes else "-",
            _number(each.policy_version),
            _number(each.policy_lag),
            age,
        )
    return table


def _samplers(samplers: tuple[LogInfo, ...]) -> Table:
    table = _table(("sampler", "process", "batches", "of rows", "rows", "rows/s"), left=2)
    for each in samplers:
        table.add_row(
            each.name,
            _process(each.pid, each.alive),
            _number(each.num_batches),
            _number(each.batch_size),
            _number(each.num_rows),
            _rate(each.rows_per_second),
        )
    return table


def _table(names: tuple[str, ...], *, left: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place < left else "right", no_wrap=True)
    return table


def _process(pid: int | None, alive: bool) -> Text:
    if pid is None:
        return Text("-", style="dim")
    return Text(f"{pid}") if alive else Text(f"{pid} died", style="red")


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    episodes = f"{spread.count:,} episode" + "s" * (spread.count != 1)
    return f"mean {spread.mean:,.6g}, from {spread.least:,.6g} to {spread.most:,.6g}, of the newest {episodes}"


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:,.2f}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _seconds(seconds: float) -> str:
    """How long, in one unit."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(0.0, seconds):.1f} s"
