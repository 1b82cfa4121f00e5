"""What all tests start from."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest

# Whoever starts the tests in the background of a shell has them ignore Ctrl-C, which some of them send themselves.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Hundreds of processes import arrowrb, and would compile it anew, for half a second each, where this is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """No garbage is collected, and nobody is called for it: Python swallows a Ctrl-C that falls there.

    For tests that send one to their own process. What is left behind by those before is collected at once: threads
    and processes are kept in sets whose entries are removed in Python.
    """
    gc.callbacks.clear()  # Hypothesis leaves one behind
    gc.collect()
    gc.disable()
    yield
    gc.enable()


LONG = ("test_torture.py", "test_store_model.py", "test_leaks.py", "test_examples.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, in each half of the list: two processes begin with a half each, and share what is short."""
    long = [item for item in items if item.path.name in LONG]
    short = [item for item in items if item.path.name not in LONG]
    half = len(short) // 2
    items[:] = [*long[::2], *short[:half], *long[1::2], *short[half:]]
