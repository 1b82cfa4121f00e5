"""Streams of batches: draws of a strategy, read into tensors, some of them ahead."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Final

import numpy as np

from .engine import Engine, Gate, SampleLog, SamplerFolder, Snapshot
from .errors import EmptyError, OptionError, UsageError
from .info import SamplerInfo
from .interrupts import Uninterrupted
from .loader import Ahead, Batch, BatchReader, as_row_ids
from .pending import Group, Rest, write
from .redrawing import redrawn
from .samplers import Drawn, Joining, Learning, Once, Sequential, Stream, check_prefetch, check_tiers
from .tally import Tally, watermarks_of

_END: Final = object()  # in place of a batch, where there is no further one
_NONE: Final = np.zeros(0, np.int64)


class Sampler:
    """An endless stream of batches from a store; made by `Store.sampler`.

    Drawing is from what is visible at that moment, so rows that are written meanwhile take part, those that were drawn
    ahead excepted. Not thread-safe: use one a thread.
    """

    def __init__(
        self,
        engine: Engine,
        stream: Stream,
        reader: BatchReader,
        batch_size: int,
        *,
        prefetch: int = 0,
        tiers: str = "all",
        name: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Not for users: see `Store.sampler`."""
        self.prefetch = check_prefetch(prefetch)
        self._engine = engine
        self._stream = stream
        self._learning = stream if isinstance(stream, Learning) else None
        self._once = stream if isinstance(stream, Once) else None
        self._reader = reader
        self._tiers = check_tiers(tiers)
        self._joins = isinstance(stream, Joining) and stream.joins
        self._groups: deque[Group] = deque()  # of batches that were drawn, and not handed out
        self._num_ahead = 0  # how many these are
        self._ready: deque[Batch] = deque()  # those of them that were read
        self._restored: Rest | None = None  # what had been drawn before, and comes next
        self._ahead: Ahead | None = None
        self.name = name
        self.batch_size = batch_size
        self._fewest = (self.prefetch + 1) // 2 if prefetch else -1  # with no more than so many, others are drawn
        self._gate, self._tally = gate, Tally(engine, gate)
        self._log: SampleLog | None = None
        self._folder: SamplerFolder | None = None
        self._handed: list[Drawn] = []  # the rows of the batch that is handed out
        self.closed = False
        self.guard = threading.RLock()  # checkpoints look at it, in any thread

    def keep_in(self, folder: SamplerFolder, log: SampleLog | None) -> None:
        """Not for users: see `Store.sampler`."""
        self._folder, self._log = folder, log

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of its name, and of what it has drawn ahead. May be called again.

        Another sampler of that name may be made then, which goes on with the same priorities and log. A sampler that
        nobody holds any more is closed by itself.
        """
        with self.guard:
            self._drop()
            self.closed = True
            if self._gate is not None:
                self._gate.close()
            self._ahead = None
            if self._folder is not None:
                self._folder.close()

    def _check_open(self) -> None:
        if self.closed:
            raise UsageError("The sampler is closed. Make another one with Store.sampler.")

    @property
    def reading(self) -> str:
        """How batches are read, in words; not for users."""
        return self._reader.reading

    @property
    def num_logged(self) -> int:
        """The number of the newest batch in its log, counted from 1; 0 where there is none, and without a log."""
        return 0 if self._log is None else self._log.newest

    def redraw(self, batch: int, *, name: str | None = None) -> Batch:
        """A batch out of a sampler's log once more: the same values, as long as its rows are there.

        It is read as this sampler reads batches, which therefore has to have the strategy and options of the one that
        drew it. The rows are read as that one saw them: steps that came later are left out, and weights are those of
        then.

        Args:
            batch: its number, counted from 1, as the view ``samples`` of `Store.sql` shows it.
            name: of the sampler whose log it is in; by default this one's own. It may be at work meanwhile.

        Raises:
            RowError: if it is not in the log, or a row of it is no longer there.
            OptionError: if there is no name, or the batch was drawn by another strategy, or read with other options.
        """
        name = self.name if name is None else name
        if name is None:
            raise OptionError("The sampler has no name, and so no log. Give the name of the one that drew the batch.")
        return redrawn(self._engine, self._reader, name, batch)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: nested dicts of plain values and NumPy arrays, from which `load_state_dict` goes on.

        It has the rows of batches that are drawn ahead, and priorities. Checkpoints keep it of every named sampler.
        """
        with self.guard:
            self._check_open()
            rest = Rest.joined(self._groups, self._restored) or Rest(_NONE, {}, {}, [])
            return {"stream": self._stream.save(self._engine.snapshot()), "batch_size": self.batch_size, **rest.save()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the sampler stood that gave this state: the same batches follow, if the rows are the same.

        Batches that were drawn ahead and of which rows have been dropped since are drawn anew.

        Raises:
            OptionError: if it had another strategy or batch size.
        """
        if not isinstance(state, Mapping) or "stream" not in state:
            raise OptionError("The state is none of a sampler, expected what Sampler.state_dict returned.")
        if state.get("batch_size") != self.batch_size:
            raise OptionError(
                f"batch_size is {self.batch_size}, but that of the sampler that it is to go on from was "
                f"{state.get('batch_size')!r}. Give the same, or another name."
            )
        stream, rest = state.get("stream"), Rest.load(state)
        with self.guard:
            self._check_open()
            self._stream.load(stream if isinstance(stream, dict) else {}, self._engine.snapshot())
            self._drop()
            self._restored = rest if rest.sizes else None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._next()
        if batch is _END:
            raise StopIteration
        return batch

    def sample(self) -> Batch:
        """Draw the next batch: name -> tensor [batch_size, *shape], nested where the space is, with ``row_id``.

        Raises:
            EmptyError: if there is nothing to draw, or the strategy has come to its end.
            WaitError: if the store's limiter does not allow it in time, or nobody collects any more; what ended the
                workers of a collector of this process is its cause.
        """
        batch = self._next()
        if batch is _END:
            raise EmptyError("There is no further batch: all epochs are over. Make another sampler.")
        return batch

    def _next(self) -> Batch:
        """The next batch; `_END` at the end of a strategy that has one."""
        self.wait()  # where nothing is held
        with self.guard:
            if self._once is not None or self._log is not None:
                return self._next_whole()
            try:
                return self._step()
            except (KeyboardInterrupt, SystemExit):  # may have torn what is ahead
                self._drop()
                raise

    def _next_whole(self) -> Batch:
        """The next batch, where Ctrl-C must lose no row, and tear no log."""
        self._handed.clear()
        try:
            with Uninterrupted():
                return self._step()
        except BaseException:
            self.give_back(self._handed)  # nobody gets it
            raise

    def _step(self) -> Batch:
        if self.closed:
            self._check_open()
        if not self._ready or self._num_ahead <= self._fewest:
            snapshot = self._engine.snapshot()
            if self.prefetch == 0 and not self._ready and self._restored is None:
                drawn = self._stream.draw(snapshot, self.batch_size, tiers=self._tiers)
                if drawn.rows.row_ids.size == 0:
                    return _END
                batch = self._read_now(snapshot, drawn)
                if self._log is None:
                    self._tally.add(drawn.rows.row_ids)
                    self._handed = [drawn]
                    return batch
                self._note(snapshot, drawn, [drawn.rows.row_ids.size])
                self._ready.append(batch)
            elif not self._prepare(snapshot):
                return self._step() if self.prefetch == 0 else _END  # of what was drawn before nothing is left
        else:
            self._engine.check_open()
        group = self._groups[0]
        if self._log is not None:  # first, so that a batch which finds no room in it is the next one again
            write(self._log, group.first(), group.watermarks)
        handed = [] if self._once is None else [group.first()]
        self._tally.add(group.pop())
        if not group:
            self._groups.popleft()
        self._num_ahead -= 1
        batch = self._ready.popleft()
        self._handed = handed
        return batch

    def _read_now(self, snapshot: Snapshot, drawn: Drawn) -> Batch:
        """The batch of rows; of those that are drawn once, the same ones come next where that fails."""
        if self._once is None:
            return self._reader.read(snapshot, drawn)
        try:
            return self._reader.read(snapshot, drawn)
        except BaseException:
            self._restored = Rest.of(drawn, [drawn.rows.row_ids.size])
            raise

    def _prepare(self, snapshot: Snapshot) -> bool:
        """Draw batches ahead where few are left, and wait for the next one. Returns whether there is one."""
        if self.prefetch and self._ahead is None:  # first, so that no rows are drawn where no thread can be started
            self._ahead = Ahead(self._reader)
        if self._restored is not None:
            self._read_restored(snapshot)
        if self.prefetch and self._num_ahead <= self._fewest:
            self._draw_ahead(snapshot)
        if not self._ready and self._groups:
            begin = time.perf_counter()
            self._ready.extend(self._take())
            self._tally.wait_seconds += time.perf_counter() - begin
        return bool(self._ready)

    @property
    def learns(self) -> bool:
        """Whether it keeps priorities, which `update` sets."""
        return self._learning is not None

    def wait(self) -> None:
        """Wait as long as the store's limiter says; not for users."""
        if self._gate is not None:
            self._gate.wait()

    def draw(self, count: int) -> Drawn:
        """Rows for a batch; not for users."""
        with self.guard:
            self._check_open()
            return self._draw(count)

    def _draw(self, count: int) -> Drawn:
        snapshot = self._engine.snapshot()
        if self._restored is not None:
            (rest, sizes), self._restored = self._restored.still_there(snapshot, self._once), None
            if sizes:
                if rest.rows.row_ids.size > count:
                    later = rest.part(slice(count, None))
                    self._restored = Rest.of(later, [later.rows.row_ids.size])
                return rest.part(slice(0, count))
        drawn = self._stream.draw(snapshot, count, tiers=self._tiers)
        return Drawn(drawn.rows, drawn.columns, drawn.hidden, drawn.snapshot or snapshot)

    def give_back(self, every: list[Drawn]) -> None:
        """Rows that `draw` gave and nobody has got: those that are drawn once come next; not for users."""
        if self._once is not None and every:
            groups = deque([Group(each, [each.rows.row_ids.size], _NONE) for each in every])
            self._restored = Rest.joined(groups, self._restored)

    def read(self, drawn: Drawn) -> Batch:
        """The batch of rows; not for users."""
        return self._reader.read(drawn.snapshot or self._engine.snapshot(), drawn)

    def hand_out(self, drawn: Drawn) -> None:
        """Count and log rows that somebody gets; not for users."""
        self._tally.add(drawn.rows.row_ids)
        if self._log is not None:
            write(self._log, drawn, watermarks_of(drawn.snapshot or self._engine.snapshot()))

    def _draw_ahead(self, snapshot: Snapshot) -> None:
        """Draw until there are ``prefetch`` batches beside the one that is asked for; done once half of them are gone.

        So several are read in one go, and what lies in Parquet is decoded once for all of them. Each is a draw of its
        own, or the same as if it were, so that the rows do not depend on how many are drawn ahead.
        """
        missing = self.prefetch + 1 - self._num_ahead
        if self._joins:
            drawn = self._stream.draw(snapshot, self.batch_size * missing, tiers=self._tiers)
            self._ask(snapshot, drawn, [self.batch_size] * missing)
            return
        every: list[Drawn] = []
        while len(every) < missing:
            drawn = self._stream.draw(snapshot, self.batch_size, tiers=self._tiers)
            if drawn.rows.row_ids.size == 0:
                break
            every.append(drawn)
        for _, group in groupby(every, key=lambda each: id(each.snapshot)):
            parts = list(group)
            self._ask(snapshot, Drawn.joined(parts), [each.rows.row_ids.size for each in parts])

    def _take(self) -> list[Batch]:
        """The batches that were asked for first. After an error all that was drawn ahead is drawn anew."""
        try:
            return [] if self._ahead is None else self._ahead.take()
        except BaseException:
            self.clear()
            raise

    def _read_restored(self, snapshot: Snapshot) -> None:
        """Read, or ask for, what had been drawn ahead in the state that the sampler goes on from."""
        restored, self._restored = self._restored, None
        if restored is None:
            return
        drawn, sizes = restored.still_there(snapshot, self._once)
        if not sizes:
            return
        if self.prefetch:
            self._ask(snapshot, drawn, sizes)
            return
        try:
            batches = self._reader.read_many(snapshot, drawn, sizes)
        except BaseException:
            self._restored = Rest.of(drawn, sizes)
            raise
        self._note(snapshot, drawn, sizes)
        self._ready.extend(batches)

    def _ask(self, snapshot: Snapshot, drawn: Drawn, sizes: list[int]) -> None:
        """Let the thread read batches of these sizes."""
        self._note(snapshot, drawn, sizes)
        if self._ahead is not None:
            self._ahead.ask(snapshot, drawn, sizes)

    def _note(self, snapshot: Snapshot, drawn: Drawn, sizes: list[int]) -> None:
        """Batches of these sizes are on their way."""
        watermarks = _NONE if self._log is None else watermarks_of(drawn.snapshot or snapshot)
        self._groups.append(Group(drawn, sizes, watermarks))
        self._num_ahead += len(sizes)

    def clear(self) -> None:
        """Drop the batches that are drawn ahead: the next one is drawn from what there is now.

        A strategy that draws each row once gives the rows of these batches again.
        """
        with self.guard:
            rest = Rest.joined(self._groups, self._restored) if self._once is not None else None
            self._drop()
            self._restored = rest

    def _drop(self) -> None:
        """Forget all that was drawn ahead."""
        self._groups.clear()
        self._num_ahead = 0
        self._ready.clear()
        self._restored = None
        if self._ahead is not None:
            self._ahead.drop()

    def info(self) -> SamplerInfo:
        """What it has given so far: rates, replay ratio, waits, and the age of the last batch."""
        num_ignored = 0 if self._learning is None else self._learning.num_ignored
        num_skipped = 0 if self._once is None else self._once.num_skipped
        sequences = self._stream if isinstance(self._stream, Sequential) else None
        num_short = 0 if sequences is None else sequences.count_short(self._engine.snapshot())
        return self._tally.info(num_ignored, num_skipped, num_short)

    def update(self, row_ids: Any, td_error: Any = None, *, priority: Any = None, mask: Any = None) -> None:
        """Tell what was learned from rows, which decides how likely they are drawn from now on.

        For strategies that go by priority. Rows whose segment retention has dropped meanwhile are ignored. Where a row
        is named more than once, the last counts. Batches that are drawn ahead stay as they are.

        Args:
            row_ids: int64[n], such as ``batch["row_id"]``, or what `Store.extend` returned; of sequences, those of
                their starts: ``batch["start_row_id"]``.
            td_error: [n], temporal-difference errors of either sign: the priority is their absolute value, plus the
                strategy's ``eps``. Of sequences [n, steps]; see `PrioritizedSequences`.
            priority: [n], priorities as they are, in place of errors; none below 0, and with 0 a row is never drawn.
            mask: bool[n, steps], which steps of sequences count; all by default.

        Raises:
            UsageError: if the strategy keeps no priorities.
            RowError: if a row id names no transition.
            ColumnError: if there is not one finite number a row.
        """
        if self._learning is None:
            self._check_open()
            raise UsageError("The sampler keeps no priorities. Make it with a strategy such as arrowrb.Prioritized().")
        with self.guard:
            self._check_open()
            self._learning.update(self._engine.snapshot(), as_row_ids(row_ids), td_error, priority, mask)
