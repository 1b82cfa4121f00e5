"""Row ids, kinds of row, and ends of episodes: the vocabulary in which all other modules speak of rows.

A row id is an address that is never reused: ``shard << 48 | segment << POSITION_BITS | position``. It says where
a row lies, not when it came: time is the ``ordinal``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

SHARD_SHIFT: Final = 48
POSITION_BITS: Final = 24
MAX_SHARDS: Final = 1 << 15
EPISODE_SHIFT: Final = 40
MAX_SEGMENTS: Final = 1 << (SHARD_SHIFT - POSITION_BITS)
MAX_SEGMENT_ROWS: Final = 1 << POSITION_BITS


class Kind(IntEnum):
    """What a committed row is (column ``kind``)."""

    NONE = 0  # not committed; may hold the newest observation of a running episode
    TRANSITION = 1
    FINAL = 2  # tail: the final observation of an episode that ended
    CONTINUED = 3  # tail at a block's end: the episode goes on in the lane's next block
    CUT = 4  # tail: the episode was abandoned; not an environment's truncation


class End(IntEnum):
    """How a run of rows ends (run tables and the view ``episodes``)."""

    RUNNING = 0  # the newest rows of an episode that goes on
    TERMINATED = 1
    TRUNCATED = 2
    BOTH = 3  # terminated and truncated at the same step
    CUT = 4
    CONTINUED = 5  # goes on in the lane's next block


def first_episode(shard: int) -> int:
    """The id of the first episode of a shard; those of others lie elsewhere."""
    return shard << EPISODE_SHIFT


def pack_row_id(shard: int, segment: int, position: int) -> int:
    """The row id of a position in a segment of a shard."""
    return shard << SHARD_SHIFT | segment << POSITION_BITS | position


def row_id_base(shard: int, segment: int) -> int:
    """The row id of a segment's first row; the others follow by position."""
    return pack_row_id(shard, segment, 0)
