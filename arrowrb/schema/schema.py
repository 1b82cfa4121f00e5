"""Schema: what one store holds, made from an environment or its spaces, and written to JSON and back."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from arrowrb.errors import SchemaError
from arrowrb.schema.columns import SYSTEM_COLUMNS, VALID_SUFFIX, Column, Extra, check_new_names
from arrowrb.schema.document import (
    JSON_VERSION,
    check_version,
    column_to_json,
    options_from_json,
    options_to_json,
    read_notes,
    read_object,
)
from arrowrb.schema.layout import Options, check_float64, check_reward, file_columns, parse_extras
from arrowrb.schema.plan import Plan, make_plan
from arrowrb.schema.spaces import space_from_json, space_leaves, space_to_json
from arrowrb.schema.tree import Tree, column_name

_OBSERVATION, _ACTION = "observation", "action"


@dataclass(frozen=True, eq=False, repr=False)
class Schema:
    """The columns of a store and the spaces they came from. Immutable: share it between threads.

    Make one by `from_env` or `from_spaces`. Two schemas are equal if their columns and spaces are; the
    environment's id and the versions are only notes.

    Attributes:
        columns: All columns of a segment file, in file order.
        observation_tree: How the observation's leaves nest.
        action_tree: How the action's leaves nest.
        options: Extras, info, reward and float64 as declared.
        observation_spec: The observation space as JSON. Not to be changed.
        action_spec: The action space as JSON. Not to be changed.
        env_id: The environment's id, where known.
        versions: The versions of python, numpy, gymnasium and arrowrb that made it, where known.
    """

    columns: tuple[Column, ...]
    observation_tree: Tree
    action_tree: Tree
    options: Options
    observation_spec: Mapping[str, Any]
    action_spec: Mapping[str, Any]
    env_id: str | None
    versions: Mapping[str, str]

    @classmethod
    def from_env(
        cls,
        env: Any,
        *,
        float64: str = "keep",
        info: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        reward: tuple[str, tuple[int, ...]] = ("float64", ()),
    ) -> Schema:
        """The schema of an environment's transitions.

        Args:
            env: A gymnasium Env or VectorEnv (of a VectorEnv the spaces of one environment count).
            float64: `keep`, or `float32` to cast float64 observations, actions, rewards and extras; the cast
                is recorded.
            info: Entries of `info` to store: name -> dtype, (dtype, shape) or Extra. Nullable, since an
                environment may leave them out.
            extras: Further columns: name -> dtype, (dtype, shape) or Extra.
            reward: The reward's dtype and shape.

        Raises:
            SchemaError: If a space or an extra cannot be stored; the message names the place.
        """
        # VectorEnv before Env: some environments are both.
        prefix = "single_" if hasattr(env, "single_observation_space") else ""
        if not hasattr(env, f"{prefix}observation_space") or not hasattr(env, f"{prefix}action_space"):
            raise SchemaError(
                f"env is of type {type(env).__name__}, expected a gymnasium Env or VectorEnv. "
                f"Make one with gymnasium.make, or use Schema.from_spaces."
            )
        env_id = getattr(getattr(env, "spec", None), "id", None)
        spaces = getattr(env, f"{prefix}observation_space"), getattr(env, f"{prefix}action_space")
        options = _options(extras, info, reward, float64)
        return cls._of_spaces(*spaces, options, env_id if isinstance(env_id, str) else None)

    @classmethod
    def from_spaces(
        cls,
        observation_space: Any,
        action_space: Any,
        *,
        extras: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
        reward: tuple[str, tuple[int, ...]] = ("float64", ()),
        float64: str = "keep",
    ) -> Schema:
        """The schema of transitions between these spaces; arguments as in `from_env`.

        Raises:
            SchemaError: If a space or an extra cannot be stored; the message names the place.
        """
        return cls._of_spaces(observation_space, action_space, _options(extras, info, reward, float64), None)

    @classmethod
    def _of_spaces(cls, observation: Any, action: Any, options: Options, env_id: str | None) -> Schema:
        specs = space_to_json(observation, _OBSERVATION), space_to_json(action, _ACTION)
        return cls._derive(specs, options, env_id, _current_versions())

    @classmethod
    def _derive(
        cls,
        specs: tuple[Mapping[str, Any], Mapping[str, Any]],
        options: Options,
        env_id: str | None,
        versions: Mapping[str, str],
    ) -> Schema:
        observation, action = space_leaves(specs[0], _OBSERVATION), space_leaves(specs[1], _ACTION)
        return cls(
            columns=file_columns(observation, action, options),
            observation_tree=Tree(tuple(leaf.path for leaf in observation), _OBSERVATION),
            action_tree=Tree(tuple(leaf.path for leaf in action), _ACTION),
            options=options,
            observation_spec=MappingProxyType(copy.deepcopy(dict(specs[0]))),
            action_spec=MappingProxyType(copy.deepcopy(dict(specs[1]))),
            env_id=env_id,
            versions=MappingProxyType(dict(versions)),
        )

    @property
    def extras(self) -> Mapping[str, Extra]:
        """The extras that the policy or the caller gives, by name; those of `info` are not among them."""
        return self.options.extras

    @property
    def info(self) -> Mapping[str, Extra]:
        """The extras that are taken from `info`, by name."""
        return self.options.info

    @property
    def reward(self) -> tuple[str, tuple[int, ...]]:
        """The reward's dtype as declared (before a cast) and its shape."""
        return self.options.reward

    @property
    def float64(self) -> str:
        """`keep`, or `float32` where float64 columns are cast."""
        return self.options.float64

    @cached_property
    def observation_columns(self) -> tuple[Column, ...]:
        """The columns that tails hold too: the observation's leaves and extras, in file order."""
        return tuple(column for column in self.columns if column.owner == "observation")

    @cached_property
    def transition_columns(self) -> tuple[Column, ...]:
        """The columns of what followed: terminated, truncated, action, reward, extras, in file order."""
        return tuple(column for column in self.columns if column.owner == "transition")

    @cached_property
    def row_bytes(self) -> int:
        """The bytes of a row over all columns."""
        return sum(column.item_bytes for column in self.columns)

    @cached_property
    def all_extras(self) -> Mapping[str, Extra]:
        """`extras` and `info` together, by name."""
        return MappingProxyType({**self.extras, **self.info})

    @cached_property
    def masks(self) -> Mapping[str, str]:
        """Nullable column -> its column of flags. Look here, not at names: a Dict key may be "valid" too."""
        names = (name for name, extra in self.all_extras.items() if extra.nullable)
        return MappingProxyType({name: name + VALID_SUFFIX for name in names})

    @cached_property
    def discrete_bounds(self) -> Mapping[str, tuple[int, int]]:
        """Column of a Discrete leaf -> `(start, n)`: its values lie in `[start, start + n)`."""
        bounds: dict[str, tuple[int, int]] = {}
        for root, spec in (("observation", self.observation_spec), ("action", self.action_spec)):
            for leaf in space_leaves(spec, root):
                if leaf.bounds is not None:
                    bounds[column_name(root, leaf.path)] = leaf.bounds
        return MappingProxyType(bounds)

    @cached_property
    def observation_space(self) -> Any:
        """The gymnasium space of observations, decoded at first use."""
        return space_from_json(self.observation_spec, "observation")

    @cached_property
    def action_space(self) -> Any:
        """The gymnasium space of actions, decoded at first use."""
        return space_from_json(self.action_spec, "action")

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of segment files."""
        return pa.schema([column.field() for column in self.columns])

    @cached_property
    def plan(self) -> Plan:
        """What a batch must hold; for `convert`."""
        trees = (self.observation_tree, self.action_tree)
        columns = (self.observation_columns, self.transition_columns)
        return make_plan(*columns, trees, self.masks, self.discrete_bounds)

    @cached_property
    def _by_name(self) -> Mapping[str, Column]:
        return {column.name: column for column in self.columns}

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of each column, by name."""
        return {column.name: place for place, column in enumerate(self.columns)}

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
            SchemaError: If there is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise SchemaError(f"There is no column {name!r}, expected one of {list(self._by_name)}.") from None

    def differences(self, other: Schema) -> list[str]:
        """What keeps two schemas from being equal, one line each; empty if they are."""
        lines = []
        for name in dict.fromkeys([*self._by_name, *other._by_name]):
            mine, theirs = self._by_name.get(name), other._by_name.get(name)
            if mine != theirs:
                lines.append(f"{name}: {_describe(mine)}, other {_describe(theirs)}")
        if not lines and self.columns != other.columns:
            lines.append("columns: the same in another order")
        specs = (
            (_OBSERVATION, self.observation_spec, other.observation_spec),
            (_ACTION, self.action_spec, other.action_spec),
        )
        for root, mine_spec, other_spec in specs:
            if mine_spec != other_spec:
                spaces = space_from_json(mine_spec, root), space_from_json(other_spec, root)
                lines.append(f"{root} space: {spaces[0]}, other {spaces[1]}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All of the schema as plain JSON values, without NaN or infinity."""
        return {
            "version": JSON_VERSION,
            "columns": [column_to_json(column) for column in self.columns],
            "observation_space": copy.deepcopy(dict(self.observation_spec)),
            "action_space": copy.deepcopy(dict(self.action_spec)),
            **options_to_json(self.options),
            "env_id": self.env_id,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schema:
        """The inverse of `to_json`. Trusts nothing: types, ranges and sizes are checked. Needs no Gymnasium.

        Raises:
            SchemaError: If it describes no schema.
            FormatError: If a newer version of arrowrb wrote it.
        """
        data = check_version(data)
        specs = read_object(data, "observation_space"), read_object(data, "action_space")
        schema = cls._derive(specs, options_from_json(data), *read_notes(data))
        # The columns stand in the JSON for other readers; they follow from the rest: a difference is damage.
        if data.get("columns") != [column_to_json(column) for column in schema.columns]:
            raise SchemaError("The schema's columns are not those that follow from its spaces and extras.")
        return schema

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schema):
            return NotImplemented
        return (
            self.columns == other.columns
            and self.observation_spec == other.observation_spec
            and self.action_spec == other.action_spec
        )

    def __hash__(self) -> int:
        return hash(self.columns)

    def __reduce__(self) -> tuple[Callable[..., Schema], tuple[dict[str, Any]]]:
        # For multiprocessing's spawn: mapping proxies do not pickle.
        return Schema.from_json, (self.to_json(),)

    def __repr__(self) -> str:
        own = self.columns[len(SYSTEM_COLUMNS) - 2 :]
        rows = [(column.name, _describe(column), column.owner) for column in own]
        widths = [max(len(row[index]) for row in rows) for index in range(2)]
        lines = [f"  {name:<{widths[0]}}  {what:<{widths[1]}}  {owner}" for name, what, owner in rows]
        title = "Schema" if self.env_id is None else f"Schema of {self.env_id}"
        return "\n".join([f"{title}: {len(self.columns)} columns, {self.row_bytes} bytes a row", *lines])


def _describe(column: Column | None) -> str:
    if column is None:
        return "absent"
    text = column.dtype + (str(list(column.shape)) if column.shape else "")
    return text if column.cast_from is None else f"{text} (cast from {column.cast_from})"


def _options(extras: Any, info: Any, reward: Any, float64: Any) -> Options:
    given, taken = parse_extras(extras, info=False), parse_extras(info, info=True)
    check_new_names((*given, *taken))
    return Options(
        extras=MappingProxyType(given),
        info=MappingProxyType(taken),
        reward=check_reward(reward),
        float64=check_float64(float64),
    )


def _current_versions() -> dict[str, str]:
    # Gymnasium is in use here: the spaces are its objects.
    import gymnasium

    python, numpy = platform.python_version(), np.__version__
    versions = {"python": python, "numpy": numpy, "gymnasium": str(gymnasium.__version__)}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["arrowrb"] = importlib.metadata.version("arrowrb")
    return versions
