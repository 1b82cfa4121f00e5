"""The application, and how its commands end.

Exit codes: 0 done; 1 an error of ours, told in one line on stderr; 2 wrong usage; 130 interrupted; 141 nobody reads
what is printed.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import arrowrb
from arrowrb.errors import ArrowRBError


class _Commands(TyperGroup):
    """Turns errors into one line and an exit code, whatever the command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Whatever is still buffered must not fail again when the interpreter flushes it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (ArrowRBError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise typer.Exit(1) from None
        return result


app = typer.Typer(
    cls=_Commands,
    name="arrowrb",
    help="A replay store for reinforcement learning: collect into it, look at it, ask it questions in SQL.",
    epilog="Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point `arrowrb`."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    app(prog_name="arrowrb")


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """End the command; while it ends, further Ctrl-C is ignored: it would leave processes, or what they say, behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.default_int_handler(number, frame)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"arrowrb {arrowrb.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass
