"""Samplers choose row ids; gathering them into tensors is the loader's.

A *strategy* is a frozen value that says how to draw; a *stream* is its running state. Streams see snapshots (row ids,
kinds, runs), never files.
"""

from __future__ import annotations

from .chains import Chains
from .hindsight import Hindsight
from .prioritized import Prioritized
from .sequences import Sequences
from .strategy import Drawn, Learning, Strategy, Stream, Viewing, check_tiers, generator_state
from .uniform import Uniform
from .views import LAST, REWARD, ROW, AnyView, Place, Reading, View, check_view

__all__ = [
    "LAST",
    "REWARD",
    "ROW",
    "AnyView",
    "Chains",
    "Drawn",
    "Hindsight",
    "Learning",
    "Place",
    "Prioritized",
    "Reading",
    "Sequences",
    "Strategy",
    "Stream",
    "Uniform",
    "View",
    "Viewing",
    "check_tiers",
    "check_view",
    "generator_state",
]
