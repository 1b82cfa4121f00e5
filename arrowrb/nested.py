"""Nested values of plain Python, NumPy and torch <-> JSON and named tensors, exactly.

Dicts, lists, tuples, strings, numbers, booleans and None become JSON; tensors and arrays are taken out under names that
tell their place (``optimizer.state.0.exp_avg``). What JSON has no form for is an object with the key ``!``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from .errors import CorruptError, OptionError

_MARK: Final = "!"
_MOST_DEPTH: Final = 100
_RESERVED: Final = "__metadata__"  # of safetensors


def encode(value: Any, root: str, tensors: dict[str, Any]) -> Any:
    """A value as JSON.

    Args:
        value: what to encode.
        root: what to call it in messages.
        tensors: takes the torch tensors that are in it, by name.

    Raises:
        OptionError: for what is none of these, with its place.
    """
    return _encode(value, root, (), tensors)


def _encode(value: Any, root: str, path: tuple[str, ...], tensors: dict[str, Any]) -> Any:
    import torch

    place = ".".join((root, *path))
    if len(path) > _MOST_DEPTH:
        raise OptionError(f"{root} is nested more than {_MOST_DEPTH} deep, or holds itself.")
    if value is None or isinstance(value, str | bool) or type(value) is int:
        return value
    if isinstance(value, float) and type(value) is float:
        return value if math.isfinite(value) else {_MARK: "float", "value": repr(value)}
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.complex128:
            raise OptionError(f"{place} is a tensor of {value.dtype}, expected complex64, or torch.view_as_real of it.")
        if value.layout != torch.strided or value.is_quantized:
            raise OptionError(f"{place} is a tensor of layout {value.layout}, expected a dense one.")
        return {_MARK: "tensor", "name": _put(tensors, path, value.detach())}
    if isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        try:
            if value.dtype == np.complex128:
                raise TypeError("only complex64 can be kept")
            tensor = torch.from_numpy(np.array(value, order="C"))
        except (TypeError, ValueError) as error:
            raise OptionError(f"{place} is an array of {value.dtype}, expected numbers: {error}") from None
        return {_MARK: kind, "name": _put(tensors, path, tensor)}
    if isinstance(value, list):
        return [_encode(each, root, (*path, str(i)), tensors) for i, each in enumerate(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        raise OptionError(f"{place} is a named tuple, {type(value).__name__}. Give tuple(value).")
    if isinstance(value, tuple):
        items = [_encode(each, root, (*path, str(i)), tensors) for i, each in enumerate(value)]
        return {_MARK: "tuple", "items": items}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) and type(key) is not int:
                raise OptionError(f"{place} has the key {key!r}, expected strings or whole numbers.")
        items = [(key, _encode(each, root, (*path, str(key)), tensors)) for key, each in value.items()]
        if all(isinstance(key, str) for key, _ in items) and _MARK not in value:
            return dict(items)
        return {_MARK: "dict", "items": [list(item) for item in items]}
    raise OptionError(
        f"{place} is a {type(value).__name__}, expected tensors, arrays, numbers, strings, None, or dicts, lists and "
        "tuples of such."
    )


def _put(tensors: dict[str, Any], path: tuple[str, ...], tensor: Any) -> str:
    whole = ".".join(path) or "value"
    name, count = whole, 0
    while name in tensors or name == _RESERVED:
        count += 1
        name = f"{whole}_{count}"
    tensors[name] = tensor
    return name


def decode(value: Any, tensors: Mapping[str, Any]) -> Any:
    """What `encode` was given.

    Raises:
        CorruptError: for what it does not write.
    """
    if isinstance(value, list):
        return [decode(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: decode(each, tensors) for key, each in value.items()}
    kind = value[_MARK]
    try:
        if kind == "float":
            return float(value["value"])
        if kind == "tuple":
            return tuple(decode(each, tensors) for each in value["items"])
        if kind == "dict":
            return {key: decode(each, tensors) for key, each in value["items"]}
        if kind == "tensor":
            return tensors[value["name"]]
        if kind == "array":
            return tensors[value["name"]].numpy()
        if kind == "scalar":
            return tensors[value["name"]].numpy()[()]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"A value of kind {kind!r} is damaged: {error!r}.") from None
    raise CorruptError(f"A value is of kind {kind!r}, which is unknown.")
