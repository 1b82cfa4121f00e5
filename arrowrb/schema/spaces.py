"""Gymnasium spaces <-> JSON, exactly: bounds are kept to the last bit, also infinities.

A space becomes a dict with a `type`. `space_leaves` reads and checks such a dict without Gymnasium, so that a
store opens quickly; only `space_from_json` builds spaces again.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arrowrb.errors import SchemaError
from arrowrb.schema.columns import MAX_COLUMNS, check_name, check_shape, dtype_name
from arrowrb.schema.tree import Path, place_name

MAX_DEPTH = 32
_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple"
_KEYS = {
    "Box": {"type", "dtype", "shape", "low", "high", "bounded_below", "bounded_above"},
    "Discrete": {"type", "dtype", "n", "start"},
    "MultiDiscrete": {"type", "dtype", "shape", "nvec", "start"},
    "MultiBinary": {"type", "shape", "n"},
    "Dict": {"type", "spaces"},
    "Tuple": {"type", "spaces"},
}
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of a space: where it is and what its values look like.

    Attributes:
        path: The keys and indices that lead to it.
        dtype: The logical dtype.
        shape: The shape of one value.
        bounds: For Discrete `(start, n)`: values lie in `[start, start + n)`. Else None.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    bounds: tuple[int, int] | None = None


def space_to_json(space: Any, root: str) -> dict[str, Any]:
    """Describe a space.

    Args:
        space: A gymnasium space.
        root: What messages call it.

    Raises:
        SchemaError: If it, or a part of it, cannot be stored; the message names the place.
    """
    return _encode(space, root, ())


def _encode(space: Any, root: str, path: Path) -> dict[str, Any]:
    from gymnasium import spaces

    place = place_name(root, path)
    if len(path) > MAX_DEPTH:
        raise SchemaError(f"{place} is nested more than {MAX_DEPTH} deep.")
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            check_name(key, place)
        pairs = [[key, _encode(part, root, (*path, key))] for key, part in space.spaces.items()]
        return {"type": "Dict", "spaces": _filled(pairs, place)}
    if isinstance(space, spaces.Tuple):
        parts = [_encode(part, root, (*path, index)) for index, part in enumerate(space.spaces)]
        return {"type": "Tuple", "spaces": _filled(parts, place)}
    if isinstance(space, spaces.Box):
        return _encode_box(space, place)
    if isinstance(space, spaces.Discrete):
        dtype = dtype_name(getattr(space, "dtype", np.int64), place)
        return {"type": "Discrete", "dtype": dtype, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        dtype = dtype_name(space.dtype, place)
        shape = list(check_shape(tuple(space.shape), dtype, place))
        nvec, start = _encode_array(np.asarray(space.nvec)), _encode_array(np.asarray(space.start))
        return {"type": "MultiDiscrete", "dtype": dtype, "shape": shape, "nvec": nvec, "start": start}
    if isinstance(space, spaces.MultiBinary):
        shape = list(check_shape(tuple(space.shape), "int8", place))
        return {"type": "MultiBinary", "shape": shape, "n": shape if np.ndim(space.n) else int(shape[0])}
    raise SchemaError(
        f"{place} is a space of type {type(space).__name__}, expected {_SUPPORTED}. "
        f"Wrap the environment so that it gives values of a fixed shape."
    )


def _filled(parts: list[Any], place: str) -> list[Any]:
    if not parts:
        raise SchemaError(f"{place} is an empty space, expected at least one part. Leave it out of the space.")
    return parts


def _encode_box(space: Any, place: str) -> dict[str, Any]:
    dtype = dtype_name(space.dtype, place)
    shape = check_shape(tuple(space.shape), dtype, place)
    spec: dict[str, Any] = {"type": "Box", "dtype": dtype, "shape": list(shape)}
    spec["low"], spec["high"] = _encode_array(space.low), _encode_array(space.high)
    for side, finite in (("below", space.low > -np.inf), ("above", space.high < np.inf)):
        # Integers have no infinity: only these flags remember that such a bound was infinite.
        bounded = np.asarray(getattr(space, f"bounded_{side}"))
        if bounded.shape == shape and not np.array_equal(bounded, finite):
            spec[f"bounded_{side}"] = _encode_array(bounded)
    return spec


def _encode_array(array: np.ndarray) -> Any:
    """One JSON value where all elements have the same bits, else the bytes (C order) in base64."""
    array = np.ascontiguousarray(array).reshape(-1)
    items = array.view(np.dtype((np.void, array.itemsize)))
    if not (items == items[0]).all():
        return {"base64": base64.b64encode(array.tobytes()).decode("ascii")}
    value = array[0].item()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def space_leaves(spec: Any, root: str) -> tuple[Leaf, ...]:
    """The leaves of a space from its JSON, in column order, with everything checked. Needs no Gymnasium.

    Raises:
        SchemaError: If the JSON describes no space that can be stored; the message names the place.
    """
    leaves: list[Leaf] = []
    _walk(spec, root, (), leaves)
    return tuple(leaves)


def _walk(spec: Any, root: str, path: Path, leaves: list[Leaf]) -> None:
    place = place_name(root, path)
    if len(path) > MAX_DEPTH:
        raise SchemaError(f"{place} is nested more than {MAX_DEPTH} deep.")
    if not isinstance(spec, Mapping):
        raise SchemaError(f"{place} is described by a {type(spec).__name__}, expected an object with a 'type'.")
    kind = spec.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        raise SchemaError(f"{place} has the type {kind!r}, expected {_SUPPORTED}.")
    if not _KEYS[kind].issuperset(spec):
        raise SchemaError(f"{place} has the keys {sorted(map(str, spec))}, expected {sorted(_KEYS[kind])}.")
    if kind in ("Dict", "Tuple"):
        for key, part in _parts(spec, place):
            _walk(part, root, (*path, key), leaves)
        return
    if kind == "Box":
        leaves.append(_box_leaf(spec, place, path))
    elif kind == "Discrete":
        leaves.append(_discrete_leaf(spec, place, path))
    elif kind == "MultiDiscrete":
        leaves.append(_multi_discrete_leaf(spec, place, path))
    else:
        shape = check_shape(spec.get("shape"), "int8", place)
        if spec.get("n") != (list(shape) if isinstance(spec.get("n"), list) else math.prod(shape)):
            raise SchemaError(f"{place} has n = {spec.get('n')!r}, expected what its shape {shape} says.")
        leaves.append(Leaf(path, "int8", shape))
    if len(leaves) > MAX_COLUMNS:
        raise SchemaError(f"{root} has more than {MAX_COLUMNS} parts, expected at most {MAX_COLUMNS}.")


def _parts(spec: Mapping[str, Any], place: str) -> Sequence[tuple[str | int, Any]]:
    parts = spec.get("spaces")
    if not isinstance(parts, list):
        raise SchemaError(f"{place} has parts of type {type(parts).__name__}, expected a list.")
    _filled(parts, place)
    if spec["type"] == "Tuple":
        return list(enumerate(parts))
    pairs: list[tuple[str | int, Any]] = []
    for pair in parts:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise SchemaError(f"{place} has a part that is not a pair of a key and a space.")
        pairs.append((check_name(pair[0], place), pair[1]))
    if len({key for key, _ in pairs}) != len(pairs):
        raise SchemaError(f"{place} has a key twice.")
    return pairs


def _native_dtype(spec: Mapping[str, Any], place: str, kinds: str) -> str:
    name = spec.get("dtype")
    if not isinstance(name, str):
        raise SchemaError(f"{place} has dtype {name!r}, expected a name.")
    dtype = dtype_name(name, place)
    if dtype == "bfloat16" or dtype != name or np.dtype(dtype).kind not in kinds:
        raise SchemaError(f"{place} has dtype {name!r}, which a {spec['type']} space cannot have.")
    return dtype


def _box_leaf(spec: Mapping[str, Any], place: str, path: Path) -> Leaf:
    dtype = _native_dtype(spec, place, "biuf")
    shape = check_shape(spec.get("shape"), dtype, place)
    for side in ("low", "high"):
        _check_array(spec.get(side), dtype, shape, f"{place}.{side}")
    for side in ("bounded_below", "bounded_above"):
        if side in spec:
            _check_array(spec[side], "bool", shape, f"{place}.{side}")
    return Leaf(path, dtype, shape)


def _discrete_leaf(spec: Mapping[str, Any], place: str, path: Path) -> Leaf:
    dtype = _native_dtype(spec, place, "iu")
    count: Any = spec.get("n")
    start: Any = spec.get("start")
    if not _is_integer(count) or not _is_integer(start):
        raise SchemaError(f"{place} has n = {count!r} and start = {start!r}, expected integers.")
    info = np.iinfo(dtype)
    if count < 1 or start < info.min or start + count - 1 > info.max:
        raise SchemaError(
            f"{place} has n = {count} and start = {start}, expected n >= 1 and values that fit {dtype}. "
            f"Give the space a wider dtype."
        )
    return Leaf(path, dtype, (), (start, count))


def _multi_discrete_leaf(spec: Mapping[str, Any], place: str, path: Path) -> Leaf:
    dtype = _native_dtype(spec, place, "iu")
    shape = check_shape(spec.get("shape"), dtype, place)
    for name in ("nvec", "start"):
        _check_array(spec.get(name), dtype, shape, f"{place}.{name}")
    if (_decode_array(spec["nvec"], dtype, (1,) if _is_integer(spec["nvec"]) else shape) < 1).any():
        raise SchemaError(f"{place}.nvec has values below 1, expected positive counts.")
    return Leaf(path, dtype, shape)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_array(value: Any, dtype: str, shape: tuple[int, ...], place: str) -> None:
    """Check an encoded array without making it: a uniform one may stand for gigabytes."""
    kind = np.dtype(dtype).kind
    if isinstance(value, Mapping):
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        text = value.get("base64")
        if not isinstance(text, str) or len(_decode_base64(text, place)) != expected:
            raise SchemaError(f"{place} is not the base64 text of {expected} bytes.")
    elif kind == "b":
        if not isinstance(value, bool):
            raise SchemaError(f"{place} is {value!r}, expected true or false.")
    elif kind in "iu":
        info = np.iinfo(dtype)
        if not _is_integer(value) or not info.min <= value <= info.max:
            raise SchemaError(f"{place} is {value!r}, expected an integer that fits {dtype}.")
    elif isinstance(value, str):
        if value not in _SPECIAL:
            raise SchemaError(f"{place} is {value!r}, expected a number, 'inf', '-inf' or 'nan'.")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not _fits_float(value, dtype):
        raise SchemaError(f"{place} is {value!r}, expected a number that fits {dtype}.")


def _fits_float(value: float, dtype: str) -> bool:
    largest = float(np.finfo(dtype).max)
    return -largest <= value <= largest  # also false for NaN and infinity


def _decode_base64(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SchemaError(f"{place} is not base64 text: {error}.") from error


def _decode_array(value: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(value, Mapping):
        return np.frombuffer(base64.b64decode(value["base64"]), dtype).reshape(shape).copy()
    return np.full(shape, _SPECIAL[value] if isinstance(value, str) else value, dtype)


def space_from_json(spec: Mapping[str, Any], root: str) -> Any:
    """Build the gymnasium space again. The inverse of `space_to_json`; the JSON is checked first.

    Raises:
        SchemaError: If the JSON describes no space, or Gymnasium refuses it.
    """
    space_leaves(spec, root)
    try:
        return _decode(spec)
    except (ValueError, TypeError, OverflowError, AssertionError) as error:
        raise SchemaError(f"{root} describes a space that Gymnasium refuses: {error}") from error


def _decode(spec: Mapping[str, Any]) -> Any:
    from gymnasium import spaces

    kind = spec["type"]
    if kind == "Dict":
        # An OrderedDict, because Gymnasium sorts the keys of any other mapping.
        return spaces.Dict(OrderedDict((key, _decode(part)) for key, part in spec["spaces"]))
    if kind == "Tuple":
        return spaces.Tuple([_decode(part) for part in spec["spaces"]])
    if kind == "MultiBinary":
        return spaces.MultiBinary(spec["n"])
    dtype = np.dtype(spec["dtype"])
    if kind == "Discrete":
        if dtype == np.int64:
            return spaces.Discrete(spec["n"], start=spec["start"])
        return spaces.Discrete(spec["n"], start=spec["start"], dtype=dtype.type)
    shape = tuple(spec["shape"])
    if kind == "MultiDiscrete":
        nvec, start = (_decode_array(spec[name], spec["dtype"], shape) for name in ("nvec", "start"))
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
    low, high = (_decode_array(spec[name], spec["dtype"], shape) for name in ("low", "high"))
    box = spaces.Box(low=low, high=high, shape=shape, dtype=dtype.type)
    # Gymnasium must not have changed a bound on the way (it looks at them as floats).
    box.low, box.high = low, high
    for side in ("bounded_below", "bounded_above"):
        if side in spec:
            setattr(box, side, _decode_array(spec[side], "bool", shape))
    return box
