"""The nesting of observations and actions: Dict and Tuple spaces as paths to their leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from arrowrb.errors import ColumnError, SchemaError

Path: TypeAlias = tuple[str | int, ...]


def place_name(root: str, path: Path) -> str:
    """Where a leaf is, as Python would index it: `observation["camera"][0]`."""
    return root + "".join(f"[{json.dumps(key, ensure_ascii=False)}]" for key in path)


def column_name(root: str, path: Path) -> str:
    """The column of a leaf: the path joined by dots; backslashes and dots in keys are escaped."""
    keys = (key.replace("\\", "\\\\").replace(".", "\\.") if isinstance(key, str) else str(key) for key in path)
    return ".".join([root, *keys])


@dataclass(frozen=True, slots=True)
class _Node:
    """One Dict (`keys` are strings) or Tuple (`keys` are 0, 1, ...); a leaf is None."""

    is_dict: bool
    keys: tuple[Any, ...]
    children: tuple[_Node | None, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """The structure of a nested value, as the paths of its leaves in column order.

    Strings in a path index a dict, integers a tuple; a value that is not nested has the one path `()`.
    Values are hashable, immutable, and safe to share between threads.

    Attributes:
        paths: One path per leaf.
        root: What messages call the whole value.
    """

    paths: tuple[Path, ...]
    root: str = field(default="value", compare=False)
    _node: _Node | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_node", _node_of(self.paths, self.root))

    @property
    def is_leaf(self) -> bool:
        """Whether the value is not nested at all."""
        return self._node is None

    def leaves(self, value: Any, name: str | None = None) -> list[Any]:
        """Pick the leaves of a nested value, in column order.

        Args:
            value: Dicts (any Mapping) and tuples (or lists) nested as the paths say.
            name: What messages call the value; `root` by default.

        Raises:
            ColumnError: If a key is missing or unknown; the message names the place.
        """
        if self._node is None and type(value) is not dict:
            return [value]
        found: list[Any] = []
        _collect(self._node, value, name or self.root, (), found)
        return found

    def build(self, leaves: Sequence[Any]) -> Any:
        """Nest leaves again: dicts in key order, tuples, or the bare leaf. The inverse of `leaves`.

        Raises:
            ColumnError: If the number of leaves is wrong.
        """
        if len(leaves) != len(self.paths):
            raise ColumnError(f"'{self.root}' was given {len(leaves)} leaves, expected {len(self.paths)}.")
        if self._node is None:
            return leaves[0]
        return _build(self._node, iter(leaves))


def _node_of(paths: tuple[Path, ...], place: str) -> _Node | None:
    if paths == ((),):
        return None
    groups: dict[Any, list[Path]] = {}
    for path in paths:
        if not path:
            raise SchemaError(f"{place} is both a leaf and nested; a leaf has no paths beside it.")
        groups.setdefault(path[0], []).append(path[1:])
    keys = tuple(groups)
    is_dict = all(isinstance(key, str) for key in keys)
    if not keys or not (is_dict or keys == tuple(range(len(keys)))):
        raise SchemaError(f"{place} has the keys {keys!r}, expected strings, or the numbers 0, 1, ... in order.")
    # Leaves of one node must lie side by side, else column order and nesting would disagree.
    if [path for key in keys for path in groups[key]] != [path[1:] for path in paths]:
        raise SchemaError(f"{place} has paths out of order.")
    children = tuple(_node_of(tuple(groups[key]), place_name(place, (key,))) for key in keys)
    return _Node(is_dict, keys, children)


def _collect(node: _Node | None, value: Any, root: str, path: Path, found: list[Any]) -> None:
    if node is None:
        if isinstance(value, Mapping):
            raise ColumnError(
                f"'{place_name(root, path)}' is a mapping with keys {list(value)[:8]!r}, expected an array."
            )
        found.append(value)
        return
    _check_keys(node, value, root, path)
    for key, child in zip(node.keys, node.children, strict=True):
        if child is None and not isinstance(value[key], Mapping):
            found.append(value[key])
        else:
            _collect(child, value[key], root, (*path, key), found)


def _check_keys(node: _Node, value: Any, root: str, path: Path) -> None:
    if not node.is_dict:
        if not isinstance(value, tuple | list):
            raise ColumnError(
                f"'{place_name(root, path)}' is of type {type(value).__name__}, "
                f"expected a tuple of {len(node.keys)} values."
            )
        if len(value) != len(node.keys):
            raise ColumnError(f"'{place_name(root, path)}' has {len(value)} values, expected {len(node.keys)}.")
        return
    if not isinstance(value, Mapping):
        raise ColumnError(
            f"'{place_name(root, path)}' is of type {type(value).__name__}, "
            f"expected a dict with the keys {list(node.keys)!r}."
        )
    for key in node.keys:
        if key not in value:
            raise ColumnError(
                f"'{place_name(root, (*path, key))}' is missing: found the keys {list(value)[:8]!r}, "
                f"expected {list(node.keys)!r}."
            )
    if len(value) != len(node.keys):
        unknown = next(key for key in value if key not in node.keys)
        raise ColumnError(
            f"'{place_name(root, path)}' has the unknown key {unknown!r}, expected only {list(node.keys)!r}. "
            f"Leave it out, or create a store whose schema has it."
        )


def _build(node: _Node | None, leaves: Iterator[Any]) -> Any:
    if node is None:
        return next(leaves)
    values = [_build(child, leaves) for child in node.children]
    return dict(zip(node.keys, values, strict=True)) if node.is_dict else tuple(values)
