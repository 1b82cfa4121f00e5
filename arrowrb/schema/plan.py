"""What a batch must hold, worked out once per schema so that converting a batch is a short loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arrowrb.schema.columns import Column
from arrowrb.schema.tree import Tree

# Of a batch that came out of a store: which rows they were. They take no part.
IGNORED_NAMES = ("row_id", "ordinal")
# Columns about whole rows that a batch may hold: name -> smallest and largest value.
ROW_NAMES: Mapping[str, tuple[int, int]] = {
    "lane": (0, 2**31 - 1),
    "episode_id": (0, 2**63 - 1),
    "step": (0, 2**31 - 1),
    "time": (-(2**63), 2**63 - 1),
    "policy_version": (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True, slots=True)
class Target:
    """One column of Rows and where a batch has it.

    Attributes:
        column: The column.
        name: Its name in batches; `next_` is put before that of a next observation.
        dtype: The dtype of arrays that are used as they are.
        is_flag: Whether those arrays are bool, and so viewed as bytes.
        mask: The name of the valid flags that follow a nullable column, or None.
        limit: For Discrete the unsigned dtype to compare in, the first value and how many; or None.
    """

    column: Column
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_flag: bool
    mask: str | None
    limit: tuple[np.dtype[Any], Any, int] | None


@dataclass(frozen=True, slots=True)
class Root:
    """A nested value of a batch: `observation`, `next_observation` or `action`, and its leaves."""

    name: str
    tree: Tree
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All targets of a schema, in the order of Rows.

    Attributes:
        observation, next_observation: The leaves, and then the extras that the observation owns.
        outcome: `terminated` and `truncated`, the action's leaves, then the reward and extras.
        known: Every name that a batch may hold.
    """

    observation: tuple[Root, tuple[Target, ...]]
    next_observation: tuple[Root, tuple[Target, ...]]
    outcome: tuple[tuple[Target, ...], Root, tuple[Target, ...]]
    known: frozenset[str]


def make_plan(
    observation_columns: Sequence[Column],
    transition_columns: Sequence[Column],
    trees: tuple[Tree, Tree],
    masks: Mapping[str, str],
    bounds: Mapping[str, tuple[int, int]],
) -> Plan:
    """The plan of a schema.

    Args:
        observation_columns: Leaves, then extras, each nullable one followed by its flags.
        transition_columns: terminated, truncated, the action's leaves, reward, extras.
        trees: Of the observation and of the action.
        masks: Nullable column -> its flags.
        bounds: Discrete column -> first value and number of values.
    """
    flags = set(masks.values())

    def targets(columns: Sequence[Column], prefix: str = "") -> tuple[Target, ...]:
        return tuple(
            _target(column, prefix, masks.get(column.name), bounds.get(column.name))
            for column in columns
            if column.name not in flags
        )

    num_leaves, num_action = (len(tree.paths) for tree in trees)
    leaves, owned = observation_columns[:num_leaves], observation_columns[num_leaves:]
    observation, following = (
        (Root(f"{prefix}observation", trees[0], targets(leaves, prefix)), targets(owned, prefix))
        for prefix in ("", "next_")
    )
    ends, action = transition_columns[:2], transition_columns[2 : 2 + num_action]
    rest = targets(transition_columns[2 + num_action :])
    outcome = (targets(ends), Root("action", trees[1], targets(action)), rest)
    known = {*ROW_NAMES, *IGNORED_NAMES, "kind"}
    for root in (observation[0], following[0], outcome[1]):
        known.add(root.name)
        known.update(target.name for target in root.targets)
    for target in (*observation[1], *following[1], *outcome[0], *rest):
        known.add(target.name)
        if target.mask is not None:
            known.add(target.mask)
    return Plan(observation, following, outcome, frozenset(known))


def _target(column: Column, prefix: str, mask: str | None, bounds: tuple[int, int] | None) -> Target:
    is_flag = column.dtype == "bool"
    limit = None
    if bounds is not None:
        # As unsigned, `value - start` is below n exactly where start <= value < start + n: one pass, not two.
        unsigned = np.dtype(f"uint{column.storage.itemsize * 8}")
        limit = (unsigned, column.storage.type(bounds[0]), bounds[1])
    return Target(
        column=column,
        name=prefix + column.name,
        dtype=np.dtype(np.bool_) if is_flag else column.storage,
        shape=column.shape,
        is_flag=is_flag,
        mask=None if mask is None else prefix + mask,
        limit=limit,
    )
