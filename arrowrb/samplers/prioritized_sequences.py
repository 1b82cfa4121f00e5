"""Prioritized sequences (Kapturowski et al. 2019, R2D2, https://openreview.net/forum?id=r1lyTjAqYX)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Snapshot
from ..errors import ColumnError, OptionError
from .chains import Chains
from .prioritized import Prioritized, PrioritizedStream, number, values_of
from .sequence_views import SequenceView
from .sequences import Sequences, beginnings, count_short
from .sources import Both, Source


@dataclass(frozen=True, slots=True)
class PrioritizedSequences:
    """Draw sequences in proportion to the priority of their start.

    After learning from a batch, tell the sampler the temporal-difference errors of its steps:
    ``sampler.update(batch["start_row_id"], td_error, mask=...)`` with td_error [batch_size, steps] sets the priority of
    each sequence to eta max|td_error| + (1 - eta) mean|td_error|, over the steps that ``mask`` says count. A sequence
    that is new has the largest priority so far. Batches have importance weights, one a sequence; see `Prioritized`.

    Attributes:
        sequences: what a sequence is, and where it may begin; over starts, of an episode.
        prioritized: how priorities count.
        eta: how much the largest error counts, against the mean.
    """

    sequences: Sequences
    prioritized: Prioritized = field(default_factory=partial(Prioritized, alpha=0.9, beta=0.6))
    eta: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.sequences, Sequences):
            raise OptionError(f"sequences is {self.sequences!r}, expected Sequences(...).")
        if not isinstance(self.prioritized, Prioritized):
            raise OptionError(f"prioritized is {self.prioritized!r}, expected Prioritized(...).")
        number("eta", self.eta, 0, 1)
        if self.sequences.over == "episodes":
            raise OptionError('over is "episodes", but priorities are those of starts. Draw over "starts".')
        if self.sequences.across_episodes and self.sequences.strict:
            raise OptionError("across_episodes has no starts that are known before. Draw with strict=False.")

    def start(self, seed: int | None) -> PrioritizedSequencesStream:
        """A new stream of draws."""
        return PrioritizedSequencesStream(self, seed)

    def start_within(self, seed: int | None, source: Source) -> PrioritizedSequencesStream:
        """A new stream of draws that begin with rows of a source."""
        return PrioritizedSequencesStream(self, seed, source)


class PrioritizedSequencesStream(PrioritizedStream):
    """Draws of starts by priority, and their priorities."""

    kind = "prioritized sequences"

    def __init__(self, strategy: PrioritizedSequences, seed: int | None, source: Source | None = None) -> None:
        self._eta = strategy.eta
        self.chains = Chains()
        self.view = SequenceView.of(strategy.sequences)
        own = beginnings(strategy.sequences, self.chains)
        both = Both(own, source) if own is not None and source is not None else own or source
        self._sequences = strategy.sequences
        super().__init__(strategy.prioritized, seed, both)

    def count_short(self, snapshot: Snapshot) -> int:
        """How many episodes are too short for any."""
        return count_short(self._sequences, self.chains, snapshot)

    def update(
        self, snapshot: Snapshot, row_ids: NDArray[np.int64], td_error: Any, priority: Any, mask: Any = None
    ) -> None:
        """Set priorities of sequences by the errors of their steps, or as they are; see `Sampler.update`."""
        if td_error is None:
            super().update(snapshot, row_ids, td_error, priority, mask)
            return
        errors = np.abs(values_of("td_error", td_error))
        if errors.ndim != 2 or errors.shape[0] != row_ids.size or not errors.shape[1]:
            raise ColumnError(
                f"td_error has shape {errors.shape}, expected ({row_ids.size}, steps): the errors of each sequence."
            )
        counts = np.ones(errors.shape, np.bool_) if mask is None else values_of("mask", mask) != 0
        if counts.shape != errors.shape:
            raise ColumnError(f"mask has shape {counts.shape}, expected that of td_error, {errors.shape}.")
        if not counts.any(1).all():
            raise ColumnError(f"mask[{int(np.argmin(counts.any(1)))}] is False everywhere: no step of it counts.")
        errors = np.where(counts, errors, 0.0)
        mixed = self._eta * errors.max(1) + (1 - self._eta) * errors.sum(1) / counts.sum(1)
        super().update(snapshot, row_ids, mixed, priority)
