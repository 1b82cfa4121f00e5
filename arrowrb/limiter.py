"""The rule between collecting and sampling: how many rows are sampled for each transition that is committed.

In the manner of Reverb's ``SampleToInsertRatio`` (Cassirer et al., arXiv 2102.04736), with two differences. A side is
asked before a commit or a batch whether it may go on, by what there is by then, and not whether it might with this
commit or batch: so the two sides never wait for each other, whatever the tolerance and the sizes, and the balance may
leave the tolerance by one commit or batch a process. And ``min_size`` is of transitions that were ever committed, so
that retention takes nobody back behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Final, Literal

from .errors import OptionError

COLLECTING: Final = "collecting"
SAMPLING: Final = "sampling"
Side = Literal["collecting", "sampling"]

_MOST_RATIO: Final = 1e9
_MOST_COUNT: Final = 1 << 53  # up to here float64 has each whole number
_MOST_PATIENCE: Final = 1_000_000.0
_DEFAULT_INSERTS: Final = 100  # of the tolerance, at least
_DEFAULT_SHARE: Final = 0.1  # of ``min_size``


@dataclass(frozen=True, slots=True)
class SampleToInsertRatio:
    """A limiter: so many rows are sampled for each transition that is committed; whoever is ahead waits.

    Give it to `Store.create` or `Store.open`. Once ``min_size`` transitions are committed the balance begins: sampling
    *owes* ``samples_per_insert`` rows for each further transition. Collecting waits while it owes more than
    ``tolerance``; sampling waits while it has given more than ``tolerance`` beyond what it owes, and before
    ``min_size``. Each is asked before a commit or a batch, so that the balance may leave the tolerance by one commit or
    batch of each process, and both sides never wait at once.

    A wait ends early where nobody could see to it. With a collector that has workers in this process it is known why:
    once all is collected and nobody else collects, sampling does not wait any more, since there is nothing left to keep
    in step with. So ``while collector.running: sampler.sample()`` ends by itself, one batch a sampler ahead at most.
    Fewer than ``min_size`` transitions by then, or workers that have failed, are a `WaitError` at once, with the
    workers' error as its cause. Of other processes nobody can tell whether they are done or come again, and to let
    sampling through in between would break the ratio unseen: when all who collected have closed their store there is a
    `WaitError` a second later; for those that have died, or that an error has closed, ``patience`` gives the time to
    start them again.

    Args:
        samples_per_insert: rows of batches (transitions, or sequences, as `SamplerInfo.num_rows` counts them) for each
            transition. Above 0.
        min_size: transitions that are committed before the first batch. What retention has dropped counts.
        tolerance: sampled rows by which either side may be ahead. From 0 on, where they take turns; by default a tenth
            of ``min_size * samples_per_insert``, and at least ``100 * samples_per_insert``. It should be several times
            a batch, and several times a commit times ``samples_per_insert``, so that waits are rare.
        patience: seconds after which who waits gives up with a `WaitError`, if the other side has done nothing in so
            long. More than what a learner takes to start up, or to evaluate.

    Raises:
        OptionError: if one of these is out of range.
    """

    samples_per_insert: float
    min_size: int = 1
    tolerance: float | None = None
    patience: float = 60.0

    def __post_init__(self) -> None:
        _check("samples_per_insert", self.samples_per_insert, above=True, most=_MOST_RATIO)
        size: Any = self.min_size
        whole = isinstance(size, Integral) and not isinstance(size, bool)
        if not whole or not 1 <= size <= _MOST_COUNT:
            raise OptionError(f"min_size is {size!r}, expected a whole number from 1 on.")
        if self.tolerance is not None:
            _check("tolerance", self.tolerance, above=False, most=float(_MOST_COUNT))
        _check("patience", self.patience, above=True, most=_MOST_PATIENCE)

    @property
    def margin(self) -> float:
        """The tolerance in sampled rows, the default one where none is given."""
        if self.tolerance is not None:
            return float(self.tolerance)
        return float(self.samples_per_insert) * max(_DEFAULT_INSERTS, _DEFAULT_SHARE * int(self.min_size))


Limiter = SampleToInsertRatio | Literal[False] | None
"""What a store is opened with: a limiter, none any more, or the one that it has."""


def check_limiter(value: Any) -> Limiter:
    """What a user gave, checked.

    Raises:
        OptionError: if it is none of these.
    """
    if value is None or value is False or isinstance(value, SampleToInsertRatio):
        limiter: Limiter = value
        return limiter
    raise OptionError(
        f"limiter is {value!r}, expected arrowrb.SampleToInsertRatio(...), False to take it off, or None for the one "
        "that the store has."
    )


def _check(name: str, value: Any, *, above: bool, most: float) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not (value > 0 if above else value >= 0) or not value <= most:
        raise OptionError(
            f"{name} is {value!r}, expected a number {'above' if above else 'from'} 0, up to {most:,.0f}."
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A limiter in force, and where its balance begins.

    Attributes:
        samples_per_insert, min_size, tolerance, patience: see `SampleToInsertRatio`.
        start_inserts, start_samples: transitions that were committed, and rows that were sampled, when nothing was
            owed.
        enabled: False where it was taken off.
    """

    samples_per_insert: float
    min_size: int
    tolerance: float
    patience: float
    start_inserts: int
    start_samples: int
    enabled: bool = True

    @classmethod
    def begin(cls, given: SampleToInsertRatio, inserts: int, samples: int) -> Rule:
        """A limiter that comes into force when there are so many: nothing is owed for what was before."""
        size = int(given.min_size)
        ratio, patience = float(given.samples_per_insert), float(given.patience)
        return cls(ratio, size, given.margin, patience, max(size, inserts), samples)

    def followed_by(self, given: SampleToInsertRatio, inserts: int, samples: int) -> Rule:
        """Another limiter in its place; with the same ratio and size the balance goes on."""
        other = Rule.begin(given, inserts, samples)
        same = (self.samples_per_insert, self.min_size) == (other.samples_per_insert, other.min_size)
        if not (self.enabled and same):
            return other
        return replace(other, start_inserts=self.start_inserts, start_samples=self.start_samples)

    def owed(self, inserts: int, samples: int) -> float:
        """Rows that sampling owes; below 0 it is ahead."""
        return (inserts - self.start_inserts) * self.samples_per_insert - (samples - self.start_samples)

    def collecting_waits(self, inserts: int, samples: int) -> bool:
        """Whether a commit has to wait."""
        return self.enabled and inserts >= self.min_size and self.owed(inserts, samples) > self.tolerance

    def sampling_waits(self, inserts: int, samples: int) -> bool:
        """Whether a batch has to wait."""
        return self.enabled and (inserts < self.min_size or self.owed(inserts, samples) < -self.tolerance)

    def is_sane(self) -> bool:
        """Whether it can have been given."""
        numbers = (self.samples_per_insert, self.tolerance, self.patience)
        return (
            all(map(math.isfinite, numbers))
            and 0 < self.samples_per_insert <= _MOST_RATIO
            and 0 <= self.tolerance <= _MOST_RATIO * _MOST_COUNT
            and 0 < self.patience <= _MOST_PATIENCE
            and 1 <= self.min_size <= _MOST_COUNT
            and self.start_inserts >= 1
            and self.start_samples >= 0
        )


@dataclass(frozen=True, slots=True)
class Participant:
    """Who collects or samples under a limiter.

    Attributes:
        side: ``"collecting"`` or ``"sampling"``.
        name: of the shard, or of the sampler; None where it has none.
        pid: of its process.
        alive: whether that still runs.
        num_rows: transitions that it has committed, or rows that it has sampled, since it began.
        joined_at: when it began, in microseconds since the epoch.
        active_at: when it last committed or sampled, likewise.
        waits_for: why it waits now; None if it does not.
        waiting_seconds: how long it has waited by now; likewise.
        waited_seconds: how long it has waited in all.
        num_waits: how often.
    """

    side: str
    name: str | None
    pid: int
    alive: bool
    num_rows: int
    joined_at: int
    active_at: int
    waits_for: str | None
    waiting_seconds: float | None
    waited_seconds: float
    num_waits: int

    def __str__(self) -> str:
        name = "" if self.name is None else f" ({self.name})"
        told = f"process {self.pid}{name}{'' if self.alive else ', which has died'}: {self.num_rows:,} rows"
        if self.num_waits:
            told += f", waited {self.waited_seconds:,.1f} s in {self.num_waits:,} waits"
        if self.waits_for is not None:
            told += f", waits now since {self.waiting_seconds:,.1f} s: {self.waits_for}"
        return told


@dataclass(frozen=True, slots=True)
class LimiterInfo:
    """A limiter at one moment.

    Attributes:
        samples_per_insert, min_size, tolerance, patience: see `SampleToInsertRatio`.
        inserts: transitions that were ever committed.
        samples: rows that were sampled since the store has had a limiter.
        owed: rows that sampling owes; below 0 it is ahead.
        ratio: rows sampled for each transition since the balance began; None before.
        state: ``"open"``, ``"collecting waits"``, ``"sampling waits"``: who would have to wait now; ``"off"``.
        participants: who collects and samples, and who did and died.
    """

    samples_per_insert: float
    min_size: int
    tolerance: float
    patience: float
    inserts: int
    samples: int
    owed: float
    ratio: float | None
    state: str
    participants: tuple[Participant, ...]

    @classmethod
    def of(cls, rule: Rule, inserts: int, samples: int, participants: tuple[Participant, ...]) -> LimiterInfo:
        """What there is to tell."""
        since = inserts - rule.start_inserts
        state = "open"
        if not rule.enabled:
            state = "off"
        elif rule.collecting_waits(inserts, samples):
            state = "collecting waits"
        elif rule.sampling_waits(inserts, samples):
            state = "sampling waits"
        return cls(
            samples_per_insert=rule.samples_per_insert,
            min_size=rule.min_size,
            tolerance=rule.tolerance,
            patience=rule.patience,
            inserts=inserts,
            samples=samples,
            owed=rule.owed(inserts, samples) if inserts >= rule.min_size else 0.0,
            ratio=(samples - rule.start_samples) / since if since > 0 else None,
            state=state,
            participants=participants,
        )

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of a table."""
        told = f"{self.samples_per_insert:g} samples an insert, from {self.min_size:,} on, within {self.tolerance:,.0f}"
        balance = f"{self.inserts:,} inserts, {self.samples:,} samples"
        if self.inserts >= self.min_size:
            balance += f", {abs(self.owed):,.0f} {'owed' if self.owed >= 0 else 'ahead'}"
        lines = [("limiter", told), ("balance", f"{self.state}: {balance}")]
        return lines + [(each.side, str(each)) for each in self.participants if each.alive]
