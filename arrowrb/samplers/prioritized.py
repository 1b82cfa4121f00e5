"""Prioritized experience replay (Schaul et al. 2016, https://arxiv.org/abs/1511.05952, the proportional variant)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import PriorityFiles, Snapshot
from ..errors import ColumnError, EmptyError, OptionError, UsageError
from .reading import Drawn
from .sources import Source, check_no_state
from .strategy import check_generator, generator_state
from .sum_tree import SumTree

NORMALIZERS: Final = ("store", "batch")


def number(name: str, value: Any, low: float, high: float) -> float:
    """An option that is a number in these bounds, checked."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}, expected a number from {low:g} to {high:g}.")
    return float(value)


@dataclass(frozen=True, slots=True)
class Prioritized:
    """Draw transitions in proportion to their priority, independently and with replacement.

    A transition of raw priority p is drawn with probability P = p ** alpha / sum of p ** alpha (Schaul et al. 2016,
    https://arxiv.org/abs/1511.05952, equation 1). After learning from a batch, tell the sampler its temporal-difference
    errors: ``sampler.update(batch["row_id"], td_error)`` sets p = |td_error| + eps. A transition that is new has the
    largest raw priority so far, 1.0 when there was none.

    A batch has another tensor, ``weight``, float32[batch_size], the importance weights w = (N P) ** -beta over the
    largest such weight: multiply each transition's loss by it.

    Attributes:
        alpha: how much priorities count: 0 not at all, 1 fully.
        beta: how much the weights correct: 0 not at all, 1 fully.
        eps: is added to absolute errors, so that no transition is forgotten.
        beta_final: what beta becomes, in equal steps over the first ``beta_batches`` batches; ``beta`` by default.
        beta_batches: see ``beta_final``.
        normalizer: the largest weight that weights are divided by: ``"store"``, of all that could be drawn, as in the
            paper; or ``"batch"``, of the batch.
    """

    alpha: float = 0.6
    beta: float = 0.4
    eps: float = 1e-6
    beta_final: float | None = None
    beta_batches: int = 0
    normalizer: str = "store"

    def __post_init__(self) -> None:
        number("alpha", self.alpha, 0, 1)
        number("beta", self.beta, 0, 1)
        number("eps", self.eps, 0, 1e30)
        if self.beta_final is not None:
            number("beta_final", self.beta_final, 0, 1)
        batches = self.beta_batches
        if isinstance(batches, bool) or not isinstance(batches, int | np.integer) or batches < 0:
            raise OptionError(f"beta_batches is {batches!r}, expected a number of batches from 0 on.")
        if (self.beta_final is None) != (batches == 0):
            raise OptionError(
                f"beta_final is {self.beta_final!r} and beta_batches is {batches!r}, expected both or none: beta goes "
                "from beta to beta_final in so many batches."
            )
        if self.normalizer not in NORMALIZERS:
            raise OptionError(f'normalizer is {self.normalizer!r}, expected "store" or "batch".')

    def start(self, seed: int | None) -> PrioritizedStream:
        """A new stream of draws."""
        return PrioritizedStream(self, seed)

    def start_within(self, seed: int | None, source: Source) -> PrioritizedStream:
        """A new stream of draws of the rows of a source."""
        return PrioritizedStream(self, seed, source)

    def beta_at(self, batch: int) -> float:
        """The exponent of the weights of a batch, counted from 0."""
        if self.beta_final is None:
            return self.beta
        return self.beta + (self.beta_final - self.beta) * min(1.0, batch / self.beta_batches)


class PrioritizedStream:
    """Draws by priority, and the priorities.

    Attributes:
        num_ignored: updates of rows that were gone by then.
    """

    extra_columns: tuple[str, ...] = ("weight",)
    kind = "prioritized"

    def __init__(self, strategy: Prioritized, seed: int | None, source: Source | None = None) -> None:
        self._source = source
        self._strategy = strategy
        self._state = generator_state(seed)
        self._num_batches = 0
        self._tree = SumTree(strategy.alpha, source=source)
        self._pid = os.getpid()
        self.num_ignored = 0

    def keep_in(self, files: PriorityFiles) -> None:
        """Keep the priorities in files, and go on from those that are there."""
        self._tree = SumTree(self._strategy.alpha, files, self._source)

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """Choose ``count`` transitions by priority; with their importance weights as ``weight``."""
        self._check_process()
        located, masses, least = self._tree.draw(snapshot, self._state, count, hot_only=tiers == "hot")
        if located.row_ids.size < count:
            self._refuse_nothing(snapshot, tiers)
        weights = np.empty(count, np.float32)
        leasts = masses if self._strategy.normalizer == "batch" else least
        kernels.weigh(masses, leasts, self._strategy.beta_at(self._num_batches), weights)
        self._num_batches += 1
        return Drawn(located, {"weight": weights})

    def _refuse_nothing(self, snapshot: Snapshot, tiers: str) -> None:
        if snapshot.num_transitions == 0:
            raise EmptyError("There is no transition to sample: the store is empty. Collect or extend first.")
        if tiers == "hot" and snapshot.layout.cold:
            raise EmptyError('The hot tier holds no transition that may be drawn. Draw with tiers="all".')
        raise EmptyError("There is no transition to sample: all have priority 0. Give some a larger one by update.")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"The sampler was made in process {self._pid}, from which this one was forked; its priorities are "
                "shared with it. Start processes by spawn, and make the sampler in them."
            )

    def update(
        self, snapshot: Snapshot, row_ids: NDArray[np.int64], td_error: Any, priority: Any, mask: Any = None
    ) -> None:
        """Set priorities by temporal-difference errors, or as they are; see `Sampler.update`."""
        self._check_process()
        if (td_error is None) == (priority is None):
            raise OptionError("Give either td_error (of either sign) or priority= (as they are), not both.")
        name, given = ("td_error", td_error) if priority is None else ("priority", priority)
        if mask is not None:
            raise OptionError("mask tells which steps of sequences count. Leave it out.")
        values, raw = _one_a_row(name, given, row_ids.size), np.empty(row_ids.size, np.float32)
        wrong = kernels.to_raw(values, self._strategy.eps, priority is None, raw)
        if wrong >= 0 and math.isfinite(values[wrong]):
            raise ColumnError(f"priority[{wrong}] is {values[wrong]}, expected none below 0. Signed errors: td_error.")
        if wrong >= 0:
            raise ColumnError(f"{name}[{wrong}] is {values[wrong]}, expected a finite number. Has the loss diverged?")
        self.num_ignored += self._tree.update(snapshot, row_ids, raw)

    def save(self, snapshot: Snapshot) -> dict[str, Any]:
        """The generator's state, the batches so far, and a copy of all raw priorities."""
        self._check_process()
        return {
            "strategy": self.kind,
            "generator": self._state.copy(),
            "num_batches": self._num_batches,
            "priorities": self._tree.save(snapshot),
            "rows": None if self._source is None else self._source.save(),
        }

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Go on from a state that `save` gave; rows that came after it are new."""
        generator = check_generator(state, self.kind, "by priority")
        num_batches, priorities = state.get("num_batches"), state.get("priorities")
        if not isinstance(num_batches, int) or num_batches < 0 or not isinstance(priorities, Mapping):
            raise OptionError("The state that the sampler is to go on from holds no priorities.")
        self._check_process()
        if self._source is None:
            check_no_state(state.get("rows"))
        else:
            self._source.load(state.get("rows"))
            self._tree.begin_anew()
        self._tree.load(priorities, snapshot)
        self._state[:] = generator
        self._num_batches = num_batches


def _one_a_row(name: str, value: Any, count: int) -> NDArray[np.float64]:
    array = values_of(name, value)
    if array.shape != (count,):
        raise ColumnError(f"{name} has shape {array.shape}, expected ({count},): one number for each of the row ids.")
    return array


def values_of(name: str, value: Any) -> NDArray[np.float64]:
    """Numbers from an array, a tensor or a list."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if value.dtype.itemsize < 4 else value).numpy()  # NumPy has no bfloat16
        array = np.asarray(value)
        if array.dtype.kind == "c":
            raise TypeError("it is complex")
        return np.require(array, np.float64, ("C", "W"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ColumnError(f"{name} is a {type(value).__name__}, expected one number a row: {error}.") from None
