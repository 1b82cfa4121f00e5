"""What all tests start from."""

from __future__ import annotations

import gc
import signal

import pytest

# Whoever starts the tests in the background of a shell has them ignore Ctrl-C, which some of them send themselves.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_callbacks_of_the_garbage_collector() -> None:
    """Hypothesis leaves one behind, in which Python swallows a Ctrl-C that falls there."""
    gc.callbacks.clear()
