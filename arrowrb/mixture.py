"""Batches out of several samplers, of one store or of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np

from .errors import ColumnError, EmptyError, OptionError, UsageError
from .loader import as_row_ids
from .sampler import Sampler
from .samplers import Drawn, check_batch_size

_MISSING: Final = {"weight": 1.0, "relabelled": False}  # of parts that have none
_LARGEST_DENOMINATOR: Final = 10**6
_TOLERANCE: Final = Fraction(1, 10**9)
_SLACK: Final = Fraction(1, 10**6)  # of the sum of fractions


class Mixture:
    """An endless stream of batches, of which samplers give a fraction each: offline data with online data, say.

    ``Mixture([(offline, 0.5), (online, 0.5)], batch_size=256)`` gives 128 rows of each. Where a fraction of
    ``batch_size`` is no whole number, batches differ by a row, so that fractions hold over many. Iteration ends with a
    batch that a part cannot give its share of; what is left of its epochs stays with that sampler.

    Batches have the columns of all parts, which have to agree, one part behind the other, and another tensor,
    ``source``, int64[batch_size]: which part each row came from. ``weight`` is 1 in the rows of samplers that have
    none. Not thread-safe.

    Args:
        parts: samplers, made with ``prefetch=0``, and their fractions, which add up to 1.
        batch_size: rows a batch.

    Raises:
        OptionError: if one of these is out of range.
    """

    def __init__(self, parts: Sequence[tuple[Sampler, float]], *, batch_size: int) -> None:
        self.batch_size = check_batch_size(batch_size)
        pairs = list(parts) if isinstance(parts, Sequence) else []
        whole = all(isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], Sampler) for pair in pairs)
        if not pairs or not whole:
            raise OptionError(f"parts is {parts!r}, expected pairs of a sampler and a fraction.")
        self._samplers = [sampler for sampler, _ in pairs]
        if len({id(sampler) for sampler in self._samplers}) < len(pairs):
            raise OptionError("A sampler is named twice in parts. Make two of them, or add up its fractions.")
        for number, sampler in enumerate(self._samplers):
            if sampler.prefetch:
                raise OptionError(f"The sampler of part {number} reads ahead. Make it with prefetch=0.")
        fractions = [_fraction(number, value) for number, (_, value) in enumerate(pairs)]
        total = sum(fractions, Fraction(0))
        if abs(total - 1) > _SLACK:
            raise OptionError(f"The fractions add up to {float(total)!r}, expected 1.")
        self._fractions = [fraction / total for fraction in fractions]
        self._owed = [Fraction(0)] * len(pairs)  # rows of each part that earlier batches fell short of

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            return self.sample()
        except _OverError:
            raise StopIteration from None

    def sample(self) -> dict[str, Any]:
        """Draw the next batch; see the class.

        Where that fails, nothing is lost: of a part that draws each row once, those that it gave are the next ones.

        Raises:
            EmptyError: if a part has nothing to draw, or has come to its end.
            ColumnError: if the columns of parts do not agree.
            WaitError: if the limiter of a part's store does not allow it in time.
        """
        for sampler in self._samplers:
            sampler.wait()
        counts, owed = self._counts()
        every: list[tuple[int, Drawn]] = []
        try:
            for number, (sampler, count) in enumerate(zip(self._samplers, counts, strict=True)):
                missing = count
                while missing:  # an epoch may end in between
                    drawn = sampler.draw(missing)
                    if drawn.rows.row_ids.size == 0:
                        raise _OverError(f"Part {number} of the mixture has come to its end: its epochs are over.")
                    every.append((number, drawn))
                    missing -= drawn.rows.row_ids.size
            batch = _joined(
                [(number, self._samplers[number].read(drawn)) for number, drawn in every],
                np.repeat(np.arange(len(counts)), counts),
            )
        except BaseException:
            for number, sampler in enumerate(self._samplers):
                sampler.give_back([drawn for part, drawn in every if part == number])
            raise
        for number, drawn in every:
            self._samplers[number].hand_out(drawn)
        self._owed = owed
        return batch

    def _counts(self) -> tuple[list[int], list[Fraction]]:
        """How many rows of each part the next batch has, and what is owed then."""
        due = [owed + fraction * self.batch_size for owed, fraction in zip(self._owed, self._fractions, strict=True)]
        counts = [max(0, int(each // 1)) for each in due]
        largest = sorted(range(len(due)), key=lambda number: (counts[number] - due[number], number))
        for number in largest[: self.batch_size - sum(counts)]:
            counts[number] += 1
        return counts, [each - count for each, count in zip(due, counts, strict=True)]

    def update(
        self, row_ids: Any, td_error: Any = None, *, source: Any, priority: Any = None, mask: Any = None
    ) -> None:
        """Tell the samplers what was learned from their rows; see `Sampler.update`.

        Args:
            row_ids: int64[n], ``batch["row_id"]``.
            td_error: [n] or [n, steps].
            source: int64[n], ``batch["source"]``. Rows of samplers that keep no priorities are left out.
            priority: [n].
            mask: bool[n, steps].

        Raises:
            UsageError: if no sampler keeps priorities.
        """
        ids, sources = as_row_ids(row_ids), as_row_ids(source, "source", 'batch["source"]')
        if sources.shape != ids.shape:
            raise ColumnError(f"source has shape {sources.shape}, expected {ids.shape}: the part of each row.")
        if ids.size and not 0 <= sources.min() <= sources.max() < len(self._samplers):
            raise ColumnError(f"source names a part that is none, expected 0 to {len(self._samplers) - 1}.")
        for name, values in (("td_error", td_error), ("priority", priority), ("mask", mask)):
            if values is not None and (np.ndim(values) == 0 or len(values) != ids.size):
                raise ColumnError(f"{name} has not {ids.size} entries, expected one for each of the row ids.")
        learning = [number for number, sampler in enumerate(self._samplers) if sampler.learns]
        if not learning:
            raise UsageError("No sampler of the mixture keeps priorities. Make one with arrowrb.Prioritized().")
        for number in learning:
            at = np.flatnonzero(sources == number)
            if at.size:
                told = (None if each is None else _of_rows(each, at) for each in (td_error, priority, mask))
                errors, ready, counts = told
                self._samplers[number].update(ids[at], errors, priority=ready, mask=counts)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, and each of the samplers; see `Sampler.state_dict`."""
        owed = [[each.numerator, each.denominator] for each in self._owed]
        return {"owed": owed, "parts": [sampler.state_dict() for sampler in self._samplers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave; where that fails, all samplers go on as they were.

        Raises:
            OptionError: if it is that of another mixture.
        """
        state = state if isinstance(state, Mapping) else {}
        owed, parts = state.get("owed"), state.get("parts")
        lists = isinstance(owed, list) and isinstance(parts, list) and len(owed) == len(parts) == len(self._samplers)
        pairs = lists and all(
            isinstance(each, list) and len(each) == 2 and all(isinstance(n, int) for n in each) and each[1]
            for each in owed or []
        )
        if not pairs or owed is None or parts is None:
            raise OptionError(f"The state is not one of a mixture of {len(self._samplers)} samplers.")
        before = [sampler.state_dict() for sampler in self._samplers]
        try:
            for sampler, part in zip(self._samplers, parts, strict=True):
                sampler.load_state_dict(part)
        except BaseException:
            for sampler, part in zip(self._samplers, before, strict=True):
                sampler.load_state_dict(part)
            raise
        self._owed = [Fraction(*each) for each in owed]


class _OverError(EmptyError):
    """A part has come to its end."""


def _fraction(number: int, value: Any) -> Fraction:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not 0 < value <= 1:
        raise OptionError(f"The fraction of part {number} is {value!r}, expected a number above 0, up to 1.")
    exact = Fraction(float(value))
    simple = exact.limit_denominator(_LARGEST_DENOMINATOR)  # 0.1 is a tenth
    return simple if abs(simple - exact) < _TOLERANCE * exact else exact


def _of_rows(values: Any, at: Any) -> Any:
    """Those of some rows."""
    if hasattr(values, "detach"):
        return values.detach()[at]
    return np.asarray(values)[at]


def _joined(batches: Sequence[tuple[int, Any]], source: Any) -> dict[str, Any]:
    """Batches of parts one behind the other."""
    import torch

    for number, batch in batches:
        if not isinstance(batch, dict):
            raise ColumnError(f"Part {number} gives a {type(batch).__name__}, expected dicts: transform the mixture's.")
        if "row_id" not in batch:
            raise ColumnError(f"The transform of part {number} leaves out row_id, by which the mixture counts rows.")
    names = list(dict.fromkeys(name for _, batch in batches for name in batch))
    joined: dict[str, Any] = {}
    for name in names:
        values = []
        for number, batch in batches:
            if name not in batch and name not in _MISSING:
                raise ColumnError(
                    f"Part {number} has no column {name!r}, which another has. Give all parts the same options and "
                    "columns=, and strategies that give the same columns."
                )
            rows = batch["row_id"]
            told = batch.get(name)
            values.append(torch.full((len(rows),), _MISSING[name], device=rows.device) if told is None else told)
        joined[name] = _concatenated(name, values)
    joined["source"] = torch.from_numpy(source).to(joined["row_id"].device)
    return joined


def _concatenated(name: str, values: Sequence[Any]) -> Any:
    """Tensors, or nested ones, one behind the other."""
    import torch

    first = values[0]
    if isinstance(first, dict):
        if any(not isinstance(each, dict) or each.keys() != first.keys() for each in values):
            raise ColumnError(f"{name} is nested otherwise in another part. Choose columns= of each.")
        return {key: _concatenated(f"{name}.{key}", [each[key] for each in values]) for key in first}
    if isinstance(first, tuple):
        if any(not isinstance(each, tuple) or len(each) != len(first) for each in values):
            raise ColumnError(f"{name} is nested otherwise in another part. Choose columns= of each.")
        return tuple(_concatenated(f"{name}.{place}", [each[place] for each in values]) for place in range(len(first)))
    told = [(each.dtype, tuple(each.shape[1:])) if isinstance(each, torch.Tensor) else type(each) for each in values]
    if len(set(told)) > 1:
        raise ColumnError(f"{name} is {told[0]} in one part, and {next(t for t in told if t != told[0])} in another.")
    return torch.cat(list(values))
