"""Batches of a store for torch's DataLoader."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from .errors import OptionError, UsageError
from .samplers import Shuffled
from .store import Store


class BatchDataset(IterableDataset[Any]):
    """The batches of a store as a dataset: ``DataLoader(BatchDataset(path, batch_size=256), batch_size=None)``.

    Each worker of the DataLoader opens the store for reading and draws batches of its own, by a seed that follows from
    ``seed`` and its number. Without workers they are drawn in this process. A store that is written to meanwhile is
    followed. Start workers by spawn: ``multiprocessing_context="spawn"``; a strategy with functions must be importable.
    `Shuffled` takes one worker at most.

    Each pass over the dataset draws other batches; with a ``seed`` those of a pass are the same in each run. Workers
    that a DataLoader starts anew for each pass have to be told which one it is: see `set_epoch`.

    Args:
        path: of the store.
        strategy: see `Store.sampler`.
        batch_size: see `Store.sampler`.
        seed: see there; None for another one in each worker.
        options: the others of `Store.sampler`, except ``name``.
    """

    def __init__(
        self,
        path: str | Path,
        strategy: Any = None,
        *,
        batch_size: int,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        known = inspect.signature(Store.sampler).parameters
        unknown = [option for option in options if option not in known or option == "strategy"]
        if unknown:
            raise OptionError(f"{unknown[0]!r} is no option of Store.sampler, expected one of {', '.join(known)}.")
        if "name" in options:
            raise OptionError("name is of no use here: workers keep no priorities. Use Store.sampler.")
        self._path = Path(path).absolute()
        self._strategy = strategy
        self._seed = seed
        self._options = {"batch_size": batch_size, **options}
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell which pass comes next, counted from 0."""
        if isinstance(epoch, bool) or not isinstance(epoch, int | np.integer) or epoch < 0:
            raise OptionError(f"epoch is {epoch!r}, expected a whole number from 0 on.")
        self._epoch = int(epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1 and isinstance(self._strategy, Shuffled):
            raise UsageError("Each worker would draw every transition. Use one worker, or prefetch= without any.")
        seed, epoch = self._seed, self._epoch
        self._epoch += 1
        key = (*(() if worker is None else (worker.id,)), *((epoch,) if epoch else ()))
        if seed is not None and key:
            seed = int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])
        with Store.open(self._path) as store:
            yield from store.sampler(self._strategy, seed=seed, **self._options)
