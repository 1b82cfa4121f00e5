"""Sections that Ctrl-C does not tear in two."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Uninterrupted:
    """A context in which SIGINT waits: its handler runs on leaving.

    Python delivers signals to the main thread only, so elsewhere this does nothing. Not reentrant; nest by two objects.
    """

    __slots__ = ("_handler", "_pending")

    def __init__(self) -> None:
        self._handler: object = None
        self._pending: tuple[int, FrameType | None] | None = None

    def _defer(self, number: int, frame: FrameType | None) -> None:
        self._pending = (number, frame)

    def __enter__(self) -> None:
        self._pending = None
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            # A handler that is no Python function (None, SIG_DFL, SIG_IGN) raises nothing that could tear.
            if callable(handler) and not isinstance(handler, signal.Handlers):
                self._handler = handler
                signal.signal(signal.SIGINT, self._defer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        handler = self._handler
        if handler is None:
            return
        self._handler = None
        signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
        if self._pending is not None and callable(handler):
            number, frame = self._pending
            self._pending = None
            handler(number, frame)
