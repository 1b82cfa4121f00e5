"""Streams of batches: draws of a strategy, read into tensors, some of them ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from .engine import Engine, Located
from .errors import OptionError
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
    ) -> None:
        """Not for users: see `Store.sampler`."""
        if isinstance(prefetch, bool) or not isinstance(prefetch, int | np.integer) or prefetch < 0:
            raise OptionError(f"prefetch is {prefetch!r}, expected a number of batches from 0 on.")
        self._engine = engine
        self._stream = stream
        self._loader = loader
        self._tiers = check_tiers(tiers)
        self._ready: deque[dict[str, Any]] = deque()
        self.batch_size = batch_size
        self.prefetch = int(prefetch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return self.sample()

    def sample(self) -> dict[str, Any]:
        """Draw the next batch: name -> tensor [batch_size, *shape], nested where the space is, with ``row_id``."""
        if self._ready:
            return self._ready.popleft()
        snapshot, size = self._engine.snapshot(), self.batch_size
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
