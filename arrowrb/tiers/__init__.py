"""Where segments live: the hot tier of mapped Arrow IPC files, the cold one of Parquet."""

from __future__ import annotations
