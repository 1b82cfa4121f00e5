"""Samplers choose row ids; gathering them into tensors is the loader's.

A *strategy* is a frozen value that says how to draw; a *stream* is its running state. Streams see snapshots (row ids,
kinds, runs), never files.
"""

from __future__ import annotations

from .prioritized import Prioritized
from .strategy import Drawn, Learning, Strategy, Stream, check_tiers, generator_state
from .uniform import Uniform

__all__ = ["Drawn", "Learning", "Prioritized", "Strategy", "Stream", "Uniform", "check_tiers", "generator_state"]
