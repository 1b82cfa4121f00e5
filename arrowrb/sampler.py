"""Streams of batches: draws of a strategy, read into tensors, some of them ahead."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import checkpoints
from .engine import Engine, Located, Snapshot
from .errors import OptionError, RowError, UsageError
from .loader import Loader, as_row_ids
from .samplers import ROW, AnyView, Chains, Drawn, Learning, Reading, Stream, View, Viewing, check_tiers

_MOST_ROWS: Final = (1 << 31) - 1  # of a batch


def check_batch_size(value: Any) -> int:
    """A number of rows, checked."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= _MOST_ROWS:
        raise OptionError(f"batch_size is {value!r}, expected a whole number of 1 to {_MOST_ROWS:,}.")
    return int(value)


class Sampler:
    """An endless stream of batches from a store; made by `Store.sampler`.

    Drawing is from what is visible at that moment, so rows that are written meanwhile take part, those that were drawn
    ahead excepted. Not thread-safe: use one a thread.
    """

    def __init__(
        self,
        engine: Engine,
        stream: Stream,
        loader: Loader,
        batch_size: int,
        *,
        view: AnyView | None = None,
        prefetch: int = 0,
        tiers: str = "all",
        name: str | None = None,
    ) -> None:
        """Not for users: see `Store.sampler`."""
        if isinstance(prefetch, bool) or not isinstance(prefetch, int | np.integer) or prefetch < 0:
            raise OptionError(f"prefetch is {prefetch!r}, expected a number of batches from 0 on.")
        self._engine = engine
        self._stream = stream
        self._learning = stream if isinstance(stream, Learning) else None
        self._loader = loader
        self._view = view or View()
        self._chains = stream.chains if isinstance(stream, Viewing) else Chains()
        self._tiers = check_tiers(tiers)
        self._ready: deque[dict[str, Any]] = deque()
        self._drawn: dict[str, NDArray[Any]] | None = None  # what a checkpoint says was drawn ahead
        self.name = name
        self.batch_size = batch_size
        self.prefetch = int(prefetch)

    def save(self) -> dict[str, Any]:
        """Its state as plain values and arrays: where it stands, and the row ids that are drawn ahead."""
        names = ("row_id", *(self._stream.extra_columns if self._ready else ()))
        ahead = self._drawn or {
            name: np.concatenate([np.zeros(0, np.int64), *(_of_rows(batch[name]) for batch in self._ready)])
            for name in names
        }
        columns = {name: ahead[name] for name in ahead if name != "row_id"}
        state = {
            "stream": self._stream.save(self._engine.snapshot()),
            "batch_size": self.batch_size,
            "ahead": ahead["row_id"],
        }
        return {**state, "columns": columns} if columns else state

    def load(self, state: dict[str, Any]) -> None:
        """Go on where the sampler stood that gave this state.

        Raises:
            OptionError: if it had another strategy or batch size.
        """
        ahead = state.get("ahead")
        if state.get("batch_size") != self.batch_size or not isinstance(ahead, np.ndarray):
            raise OptionError(
                f"batch_size is {self.batch_size}, but that of the sampler that it is to go on from was "
                f"{state.get('batch_size')!r}. Give the same, or another name."
            )
        stream: Any = state.get("stream")
        columns = state.get("columns", {})
        if not isinstance(columns, dict) or any(np.shape(each) != ahead.shape for each in columns.values()):
            raise OptionError("The state that the sampler is to go on from is damaged: it holds no whole batches.")
        self._stream.load(stream if isinstance(stream, dict) else {}, self._engine.snapshot())
        self._ready.clear()
        self._drawn = {"row_id": ahead, **columns} if ahead.size else None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return self.sample()

    def sample(self) -> dict[str, Any]:
        """Draw the next batch: name -> tensor [batch_size, *shape], nested where the space is, with ``row_id``."""
        snapshot, size = None, self.batch_size
        if self._drawn is not None:
            snapshot, ahead, self._drawn = self._engine.snapshot(), self._drawn, None
            with contextlib.suppress(RowError):  # dropped since: they are drawn anew
                drawn = Drawn(snapshot.locate(ahead.pop("row_id")), ahead)
                self._ready.extend(self._loader.load_many(snapshot, self._reading(snapshot, drawn), size))
        if self._ready:
            return self._ready.popleft()
        snapshot = snapshot or self._engine.snapshot()
        if self.prefetch == 0:
            drawn = self._stream.draw(snapshot, size, tiers=self._tiers)
            return self._loader.load(snapshot, self._reading(snapshot, drawn))
        # One draw a batch, so that the rows do not depend on how many are drawn ahead.
        every = [self._stream.draw(snapshot, size, tiers=self._tiers) for _ in range(self.prefetch + 1)]
        rows = Located(
            np.concatenate([each.rows.slots for each in every]),
            np.concatenate([each.rows.positions for each in every]),
            np.concatenate([each.rows.row_ids for each in every]),
        )
        columns = {name: np.concatenate([each.columns[name] for each in every]) for name in every[0].columns}
        reading = self._reading(snapshot, Drawn(rows, columns))
        self._ready.extend(self._loader.load_many(snapshot, reading, size))
        return self._ready.popleft()

    def _reading(self, snapshot: Snapshot, drawn: Drawn) -> Reading:
        """What to read for rows that were drawn."""
        if self._view.plain:
            return Reading({ROW: drawn.rows}, drawn.columns)
        reading = self._view.read(snapshot, self._chains, drawn.rows, self._engine.schema)
        return replace(reading, columns={**reading.columns, **drawn.columns})

    def update(self, row_ids: Any, td_error: Any = None, *, priority: Any = None) -> None:
        """Tell what was learned from rows, which decides how likely they are drawn from now on.

        For strategies that go by priority. Rows whose segment retention has dropped meanwhile are ignored. Where a row
        is named more than once, the last counts. Batches that are drawn ahead stay as they are.

        Args:
            row_ids: int64[n], such as ``batch["row_id"]``, or what `Store.extend` returned.
            td_error: [n], temporal-difference errors of either sign: the priority is their absolute value, plus the
                strategy's ``eps``.
            priority: [n], priorities as they are, in place of errors; none below 0, and with 0 a row is never drawn.

        Raises:
            UsageError: if the strategy keeps no priorities.
            RowError: if a row id names no transition.
            ColumnError: if there is not one finite number a row.
        """
        if self._learning is None:
            raise UsageError("The sampler keeps no priorities. Make it with a strategy such as arrowrb.Prioritized().")
        self._learning.update(self._engine.snapshot(), as_row_ids(row_ids), td_error, priority)


def _of_rows(tensor: Any) -> NDArray[Any]:
    """What a batch says of the rows that were drawn: of sequences, of their first steps."""
    values = np.asarray(tensor.cpu().numpy())
    return values[:, 0] if values.ndim > 1 else values


class NamedSamplers:
    """The samplers of a store that have a name, and the states from which those go on that are made yet."""

    def __init__(self) -> None:
        self._live: weakref.WeakValueDictionary[str, Sampler] = weakref.WeakValueDictionary()
        self._waiting: dict[str, Any] = {}

    def check(self, sampler: Sampler) -> None:
        """Refuse a name that is none, or is taken.

        Raises:
            OptionError: if it is.
        """
        if sampler.name is not None and checkpoints.check_name(sampler.name) in self._live:
            raise OptionError(
                f"name is {sampler.name!r}, which another sampler of this store has. Choose another name."
            )

    def add(self, sampler: Sampler) -> None:
        """Note a new one; it goes on from the state that waits for it."""
        self.check(sampler)
        name = sampler.name
        if name is None:
            return
        if name in self._waiting:
            sampler.load(self._waiting[name])
            del self._waiting[name]
        self._live[name] = sampler

    def save(self) -> dict[str, Any]:
        """The states of all, those that wait included."""
        return {**self._waiting, **{name: sampler.save() for name, sampler in self._live.items()}}

    def load(self, states: Mapping[str, Any]) -> None:
        """Let those that are there go on from these states, and the others when they are made."""
        states = dict(states)
        for name, sampler in self._live.items():
            if name in states:
                sampler.load(states.pop(name))
        self._waiting = states
