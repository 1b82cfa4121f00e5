"""The shared mutable core: shards that are written or followed, and snapshots over all of them.

paths           where things lie
options         what a store is opened with
creating        a new store, and the file that says which it is
snapshot        what readers see: layout, watermark, draw domain
tables          block and run tables
edges           first rows of blocks, and where episodes go on
patience        waiting for a lock that somebody holds for a moment
pins            how much snapshots hold of files that are gone
state           what a shard consists of at one moment
reading         gathering rows of both tiers; the cache of decoded row groups
tiering         moving a segment to the cold tier, and what eviction leaves
segments        a writer's segments: they come, move and go
shard_writer    lock, what happens after a commit, durability
reopening       what an earlier writer left
sealing         what is known for good of a closed segment
shard_reader    following a writer through its files
past            a shard as it was at an earlier commit
background      the writer's threads
limiter_file    the rule between collecting and sampling, and what it counts
participants    who collects and samples under it
crews           processes that commit for a collector of this one
lookout         whether anybody could still release who waits
limiting        waiting for it
sampler_folders what named samplers keep, each in a folder of its own:
priority_files  priorities,
sample_logs     and which rows went into which batch
engine          all shards of a store
backup          copying a store beside its writer
checks          what is held against what in rows
inspecting      what can be opened of a directory
verifying       holding everything against what is written down about it
rebuilding      what the files tell where manifest or commits cannot be read
repairing       setting aside what is damaged, so that the rest opens
"""

from __future__ import annotations

from ..retention import Action
from .backup import BackedUp, back_up
from .checks import Problem
from .creating import create_store, read_store_file
from .crews import Standing
from .edges import Edges, read_edges, stored_runs
from .engine import Engine
from .limiting import Gate
from .options import (
    DEFAULT_CACHE_BYTES,
    WriterOptions,
    check_cache_bytes,
    check_path,
    check_retention,
    now_microseconds,
    writer_options,
)
from .paths import enclosing_store, is_store, outside_stores
from .patience import patiently
from .priority_files import PriorityFiles, check_values
from .removing import remove_store
from .repairing import Lost, Repaired, repair
from .sample_logs import SampleLog, newest_batch, read_samples
from .sampler_folders import SamplerFolder, sampler_folders
from .shards import MAIN
from .snapshot import Located, SegmentView, Snapshot
from .verifying import Verified, verify

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "MAIN",
    "Action",
    "BackedUp",
    "Edges",
    "Engine",
    "Gate",
    "Located",
    "Lost",
    "PriorityFiles",
    "Problem",
    "Repaired",
    "SampleLog",
    "SamplerFolder",
    "SegmentView",
    "Snapshot",
    "Standing",
    "Verified",
    "WriterOptions",
    "back_up",
    "check_cache_bytes",
    "check_path",
    "check_retention",
    "check_values",
    "create_store",
    "enclosing_store",
    "is_store",
    "newest_batch",
    "now_microseconds",
    "outside_stores",
    "patiently",
    "read_edges",
    "read_samples",
    "read_store_file",
    "remove_store",
    "repair",
    "sampler_folders",
    "stored_runs",
    "verify",
    "writer_options",
]
