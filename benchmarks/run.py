"""Run all benchmarks that take minutes, one after another (`scale.py` is apart: it needs a disk with room)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    *("uniform", "strategies", "prioritized", "sequences", "pixels", "extending", "opening"),
    *("durability", "footprint", "collecting", "workers", "tiers"),
)


def main() -> int:
    folder = Path(__file__).parent
    failed = [
        name for name in SCRIPTS if subprocess.run([sys.executable, folder / f"{name}.py"], check=False).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
