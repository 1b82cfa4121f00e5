"""A worker: the process that steps environments into a shard of its own, as it is told through a pipe.

It ends when the other end of the pipe is shut, or the process that started it has died, whoever else has that end open:
threads wait for both, and interrupt what the worker is at as Ctrl-C would. Ctrl-C itself it leaves to the process that
started it. What it has committed is safe whenever it ends; a worker that does not come to an end in time is ended from
within.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Final

import cloudpickle
import numpy as np

from arrowrb.collector.environments import Wanted
from arrowrb.collector.loop import Loop, Order, seeds_of
from arrowrb.engine import Engine, WriterOptions, patiently
from arrowrb.store import Store

_GRACE_SECONDS: Final = 10.0  # for a step of an environment, and for closing the shard
_LOOK_SECONDS: Final = 1.0  # between two looks whether the process that started it lives
_LOCK_SECONDS: Final = 10.0  # the worker before, whose parent died, may still be closing the shard

Moment = tuple[int, int]
"""Of a shard: the newest ordinal, and how many transitions there ever were."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker is there: the number of its shard, its lanes, and the moment at which it begins."""

    shard: int
    lanes: range
    moment: Moment


@dataclass(frozen=True, slots=True)
class Done:
    """An order is carried out: the moment after its commit, and how many transitions came of random actions."""

    moment: Moment
    random: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker ends: what was raised, pickled where that is possible, and its traceback."""

    error: bytes | None
    text: str


@dataclass(frozen=True, slots=True)
class Published:
    """A policy, pickled as it was when it was published, and its number."""

    policy: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is started with.

    Attributes:
        path: Of the store.
        shard: The name of its own.
        writer: How the shard is opened.
        wanted: Its environments.
        policy: Its copy of the policy, if any; the weights of a module may be newer.
        options: Of its `Loop`.
        sync: Whether the policy stays the same within an order.
    """

    path: Path
    shard: str
    writer: WriterOptions
    wanted: Wanted
    policy: Published | None
    options: dict[str, Any]
    sync: bool


class _Control:
    """The threads that take what comes through the pipe, and see when the worker is to end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()  # a job, then orders; None at the end
        self.policy: Published | None = None
        self.stopping = self.busy = self._failed = False

    def start(self) -> None:
        """Listen from now on."""
        for target in (self._listen, self._watch_parent):
            threading.Thread(target=target, name="arrowrb-control", daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, Published):
                    self.policy = message
                else:
                    self.inbox.put(message)
        except (EOFError, OSError):
            pass  # nobody is at the other end
        finally:
            self._stop()

    def _watch_parent(self) -> None:
        parent: Any = parent_process()
        while os.getppid() == parent.pid:
            time.sleep(_LOOK_SECONDS)
        self._stop()

    def _stop(self) -> None:
        self.stopping = True
        self.inbox.put(None)
        os.kill(os.getpid(), signal.SIGINT)
        _end_in_time()

    def interrupt(self, _: int, __: FrameType | None) -> None:
        """The handler of SIGINT."""
        if self.stopping and self.busy:
            self.busy = False  # once
            raise KeyboardInterrupt

    def is_stop(self, error: BaseException) -> bool:
        """Whether an error is no more than the end that was asked for."""
        return self.stopping and isinstance(error, KeyboardInterrupt)

    def send(self, message: Any) -> None:
        """Tell the process that started this one something."""
        with contextlib.suppress(OSError):  # nobody listens any more, which `_listen` notices, too
            self._connection.send(message)

    def fail(self, error: BaseException) -> None:
        """Say why the worker ends, where that has not been said; what it is at must come to an end from now on."""
        if self._failed or self.is_stop(error):
            return
        self._failed = True
        text = "".join(traceback.format_exception(error))
        self.send(Failed(_pickled(error.with_traceback(None)), text))
        _end_in_time()


def _end_in_time() -> None:
    """End the process before long, also where the main thread is in code that does not come back."""
    timer = threading.Timer(_GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def work(connection: Connection, weights: Any) -> None:
    """Carry out orders until the pipe is closed.

    Args:
        connection: Through which a pickled `Job` comes first.
        weights: `SharedWeights`, where the policy is a module.
    """
    control = _Control(connection)
    signal.signal(signal.SIGINT, control.interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    control.start()
    try:
        payload = control.inbox.get()
        if payload is not None:
            _serve(cloudpickle.loads(payload), weights, control)
    except BaseException as error:
        if not control.is_stop(error):
            control.fail(error)
            sys.exit(1)


def _serve(job: Job, weights: Any, control: _Control) -> None:
    with _open(job) as store, _Worker(job, weights, control, store) as worker:
        try:
            control.send(Ready(store._engine.shard, worker.lanes, worker.moment))
            while (order := control.inbox.get()) is not None:
                random_frames = worker.carry_out(order)
                control.send(Done(worker.moment, random_frames))
        except BaseException as error:
            control.fail(error)  # first: closing an environment that is broken may take for ever
            raise


def _pickled(error: BaseException) -> bytes | None:
    if not isinstance(error, Exception):  # SystemExit and the like would end, or mean something to, who hears of it
        return None
    try:
        made = cloudpickle.dumps(error)
        cloudpickle.loads(made)
    except Exception:  # an error may hold whatever it likes; its text is sent, too
        return None
    return bytes(made)


def _open(job: Job) -> Store:
    def take() -> Store:
        return Store(Engine(job.path, writable=True, options=job.writer, shard=job.shard))

    return patiently(take, time.monotonic() + _LOCK_SECONDS)


class _Worker:
    """A loop over environments, and the policy that it asks."""

    def __init__(self, job: Job, weights: Any, control: _Control, store: Store) -> None:
        self._weights, self._control = weights, control
        self._shard: Any = store._engine.writer_shard
        self._seen = job.policy
        self._policy = None if job.policy is None else cloudpickle.loads(job.policy.policy)
        self._version = 0 if job.policy is None else job.policy.version
        self._taken = 0  # how many versions of the weights there were when they were taken
        if weights is not None:
            self._take()
        # First for what makes the environments, then for what steps them, however much the first has drawn.
        _seed(seeds_of(job.options["seed"], store._engine))
        self._loop = Loop(job.wanted, self._policy, store=store, **job.options)
        if self._policy is not None and not job.sync:
            self._loop.refresh = self._refresh
        _seed(self._loop.policy_seeds)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.busy = False
        self._loop.close()

    @property
    def moment(self) -> Moment:
        """How far its shard is."""
        record = self._shard.writer.record
        return record.watermark, record.num_transitions

    @property
    def lanes(self) -> range:
        """The lanes that it writes."""
        return self._loop.lanes

    def carry_out(self, order: Order) -> int:
        """Collect and commit, under the policy that is the newest now; one that runs freely asks again at each step.

        Returns:
            How many of the transitions came of random actions.
        """
        order = replace(order, version=self._refresh())
        self._control.busy = True
        try:
            return 0 if self._control.stopping else self._loop.collect(order)
        finally:
            self._control.busy = False

    def _take(self) -> None:
        self._taken, self._version = self._weights.take(self._policy)

    def _refresh(self) -> int:
        """Use the newest policy; returns its version."""
        if self._weights is not None:
            if self._weights.count != self._taken:
                self._take()
        elif self._control.policy is not self._seen and self._control.policy is not None:
            self._seen = self._control.policy
            self._version = self._seen.version
            self._loop.use(cloudpickle.loads(self._seen.policy))
        return self._version


def _seed(seeds: np.random.SeedSequence) -> None:
    """Give the global generators, which policies and environments may draw from, numbers of this worker's own."""
    numbers = seeds.generate_state(2)
    random.seed(int(numbers[0]))
    np.random.seed(int(numbers[1]))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(int(numbers[0]))
