"""Compiled loops: ingest, draw, gather. They know addresses, not files.

Numba is slow to import, and much of arrowrb (the command line's ``info``, SQL, a reader's ``len``) never needs it, so
a kernel's module is loaded when its first kernel is used. Compiled code is cached beside the modules where the
installation is writable, and compiled anew in each process where it is not.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from typing import Any, Final

from ..interrupts import Uninterrupted

_HOMES: Final = {
    "find_after": "arriving",
    "sum_advantages": "arriving",
    "cut": "placing",
    "evacuate": "placing",
    "ingest": "placing",
    "survey": "surveying",
    "wipe": "surveying",
    "advance": "surveying",
    "build_domain": "drawing",
    "draw": "drawing",
    "fill_bits": "drawing",
    "fill_uniform": "drawing",
    "find_missing": "gathering",
    "gather": "gathering",
    "locate": "gathering",
    "TREE_FIELDS": "priorities",
    "MOST_LEVELS": "priorities",
    "LEAVES": "priorities",
    "FAN": "priorities",
    "admit": "priorities",
    "admit_rows": "priorities",
    "draw_weighted": "priorities",
    "mend_roots": "priorities",
    "set_priorities": "priorities",
    "sift": "gathering",
    "to_raw": "priorities",
    "weigh": "priorities",
    "UNKNOWN": "walking",
    "WRONG": "walking",
    "check_links": "walking",
    "discount": "summing",
    "find_slots": "walking",
    "finish_steps": "summing",
    "link_blocks": "walking",
    "part_steps": "walking",
    "THERE": "walking",
    "ACTS": "walking",
    "ENDS": "walking",
    "sum_backwards": "summing",
    "sum_steps": "summing",
    "walk_back": "walking",
    "walk_forward": "walking",
    "COUNT_FIELDS": "starting",
    "WORLD_FIELDS": "walking",
    "count_starts": "starting",
    "draw_starts": "starting",
    "sum_starts": "starting",
    "bound_episodes": "goals",
    "find_goals": "goals",
    "ROUNDS": "shuffling",
    "LEAST_HALF_BITS": "shuffling",
    "draw_shuffled": "shuffling",
    "draw_blocks": "blocks",
    "draw_listed": "listing",
    "go_back": "listing",
    "mark_rows": "listing",
    "CRC_TABLE": "crc",
    "crc32": "crc",
    "checksum_blocks": "checking",
    "find_disorder": "checking",
    "same_items": "checking",
    "count_missing": "mixing",
    "find_places": "mixing",
    "gather_found": "mixing",
    "gather_places": "mixing",
    "CHUNK_FIELDS": "footers",
    "read_chunks": "footers",
    "read_packed": "packed",
    "RUN_BYTES": "pages",
    "encode_levels": "pages",
    "decode_definitions": "pages",
    "lz4_size": "pages",
    "read_header": "pages",
    "join_32": "pages",
    "join_64": "pages",
    "split_32": "pages",
    "split_64": "pages",
    "fence": "memory",
    "add_to": "counting",
    "raise_to": "counting",
    "take_over": "counting",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _loading, Uninterrupted():  # LLVM calls Python back, where a Ctrl-C would be swallowed
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


# A process that is forked while a thread loads kernels would find the locks of imports and of Numba taken for ever.
_loading = threading.RLock()
os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)
