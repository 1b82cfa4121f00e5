"""Where segments live: the hot tier of mapped Arrow IPC files."""

from __future__ import annotations
