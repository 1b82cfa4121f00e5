"""SQL: one SELECT or EXPLAIN at a time, in DuckDB, over one snapshot of a store.

guard       which statements may run, and which views they read
relations   segments as Arrow tables, without a copy
conditions  what DuckDB asks of rows, as comparisons
cold_rows   rows of cold segments, decoded while DuckDB scans them
views       the SQL of ``transitions`` and ``steps``
summaries   the tables ``episodes`` and ``segments``
limits      the tables ``limiter`` and ``participants``
query       running one statement; what came of it
posing      questions of samplers
"""

from __future__ import annotations

from .posing import Posing
from .query import Query, check_condition, run
from .summaries import read_live_runs

__all__ = ["Posing", "Query", "check_condition", "read_live_runs", "run"]
