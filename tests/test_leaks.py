"""Descriptors, mappings, files and objects do not grow with commits (`benchmarks/leaks.py` goes on for a million)."""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from arrowrb import unmapping
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema
from tests.test_tiers import settle

COMMITS, LOOKS = 20_000, 10


def count(path: Path) -> dict[str, int]:
    gc.collect()
    while unmapping.num_waiting():
        time.sleep(0.001)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings of the store": Path("/proc/self/maps").read_text().count(str(path)),
        "files": sum(1 for _ in path.rglob("*")),
        "objects": len(gc.get_objects()),
    }


@pytest.mark.filterwarnings("ignore:.*do not go on where.*:UserWarning")
def test_nothing_grows_with_commits() -> None:
    batch = plain_batch(400)
    parts = [{name: values[first : first + 1] for name, values in batch.items()} for first in range(400)]
    marks: list[dict[str, int]] = []
    # 187 rows a segment, or less: about a hundred of them move to the cold tier and are dropped.
    with (
        Store.temporary(plain_schema(), hot_rows=1000, max_rows=3000) as store,
        Store.open(store.path, cache_bytes=1 << 16) as reader,
    ):
        held = deque[Any](maxlen=3)
        for number in range(COMMITS):
            store.extend(parts[number % len(parts)])
            if number % 400 == 0:
                held.append((reader._engine.snapshot(), reader.sample(16)))
                reader.sql("SELECT avg(reward) FROM transitions WHERE step < 3", threads=1).fetchall()
            if number % 2000 == 0:
                reader.sql("SELECT avg(length) FROM episodes", threads=1).fetchall()
            if (number + 1) % (COMMITS // LOOKS) == 0:
                held.clear()
                store.maintain()
                settle(store)
                assert len(reader) == len(store)
                marks.append(count(store.path))
        info, evicted = store.info(), store._engine.manifests()[0].evicted
        assert info.num_segments["cold"] > 5
        assert evicted.num_segments > 80
    most = {"descriptors": 2, "mappings of the store": 8, "files": 12, "objects": 500}
    for what, slack in most.items():
        found = [mark[what] for mark in marks[2:]]  # the first ones fill the cache, and load what is loaded lazily
        assert max(found) - min(found) <= slack, (what, found)
