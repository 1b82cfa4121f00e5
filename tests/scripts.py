"""Scripts run in forks of a process that has imported what most of them need, as ``python script.py`` otherwise.

To import torch, the compiler that its optimizers ask for, and Numba takes most of a short script's time. Each runs as
the main module of a process of its own, with its own arguments and output, and ends as Python does.

The process takes commands on stdin, as JSON, one a line, and answers with how each ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
_MODULES = ("torch", "torch._dynamo", "numba", "pandas", "gymnasium", "duckdb", "arrowrb.store")


class Scripts:
    """Runs scripts one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.scripts"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        )

    def run(self, script: Path, *arguments: str, seconds: float) -> tuple[int, str, str]:
        """How a script ends, what it prints, and what it prints as errors."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder, name) for name in ("out", "err")]
            command = {"script": str(script), "arguments": arguments, "said": [*map(str, said)]}
            print(json.dumps(command), file=self._process.stdin, flush=True)
            answered = select.select([self._process.stdout], [], [], seconds)[0]
            told = [path.read_text() if path.exists() else "" for path in said] if not answered else []
            assert answered, f"{script} takes longer than {seconds} seconds: {told}"
            line = self._process.stdout.readline()
            assert line, "the process that is forked has died"
            return int(line), said[0].read_text(), said[1].read_text()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # it has died
            self._process.communicate()


def _serve() -> dict[str, Any] | None:
    """Fork for each command; returns it in the fork, and None when there are no more."""
    for name in _MODULES:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return dict(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def _become(script: str, arguments: list[str], said: list[str]) -> None:
    """Be the process of a script."""
    for place, path in enumerate([os.devnull, *said]):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.dup2(descriptor, place)
        os.close(descriptor)
    sys.stdin = open(0)  # noqa: SIM115
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    main = ModuleType("__main__")
    main.__file__ = script  # by which processes that are spawned find it
    main.__spec__ = None
    sys.modules["__main__"] = main
    exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)


if __name__ == "__main__":
    command = _serve()
    if command is not None:
        _become(**command)
