"""SQL: DuckDB over one snapshot of a store."""

from __future__ import annotations

from .query import Query, run

__all__ = ["Query", "run"]
