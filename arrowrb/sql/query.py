"""Run one statement over a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..engine import Engine


class Query:
    """The result of one statement."""


def run(
    engine: Engine,
    query: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    threads: int | None = None,
) -> Query:
    """Ask."""
    raise NotImplementedError
