"""Processes that are started by spawn run the script again; where there is none to run, they can do without."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_a_missing_script() -> Iterator[None]:
    """Start processes also where the script came from stdin, or its file is gone.

    They would try to run a file of that name. What they are given of the script is pickled by value, as in a notebook.
    """
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script is None or os.path.exists(script):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = script
