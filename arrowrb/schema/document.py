"""The parts of a schema's JSON document beside its spaces, written and read back without trust."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from arrowrb.errors import FormatError, SchemaError
from arrowrb.schema.columns import Column, Extra
from arrowrb.schema.layout import Options, check_float64, check_reward, parse_extras

JSON_VERSION = 1
_MAX_TEXT = 4096


def column_to_json(column: Column) -> dict[str, Any]:
    """A column as JSON; `cast_from` only where there is a cast."""
    data = {"name": column.name, "dtype": column.dtype, "shape": list(column.shape), "owner": column.owner}
    return data if column.cast_from is None else {**data, "cast_from": column.cast_from}


def options_to_json(options: Options) -> dict[str, Any]:
    """Extras, info, reward and float64 as JSON."""
    return {
        "extras": [_extra_to_json(name, extra) for name, extra in options.extras.items()],
        "info": [_extra_to_json(name, extra) for name, extra in options.info.items()],
        "reward": {"dtype": options.reward[0], "shape": list(options.reward[1])},
        "float64": options.float64,
    }


def _extra_to_json(name: str, extra: Extra) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": extra.dtype,
        "shape": list(extra.shape),
        "owner": extra.owner,
        "nullable": extra.nullable,
    }


def options_from_json(data: Mapping[str, Any]) -> Options:
    """The inverse of `options_to_json`.

    Raises:
        SchemaError: If a part is missing or wrong.
    """
    reward = read_object(data, "reward")
    if not isinstance(reward.get("dtype"), str):
        raise SchemaError(f"The schema's reward has dtype {reward.get('dtype')!r}, expected a name.")
    return Options(
        extras=MappingProxyType(_read_extras(data, "extras")),
        info=MappingProxyType(parse_extras(_read_extras(data, "info"), info=True)),
        reward=check_reward((reward["dtype"], reward.get("shape"))),
        float64=check_float64(data.get("float64")),
    )


def check_version(data: Any) -> Mapping[str, Any]:
    """The document itself, if it is one that this version reads.

    Raises:
        SchemaError: If it is no schema's document.
        FormatError: If a newer version of arrowrb wrote it.
    """
    if not isinstance(data, Mapping):
        raise SchemaError(f"The schema is of type {type(data).__name__}, expected an object.")
    version = data.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise SchemaError(f"The schema's version is {version!r}, expected {JSON_VERSION}.")
    if version > JSON_VERSION:
        raise FormatError(f"The schema's version is {version}, expected at most {JSON_VERSION}. Update arrowrb.")
    return data


def read_object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object of the document.

    Raises:
        SchemaError: If it is missing, or something else.
    """
    value = data.get(key)
    if not isinstance(value, Mapping):
        raise SchemaError(f"The schema's {key} is of type {type(value).__name__}, expected an object.")
    return value


def read_notes(data: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The environment's id, if known, and the versions.

    Raises:
        SchemaError: If they are not texts.
    """
    env_id = data.get("env_id")
    versions = read_object(data, "versions")
    if len(versions) > _MAX_TEXT:
        raise SchemaError(f"The schema's versions have {len(versions)} entries, expected at most {_MAX_TEXT}.")
    return (
        None if env_id is None else _text(env_id, "env_id"),
        {_text(name, "versions"): _text(value, "versions") for name, value in versions.items()},
    )


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(f"The schema's {place} holds a {type(value).__name__}, expected text.")
    if len(value) > _MAX_TEXT:
        raise SchemaError(f"The schema's {place} has {len(value)} characters, expected at most {_MAX_TEXT}.")
    return value


def _read_extras(data: Mapping[str, Any], key: str) -> dict[str, Extra]:
    entries = data.get(key)
    if not isinstance(entries, list):
        raise SchemaError(f"The schema's {key} is of type {type(entries).__name__}, expected a list.")
    extras: dict[str, Extra] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise SchemaError(f"The schema's {key} has an entry without a name.")
        if entry["name"] in extras or not isinstance(entry.get("dtype"), str):
            raise SchemaError(f"The schema's {key} has {entry['name']!r} twice, or without a dtype.")
        # Any values: Extra checks its own.
        given: tuple[Any, ...] = tuple(entry.get(name) for name in ("shape", "owner", "nullable"))
        extras[entry["name"]] = Extra(entry["dtype"], *given)
    return extras
