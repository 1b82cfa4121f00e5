"""The shared mutable core: shards that are written or followed, and snapshots over all of them.

paths           where things lie
snapshot        what readers see: layout, watermark, draw domain
tables          block and run tables
shard_writer    lock, segments coming and going, durability
reopening       what an earlier writer left
sealing         what is known for good of a closed segment
shard_reader    following a writer through its files
background      the writer's threads
engine          all shards of a store
"""

from __future__ import annotations

from .engine import Engine, create_store, now_microseconds, read_store_file
from .shard_writer import WriterOptions
from .snapshot import Located, Snapshot

__all__ = [
    "Engine",
    "Located",
    "Snapshot",
    "WriterOptions",
    "create_store",
    "now_microseconds",
    "read_store_file",
]
