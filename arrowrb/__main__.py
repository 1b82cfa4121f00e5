"""`python -m arrowrb`."""

from __future__ import annotations

from arrowrb.cli import main

if __name__ == "__main__":
    main()
