"""The process of a worker, from outside: it is started, told what to do, let go of, and says why it ended."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Final

import cloudpickle

from arrowrb.collector.loop import Order
from arrowrb.collector.sender import Sender
from arrowrb.collector.spawning import without_a_missing_script
from arrowrb.collector.worker import Failed, Job, Moment, work
from arrowrb.errors import OptionError, WorkerError

LOOK_SECONDS: Final = 0.5  # between two looks whether a process has ended whose files others have open


@dataclass(slots=True)
class WorkerProcess:
    """A worker, as the process that started it sees it.

    Attributes:
        number: Its own, from 0.
        process: None once it has ended.
        connection: This end of its pipe; None once the other end is closed.
        shard: The number of its shard, when it has been ready once.
        lanes: Those that it writes, likewise.
        moment: That of its last report.
        kept: Transitions of the first order that processes before this one have committed.
        ready: Whether it takes orders.
        orders: Those that it has not reported.
        failure: What it said before it ended.
    """

    number: int
    process: Any = None
    connection: Connection | None = None
    shard: int = -1
    lanes: range = range(0)
    moment: Moment = (0, 0)
    kept: int = 0
    ready: bool = False
    orders: deque[Order] = field(default_factory=deque)
    failure: Failed | None = None
    _sender: Sender | None = None

    @property
    def name(self) -> str:
        """That of its shard."""
        return f"worker-{self.number}"

    def start(self, job: Job, weights: Any) -> None:
        """Start it; it says when it is ready."""
        payload = pickled(job)
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        # What a process is started with is written before it reads: the job, of any size, follows through the pipe.
        process = context.Process(target=work, args=(theirs, weights), name=f"arrowrb-{self.name}")
        with theirs, _without_interrupts(), without_a_missing_script():
            process.start()
        self.process = process
        self.connection, self.ready, self.failure = ours, False, None
        self._sender = Sender(ours)
        self._sender.start()
        self._sender.send(payload)

    @property
    def has_ended(self) -> bool:
        """Whether the process has. Others may have its files open still, as those that it forked."""
        return self.process is not None and self.process.exitcode is not None

    def join(self, until: float) -> None:
        """Wait for its end, to a moment of the monotonic clock."""
        while not self.has_ended and (left := until - time.monotonic()) > 0:
            self.process.join(min(left, LOOK_SECONDS))  # which waits longer where others have its files open

    def send(self, message: Any) -> None:
        """Tell it something, without waiting for it."""
        sender = self._sender  # another thread may let go just now
        if sender is not None:
            sender.send(message)

    def let_go(self) -> None:
        """Shut the pipe, at which it ends."""
        if self.connection is not None and self._sender is not None:
            self._sender.stop()
            self.connection.close()
            self.connection = self._sender = None

    def error(self, code: int) -> Exception:
        """What is raised where a worker has ended."""
        if self.failure is not None:
            cause = WorkerError(f"Worker {self.number} ended with this error:\n\n{self.failure.text}")
            error = _unpickled(self.failure.error)
            if error is None:
                return cause
            error.__cause__ = cause
            return error
        if code < 0:
            with suppress(ValueError):
                return WorkerError(f"Worker {self.number} was killed by {signal.Signals(-code).name}.")
        if self.shard >= 0:
            return WorkerError(f"Worker {self.number} ended with exit code {code}.")
        return WorkerError(
            f"Worker {self.number} ended with exit code {code} while it was started. Processes are started by spawn "
            'and run the script again: keep what it does under `if __name__ == "__main__":`.'
        )


def _unpickled(made: bytes | None) -> Exception | None:
    """What a worker has raised; None where it cannot be had here, or would not be taken for an error."""
    if made is None:
        return None
    try:
        error = cloudpickle.loads(made)
    except Exception:  # its class may be known there only; its text is told instead
        return None
    return error if isinstance(error, Exception) and not isinstance(error, StopIteration) else None


def pickled(value: Any) -> bytes:
    """What a worker is given, by cloudpickle."""
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        raise OptionError(
            f"What workers are to be given cannot be pickled: {type(error).__name__}: {error}. Give functions that "
            "make an environment or a policy there, and leave out what holds locks, files or processes."
        ) from error


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started begins with SIGINT blocked, until it has a handler."""
    resource_tracker.ensure_running()  # first: where it must be started, that unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
