"""A user's batch of transitions -> Rows: NumPy arrays in storage dtypes, checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from arrowrb.errors import ColumnError
from arrowrb.schema.arrays import nulls_error
from arrowrb.schema.coerce import coerce
from arrowrb.schema.columns import Column
from arrowrb.schema.inputs import column_values
from arrowrb.schema.plan import IGNORED_NAMES, ROW_NAMES, Root, Target
from arrowrb.schema.schema import Schema

_ROW_COLUMN = Column("row", "int64", (), "row")
_ZERO, _INT64, _INT32 = np.uint8(0), np.dtype(np.int64), np.dtype(np.int32)
_TRANSITION = 1
_ABSENT: Any = object()
_FLAGS = {flag: np.array([flag]) for flag in (False, True)}
_USABLE = 0x101  # NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED; one attribute is cheaper than two


@dataclass(frozen=True, slots=True)
class Rows:
    """n external transitions, checked. Arrays may share the memory of the user's batch: copy at once.

    Attributes:
        num_rows: n.
        observation: One array `[n, *shape]` for each of `schema.observation_columns`, in storage dtype and
            C-contiguous.
        next_observation: The same for the next observations.
        outcome: One array for each of `schema.transition_columns`.
        lane: int32 `[n]`, or None if not given; likewise `episode_id`, `step`, `time` (microseconds) and
            `policy_version`, each int64.
    """

    num_rows: int
    observation: tuple[np.ndarray, ...]
    next_observation: tuple[np.ndarray, ...]
    outcome: tuple[np.ndarray, ...]
    lane: np.ndarray | None = None
    episode_id: np.ndarray | None = None
    step: np.ndarray | None = None
    time: np.ndarray | None = None
    policy_version: np.ndarray | None = None


def encode_batch(schema: Schema, batch: Any, *, lane: Any = None) -> Rows:
    """Check a batch of transitions and bring it into storage form.

    Args:
        schema: What the store holds.
        batch: A RecordBatch or Table, a mapping from names to arrays, tensors or lists (nested as the spaces
            are, or flat with dotted names), or a TensorDict. Nullable columns may be left out, no others.
        lane: The lane of all rows, or one for each; for batches without a column `lane`.

    Raises:
        ColumnError: If a column is missing, unknown, of the wrong shape, dtype or length, has nulls, or a
            value outside its Discrete space.
    """
    source = batch if type(batch) is dict else _as_mapping(batch)
    plan = schema.plan
    reader = _Reader(source)
    observation = reader.root(plan.observation[0]) + reader.columns(plan.observation[1])
    following = reader.root(plan.next_observation[0]) + reader.columns(plan.next_observation[1])
    ends, action, rest = plan.outcome
    outcome = reader.columns(ends) + reader.root(action) + reader.columns(rest)
    given: dict[str, np.ndarray] = {}
    if reader.used != len(source):
        given = reader.row_columns()
        _refuse_unknown(source, reader.used, plan.known)
    if lane is not None:
        if "lane" in given:
            raise ColumnError("Column 'lane' is given in the batch and as an argument, expected one. Leave one out.")
        given["lane"] = _lanes(lane, reader.num_rows)
    return Rows(reader.num_rows, tuple(observation), tuple(following), tuple(outcome), **given)


def encode_row(schema: Schema, values: Mapping[str, Any], *, lane: Any = None) -> Rows:
    """Like `encode_batch` for one transition whose values have no row axis.

    Raises:
        ColumnError: As `encode_batch`.
    """
    plan = schema.plan
    batch: dict[str, Any] = {}
    roots = {root.name: root for root in (plan.observation[0], plan.next_observation[0], plan.outcome[1])}
    for name, value in values.items():
        root = roots.get(name)
        if root is None:
            batch[name] = _one_row(value)
        else:
            leaves = [_one_row(leaf) for leaf in root.tree.leaves(value, name)]
            batch[name] = root.tree.build(leaves)
    return encode_batch(schema, batch, lane=lane)


def _one_row(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        array: np.ndarray = np.asarray(value)
        # An object array holds one Python value, or is refused as one.
        return array[None] if array.dtype != object else [array.tolist()]
    if type(value) is bool:
        return _FLAGS[value]
    return value[None] if hasattr(value, "detach") else [value]


def _as_mapping(batch: Any) -> Mapping[str, Any]:
    if isinstance(batch, pa.RecordBatch | pa.Table):
        names = batch.schema.names
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ColumnError(f"Column '{twice}' is in the batch twice, expected once. Drop one.")
        return dict(zip(names, batch.columns, strict=True))
    if isinstance(batch, Mapping):
        return batch
    if hasattr(batch, "to_dict") and hasattr(batch, "batch_size"):  # a TensorDict
        nested: Mapping[str, Any] = batch.to_dict()
        return nested
    raise ColumnError(
        f"The batch is of type {type(batch).__name__}, expected a pyarrow RecordBatch or Table, a dict of "
        f"arrays or tensors, or a TensorDict."
    )


class _Reader:
    """Takes columns out of one batch; remembers how many rows it has and how many names were used."""

    __slots__ = ("first_name", "num_rows", "source", "used")

    def __init__(self, source: Mapping[str, Any]) -> None:
        self.source = source
        self.num_rows = -1
        self.first_name = ""
        self.used = 0

    def root(self, root: Root) -> list[np.ndarray]:
        """The leaves of a nested value, given nested or by dotted names."""
        value = self.source.get(root.name, _ABSENT)
        if value is _ABSENT:
            return self.columns(root.targets)
        self.used += 1
        leaves = root.tree.leaves(value, root.name)
        return [self._values(target, leaf) for target, leaf in zip(root.targets, leaves, strict=True)]

    def columns(self, targets: tuple[Target, ...]) -> list[np.ndarray]:
        """Columns by their names; a nullable one is followed by its flags."""
        found: list[np.ndarray] = []
        for target in targets:
            value = self.source.get(target.name, _ABSENT)
            if target.mask is not None:
                found += self._nullable(target, value)
                continue
            if value is _ABSENT:
                raise ColumnError(
                    f"Column '{target.name}' is missing: found {list(self.source)[:16]}, expected "
                    f"{target.column.dtype} of shape {['n', *target.shape]}. Add it to the batch."
                )
            self.used += 1
            found.append(self._values(target, value))
        return found

    def _values(self, target: Target, value: Any) -> np.ndarray:
        # The quick way: an array of the right dtype, shape and layout is used as it is.
        if (
            type(value) is np.ndarray
            and value.dtype == target.dtype
            and value.shape[1:] == target.shape
            and value.ndim
            and value.flags.num & _USABLE == _USABLE
        ):
            values = value.view(np.uint8) if target.is_flag else value
        else:
            values, valid = column_values(target.column, value, target.name)
            if valid is not None and not valid.all():
                raise nulls_error(target.name, len(valid) - int(np.count_nonzero(valid)))
        if len(values) != self.num_rows:
            self._check_length(target.name, len(values))
        if target.limit is not None:
            _check_discrete(target, values)
        return values

    def _check_length(self, name: str, length: int) -> None:
        if self.num_rows < 0:
            self.num_rows, self.first_name = length, name
        elif length != self.num_rows:
            raise ColumnError(
                f"Column '{name}' has {length} rows, expected {self.num_rows} as in '{self.first_name}'. "
                f"Give every column one entry a row."
            )

    def _nullable(self, target: Target, value: Any) -> list[np.ndarray]:
        """Values and flags; zero where not valid, whatever the batch holds there."""
        mask_name = str(target.mask)
        given = self.source.get(mask_name, _ABSENT)
        if value is _ABSENT:
            if given is not _ABSENT:
                raise ColumnError(f"Column '{mask_name}' is given without '{target.name}'. Give both or none.")
            column = target.column
            return [
                np.zeros((self.num_rows, *column.shape), column.storage),
                np.zeros(self.num_rows, np.uint8),
            ]
        self.used += 1
        values, valid = column_values(target.column, value, target.name)
        self._check_length(target.name, len(values))
        flags = np.ones(len(values), np.uint8) if valid is None else valid.astype(np.uint8)
        if given is not _ABSENT:
            self.used += 1
            flag_column = Column(mask_name, "bool", (), target.column.owner)
            mask, mask_valid = column_values(flag_column, given, mask_name)
            if mask_valid is not None and not mask_valid.all():
                raise nulls_error(mask_name, len(mask_valid) - int(np.count_nonzero(mask_valid)))
            self._check_length(mask_name, len(mask))
            flags &= mask
        absent = flags == _ZERO
        if absent.any():
            values = values.copy()
            values[absent] = 0
        return [values, flags]

    def row_columns(self) -> dict[str, np.ndarray]:
        """The optional columns about whole rows."""
        found: dict[str, np.ndarray] = {}
        for name, (smallest, largest) in ROW_NAMES.items():
            if name in self.source:
                self.used += 1
                values, valid = column_values(_ROW_COLUMN, self.source[name], name)
                if valid is not None and not valid.all():
                    raise nulls_error(name, len(valid) - int(np.count_nonzero(valid)))
                self._check_length(name, len(values))
                _check_range(name, values, smallest, largest)
                found[name] = values.astype(_INT32) if name == "lane" else values
        if "kind" in self.source:
            self.used += 1
            kinds, valid = column_values(_ROW_COLUMN, self.source["kind"], "kind")
            if valid is not None or (kinds != _TRANSITION).any():
                raise ColumnError(
                    "Column 'kind' has rows that are not transitions, expected 1 in all. Filter kind = 1."
                )
            self._check_length("kind", len(kinds))
        self.used += sum(name in self.source for name in IGNORED_NAMES)
        return found


def _check_discrete(target: Target, values: np.ndarray) -> None:
    if target.limit is None or not len(values):
        return
    unsigned, start, count = target.limit
    shifted = values - start if start else values
    if np.maximum.reduce(shifted.view(unsigned)) >= count:
        first = int(start)
        bad = int(np.argmax(shifted.view(unsigned) >= count))
        raise ColumnError(
            f"Column '{target.name}' has the value {values[bad]} in row {bad}, expected {first} to "
            f"{first + count - 1} (a Discrete space). Fix the values, or create a store with a wider space."
        )


def _check_range(name: str, values: np.ndarray, smallest: int, largest: int) -> None:
    if len(values) and (values.min() < smallest or values.max() > largest):
        raise _range_error(name, values.min() if values.min() < smallest else values.max(), smallest, largest)


def _range_error(name: str, value: Any, smallest: int, largest: int) -> ColumnError:
    return ColumnError(f"Column '{name}' has the value {value}, expected {smallest} to {largest}. Fix the values.")


def _lanes(lane: Any, num_rows: int) -> np.ndarray:
    if isinstance(lane, int | np.integer) and not isinstance(lane, bool):
        smallest, largest = ROW_NAMES["lane"]
        if not smallest <= lane <= largest:
            raise _range_error("lane", lane, smallest, largest)
        lanes = np.empty(num_rows, _INT32)
        lanes.fill(lane)
        return lanes
    values, valid = column_values(_ROW_COLUMN, lane, "lane")
    if valid is not None or len(values) != num_rows:
        raise ColumnError(
            f"Column 'lane' has {len(values)} rows, expected {num_rows}. Give one lane, or one for each row."
        )
    _check_range("lane", values, *ROW_NAMES["lane"])
    return coerce(Column("lane", "int32", (), "row"), values, "lane")


def _refuse_unknown(source: Mapping[str, Any], used: int, known: frozenset[str]) -> None:
    unknown = [name for name in source if name not in known]
    if unknown:
        raise ColumnError(
            f"Column {unknown[0]!r} is unknown, expected one of "
            f"{sorted(known - {*ROW_NAMES, *IGNORED_NAMES, 'kind'})}. "
            f"Leave it out, or create a store whose schema has it."
        )
    if used != len(source):
        raise ColumnError(
            f"The columns {[name for name in source if '.' in name]} are given beside the nested value that "
            f"holds them, expected one of both. Leave one out."
        )
