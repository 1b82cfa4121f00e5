"""Hot segment files: valid Arrow at every moment, aligned, and refused where they are not what was asked for."""

from __future__ import annotations

import errno
import os

import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces

from arrowrb.errors import CorruptError, FullError, StoreError
from arrowrb.schema import Extra, Schema
from arrowrb.store import Store
from arrowrb.tiers import hot
from tests.model import SCHEMA, as_batch, random_observations, random_outcomes

WIDE = Schema.from_spaces(
    spaces.Dict(
        {
            "image": spaces.Box(0, 255, (7, 5, 3), np.uint8),
            "half": spaces.Box(-1, 1, (3,), np.float16),
            "long": spaces.Box(-1, 1, (2000,), np.float64),
            "flags": spaces.MultiBinary(5),
        }
    ),
    spaces.Discrete(3),
    extras={
        "state": Extra("bfloat16", (2, 3), owner="observation"),
        "seen": Extra("bool"),
        "maybe": Extra("int16", (2,), nullable=True),
    },
    reward=("float32", (2,)),
)


@pytest.fixture(params=[SCHEMA, WIDE], ids=["small", "wide"])
def made(request, tmp_path):
    """(path, schema, size of the file)"""
    path = tmp_path / "00000000.arrow"
    size = hot.create(path, request.param, "store/0/0", 128, 16, sync=True)
    return path, request.param, size


def test_fresh_files_are_zeros(made):
    path, schema, size = made
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 >= size
    for reader in (pa.ipc.open_file, pa.ipc.open_stream):
        with pa.memory_map(str(path)) as source:
            if reader is pa.ipc.open_stream:
                source.seek(8)
            table = reader(source).read_all()
        table.validate(full=True)
        assert table.num_rows == 128
        assert table.schema.equals(schema.arrow_schema, check_metadata=False)
        assert set(table["kind"].to_pylist()) == {0}
        assert all(column.null_count == 0 for column in table.columns)


def test_columns_are_aligned(made):
    path, schema, size = made
    segment = hot.open_segment(path, schema, "store/0/0", 128, size)
    assert segment.offsets[0] % 4096 == 0
    assert (segment.offsets % 64 == 0).all()
    assert (segment.addresses - segment.mapping.address == segment.offsets).all()
    ends = segment.offsets + [128 * column.item_bytes for column in schema.columns]
    assert (ends[:-1] <= segment.offsets[1:]).all()
    assert ends[-1] <= size


def test_what_is_written_is_read_by_bare_arrow(made):
    path, schema, size = made
    segment = hot.open_segment(path, schema, "store/0/0", 128, size, writable=True)
    hot.warm(segment)
    rng = np.random.default_rng(0)
    written = []
    for place, column in enumerate(schema.columns):
        values = segment.column(place)
        assert values.shape == (128, *column.shape)
        assert values.dtype == column.storage
        content = rng.integers(0, 256, 128 * column.item_bytes, dtype=np.uint8)
        values.reshape(-1).view(np.uint8)[:] = content
        written.append(content.tobytes())
        part = content[3 * column.item_bytes : 5 * column.item_bytes]
        assert segment.buffer(place, 3, 5).to_pybytes() == part.tobytes()
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        batch.validate(full=True)
        for array, content in zip(batch.columns, written, strict=True):
            storage = array.storage if isinstance(array, pa.ExtensionArray) else array
            values = storage.flatten() if pa.types.is_fixed_size_list(storage.type) else storage
            assert values.buffers()[-1].to_pybytes()[: len(content)] == content
    with pytest.raises(CorruptError):
        segment.buffer(0, 0, 129)


def test_valid_while_it_is_written(tmp_path):
    rng = np.random.default_rng(0)
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        for _ in range(20):
            rows = as_batch(random_observations(rng, 100), random_observations(rng, 100), random_outcomes(rng, 100))
            store.extend(rows, lane=rng.integers(0, 4, 100), contiguous=False)
            for path in (tmp_path / "store/shards/00000/segments").glob("*.arrow"):
                with pa.memory_map(str(path)) as source:
                    pa.ipc.open_file(source).read_all().validate(full=True)


def test_others_are_refused(made):
    path, schema, size = made
    wide = WIDE if schema is SCHEMA else SCHEMA
    for arguments, said in (
        ((schema, "other/0/0", 128, size), "another segment or store"),
        ((schema, "store/0/1", 128, size), "another segment or store"),
        ((wide, "store/0/0", 128, size), "schema"),
        ((schema, "store/0/0", 64, size), "expected 64"),
        ((schema, "store/0/0", 128, size + 1), "expected"),
    ):
        with pytest.raises(CorruptError, match=said):
            hot.open_segment(path, *arguments)
    with pytest.raises(StoreError):
        hot.open_segment(path.with_name("none"), schema, "store/0/0", 128, size)


def test_truncated_and_extended_files_are_refused(made):
    path, schema, size = made
    content = path.read_bytes()
    for wrong in (content[:-1], content[: size // 2], content[:100], content + b"\0", b"x"):
        path.write_bytes(wrong)
        with pytest.raises(CorruptError):
            hot.open_segment(path, schema, "store/0/0", 128, size)
        with pytest.raises(CorruptError):  # a manifest that agrees with it does not help
            hot.open_segment(path, schema, "store/0/0", 128, len(wrong))


def test_damaged_headers_never_crash(made):
    """Flips in the metadata: refused, or the columns lie inside the file all the same."""
    path, schema, size = made
    content = path.read_bytes()
    start = int(hot.open_segment(path, schema, "store/0/0", 128, size).offsets[0])
    rng = np.random.default_rng(1)
    meta = np.flatnonzero(np.frombuffer(content, np.uint8)[:start])
    tail = np.arange(size - 1500, size)
    for place in [*rng.choice(meta, 150), *rng.choice(tail, 150)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        try:
            segment = hot.open_segment(path, schema, "store/0/0", 128, size)
        except CorruptError:
            continue
        for index in range(len(schema.columns)):
            segment.column(index).copy()


def test_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("posix_fallocate", "pwrite", "fdatasync"):
        with monkeypatch.context() as patch, pytest.raises(FullError):  # noqa: PT012
            patch.setattr(os, name, full)
            hot.create(tmp_path / "x.arrow", SCHEMA, "a/0/0", 64, 16, sync=True)
        assert not list(tmp_path.iterdir())
