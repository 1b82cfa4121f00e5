"""From spaces and extras to the columns of a file: the one place that decides names, order and casts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arrowrb.errors import SchemaError
from arrowrb.schema.columns import (
    MAX_COLUMNS,
    SYSTEM_COLUMNS,
    VALID_SUFFIX,
    Column,
    Extra,
    check_extra_names,
    check_shape,
    dtype_name,
)
from arrowrb.schema.spaces import Leaf
from arrowrb.schema.tree import column_name

FLOAT64_MODES = ("keep", "float32")
_REWARD_DTYPES = (
    "float64",
    "float32",
    "float16",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a schema holds beside its spaces; checked.

    Attributes:
        extras: What the policy or the caller gives, by name.
        info: What is taken from `info`, by name.
        reward: Dtype (before a cast) and shape.
        float64: `keep`, or `float32` where float64 columns are cast.
    """

    extras: Mapping[str, Extra]
    info: Mapping[str, Extra]
    reward: tuple[str, tuple[int, ...]]
    float64: str


def check_reward(reward: Any) -> tuple[str, tuple[int, ...]]:
    """The reward's dtype and shape, checked.

    Raises:
        SchemaError: If it is not a pair of a number's dtype and a shape.
    """
    if not isinstance(reward, tuple | list) or len(reward) != 2:
        raise SchemaError(f"reward is {reward!r}, expected a pair of dtype and shape such as ('float32', ()).")
    dtype = dtype_name(reward[0], "reward")
    if dtype not in _REWARD_DTYPES:
        raise SchemaError(f"reward has dtype {dtype}, expected one of {', '.join(_REWARD_DTYPES)}.")
    return dtype, check_shape(reward[1], dtype, "reward")


def check_float64(float64: Any) -> str:
    """The float64 mode, checked.

    Raises:
        SchemaError: If it is not one of the modes.
    """
    if float64 not in FLOAT64_MODES:
        raise SchemaError(f"float64 is {float64!r}, expected one of {FLOAT64_MODES}.")
    return str(float64)


def parse_extras(extras: Mapping[str, Any] | None, *, info: bool) -> dict[str, Extra]:
    """Extras given as a dtype, a pair of dtype and shape, or an Extra.

    Entries of info are nullable: an environment may leave any of them out. Only an Extra of the observation
    decides for itself.

    Raises:
        SchemaError: If one is none of these.
    """
    what = "info" if info else "extras"
    if extras is None:
        return {}
    if not isinstance(extras, Mapping):
        raise SchemaError(f"{what} is of type {type(extras).__name__}, expected a dict from names to dtypes or Extras.")
    parsed: dict[str, Extra] = {}
    for name, given in extras.items():
        if isinstance(given, Extra):
            extra = given
        else:
            pair = given if isinstance(given, tuple | list) else (given, ())
            if len(pair) != 2:
                raise SchemaError(f"{what}[{name!r}] is {given!r}, expected a dtype, (dtype, shape) or an Extra.")
            dtype = dtype_name(pair[0], f"{what}[{name!r}]")
            extra = Extra(dtype, check_shape(pair[1], dtype, f"{what}[{name!r}]"))
        if info and extra.owner == "transition" and not extra.nullable:
            extra = Extra(extra.dtype, extra.shape, extra.owner, nullable=True)
        parsed[name] = extra
    return parsed


def file_columns(observation: Sequence[Leaf], action: Sequence[Leaf], options: Options) -> tuple[Column, ...]:
    """All columns of a file in order: system, observation-owned, transition-owned.

    Raises:
        SchemaError: If names clash or there are too many columns.
    """
    twice = [name for name in options.info if name in options.extras]
    if twice:
        raise SchemaError(f"{twice[0]!r} is given in both extras and info. Give it once.")
    every = {**options.extras, **options.info}
    check_extra_names((name, extra.owner) for name, extra in every.items())
    columns = (
        *SYSTEM_COLUMNS,
        *_leaf_columns("observation", "observation", observation, options.float64),
        *_extra_columns("observation", every, options.float64),
        *_leaf_columns("action", "transition", action, options.float64),
        _reward_column(options),
        *_extra_columns("transition", every, options.float64),
    )
    if len(columns) > MAX_COLUMNS:
        raise SchemaError(f"The schema has {len(columns)} columns, expected at most {MAX_COLUMNS}.")
    return columns


def _reward_column(options: Options) -> Column:
    """Gymnasium's rewards are float64: declaring a narrower float asks for the cast, which is recorded."""
    column = _cast(Column("reward", *options.reward, "transition"), options.float64)
    if column.dtype in ("float16", "float32"):
        return replace(column, cast_from="float64")
    return column


def _leaf_columns(root: str, owner: str, leaves: Sequence[Leaf], float64: str) -> Iterator[Column]:
    for leaf in leaves:
        yield _cast(Column(column_name(root, leaf.path), leaf.dtype, leaf.shape, owner), float64)


def _extra_columns(owner: str, extras: Mapping[str, Extra], float64: str) -> Iterator[Column]:
    for name, extra in extras.items():
        if extra.owner == owner:
            yield _cast(Column(name, extra.dtype, extra.shape, owner), float64)
            if extra.nullable:
                yield Column(name + VALID_SUFFIX, "bool", (), owner)


def _cast(column: Column, float64: str) -> Column:
    if column.dtype == "float64" and float64 == "float32":
        return replace(column, dtype="float32", cast_from="float64")
    return column
