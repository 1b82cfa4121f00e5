"""Views: what a batch reads for each row that was drawn, beside the row itself.

A view says from which rows the tensors of a batch come: n-step returns read the last row that was summed, frame stacks
the rows before, windows rows on both sides. It goes by `Chains` for what follows what, and never leaves an episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..errors import ColumnError, OptionError
from ..schema import Column, Schema
from .chains import Chains, Steps
from .reading import REWARD, ROW, Columns, Drawn, Need, Place, Reading
from .returns import RETURN, as_stored, check_discount, returns_to_go, widened

LAST: Final = "last"  # the group of the last rows that are summed
STEPS: Final = "steps"  # of all of these
_MOST_STEPS: Final = 1 << 20
PADDINGS: Final = ("repeat", "zero")
NEXT: Final = "next_"


@dataclass(frozen=True)
class View:
    """How batches of transitions are read.

    Attributes:
        n_step: how many rewards are summed; None: the row's own, as it is.
        gamma: the discount of a step.
        frame_stack: observations of so many steps instead of one, by the name of a column.
        padding: what stands for frames before an episode's first: ``"repeat"`` of that one, or ``"zero"``.
        windows: values of the steps from ``first`` to ``stop`` beside the row's own, by the name of a column.
        return_to_go: the discount of the rewards to the end of the episode; None leaves their sum out.
    """

    n_step: int | None = None
    gamma: float = 0.99
    frame_stack: Mapping[str, int] = field(default_factory=dict)
    padding: str = "repeat"
    windows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    return_to_go: float | None = None

    @property
    def length(self) -> None:
        """Rows are read as they are."""
        return

    @property
    def computed(self) -> tuple[str, ...]:
        """Columns of the store that are computed instead of read."""
        return () if self.n_step is None else (REWARD,)

    @property
    def needs(self) -> Mapping[str, Need]:
        """The rewards that are summed."""
        return {} if self.n_step is None else {STEPS: Need(REWARD, Place(STEPS, (self.n_step,)))}

    @cached_property
    def powers(self) -> NDArray[np.float64]:
        """Of gamma, from 0 on."""
        return np.power(self.gamma, np.arange((self.n_step or 0) + 1, dtype=np.float64))

    @property
    def history(self) -> int:
        """What the longest stack or window shows."""
        frames, first = self.frame_stack.values(), (-first for first, _ in self.windows.values())
        return max(0, max(frames, default=1) - 1, max(first, default=0))

    @property
    def ragged(self) -> bool:
        """A row stands for a fixed number."""
        return False

    @property
    def padded(self) -> bool:
        """Not ragged."""
        return False

    @property
    def plain(self) -> bool:
        """Whether batches are the rows as they are."""
        return self.n_step is None and self.return_to_go is None and not self.frame_stack and not self.windows

    def places(self, schema: Schema) -> dict[str, Place]:
        """Where the columns of a batch are read that are not read from the row itself, by name."""
        places: dict[str, Place] = {}
        if self.n_step is not None:
            behind = {f"{NEXT}{c.name}": Place(LAST) for c in schema.columns if c.owner == "observation"}
            places |= {**behind, "terminated": Place(LAST), "truncated": Place(LAST)}
        for name, frames in self.frame_stack.items():
            for column in _columns_of(schema, name, "observation"):
                places[column] = Place(f"stack {frames}", (frames,))
                places[NEXT + column] = Place(f"next stack {frames}", (frames,))
        for name, (first, stop) in self.windows.items():
            for column in _columns_of(schema, name, None):
                observed = schema.column(column).owner == "observation"
                places[column] = Place(_window_group(first, stop, observed), (stop - first,))
        return places

    def read(self, snapshot: Snapshot, chains: Chains, drawn: Drawn, schema: Schema) -> Reading:
        """The rows that a batch of these rows is read from."""
        return self.read_rows(snapshot, chains, drawn.rows, schema)

    def read_rows(
        self,
        snapshot: Snapshot,
        chains: Chains,
        rows: Located,
        schema: Schema,
        *,
        observed: Located | None = None,
        most: NDArray[np.int64] | None = None,
    ) -> Reading:
        """The rows that a batch of these rows is read from.

        Args:
            snapshot: what they are in.
            chains: what follows what.
            rows: transitions.
            schema: of the store.
            observed: where their observations are; by default there, too.
            most: how many steps of each are summed at most.
        """
        last = rows
        groups: dict[str, Located] = {ROW: rows}
        columns: dict[str, NDArray[Any]] = {}
        blanks: dict[str, NDArray[np.bool_]] = {}
        finish = None
        if self.n_step is not None:
            place = schema.places[REWARD]
            spec = schema.columns[place]
            odd = bool(spec.shape) or spec.dtype not in ("float32", "float64")
            if snapshot.layout.cold or odd or most is not None:
                steps = chains.forward(snapshot, rows, self.n_step)
                if most is not None:
                    steps = Steps(steps.places, np.minimum(steps.counts, most))
                last, columns["discount"] = steps.finish(self.powers)
                groups[STEPS], columns["num_steps"] = steps.rows(), steps.counts
                finish = partial(_summed, spec, steps.counts, self.powers)
            else:
                last, *_ = summed = chains.sum_steps(snapshot, rows, place, self.powers)
                _, columns["num_steps"], columns["discount"], columns[REWARD] = summed
            groups[LAST] = last
        if self.return_to_go is not None:
            sums = returns_to_go(snapshot, chains, rows, self.return_to_go)
            columns[RETURN] = as_stored(schema.column(REWARD), sums)
        for frames in set(self.frame_stack.values()):
            for name, end, behind in ((f"stack {frames}", observed or rows, 0), (f"next stack {frames}", last, 1)):
                stack = chains.back(snapshot, end, frames, behind=behind)
                groups[name] = stack.rows()
                if self.padding == "zero":
                    blanks[name] = (np.arange(-frames, 0) < -stack.counts[:, None]).ravel()
        pads: dict[str, NDArray[np.bool_]] = {}
        for name, (first, stop) in self.windows.items():
            for column in _columns_of(schema, name, None):
                final = schema.column(column).owner == "observation"
                group = _window_group(first, stop, final)
                if group not in groups:
                    groups[group], pads[group] = _window(snapshot, chains, rows, first, stop, final)
                columns[f"{name}_is_pad"] = pads[group].reshape(-1, stop - first)
        return Reading(groups, columns, blanks, finish=finish)


def _columns_of(schema: Schema, name: str, owner: str | None) -> list[str]:
    """The columns that a name stands for: itself, or the leaves of a nested one."""
    found = [
        column
        for column in schema.columns
        if (column.name == name or column.name.startswith(name + ".")) and owner in (None, column.owner)
    ]
    if not found:
        kind = "column of observations" if owner else "column"
        plain = name.removeprefix(NEXT)
        if name != plain and any(column.name.split(".")[0] == plain for column in schema.columns):
            raise ColumnError(f"{name!r} is no {kind} by itself: give {plain!r}.")
        there = dict.fromkeys(c.name.split(".")[0] for c in schema.columns[9:] if owner in (None, c.owner))
        raise ColumnError(f"{name!r} is no {kind} of the store, expected one of {', '.join(there)}, or a part of one.")
    return [column.name for column in found]


def _window_group(first: int, stop: int, observed: bool) -> str:
    return f"window {first} {stop} {'observed' if observed else ''}"


def _joined(snapshot: Snapshot, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> Located:
    """Rows of [n, k] places, one after the other."""
    slots, positions = np.ascontiguousarray(slots).ravel(), np.ascontiguousarray(positions).ravel()
    return Located(slots, positions, snapshot.layout.shapes[slots, 6] + positions)


def _window(
    snapshot: Snapshot, chains: Chains, rows: Located, first: int, stop: int, observed: bool
) -> tuple[Located, NDArray[np.bool_]]:
    """The rows from ``first`` to ``stop`` beside rows, those at the ends for more than there are, and which these are.

    ``observed``: the final observation of an episode is there, too, one step behind its last transition.
    """
    slots, positions, missing = [], [], []
    if first < 0:
        before = chains.back(snapshot, rows, 1 - first)
        slots.append(before.places[0, :, :-1])
        positions.append(before.places[1, :, :-1])
        missing.append(np.arange(first, 0) < 1 - before.counts[:, None])
    if stop > 0:
        behind = chains.forward(snapshot, rows, stop)
        offset, counts = np.arange(stop), behind.counts[:, None]
        slots.append(behind.places[0])
        positions.append(behind.places[1] + (offset >= counts if observed else 0))
        missing.append(offset >= counts + observed)
    width = stop - first
    chosen = slice(-width, None) if stop > 0 else slice(0, width)
    flags = np.concatenate(missing, axis=1)[:, chosen]
    return _joined(
        snapshot, np.concatenate(slots, axis=1)[:, chosen], np.concatenate(positions, axis=1)[:, chosen]
    ), np.ascontiguousarray(flags).ravel()


def _summed(spec: Column, counts: NDArray[np.int64], powers: NDArray[np.float64], needed: Columns) -> Columns:
    """The discounted sums of the rewards of steps."""
    rewards = needed[STEPS]
    if spec.dtype == "bfloat16":
        rewards = widened(rewards)
    return {REWARD: discounted(spec, rewards, counts, powers)}


def discounted(
    spec: Column, rewards: NDArray[Any], counts: NDArray[np.int64], powers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The sum of ``powers[k]`` times the k-th of ``counts`` rewards, [n, steps, *shape], in float64: [n, *shape]."""
    values = np.ascontiguousarray(rewards.reshape(*rewards.shape[:2], -1), np.float64)
    sums = np.empty((counts.size, values.shape[2]), np.float64)
    kernels.discount(values, counts, powers, sums)
    return sums.reshape(counts.size, *spec.shape)


def check_view(
    schema: Schema,
    *,
    n_step: Any = None,
    gamma: Any = 0.99,
    frame_stack: Any = None,
    padding: Any = "repeat",
    windows: Any = None,
    return_to_go: Any = None,
) -> View:
    """A view of these options, checked; see `Store.sampler`.

    Raises:
        OptionError: if one is out of range.
        ColumnError: if a column is unknown.
    """
    if n_step is not None:
        _check_number("n_step", n_step, 1)
    discount = check_discount("gamma", gamma)
    if padding not in PADDINGS:
        raise OptionError(f'padding is {padding!r}, expected "repeat" or "zero".')
    stacks = _check_mapping("frame_stack", frame_stack, '{"observation": 4}')
    for name, frames in stacks.items():
        _check_number(f"frame_stack[{name!r}]", frames, 1)
        _columns_of(schema, name, "observation")
    spans = _check_mapping("windows", windows, '{"observation": (-1, 1)}')
    for name, span in spans.items():
        pair = isinstance(span, tuple | list) and len(span) == 2
        whole = pair and all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in span)
        if not whole or not -_MOST_STEPS <= span[0] < span[1] <= _MOST_STEPS:
            raise OptionError(
                f"windows[{name!r}] is {span!r}, expected (first, stop): steps beside the row's own, such as (-1, 1)."
            )
        _columns_of(schema, name, None)
    taken = {REWARD, "terminated", "truncated"} if n_step is not None else set()
    for option, names, owner in (("frame_stack", stacks, "observation"), ("windows", spans, None)):
        for name in names:
            columns = set(_columns_of(schema, name, owner))
            if columns & taken:
                raise OptionError(f"{option} has {name!r}, which another one reads otherwise. Leave it out of one.")
            taken |= columns
    return View(
        None if n_step is None else int(n_step),
        discount,
        {name: int(frames) for name, frames in stacks.items()},
        padding,
        {name: (int(first), int(stop)) for name, (first, stop) in spans.items()},
        None if return_to_go is None else check_discount("return_to_go", return_to_go),
    )


def _check_number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= _MOST_STEPS:
        raise OptionError(f"{name} is {value!r}, expected a whole number of {least} to {_MOST_STEPS:,}.")


def _check_mapping(name: str, value: Any, example: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise OptionError(f"{name} is {value!r}, expected names of columns with what to read, such as {example}.")
    return value
