"""From rows that were drawn to batches: now, or in a thread of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from ..engine import Located, Snapshot
from ..errors import OptionError, UsageError, WaitError
from ..interrupts import Uninterrupted
from ..samplers import ROW, AnyView, Chains, Drawn, Reading, WholeHistory
from ..schema import Schema
from .converting import pad
from .loader import Loader

_PATIENCE_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 5.0

Batch = Any
"""A dict of tensors, or what a user's function makes of it."""

_Asked = queue.SimpleQueue[tuple[int, Snapshot, Drawn, list[int]] | None]
_Read = queue.SimpleQueue[tuple[int, list[Batch] | BaseException]]


def check_transform(transform: Any, as_tensordict: Any) -> Callable[[dict[str, Any]], Batch] | None:
    """What makes a user's batches of ours; None where they are the same."""
    if transform is not None and not callable(transform):
        raise OptionError(f"transform is {transform!r}, expected a function of a batch.")
    if not isinstance(as_tensordict, bool):
        raise OptionError(f"as_tensordict is {as_tensordict!r}, expected True or False.")
    if not as_tensordict:
        return transform  # type: ignore[no-any-return]
    try:
        import tensordict
    except ImportError:
        raise OptionError(
            "as_tensordict is True, but tensordict is not installed. Run: pip install tensordict"
        ) from None

    def to_tensordict(batch: dict[str, Any]) -> Batch:
        _refuse_tuples(batch)
        counts = {len(each) for each in batch.values() if hasattr(each, "shape")}
        made = tensordict.TensorDict(batch, batch_size=sorted(counts) if len(counts) == 1 else [])
        return made if transform is None else transform(made)

    return to_tensordict


def _refuse_tuples(batch: dict[str, Any], path: str = "") -> None:
    for name, value in batch.items():
        if isinstance(value, tuple):
            raise OptionError(f"as_tensordict is True, but {path}{name} is of a Tuple space, which has no names.")
        if isinstance(value, dict):
            _refuse_tuples(value, f"{path}{name}.")


class BatchReader:
    """Reads batches of one make. Thread-safe: one batch at a time.

    Args:
        schema: of the store.
        view: what to read for the rows that are drawn.
        chains: for the view's use.
        loader: gathers.
        transform: what batches become.
    """

    def __init__(
        self,
        schema: Schema,
        view: AnyView,
        chains: Chains,
        loader: Loader,
        transform: Callable[[dict[str, Any]], Batch] | None = None,
    ) -> None:
        self._schema = schema
        self._view = view
        self._plain, self._ragged, self._padded = view.plain, view.ragged, view.padded
        self._chains = chains
        self._loader = loader
        self._transform = transform
        self._lock = threading.Lock()  # a batch may be read again while others are read ahead

    @property
    def reading(self) -> str:
        """How batches are read, in words: what rows are read for those that are drawn."""
        return repr(self._view)

    def has_history(self, snapshot: Snapshot, rows: Located) -> bool:
        """Whether all is there that is read before rows."""
        steps = self._view.history
        if steps == 0:
            return True
        history = WholeHistory(steps)
        return history.keep(snapshot, rows).size == rows.row_ids.size

    def read(self, snapshot: Snapshot, drawn: Drawn, *, chains: Chains | None = None) -> Batch:
        """One batch of all that was drawn; with chains of its own where the snapshot is an older one."""
        with self._lock:
            batch = self._loader.load(drawn.snapshot or snapshot, self._reading(snapshot, drawn, chains))
        if self._padded:
            batch = pad(batch, drawn.hidden["length"])
        return batch if self._transform is None else self._transformed([batch])[0]

    def _transformed(self, batches: list[Any]) -> list[Batch]:
        """What the user's function makes of batches."""
        if self._transform is None:
            return batches
        try:
            return [self._transform(batch) for batch in batches]
        except StopIteration as error:  # which would look like the end
            raise RuntimeError("transform raised StopIteration") from error

    def read_many(self, snapshot: Snapshot, drawn: Drawn, sizes: list[int]) -> list[Batch]:
        """Batches of these sizes of all that was drawn, in order, read in one go."""
        if self._ragged:  # each has a shape of its own
            return [self.read(snapshot, part) for part in drawn.split(sizes)]
        with self._lock:
            batches = self._loader.load_many(drawn.snapshot or snapshot, self._reading(snapshot, drawn), sizes)
        return self._transformed(batches)

    def _reading(self, snapshot: Snapshot, drawn: Drawn, chains: Chains | None = None) -> Reading:
        if self._plain:
            return Reading({ROW: drawn.rows}, drawn.columns)
        reading = self._view.read(drawn.snapshot or snapshot, chains or self._chains, drawn, self._schema)
        if not drawn.columns:
            return reading
        columns = {**reading.columns, **drawn.columns}
        return Reading(reading.groups, columns, reading.blanks, reading.patches, reading.finish)


class Ahead:
    """Reads batches in a thread, in the order in which they are asked for.

    The thread ends when nobody holds this any more, and with the process.
    """

    def __init__(self, reader: BatchReader) -> None:
        self._asked: _Asked = queue.SimpleQueue()
        self._read: _Read = queue.SimpleQueue()
        self._newest = self._dropped = 0  # numbers of what was asked for
        self._pid = os.getpid()
        arguments = (reader, self._asked, self._read)
        self._thread = threading.Thread(target=_serve, args=arguments, name="arrowrb-prefetch", daemon=True)
        with Uninterrupted():  # else Ctrl-C in it may come out as a RuntimeError, of a lock that it left
            self._thread.start()
        _running[self._thread] = self._asked
        weakref.finalize(self, self._asked.put, None).atexit = False

    def ask(self, snapshot: Snapshot, drawn: Drawn, sizes: list[int]) -> None:
        """Ask for batches of these sizes; a snapshot is let go of once they are read."""
        self._check_process()
        self._newest += 1
        self._asked.put((self._newest, snapshot, drawn, sizes))

    def drop(self) -> None:
        """Forget all that was asked for."""
        self._dropped = self._newest
        with contextlib.suppress(queue.Empty):
            while True:
                self._asked.get_nowait()

    def take(self) -> list[Batch]:
        """The batches that were asked for first, and were not taken yet; waits until they are there.

        Raises:
            Exception: what reading them raised.
            WaitError: if that takes longer than five minutes.
        """
        self._check_process()
        waited, number = 0.0, 0
        read: list[Batch] | BaseException = []
        while number <= self._dropped:
            try:
                number, read = self._read.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                waited += _LOOK_SECONDS
                if waited >= _PATIENCE_SECONDS or not self._thread.is_alive():
                    raise WaitError(
                        f"Waited {waited:.0f} s for batches that are read ahead. Is the disk very slow, or the "
                        "function that transforms batches?"
                    ) from None
        if isinstance(read, BaseException):
            raise read
        return read

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"The sampler reads ahead in a thread of process {self._pid}, from which this one was forked. Start "
                "processes by spawn, and make the sampler in them."
            )


def _serve(reader: BatchReader, asked: _Asked, read: _Read) -> None:
    while (job := asked.get()) is not None:
        number, snapshot, drawn, sizes = job
        try:
            read.put((number, reader.read_many(snapshot, drawn, sizes)))
        except BaseException as error:  # raised where the batch is taken
            read.put((number, error))
        del job, snapshot, drawn  # the snapshot's segments may go


_running: weakref.WeakKeyDictionary[threading.Thread, _Asked] = weakref.WeakKeyDictionary()


@atexit.register
def _stop_all() -> None:
    """A thread that is in compiled code when the interpreter goes would be torn out of it, and the process abort."""
    for thread, asked in list(_running.items()):
        asked.put(None)
        if thread.is_alive():  # not in a child that was forked
            thread.join(_PATIENCE_SECONDS)
