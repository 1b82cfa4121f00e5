"""The workers of a collector, as the process that started them sees them.

A thread receives what workers say and notices when one ends. Orders go to a worker through a pipe, and what comes back
are moments of its shard: the rows between two of them are a batch, which is read from the store. A worker that ends has
committed an order whole, in part, or not at all; its shard tells which, and only what is missing is ordered again.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Final

import gymnasium
import pyarrow as pa

from arrowrb.arrivals import rows_between
from arrowrb.collector.allotment import Allotment, Share, rest_of
from arrowrb.collector.batches import Batches
from arrowrb.collector.environments import Wanted
from arrowrb.collector.loop import check_policy, engine_of, known_schema
from arrowrb.collector.policies import check_callable, is_module
from arrowrb.collector.processes import LOOK_SECONDS, WorkerProcess, pickled
from arrowrb.collector.weights import SharedWeights, copied
from arrowrb.collector.worker import Done, Failed, Job, Moment, Published, Ready
from arrowrb.engine import Engine, Standing
from arrowrb.errors import ClosedError, OptionError, UsageError, WaitError
from arrowrb.interrupts import Uninterrupted
from arrowrb.schema import Schema

_log: Final = logging.getLogger("arrowrb")
_LOOK_SECONDS: Final = 0.1  # between looks at what the limiter lets wait
_AHEAD: Final = 2  # orders that a worker which runs freely has
_CLOSE_SECONDS: Final = 15.0
_KILL_SECONDS: Final = 2.0
_CLOSED: Final = "The collector is closed. Make another one."


@dataclass(frozen=True, slots=True)
class _Collected:
    """A batch of one worker: rows of a shard, between two moments."""

    worker: int
    shard: int
    since: Moment
    until: Moment


class Fleet:
    """Workers, and the batches that they commit."""

    def __init__(
        self,
        store: Any,
        schema: Schema | None,
        wanted: Wanted,
        policy: Any,
        options: dict[str, Any],
        share: Share,
        num_workers: int,
        restarts: int,
    ) -> None:
        """Check what can be checked here; `start` starts them."""
        if store is None:
            raise OptionError("num_workers is given without a store, which workers write to. Give Store.temporary().")
        if isinstance(wanted.env, gymnasium.Env | gymnasium.vector.VectorEnv):
            raise OptionError("env is an environment, which cannot be sent to workers. Give an id or a function.")
        known_schema(store, schema)
        self._engine: Engine = engine_of(store)  # type: ignore[assignment]
        self.schema = self._engine.schema
        if policy is not None:
            check_callable(policy)
        check_policy(self.schema, policy, share.random_frames, options["frame_stack"])
        self._store = store
        self._wanted, self._options, self._share = wanted, options, share
        self.version = 0
        # What workers have, and what they are to have: of a module that as it was made, and its weights.
        self._policy = None if policy is None else Published(pickled(copied(policy)), 0)
        self._next_policy = self._policy
        self._weights: Any = None
        if is_module(policy):
            self._weights = SharedWeights(policy)
            self._weights.write(policy, 0)
            self._weights.release()
        self.num_workers = num_workers
        self.num_frames = 0
        self.failures: list[BaseException] = []  # of workers that were started again
        self.worker: int | None = None
        self._most_restarts = restarts
        self._allotment = Allotment(share)
        self._started = self._untaken = self._closing = False
        self._asked_by: int | None = None  # the thread that asked for a batch last
        self._failure: BaseException | None = None  # what ends the run
        self._error: BaseException | None = None  # the same, once it was raised
        self._pid = os.getpid()
        self._guard = threading.RLock()
        self._events: queue.SimpleQueue[_Collected | Ready | BaseException] = queue.SimpleQueue()
        self._parts: list[_Collected] = []  # of a batch that all collect
        self._batches = Batches(self.schema, 2, with_row_id=True)
        self._schemas = [self._batches.schema.with_metadata({"worker": str(each)}) for each in range(num_workers)]
        self._workers = [WorkerProcess(number) for number in range(num_workers)]
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="arrowrb-workers", daemon=True)

    # -- starting and ending ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all, and return when they are ready."""
        atexit.register(self.close)  # before multiprocessing, which would wait for them
        self._engine.check_open()
        for worker in self._workers:  # in order, so that each has the same shard in each run
            self._engine.prepare_shard(worker.name)
        for worker in self._workers:
            self._launch(worker)
        self._thread.start()
        for _ in self._workers:
            self._hear()
        self._engine.limiting.add_crew(self)

    def _launch(self, worker: WorkerProcess) -> None:
        job = Job(
            self._engine.path,
            worker.name,
            self._engine.options,
            self._wanted,
            self._policy,
            {**self._options, "frames": self._share.frames, "steps": self._share.steps},
            self._share.sync,
        )
        worker.start(job, self._weights)

    def close(self) -> None:
        """End all workers: they close their shards. Twice does nothing, and so it does in a process that was forked."""
        if os.getpid() == self._pid:
            with Uninterrupted():  # so that none is left
                self._close()

    def _close(self) -> None:
        with self._guard:
            if self._closing:
                return
            self._closing = True
        atexit.unregister(self.close)
        os.write(self._woken, b"\0")
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        workers = [worker for worker in self._workers if worker.process is not None]
        for worker in workers:
            worker.let_go()
        patience = time.monotonic() + _CLOSE_SECONDS
        for worker in workers:
            worker.join(patience)
        for worker in workers:
            if not worker.has_ended:
                worker.process.kill()
                worker.join(time.monotonic() + _KILL_SECONDS)
        os.close(self._wake)
        os.close(self._woken)
        if self._weights is not None:
            self._weights.close()
        if self._num_ordered():  # a thread may wait for what does not come any more
            self._events.put(ClosedError(_CLOSED))

    def _hear(self) -> _Collected | Ready:
        """What a worker says next; where one has failed the run is over, and its error raised.

        Raises:
            WaitError: if the limiter lets workers wait for this thread, which then must not wait for them.
        """
        begin = time.monotonic()
        while True:
            with suppress(queue.Empty):
                event = self._events.get(timeout=_LOOK_SECONDS)
                break
            busy = self._pids([worker for worker in self._workers if worker.orders])
            self._engine.limiting.check_asking(busy, time.monotonic() - begin)
        if isinstance(event, BaseException):
            self._error = event
            self.close()
            raise event
        return event

    # -- what workers say, in the thread -----------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while True:
                connections = {worker.connection: worker for worker in self._workers if worker.connection is not None}
                ends = {worker.process.sentinel: worker for worker in self._workers if worker.process is not None}
                heard = wait([self._wake, *connections, *ends], LOOK_SECONDS)
                if self._closing:
                    return
                for worker in [connections[each] for each in heard if each in connections]:
                    self._receive(worker)
                for worker in [worker for end, worker in ends.items() if end in heard or worker.has_ended]:
                    self._ended(worker)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The run is over: this is raised where the next batch is asked for."""
        self._failure = error
        self._events.put(error)

    def _receive(self, worker: WorkerProcess) -> None:
        try:
            message = None if worker.connection is None else worker.connection.recv()
        except (EOFError, OSError):
            worker.let_go()  # its process ends, or has ended
            return
        with self._guard:
            if isinstance(message, Ready):
                self._is_ready(worker, message)
            elif isinstance(message, Done):
                self._is_done(worker, message)
            elif isinstance(message, Failed):
                worker.failure = message

    def _is_ready(self, worker: WorkerProcess, message: Ready) -> None:
        worker.shard, worker.lanes = message.shard, message.lanes
        if not worker.orders:
            worker.moment = message.moment
        else:  # the first one is what the process before was at
            worker.kept = message.moment[1] - worker.moment[1]
            rest = rest_of(worker.orders[0], worker.kept)
            if rest is None:  # all but the report was there
                self._is_done(worker, Done(message.moment, 0))
                missing = list(worker.orders)
            else:
                missing = [rest, *list(worker.orders)[1:]]
            for order in missing:
                worker.send(order)
        worker.ready = True
        self._events.put(message)

    def _is_done(self, worker: WorkerProcess, message: Done) -> None:
        order, since, until = worker.orders.popleft(), worker.moment, message.moment
        random_frames = message.random + min(worker.kept, order.random_frames)
        self._allotment.settle(order, until[1] - since[1], random_frames)
        worker.moment, worker.kept = until, 0
        self._events.put(_Collected(worker.number, worker.shard, since, until))
        if not self._share.sync:
            self._order_ahead(worker)

    def _ended(self, worker: WorkerProcess) -> None:
        """What a worker that ended left, and what comes of it."""
        while worker.connection is not None and worker.connection.poll():
            self._receive(worker)
        worker.let_go()
        worker.process.join()
        code, worker.process = worker.process.exitcode, None
        with self._guard:
            if self._closing:
                return
            error = worker.error(code)
            # Whom the limiter let wait in vain it would let wait again.
            curable = worker.shard >= 0 and not isinstance(error, WaitError)
            if curable and len(self.failures) < self._most_restarts:
                self.failures.append(error)
                _log.warning("%s It is started again.", error.__cause__ or error)
                self._launch(worker)
            else:
                self._fail(error)

    # -- orders --------------------------------------------------------------------------------------------------

    def _order(self, worker: WorkerProcess, frames: int) -> bool:
        """Have a worker collect so many transitions more, at most; whether there were any left to order."""
        order = self._allotment.order(frames)
        if order is None:
            return False
        worker.orders.append(order)
        if worker.ready:
            worker.send(order)
        return True

    def _order_ahead(self, worker: WorkerProcess) -> None:
        frames = self._allotment.of_one(len(worker.lanes))
        while len(worker.orders) < _AHEAD and self._order(worker, frames):
            pass

    def _order_one_each(self) -> None:
        """A batch of all workers."""
        shares = self._allotment.of_each([len(worker.lanes) for worker in self._workers])
        for worker, frames in zip(self._workers, shares, strict=True):
            self._order(worker, frames)

    def publish(self, policy: Any, version: int) -> None:
        """Have the workers use a policy as it is now; where all collect for a batch, from the next one on."""
        self._check_process()
        made = Published(pickled(policy), version) if self._weights is None else None
        with Uninterrupted(), self._guard:
            if self._closing:
                raise ClosedError(_CLOSED)
            if made is None:
                self._weights.write(policy, version)
            else:
                self._next_policy = made
            self.version = version
            if not (self._share.sync and self._num_ordered()):
                self._release()

    def _release(self) -> None:
        """Have the workers use what was published last."""
        if self._weights is not None:
            self._weights.release()
        elif self._policy is not self._next_policy:
            self._policy = self._next_policy
            for worker in self._workers:
                worker.send(self._policy)

    # -- batches -------------------------------------------------------------------------------------------------

    @property
    def lanes(self) -> range:
        """Those of each worker."""
        return self._workers[0].lanes

    def batch(self) -> pa.RecordBatch:
        """The next batch; see `Collector.__next__`."""
        self._check()
        self._asked_by = threading.get_ident()
        if self._untaken:
            raise UsageError("The workers run by themselves since start(). Their batches are in the store.")
        with Uninterrupted(), self._guard:
            if not self._closing and self._share.sync:
                if not self._parts and not self._num_ordered():
                    self._release()
                    self._order_one_each()
            elif not self._closing and not self._started:
                for worker in self._workers:
                    self._order_ahead(worker)
            self._started = True
        while not self._parts or (self._share.sync and (self._num_ordered() or not self._events.empty())):
            if not self._num_ordered() and self._events.empty():
                self.close()  # all is collected
                raise StopIteration
            event = self._hear()
            if isinstance(event, _Collected):
                self._parts.append(event)
        parts, self._parts = self._parts, []
        return self._read(parts)

    def begin(self) -> None:
        """Have the workers run freely, and leave their batches where they are: in the store."""
        if self._share.sync:
            raise UsageError("With sync=True workers wait for each batch to be asked for. Give sync=False, or iterate.")
        if self._started and not self._untaken:
            raise UsageError("A batch has been asked for already. Go on iterating, or make another collector.")
        self._check()
        self._untaken = True
        with Uninterrupted(), self._guard:
            for worker in self._workers:
                self._order_ahead(worker)
            self._started = True

    @property
    def running(self) -> bool:
        """Whether there is more to come of workers that run by themselves; raises what one of them raised."""
        self._check()
        if not self._untaken:
            raise UsageError("start() was not called, so no workers run by themselves. Call it before, or iterate.")
        while not self._events.empty():
            event = self._hear()
            if isinstance(event, _Collected):
                self.num_frames += event.until[1] - event.since[1]
        return bool(self._num_ordered())

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"Process {os.getpid()} was forked from {self._pid}, whose workers these are. Use the collector there."
            )

    def _check(self) -> None:
        self._check_process()
        if self._error is not None:
            raise ClosedError("The collector has ended with an error. Make another one.") from self._error

    def standing(self) -> Standing | None:
        """How the workers stand, for samplers of this process that wait for them; None once it is closed."""
        with self._guard:
            if self._closing:
                return None
            ordered = self._num_ordered()
            done = not ordered and self._allotment.left <= 0
            return Standing(self._pids(self._workers), self._failure, done, None if ordered else self._asked_by)

    @staticmethod
    def _pids(workers: list[WorkerProcess]) -> frozenset[int]:
        return frozenset(process.pid for worker in workers if (process := worker.process) is not None)

    def _num_ordered(self) -> int:
        with self._guard:
            return sum(len(worker.orders) for worker in self._workers)

    def _read(self, parts: list[_Collected]) -> pa.RecordBatch:
        """The rows of a batch, as far as retention has not dropped them."""
        snapshot = self._engine.snapshot()
        rows = rows_between(snapshot, {part.shard: (part.since[0], part.until[0]) for part in parts})
        self.num_frames += sum(part.until[1] - part.since[1] for part in parts)
        self.worker = None if self._share.sync else parts[0].worker
        return self._batches.read(snapshot, rows, None if self.worker is None else self._schemas[self.worker])
