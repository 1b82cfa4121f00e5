"""Seeing a run from outside: what comes in, how episodes went, what is sampled; by any process that opens the store.

episodes    returns and lengths of the episodes that end, from the rows that came since the last look
lanes       how many lanes a shard has, and on how many of them an episode runs
sampled     rows that were sampled
monitor     all of it at one moment, with rates

A look costs what has come since the one before, and a little for each shard, whatever the store holds already.
"""

from __future__ import annotations

from arrowrb.monitor.episodes import Spread
from arrowrb.monitor.monitor import Monitor, RunInfo, ShardInfo
from arrowrb.monitor.sampled import LogInfo

__all__ = ["LogInfo", "Monitor", "RunInfo", "ShardInfo", "Spread"]
