"""Streams of batches: draws of a strategy, read into tensors, some of them ahead."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, Located
from .errors import OptionError, RowError
from .loader import Loader
from .samplers import Stream, check_tiers

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
        prefetch: int = 0,
        tiers: str = "all",
        name: str | None = None,
    ) -> None:
        """Not for users: see `Store.sampler`."""
        if isinstance(prefetch, bool) or not isinstance(prefetch, int | np.integer) or prefetch < 0:
            raise OptionError(f"prefetch is {prefetch!r}, expected a number of batches from 0 on.")
        self._engine = engine
        self._stream = stream
        self._loader = loader
        self._tiers = check_tiers(tiers)
        self._ready: deque[dict[str, Any]] = deque()
        self._drawn: NDArray[np.int64] | None = None  # row ids that a checkpoint says were drawn ahead
        self.name = name
        self.batch_size = batch_size
        self.prefetch = int(prefetch)

    def save(self) -> dict[str, Any]:
        """Its state as plain values and arrays: where it stands, and the row ids that are drawn ahead."""
        ahead = self._drawn
        if ahead is None:
            ahead = np.concatenate([np.zeros(0, np.int64), *(batch["row_id"].cpu().numpy() for batch in self._ready)])
        return {"stream": self._stream.save(), "batch_size": self.batch_size, "ahead": ahead}

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
        self._stream.load(stream if isinstance(stream, dict) else {})
        self._ready.clear()
        self._drawn = ahead if ahead.size else None

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
                self._ready.extend(self._loader.load_many(snapshot, snapshot.locate(ahead), size))
        if self._ready:
            return self._ready.popleft()
        snapshot = snapshot or self._engine.snapshot()
        if self.prefetch == 0:
            return self._loader.load(snapshot, self._stream.draw(snapshot, size, tiers=self._tiers))
        # One draw a batch, so that the rows do not depend on how many are drawn ahead.
        drawn = [self._stream.draw(snapshot, size, tiers=self._tiers) for _ in range(self.prefetch + 1)]
        located = Located(
            np.concatenate([each.slots for each in drawn]),
            np.concatenate([each.positions for each in drawn]),
            np.concatenate([each.row_ids for each in drawn]),
        )
        self._ready.extend(self._loader.load_many(snapshot, located, size))
        return self._ready.popleft()
