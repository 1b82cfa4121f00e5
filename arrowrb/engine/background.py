"""Background threads of a writer: one prepares segments, one seals them and syncs at an interval, one moves them.

Jobs run one after another in the order in which they were given. What a job raises reaches whoever waits for its
future; a job that nobody waits for hands its error to ``on_error``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..errors import WaitError


class Background:
    """A daemon thread with a queue of jobs and a tick.

    Args:
        name: of the thread.
        tick: called when ``interval`` has passed since the last time, between jobs.
        interval: seconds; None never ticks.
        on_error: called in the thread with what a tick or a job without a waiter raised.
    """

    def __init__(
        self, name: str, tick: Callable[[], None], interval: float | None, on_error: Callable[[BaseException], None]
    ) -> None:
        self._tick = tick
        self._interval = interval
        self._on_error = on_error
        self._jobs: deque[tuple[Future[Any], Callable[[], Any], bool]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; jobs that were given before come first. Who ticks may need what its owner does not have before."""
        self._thread.start()

    def submit(self, job: Callable[[], Any], *, awaited: bool) -> Future[Any]:
        """Run a job after those before it. ``awaited``: the caller will ask the future for its error."""
        future: Future[Any] = Future()
        with self._changed:
            self._jobs.append((future, job, awaited))
            self._changed.notify()
        return future

    def run(self, job: Callable[[], Any], timeout: float) -> None:
        """Run a job after those before it, and wait for it.

        Raises:
            WaitError: if that takes longer than ``timeout`` seconds.
        """
        try:
            self.submit(job, awaited=True).result(timeout)
        except TimeoutError:
            raise WaitError(
                f"Waited {timeout:g} s for segments to be moved. They still are, in the background."
            ) from None

    def stop(self, timeout: float) -> None:
        """Finish all jobs and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise WaitError(f"Waited {timeout:g} s for background work (segments that are prepared, sealed or moved).")

    def _run(self) -> None:
        due = None if self._interval is None else time.monotonic() + self._interval
        while True:
            with self._changed:
                if not self._jobs and not self._stopping:
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
                if due is not None and self._interval is not None and time.monotonic() >= due:
                    due = time.monotonic() + self._interval  # jobs do not put it off
                    tick: Future[Any] = Future()
                    future, job, awaited = tick, self._tick, False
                elif self._jobs:
                    future, job, awaited = self._jobs.popleft()
                elif self._stopping:
                    return
                else:
                    continue
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
                if not awaited:
                    self._on_error(error)


class Threads:
    """A writer's threads. Three, since each waits for the disk, and for the lock of Python, more than it works.

    Attributes:
        preparing: makes the next segment.
        sealing: syncs, and seals what is closed; what it seals, moving takes on.
        moving: moves and drops segments.
    """

    def __init__(
        self, tick: Callable[[], None], interval: float | None, on_error: Callable[[BaseException], None]
    ) -> None:
        """``tick`` is called by the thread that seals."""
        self.preparing = Background("arrowrb-prepare", _nothing, None, on_error)
        self.moving = Background("arrowrb-move", _nothing, None, on_error)
        self.sealing = Background("arrowrb-seal", tick, interval, on_error)

    def start(self) -> None:
        """Begin."""
        for thread in (self.preparing, self.sealing, self.moving):
            thread.start()

    def wait(self, timeout: float) -> None:
        """Return when all jobs are done that were there, and those that they led to."""
        for thread in (self.preparing, self.sealing, self.moving):
            thread.submit(_nothing, awaited=True).result(timeout)

    def stop(self, timeout: float) -> None:
        """Finish all jobs and end the threads."""
        for thread in (self.preparing, self.sealing, self.moving):
            thread.stop(timeout)


def _nothing() -> None:
    """What a thread that only works on demand does at its tick."""
