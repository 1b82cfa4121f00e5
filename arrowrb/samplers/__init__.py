"""Samplers choose row ids; gathering them into tensors is the loader's.

A *strategy* is a frozen value that says how to draw; a *stream* is its running state. Streams see snapshots (row ids,
kinds, runs), never files.
"""

from __future__ import annotations

from .chains import Chains
from .prioritized import Prioritized
from .strategy import Drawn, Learning, Strategy, Stream, check_tiers, generator_state
from .uniform import Uniform
from .views import LAST, REWARD, ROW, Place, Reading, View, check_view

__all__ = [
    "LAST",
    "REWARD",
    "ROW",
    "Chains",
    "Drawn",
    "Learning",
    "Place",
    "Prioritized",
    "Reading",
    "Strategy",
    "Stream",
    "Uniform",
    "View",
    "check_tiers",
    "check_view",
    "generator_state",
]
