"""Readers beside a writer that replaces the manifest and moves segments faster than they look."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from arrowrb import files
from arrowrb.engine import segments
from arrowrb.engine.shard_reader import ShardReader
from arrowrb.errors import StoreError
from arrowrb.manifest import SegmentEntry
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema


def test_a_file_that_is_held_keeps_its_stamp(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.publish(path, b"abc", sync=False)
    os.utime(path, ns=(5, 5))
    held = files.Mapping(path)
    assert files.stamp_of(os.stat(path)) == held.stamp
    for _ in range(20):  # a file system gives the inode of the last but one again, and the clock may stand still
        files.publish(path, b"abd", sync=False)
        os.utime(path, ns=(5, 5))
        assert files.stamp_of(os.stat(path)) != held.stamp


class _Vanishing:
    """A look at segments that finds the newest one gone, some times, as when it moves again and again."""

    def __init__(self, reader: ShardReader, times: int, manifest: Path, *, replaced: bool) -> None:
        self._map, self._times, self._manifest, self._replaced = reader._map, times, manifest, replaced
        self.mapped: list[int] = []

    def __call__(self, entry: SegmentEntry) -> Any:
        if self._times and self.mapped:
            self._times -= 1
            if self._replaced:
                files.publish(self._manifest, self._manifest.read_bytes(), sync=False)
            raise StoreError(2, "No such file or directory", entry.name) from FileNotFoundError()
        self.mapped.append(entry.number)
        return self._map(entry)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_segment_that_is_gone_whenever_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr(segments, "shape_segment", lambda **_: SegmentShape(256, 64))
    with Store.create(tmp_path / "store", plain_schema()) as store, Store.open(store.path, mode="r") as other:
        reader = other._engine._readers[0]
        store.extend(plain_batch(900))
        look = _Vanishing(reader, 50, store.path / "shards/00000/manifest.json", replaced=replaced)
        monkeypatch.setattr(reader, "_map", look)
        if not replaced:  # the manifest lists a file that is not there: nobody has moved it
            with pytest.raises(StoreError, match="No such file"):
                len(other)
            return
        assert len(other) == 900
        assert len(look.mapped) == len(set(look.mapped)) > 2, "mapped once, however often it had to look again"
