"""Collecting: environments stepped by policies, as record batches and into stores.

collector       Collector: here, or in workers
fleet           the workers as the process sees them that started them
allotment       how much is ordered of each worker
processes       one worker, from outside
spawning        processes where there is no script to run again
worker          a process that steps environments into a shard of its own
weights         parameters of a policy that processes share
loop            batches, commits, interrupts
stepping        one vector step after another onto the tape, and the resets that are ours
single_lane     the shortest loop, for one simple environment and random actions
policies        what a policy is given and what it returns
environments    ids and factories -> environments
random_actions  actions drawn in bulk
batches         events -> record batches
detached        a sink where there is no store
evaluation      whole episodes, nothing recorded
"""

from __future__ import annotations

from arrowrb.collector.collector import Collector
from arrowrb.collector.evaluation import Evaluation, evaluate
from arrowrb.collector.policies import Actor, Policy, Step

__all__ = ["Actor", "Collector", "Evaluation", "Policy", "Step", "evaluate"]
