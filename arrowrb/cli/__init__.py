"""The command line: `arrowrb collect`, `info`, `top`, `sql`, `export`, `maintain`, `verify`.

application     errors, and exit codes that commands end in
commands        the commands, and their options
collecting      environments into a store, with a progress bar
top             a run, seen live
printing        results as tables for people, JSON and CSV for programs

Everything heavy is reached through `arrowrb.Store` and `arrowrb.Collector`, which load when they are first used,
so that `--help` answers at once.
"""

from __future__ import annotations

from arrowrb.cli.application import main
from arrowrb.cli.commands import app

__all__ = ["app", "main"]
