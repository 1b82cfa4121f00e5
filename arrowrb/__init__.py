"""arrowrb: a replay store for reinforcement learning, at once buffer, database, checkpoint and dataset.

The map of the house; each row imports only from rows below it, and names on one row never import each other:

    cli/                                            the command line
    collector/, importing/, datasets, monitor/      environments into stores; data sets; for DataLoader; seeing a run
    store                                           create, open, write, read: the public face
    upkeep, sampling                                what is about all of a store; batches by index
    named, mixture                                  samplers that checkpoints keep; several at once
    export/, sampler                                data sets of Parquet files; streams of batches
    redrawing                                       batches out of a log once more
    tally, sql/, loader/, recorder, arrivals        counts; questions; batches; a user's own loop; what is new
    pending                                         batches that were drawn, and are still to come
    info, samplers/                                 what is told of a store; which rows to draw
    engine/                                         shards that are written or followed, and snapshots of them
    sharing                                         limits over all shards
    writer, recovery, sizing, retention             commits; what a dead writer left; how large segments are; limits
    limiter                                         how much is sampled for what is collected
    tiers/, checkpoints                             where segments live: mapped Arrow IPC, Parquet; named points
    parquet/                                        Parquet's footers, and pages of vectors
    advantages                                      of on-policy steps
    kernels/, manifest, commits, seeds, staging     compiled loops; the durable lists and records; steps -> events
    files, network, tape, arrival                   publish, map, lock; other machines; steps as they arrive
    events, unmapping                               what a commit is made of; memory that nobody holds any more
    schema/, rows, nested, interrupts               spaces <-> Arrow <-> NumPy; row ids; JSON and tensors; Ctrl-C
    errors

Names are loaded when they are first used, so that importing arrowrb costs little.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .advantages import gae
    from .arrivals import Watermark
    from .checkpoints import Checkpoint
    from .collector import Collector, Evaluation, Step, evaluate
    from .datasets import BatchDataset
    from .errors import (
        ArrowRBError,
        ClosedError,
        ColumnError,
        CorruptError,
        EmptyError,
        EnvironmentFault,
        FormatError,
        FullError,
        LockedError,
        OptionError,
        QueryError,
        ReadOnlyError,
        RowError,
        SchemaError,
        StoreError,
        StoreExistsError,
        StoreNotFoundError,
        UsageError,
        WaitError,
        WorkerError,
    )
    from .importing import Imported, import_minari, import_parquet, merge
    from .info import SamplerInfo, StoreInfo
    from .limiter import LimiterInfo, Participant, SampleToInsertRatio
    from .loader import to_torch
    from .mixture import Mixture
    from .monitor import Monitor, RunInfo
    from .recorder import Recorder
    from .sampler import Sampler
    from .samplers import (
        Episodes,
        Hindsight,
        Prioritized,
        PrioritizedSequences,
        Sequences,
        Shuffled,
        Uniform,
        Weighted,
        Where,
    )
    from .schema import Extra, Schema
    from .sql import Query
    from .store import Store
    from .upkeep import repair, verify

__version__ = "0.1.0"

__all__ = [
    "ArrowRBError",
    "BatchDataset",
    "Checkpoint",
    "ClosedError",
    "Collector",
    "ColumnError",
    "CorruptError",
    "EmptyError",
    "EnvironmentFault",
    "Episodes",
    "Evaluation",
    "Extra",
    "FormatError",
    "FullError",
    "Hindsight",
    "Imported",
    "LimiterInfo",
    "LockedError",
    "Mixture",
    "Monitor",
    "OptionError",
    "Participant",
    "Prioritized",
    "PrioritizedSequences",
    "Query",
    "QueryError",
    "ReadOnlyError",
    "Recorder",
    "RowError",
    "RunInfo",
    "SampleToInsertRatio",
    "Sampler",
    "SamplerInfo",
    "Schema",
    "SchemaError",
    "Sequences",
    "Shuffled",
    "Step",
    "Store",
    "StoreError",
    "StoreExistsError",
    "StoreInfo",
    "StoreNotFoundError",
    "Uniform",
    "UsageError",
    "WaitError",
    "Watermark",
    "Weighted",
    "Where",
    "WorkerError",
    "evaluate",
    "gae",
    "import_minari",
    "import_parquet",
    "merge",
    "repair",
    "to_torch",
    "verify",
]

_HOMES = {
    "ArrowRBError": "errors",
    "BatchDataset": "datasets",
    "Checkpoint": "checkpoints",
    "ClosedError": "errors",
    "Collector": "collector",
    "ColumnError": "errors",
    "CorruptError": "errors",
    "EmptyError": "errors",
    "EnvironmentFault": "errors",
    "Episodes": "samplers",
    "Evaluation": "collector",
    "Extra": "schema",
    "FormatError": "errors",
    "FullError": "errors",
    "Hindsight": "samplers",
    "Imported": "importing",
    "LimiterInfo": "limiter",
    "LockedError": "errors",
    "Mixture": "mixture",
    "Monitor": "monitor",
    "OptionError": "errors",
    "Participant": "limiter",
    "Prioritized": "samplers",
    "PrioritizedSequences": "samplers",
    "Query": "sql",
    "QueryError": "errors",
    "ReadOnlyError": "errors",
    "Recorder": "recorder",
    "RowError": "errors",
    "RunInfo": "monitor",
    "SampleToInsertRatio": "limiter",
    "Sampler": "sampler",
    "SamplerInfo": "info",
    "Schema": "schema",
    "SchemaError": "errors",
    "Sequences": "samplers",
    "Shuffled": "samplers",
    "Step": "collector",
    "Store": "store",
    "StoreError": "errors",
    "StoreExistsError": "errors",
    "StoreInfo": "info",
    "StoreNotFoundError": "errors",
    "Uniform": "samplers",
    "UsageError": "errors",
    "WaitError": "errors",
    "WorkerError": "errors",
    "Watermark": "arrivals",
    "Weighted": "samplers",
    "Where": "samplers",
    "evaluate": "collector",
    "gae": "advantages",
    "import_minari": "importing",
    "import_parquet": "importing",
    "merge": "importing",
    "to_torch": "loader",
    "repair": "upkeep",
    "verify": "upkeep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_HOMES, *(name for name in globals() if name.startswith("__"))})
