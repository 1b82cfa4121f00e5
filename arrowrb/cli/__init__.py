"""The command line: `arrowrb collect`, `info`, `sql`, `export`, `maintain`, `verify`.

commands        options, and the errors and exit codes that they end in
collecting      environments into a store, with a progress bar
printing        results as tables for people, JSON and CSV for programs

Everything heavy is reached through `arrowrb.Store` and `arrowrb.Collector`, which load when they are first used,
so that `--help` answers at once.
"""

from __future__ import annotations

from arrowrb.cli.commands import app, main

__all__ = ["app", "main"]
