"""A little of each torture, in a process of its own: it forks, and takes the calls of the operating system over."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_a_little_of_each() -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "tests.torture", "--scale", "0.01"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [int(count) for count in re.findall(r"(\d+) cases", done.stdout)]
    assert len(cases) == 3
    assert min(cases) >= 10
