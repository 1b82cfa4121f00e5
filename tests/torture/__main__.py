"""`python -m tests.torture` does all of it and prints a table; `make torture SCALE=10` does ten times as much.

Parts run side by side, a process a core. With `--only NAME --cases N` one of them runs, and prints its counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.torture import errors, kills, mutations, power, races, readers, workers
from tests.torture.workloads import WORKLOADS, small_segments

ROOT = Path(__file__).parent.parent.parent
_MEMORY = Path("/dev/shm")  # where syncs take no time
_ROOM = 1 << 30
_SAME = ("kinds of calls", "ms at most")  # counts of each part that do not add up


@dataclass(frozen=True)
class Torture:
    """One kind of misfortune.

    Attributes:
        run: takes a folder, how many cases there are, and which of how many parts of them to do; returns counts.
        in_test, in_torture: how many cases there are in `make test` and in `make torture`.
        scales: whether more of the same can be done.
        alone: whether it is not cut into parts, since it has processes of its own.
    """

    run: Callable[[Path, int, int, int], dict[str, int]]
    in_test: int
    in_torture: int
    scales: bool = True
    alone: bool = False

    def parts(self, name: str, cases: int) -> list[tuple[str, int, int, int]]:
        """Arguments of `start_part`, for a core each."""
        count = 1 if self.alone else max(2, os.cpu_count() or 1)
        return [(name, cases, part, count) for part in range(count)]


TORTURES = {
    "killed around calls": Torture(kills.around_calls, 400, 2000),
    "killed at any moment": Torture(kills.at_any_moment, 100, 1000),
    "full disks": Torture(errors.full_disks, 40, 500),
    "calls that fail": Torture(errors.failing_calls, 1, len(WORKLOADS), scales=False),
    "power failures": Torture(power.images, 250, 1000),
    "readers beside a writer": Torture(readers.following, 1_000_000, 10_000_000, alone=True),
    "writers that race": Torture(races.races, 20, 500),
    "takeovers": Torture(races.takeovers, 10, 100),
    "workers that are killed": Torture(workers.killed, 20, 1000),
    "mutated files, of each kind": Torture(mutations.mutated_files, 300, 2000),
}
TESTS = {  # run by pytest: what it is, the tests, and a number that they read from the environment
    "operations against a model": ("tests/test_store_model.py", ("ARROWRB_EXAMPLES", 500)),
    "hostile stores": ("tests/test_hostile_stores.py", None),
    "hostile SQL": ("tests/test_sql_guard.py", None),
}


def run_part(name: str, cases: int, part: int, parts: int) -> dict[str, int]:
    """In this process."""
    small_segments(8, 1)
    place = _MEMORY if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM else None
    with tempfile.TemporaryDirectory(prefix="arrowrb-torture-", dir=place) as folder:
        return TORTURES[name].run(Path(folder), cases, part, parts)


def start_part(name: str, cases: int, part: int, parts: int) -> dict[str, int]:
    """In a process of its own; raises what that printed if it failed."""
    command = [sys.executable, "-m", "tests.torture", "--only", name, "--cases", str(cases)]
    command += ["--part", str(part), "--parts", str(parts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{name}, part {part} of {parts}:\n{done.stdout}{done.stderr}")
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


def run_tests(files: str, number: tuple[str, int] | None, scale: float) -> dict[str, int]:
    """Tests that pytest runs; raises what it printed if one failed."""
    environment = dict(os.environ)
    if number is not None:
        environment[number[0]] = str(max(1, int(number[1] * scale)))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider", "--timeout", "0", files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stdout[-4000:] + done.stderr[-2000:])
    return {"tests": int(done.stdout.split(" passed")[0].split()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="how many times as much as by default")
    parser.add_argument("--only", choices=TORTURES, help="do one part of this one")
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(run_part(options.only, options.cases, options.part, options.parts)))
        return
    print(f"{'what':<30}{'s':>7}  counted", flush=True)
    failed = False
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, torture in TORTURES.items():
            cases = max(1, int(torture.in_torture * options.scale)) if torture.scales else torture.in_torture
            parts = torture.parts(name, cases)
            failed |= not _print(name, lambda parts=parts: pool.map(start_part, *zip(*parts, strict=True)))
        for name, (files, number) in TESTS.items():
            failed |= not _print(name, lambda files=files, number=number: [run_tests(files, number, options.scale)])
    sys.exit(failed)


def _print(name: str, run: Callable[[], object]) -> bool:
    began, counts = time.perf_counter(), Tally[str]()
    try:
        for found in run():  # type: ignore[attr-defined]
            for key, value in found.items():
                counts[key] = max(counts[key], value) if key in _SAME else counts[key] + value
        told, good = ", ".join(f"{value:,} {key}" for key, value in counts.items()), True
    except AssertionError as error:
        told, good = f"FAILED\n{error}", False
    print(f"{name:<30}{time.perf_counter() - began:>7.0f}  {told}", flush=True)
    return good


if __name__ == "__main__":
    main()
