"""Draws without replacement, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..errors import EmptyError, OptionError
from .chains import Chains
from .reading import Drawn
from .strategy import check_generator, generator_state

_ROW_BASE: Final = 6  # field of a segment's shape
_MOST_SKIPPED: Final = 1000  # epochs without any row that is there, one after the other


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Draw every transition once, in random order, then again in another one.

    An epoch is over what is visible when it begins, each transition of which is drawn exactly once; what comes later
    takes part in the next. Transitions that retention drops meanwhile are left out, and counted; see `Sampler.info`.
    The order is computed as it is needed, whatever the size of the store. A state goes on exactly where it stood, in
    another process, too.

    The last batch of an epoch is shorter where fewer transitions are left. Iteration ends after ``epochs``.

    Attributes:
        epochs: how many; None for no end.
        drop_last: leave out the last batch of an epoch if it would be shorter.
        hold: keep what the epoch is over readable until it ends: nothing is left out. The memory and disk of segments
            that are dropped or moved meanwhile stay in use until then.
    """

    epochs: int | None = None
    drop_last: bool = False
    hold: bool = False

    def __post_init__(self) -> None:
        epochs = self.epochs
        whole = isinstance(epochs, int | np.integer) and not isinstance(epochs, bool)
        if epochs is not None and (not whole or epochs < 1):
            raise OptionError(f"epochs is {epochs!r}, expected a number from 1 on, or None for no end.")
        for name in ("drop_last", "hold"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected True or False.")

    def start(self, seed: int | None) -> ShuffledStream:
        """A new stream of draws."""
        return ShuffledStream(self, seed)


@dataclass(slots=True)
class _Epoch:
    """An epoch that has begun.

    Attributes:
        keys: of its order, uint64[ROUNDS].
        firsts: the row id of the first row of each extent that it is over, int64[n].
        until: running sums of their rows, int64[n].
        num_transitions: how many of these are transitions.
        cursor: how many rows were looked at.
        num_drawn: how many transitions were drawn.
    """

    keys: NDArray[np.uint64]
    firsts: NDArray[np.int64]
    until: NDArray[np.int64]
    num_transitions: int
    cursor: int = 0
    num_drawn: int = 0

    @property
    def half_bits(self) -> int:
        """Bits of half a number of the order."""
        bits = max(int(self.until[-1]) - 1, 1).bit_length()
        return max(int(kernels.LEAST_HALF_BITS), -(-bits // 2))

    @property
    def over(self) -> bool:
        """Whether all rows were looked at."""
        return self.cursor >= int(self.until[-1])


class ShuffledStream:
    """Draws of epochs.

    Attributes:
        num_skipped: transitions of the epochs that are over that were gone when it was their turn.
    """

    extra_columns: tuple[str, ...] = ()

    def __init__(self, strategy: Shuffled, seed: int | None) -> None:
        self._strategy = strategy
        self._generator = generator_state(seed)
        self._chains = Chains()
        self._epoch: _Epoch | None = None
        self._held: Snapshot | None = None
        self._num_begun = 0
        self.num_skipped = 0

    def draw(self, snapshot: Snapshot, count: int, *, tiers: str = "all") -> Drawn:
        """The next ``count`` transitions of the epoch, or what is left of it; none after the last epoch."""
        if snapshot.num_transitions == 0 and self._epoch is None:
            raise EmptyError("There is no transition to sample: the store is empty. Collect or extend first.")
        for _ in range(_MOST_SKIPPED):
            if self._epoch is None and self._strategy.epochs is not None and self._num_begun >= self._strategy.epochs:
                return Drawn(Located.empty(0))
            if self._epoch is None:
                self._epoch, self._num_begun = self._begin(snapshot, tiers), self._num_begun + 1
                self._held = snapshot if self._strategy.hold else None
            where = self._held or snapshot
            rows = self._take(where, self._epoch, count)
            if self._epoch.over:
                self.num_skipped += self._epoch.num_transitions - self._epoch.num_drawn
                self._epoch = self._held = None
            short = rows.row_ids.size < count
            if rows.row_ids.size and not (short and self._strategy.drop_last):
                return Drawn(rows, snapshot=where)
        raise EmptyError(f"Batches of {count} do not fit into an epoch. Draw smaller ones, or with drop_last=False.")

    def _begin(self, snapshot: Snapshot, tiers: str) -> _Epoch:
        """An epoch over what is visible now."""
        keys = np.empty(kernels.ROUNDS, np.uint64)
        kernels.fill_bits(self._generator, keys)
        domain = snapshot.domain if tiers == "all" else snapshot.hot_domain
        if domain.slot.size == 0:
            raise EmptyError('The hot tier holds no transition: all lie in the cold one. Draw with tiers="all".')
        firsts = snapshot.layout.shapes[domain.slot, _ROW_BASE] + domain.first
        until = domain.start[1:].copy()
        there = snapshot.num_transitions
        if tiers != "all":
            there = sum(
                int(np.count_nonzero(snapshot.visible_kinds(slot) == 1))
                for slot in range(len(snapshot.layout.views))
                if slot not in snapshot.layout.cold
            )
        return _Epoch(keys, firsts, until, there)

    def _take(self, snapshot: Snapshot, epoch: _Epoch, count: int) -> Located:
        rows, found = Located.empty(count), np.zeros(1, np.int64)
        epoch.cursor = kernels.draw_shuffled(
            self._chains.world(snapshot),
            epoch.keys,
            epoch.half_bits,
            epoch.cursor,
            epoch.until,
            epoch.firsts,
            rows.slots,
            rows.positions,
            rows.row_ids,
            found,
        )
        have = int(found[0])
        epoch.num_drawn += have
        return Located(rows.slots[:have], rows.positions[:have], rows.row_ids[:have])

    def save(self, snapshot: Snapshot) -> dict[str, Any]:  # noqa: ARG002
        """The generator's state, and the epoch."""
        epoch = self._epoch
        state = {
            "strategy": "shuffled",
            "generator": self._generator.copy(),
            "num_begun": self._num_begun,
            "num_skipped": self.num_skipped,
        }
        if epoch is None:
            return state
        counts = {"num_transitions": epoch.num_transitions, "cursor": epoch.cursor, "num_drawn": epoch.num_drawn}
        arrays = {"keys": epoch.keys.copy(), "firsts": epoch.firsts.copy(), "until": epoch.until.copy()}
        return state | {"epoch": {**counts, **arrays}}

    def load(self, state: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Go on from a state that `save` gave."""
        generator = check_generator(state, "shuffled", "without replacement")
        told, num_begun, num_skipped = state.get("epoch"), state.get("num_begun"), state.get("num_skipped")
        if not isinstance(num_begun, int) or not isinstance(num_skipped, int):
            raise OptionError("The state that the sampler is to go on from does not tell its epochs.")
        epoch = None if told is None else _checked(told)
        self._generator[:] = generator
        self._epoch, self._num_begun, self.num_skipped = epoch, num_begun, num_skipped
        self._held = snapshot if epoch is not None and self._strategy.hold else None


def _checked(told: Any) -> _Epoch:
    """An epoch of a state."""
    told = told if isinstance(told, Mapping) else {}
    keys, firsts, until = (np.asarray(told.get(name)) for name in ("keys", "firsts", "until"))
    counts = [told.get(name) for name in ("num_transitions", "cursor", "num_drawn")]
    types = keys.dtype == np.uint64 and firsts.dtype == until.dtype == np.int64
    shapes = keys.shape == (kernels.ROUNDS,) and firsts.ndim == 1 and firsts.size > 0 and firsts.shape == until.shape
    whole = all(isinstance(each, int) and each >= 0 for each in counts)
    if types and shapes and whole and (np.diff(until, prepend=0) > 0).all():
        return _Epoch(keys.copy(), firsts.copy(), until.copy(), *counts)
    raise OptionError("The state that the sampler is to go on from is damaged: it holds no epoch.")
