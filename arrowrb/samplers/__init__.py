"""Samplers choose row ids; gathering them into tensors is the loader's.

A *strategy* is a frozen value that says how to draw; a *stream* is its running state. Streams see snapshots (row ids,
kinds, runs), never files.
"""

from __future__ import annotations

from .blocks import BlockRows
from .chains import Chains
from .episodes import Episodes
from .hindsight import Hindsight
from .history import WholeHistory
from .prioritized import Prioritized
from .prioritized_sequences import PrioritizedSequences
from .questions import Asking, FromRows, Weighted, Where
from .reading import REWARD, ROW, AnyView, Columns, Drawn, Need, Place, Reading
from .returns import check_discount
from .sequence_views import SequenceView
from .sequences import Sequences
from .shuffled import Shuffled
from .strategy import (
    Joining,
    Learning,
    Once,
    Sequential,
    Strategy,
    Stream,
    Viewing,
    check_batch_size,
    check_prefetch,
    check_tiers,
    generator_state,
)
from .uniform import Uniform
from .views import LAST, View, check_view
from .whole import with_history

__all__ = [
    "LAST",
    "REWARD",
    "ROW",
    "AnyView",
    "Asking",
    "BlockRows",
    "Chains",
    "Columns",
    "Drawn",
    "Episodes",
    "FromRows",
    "Hindsight",
    "Joining",
    "Learning",
    "Need",
    "Once",
    "Place",
    "Prioritized",
    "PrioritizedSequences",
    "Reading",
    "SequenceView",
    "Sequences",
    "Sequential",
    "Shuffled",
    "Strategy",
    "Stream",
    "Uniform",
    "View",
    "Viewing",
    "Weighted",
    "Where",
    "WholeHistory",
    "check_batch_size",
    "check_discount",
    "check_prefetch",
    "check_tiers",
    "check_view",
    "generator_state",
    "with_history",
]
