"""Sending to a worker: who sends waits for nobody, and no message is cut short by an interrupt.

A thread of its own writes to the pipe: a worker that is stopped or dead does not read, and a pipe holds little.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final

from arrowrb.collector.worker import Published

_POLICY: Final = object()  # in the queue: the newest one, unless it was written already


class Sender(threading.Thread):
    """Writes what it is given, in order; of policies that wait, the newest alone."""

    def __init__(self, connection: Connection) -> None:
        """Write to this end of a pipe."""
        super().__init__(name="arrowrb-sender", daemon=True)
        self._connection = connection
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._policy: Published | None = None

    def send(self, message: Any) -> None:
        """Have something written; that the worker has ended is noticed elsewhere."""
        if isinstance(message, Published):
            self._policy, message = message, _POLICY
        self._queue.put(message)

    def run(self) -> None:
        """Write until the end."""
        written = None
        with suppress(OSError):  # the worker has ended
            while (message := self._queue.get()) is not None:
                if message is not _POLICY:
                    self._connection.send(message)
                elif self._policy is not written:
                    written = self._policy
                    self._connection.send(written)

    def stop(self) -> None:
        """Shut the pipe for all who have it open, in the middle of a message if need be, and end."""
        self._queue.put(None)
        with socket.socket(fileno=os.dup(self._connection.fileno())) as end, suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        self.join()
