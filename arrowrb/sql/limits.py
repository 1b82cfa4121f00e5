"""The tables ``limiter`` and ``participants``: the balance of collecting and sampling now, and who takes part in it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

import pyarrow as pa

from ..limiter import LimiterInfo, Participant

_TYPES: Final = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
_INSIDE: Final = "participants"


def build_limiter(told: LimiterInfo | None) -> pa.Table:
    """One row; none where the store has no limiter."""
    return _table(LimiterInfo, [] if told is None else [told])


def build_participants(told: LimiterInfo | None) -> pa.Table:
    """One row for each who collects or samples, or did and died."""
    return _table(Participant, [] if told is None else list(told.participants))


def _table(kind: type[Any], rows: list[Any]) -> pa.Table:
    """The fields of values as columns."""
    names = {each.name: _TYPES[str(each.type).partition(" ")[0]] for each in fields(kind) if each.name != _INSIDE}
    columns = {name: pa.array([getattr(row, name) for row in rows], arrow) for name, arrow in names.items()}
    return pa.table(columns)
