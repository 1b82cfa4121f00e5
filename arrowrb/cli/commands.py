"""The commands, and their options."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import arrowrb
from arrowrb.cli.application import app
from arrowrb.cli.collecting import Wanted, collect_into
from arrowrb.cli.importing import Import, import_into, merge_into, print_imported
from arrowrb.cli.printing import (
    print_actions,
    print_columns,
    print_info,
    print_problems,
    print_repaired,
    print_result,
    show_progress,
)
from arrowrb.cli.top import watch

__all__ = ["app"]

Format = Literal["table", "json", "csv"]

_STORE = typer.Argument(help="The store's directory.", metavar="STORE", show_default=False)
_FORMAT = typer.Option(
    "--format", "-f", help="A table for people; JSON (NaN and infinities are null) or CSV for programs."
)


_HotRows = Annotated[
    int | None, typer.Option(min=1000, help="Rows in mapped files; older ones go to Parquet.", show_default=False)
]
_MaxRows = Annotated[int | None, typer.Option(min=1000, help="Transitions that a new store keeps.", show_default=False)]


def _parse_kwargs(text: str | None) -> dict[str, Any]:
    try:
        kwargs = {} if text is None else json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"it is no JSON: {error}", param_hint="--env-kwargs") from None
    if not isinstance(kwargs, dict):
        raise typer.BadParameter("expected a JSON object such as '{\"gravity\": 9.8}'.", param_hint="--env-kwargs")
    return kwargs


@app.command()
def collect(
    env_id: Annotated[
        str,
        typer.Argument(
            help="A Gymnasium environment, such as CartPole-v1; of another package, ale_py:ALE/Pong-v5.",
            metavar="ENV_ID",
            show_default=False,
        ),
    ],
    store: Annotated[Path, _STORE],
    frames: Annotated[int, typer.Option(min=-1, help="Transitions to collect; -1 goes on until Ctrl-C.")] = 10_000,
    num_envs: Annotated[int, typer.Option(min=1, max=65_536, help="Environments, one lane each.")] = 1,
    vectorization_mode: Annotated[
        Literal["sync", "async", "vector_entry_point"] | None,
        typer.Option(help="How several environments are stepped; sync by default.", show_default=False),
    ] = None,
    frames_per_batch: Annotated[int, typer.Option(min=1, help="Transitions in a commit.")] = 1000,
    seed: Annotated[int | None, typer.Option(min=0, help="Of environments and actions.", show_default=False)] = None,
    float64: Annotated[
        Literal["keep", "float32"] | None,
        typer.Option(help="Whether a new store keeps float64 or casts it; keep by default.", show_default=False),
    ] = None,
    env_kwargs: Annotated[
        str | None, typer.Option(help="For making the environment, a JSON object.", show_default=False)
    ] = None,
    hot_rows: _HotRows = None,
    max_rows: _MaxRows = None,
    append: Annotated[bool, typer.Option("--append", help="Go on with a store that is there already.")] = False,
    workers: Annotated[
        int,
        typer.Option(min=0, max=1024, help="Processes that step --num-envs environments each, and write side by side."),
    ] = 0,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync/--async",
            help="Whether workers share each commit's transitions out, or collect freely, each by itself.",
        ),
    ] = True,
    restart_workers: Annotated[
        int, typer.Option(min=0, help="How many times workers that failed or were killed are started again.")
    ] = 0,
) -> None:
    """Step an environment with random actions into a store, which is created if it is missing.

    With --workers the last line of an error says what happened, and above it stands the traceback of the worker.
    See the run by `arrowrb top STORE` in another terminal.
    """
    if not workers and (restart_workers or not sync):
        raise typer.BadParameter("--async and --restart-workers are about workers. Give --workers, too.")
    wanted = Wanted(
        env_id=env_id,
        path=store,
        frames=frames,
        num_envs=num_envs,
        vectorization_mode=vectorization_mode,
        frames_per_batch=frames_per_batch,
        seed=seed,
        float64=float64,
        env_kwargs=_parse_kwargs(env_kwargs),
        hot_rows=hot_rows,
        max_rows=max_rows,
        append=append,
        workers=workers,
        sync=sync,
        restart_workers=restart_workers,
    )
    if not collect_into(wanted):
        raise typer.Exit(130)


@app.command()
def info(
    store: Annotated[Path, _STORE],
    form: Annotated[Format, _FORMAT] = "table",
    schema: Annotated[
        bool, typer.Option("--schema", help="The columns, with dtype and shape, instead of the counts.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print again whenever the store has changed, until Ctrl-C.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.01, max=86_400, help="Seconds between looks with --follow.")] = 1.0,
) -> None:
    """What a store holds: transitions, episodes, segments, bytes, and who writes it."""
    with arrowrb.Store.open(store) as opened:
        described = opened.info()
        if schema:
            print_columns(described.columns, form)
            return
        print_info(described, form)
        while follow:
            sys.stdout.flush()
            time.sleep(interval)
            last, described = described, opened.info()
            if described != last:
                print_info(described, form, header=form != "csv")


@app.command()
def top(
    store: Annotated[Path, _STORE],
    interval: Annotated[float, typer.Option(min=0.01, max=86_400, help="Seconds between looks.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look for one interval, print one picture, and end; for scripts.")
    ] = False,
    form: Annotated[
        Literal["table", "json"],
        typer.Option("--format", "-f", help="A table that is drawn in place; JSON for programs, a line for each look."),
    ] = "table",
) -> None:
    """See a run live, from any terminal: who writes how fast, how episodes went, what is sampled. Ends with Ctrl-C.

    Rates are those of the last ten seconds, returns and lengths of the last 100 episodes that ended.

    Of a shard, lag tells how many versions its newest transition is behind that of all shards, and age how old it is.

    Of a sampler, its log tells batches and of how many rows they are; a limiter counts the rows since it was made.
    """
    watch(store, interval=interval, once=once, form=form)


@app.command()
def sql(
    store: Annotated[Path, _STORE],
    query: Annotated[
        str, typer.Argument(help="One SELECT; - reads it from standard input.", metavar="QUERY", show_default=False)
    ],
    form: Annotated[Format, _FORMAT] = "table",
    threads: Annotated[
        int | None, typer.Option(min=1, help="For the query; all cores by default.", show_default=False)
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(min=1, help="Megabytes for the query; half of the machine's by default.", show_default=False),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which it is given up; none by default.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows that a table shows; 0 shows all.")] = 50,
) -> None:
    """Ask a store in SQL. Views: transitions, steps, episodes, segments, samples, limiter, participants.

    For example: arrowrb sql runs/cartpole "SELECT count(*), avg(length) FROM episodes"
    """
    text = sys.stdin.read() if query == "-" else query
    with arrowrb.Store.open(store) as opened:
        print_result(
            opened.sql(text, threads=threads, memory_bytes=memory and memory << 20, timeout=timeout).arrow(),
            form,
            limit,
        )


@app.command()
def export(
    store: Annotated[Path, _STORE],
    target: Annotated[Path, typer.Argument(help="A folder to make.", metavar="TARGET", show_default=False)],
    where: Annotated[
        str | None, typer.Option(help="Which rows, a condition in SQL; all by default.", show_default=False)
    ] = None,
    rows: Annotated[Literal["transitions", "steps"], typer.Option(help="What a row is.")] = "transitions",
    images: Annotated[Literal["binary", "list"], typer.Option(help="How image columns are stored.")] = "binary",
    file_mb: Annotated[int, typer.Option(min=1, help="About how large each file becomes, in MB.")] = 256,
    compression: Annotated[
        Literal["lz4", "zstd", "snappy", "gzip", "none"], typer.Option(help="Of the files.")
    ] = "lz4",
) -> None:
    """Write a data set of Parquet files, in the order of episodes and steps.

    For example: arrowrb export runs/cartpole out --where "episode_id IN (FROM episodes SELECT episode_id)"
    """
    with arrowrb.Store.open(store) as opened, show_progress("rows") as progress:
        written = opened.export(
            target,
            where=where,
            rows=rows,
            images=images,
            file_bytes=file_mb * 1_000_000,
            compression=compression,
            progress=progress,
        )
    files = f"{len(written.files)} file" + "s" * (len(written.files) != 1)
    print(f"{written.num_rows:,} {rows} in {files}, {written.num_bytes:,} bytes: {written.path}")


@app.command(name="import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Parquet files (a file, a folder, a pattern), or a Minari data set (its folder or id).",
            metavar="SOURCE",
            show_default=False,
        ),
    ],
    store: Annotated[Path, _STORE],
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the files call a column otherwise: observation=obs; several as a vector: action=vx,vy; "
            "step= for none.",
            metavar="NAME=COLUMN",
            show_default=False,
        ),
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            help="A further column of Parquet files for a new store to keep.", metavar="NAME", show_default=False
        ),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(help="The environment whose spaces a new store takes.", metavar="ENV_ID", show_default=False),
    ] = None,
    final: Annotated[
        Literal["drop", "repeat"],
        typer.Option(help="A transition without next observation is left out, or its own observation repeated."),
    ] = "drop",
    hot_rows: _HotRows = None,
    max_rows: _MaxRows = None,
    append: Annotated[bool, typer.Option("--append", help="Add to a store that is there already.")] = False,
) -> None:
    """Make a store of a data set: an export, anybody's Parquet files, or a Minari data set.

    For example: arrowrb import data/ runs/new --column observation=obs --column terminated=done
    """
    asked = Import(
        source=source,
        path=store,
        columns=_parse_columns(column or ()),
        extras=tuple(extra or ()),
        env_id=env,
        final=final,
        hot_rows=hot_rows,
        max_rows=max_rows,
        append=append,
    )
    with show_progress("rows") as progress:
        done = import_into(asked, progress)
    print_imported(done)


@app.command()
def merge(
    stores: Annotated[
        list[Path],
        typer.Argument(
            help="The stores to take from, and last the one to add to, which is created if it is missing.",
            metavar="SOURCE... TARGET",
            show_default=False,
        ),
    ],
    hot_rows: _HotRows = None,
    max_rows: _MaxRows = None,
) -> None:
    """Add the transitions of stores to another of the same schema.

    For example: arrowrb merge runs/a runs/b runs/both
    """
    *sources, target = stores
    if not sources:
        raise typer.BadParameter("expected one or more stores to take from, and the one to add to.")
    with show_progress("rows") as progress:
        done = merge_into(sources, target, {"hot_rows": hot_rows, "max_rows": max_rows}, progress)
    print_imported(done)


def _parse_columns(given: Sequence[str]) -> dict[str, str | list[str] | None]:
    columns: dict[str, str | list[str] | None] = {}
    for text in given:
        name, equals, column = text.partition("=")
        if not (name and equals) or name in columns:
            raise typer.BadParameter(f"{text!r} is not NAME=COLUMN, or NAME is given twice.", param_hint="--column")
        columns[name] = column.removesuffix(",").split(",") if "," in column else column or None
    return columns


@app.command()
def maintain(
    store: Annotated[Path, _STORE],
    form: Annotated[Format, _FORMAT] = "table",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    hot_rows: _HotRows = None,
) -> None:
    """Do what a writer does in the background: drop and move segments that are due."""
    with arrowrb.Store.open(store, mode="r" if dry_run else "a", hot_rows=hot_rows) as opened:
        print_actions(opened.maintain(dry_run=dry_run), form)


@app.command()
def backup(
    store: Annotated[Path, _STORE],
    target: Annotated[Path, typer.Argument(help="A folder to make.", metavar="TARGET", show_default=False)],
) -> None:
    """Copy a store, live or not, to a folder that opens as one. On the same disk most of it is shared.

    For example: arrowrb backup runs/cartpole backups/monday
    """
    with arrowrb.Store.open(store) as opened:
        done = opened.backup(target)
    print(
        f"{done.num_transitions:,} transitions in {done.num_files} files: {done.path} "
        f"({done.copied_bytes:,} bytes copied, {done.linked_bytes:,} shared)"
    )


@app.command()
def verify(store: Annotated[Path, _STORE], form: Annotated[Format, _FORMAT] = "table") -> None:
    """Read everything, and hold it against checksums, tables and itself. Exit code 1 where something is wrong.

    Works on a store that does not open any more: says which files, and looks at the rest.
    """
    with show_progress("segments") as progress:
        found = arrowrb.verify(store, progress=progress)
    print_problems(found, form)
    if not found:
        raise typer.Exit(1)


@app.command()
def repair(store: Annotated[Path, _STORE], form: Annotated[Format, _FORMAT] = "table") -> None:
    """Make a damaged store open again: set aside what is damaged, keep the rest. Deletes nothing.

    Exit code 1 where something is still wrong.
    """
    done = arrowrb.repair(store)
    print_repaired(done, form)
    if not done.after:
        raise typer.Exit(1)
