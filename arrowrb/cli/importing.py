"""Importing and merging from the command line: which kind of data set, into which store."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import arrowrb
from arrowrb.cli.collecting import is_store
from arrowrb.errors import OptionError, StoreError, StoreExistsError

if TYPE_CHECKING:
    from arrowrb.importing import Imported
    from arrowrb.schema import Schema


@dataclass(frozen=True, slots=True)
class Import:
    """The options of `arrowrb import`."""

    source: str
    path: Path
    columns: Mapping[str, str | list[str] | None]
    extras: Sequence[str]
    env_id: str | None
    final: str
    hot_rows: int | None
    max_rows: int | None
    append: bool


def import_into(asked: Import, progress: Callable[[int, int], None]) -> Imported:
    """Import, into a new store or one that is there.

    Raises:
        ArrowRBError: Whatever keeps the data set from fitting.
    """
    source = Path(asked.source)
    if is_store(source):
        raise StoreError(f"{source} is a store. Join it to another with: arrowrb merge {source} {asked.path}")
    with ExitStack() as stack:
        target = _target(asked.path, asked.append, stack)
        options: dict[str, Any] = {"hot_rows": asked.hot_rows, "max_rows": asked.max_rows, "progress": progress}
        if asked.env_id is not None:
            options["schema"] = _schema_of(asked.env_id)
        if _is_minari(asked.source):
            if asked.columns or asked.extras or asked.final != "drop":
                raise OptionError("--column, --extra and --final are for Parquet files; a Minari data set has its own.")
            return arrowrb.import_minari(asked.source, target, **options)
        options |= {"columns": asked.columns, "extras": asked.extras, "final": asked.final}
        return arrowrb.import_parquet(asked.source, target, **options)


def merge_into(
    sources: Sequence[Path], target: Path, limits: Mapping[str, int | None], progress: Callable[[int, int], None]
) -> Imported:
    """Merge into a new store, or add to one that is there."""
    with ExitStack() as stack:
        into = _target(target, is_store(target), stack)
        return arrowrb.merge(list(sources), into, progress=progress, **limits)


def print_imported(done: Imported) -> None:
    """One line about what was added."""
    left_out = ""
    if done.num_left_out:
        left_out = (
            f" ({done.num_left_out:,} more have no next observation and were left out: --final repeat keeps them)"
        )
    print(f"{done.num_transitions:,} transitions added to {done.path}{left_out}")


def _target(path: Path, append: bool, stack: ExitStack) -> Any:
    if append:
        return stack.enter_context(arrowrb.Store.open(path, mode="a"))
    if is_store(path):
        raise StoreExistsError(f"{path} is a store already. Add --append to add to it, or choose another path.")
    return path


def _is_minari(source: str) -> bool:
    """Whether the source is the folder of a Minari data set, or no path but written like the id of one."""
    path = Path(source)
    if path.is_dir():
        return any((path / part / "metadata.json").is_file() for part in ("", "data"))
    return re.search(r"-v\d+$", source) is not None and not path.exists()


def _schema_of(env_id: str) -> Schema:
    import gymnasium

    try:
        env: Any = gymnasium.make(env_id)
    except Exception as error:  # making an environment runs code of others
        raise OptionError(f"The environment {env_id!r} cannot be made: {type(error).__name__}: {error}") from error
    try:
        return arrowrb.Schema.from_env(env)
    finally:
        env.close()
