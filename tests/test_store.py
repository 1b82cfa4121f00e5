"""The store as a whole, seen by somebody who means it no good."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from gymnasium import spaces

from arrowrb.engine import segments
from arrowrb.errors import (
    ArrowRBError,
    ClosedError,
    CorruptError,
    FormatError,
    OptionError,
    ReadOnlyError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
)
from arrowrb.schema import Schema
from arrowrb.store import Store
from tests.crash_child import SCHEMA, check_rows, rows, tiny


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A closed store of 600 rows in several segments, some sealed."""
    monkeypatch.setattr(segments, "shape_segment", tiny)
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        for number in range(0, 600, 50):
            store.extend(rows(number, 50))
    return tmp_path / "store"


def all_rows(store):
    ids = np.unique(store.sample(40 * len(store), columns=[])["row_id"].numpy())
    batch = store.gather(ids)
    order = np.argsort(batch["reward"].numpy())
    batch = store.gather(ids[order])
    check_rows(batch, batch["reward"].numpy().astype(np.int64))
    return batch["reward"].numpy()


def test_closed(path):
    store = Store.open(path, mode="a")
    sampler = store.sampler(batch_size=3)
    snapshot = store._engine.snapshot()
    store.close()
    store.close()
    for use in (
        lambda: len(store),
        lambda: store.sample(3),
        lambda: store.gather([1]),
        lambda: next(sampler),
        lambda: store.extend(rows(0, 1)),
        lambda: store.extend(rows(0, 0)),
        store.flush,
        store.info,
        store.__enter__().info,
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    assert store.closed
    assert "closed" in repr(store)
    assert snapshot.num_transitions == 600


def test_readers_do_not_write(path):
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    script = f"""
import os, sys
opened = []
def hook(event, arguments):
    if {str(path)!r} not in str(arguments):
        return
    if event == "open":
        opened.append((arguments[1], arguments[2]))
    if event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
        opened.append(("w", event))
from arrowrb.store import Store
sys.addaudithook(hook)
store = Store.open({str(path)!r})
assert len(store) == 600
store.info()
try:
    store.extend({{}})
except Exception as error:
    print(type(error).__name__)
store.close()
assert opened
for mode, flags in opened:
    assert mode in (None, "r", "rb"), (mode, flags)
    assert not isinstance(flags, int) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0, flags
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("ReadOnlyError", "ColumnError")
    assert {each: each.read_bytes() for each in path.rglob("*") if each.is_file()} == before
    with Store.open(path) as reader:
        for write in (lambda: reader.extend(rows(0, 1)), lambda: reader.extend(rows(0, 0)), reader.flush):
            with pytest.raises(ReadOnlyError, match='mode="a"'):
                write()


def test_moved_renamed_copied(path, tmp_path):
    moved = path.rename(tmp_path / "moved to ü")
    copy = tmp_path / "copy"
    shutil.copytree(moved, copy)
    for each in (moved, copy):
        with Store.open(each, mode="a") as store:
            store.extend(rows(600, 10))
            assert all_rows(store).tolist() == list(range(610))
    with Store.open(copy, mode="a") as store:
        copy.rename(tmp_path / "gone")
        assert len(store) == 610
        with pytest.raises(StoreError):  # noqa: PT012
            for number in range(610, 20_000, 50):
                store.extend(rows(number, 50))
                store.flush()
        (tmp_path / "gone").rename(copy)
        with pytest.raises(ArrowRBError):  # a sync that failed is final
            store.flush()


def test_what_is_no_store(tmp_path, path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name in ("none", "file", "folder"):
        for mode in ("r", "a"):
            with pytest.raises(StoreNotFoundError, match="is no store"):
                Store.open(tmp_path / name, mode=mode)
    with pytest.raises(OptionError, match="mode"):
        Store.open(path, mode="w")
    with pytest.raises(StoreExistsError, match="Open it with"):
        Store.create(path, SCHEMA)
    with pytest.raises(StoreExistsError):
        Store.create(tmp_path / "file", SCHEMA)
    for bad in (0, -1, float("nan")):
        with pytest.raises(OptionError, match="sync_interval"):
            Store.open(path, mode="a", sync_interval=bad)
    with Store.open(path) as store:
        assert len(store) == 600


def test_create_destroys_nothing(tmp_path, path):
    precious = tmp_path / "mine" / "shards" / "00000" / "data.tar"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    for mine in ("shards/a.tar", "shards/00001/segments/x", "notes.txt", ".hidden"):
        other = tmp_path / mine.replace("/", "-") / mine
        other.parent.mkdir(parents=True)
        other.write_text("precious")
        with pytest.raises(StoreExistsError, match="holds other files"):
            Store.create(tmp_path / mine.replace("/", "-"), SCHEMA)
        assert other.read_text() == "precious"
    with pytest.raises(StoreExistsError):
        Store.create(tmp_path / "mine", SCHEMA)
    assert precious.read_text() == "precious"
    said = (path / "store.json").read_bytes()
    (path / "store.json").unlink()  # not even where a store has lost its head
    with pytest.raises(StoreExistsError):
        Store.create(path, SCHEMA)
    (path / "store.json").write_bytes(said)
    with Store.open(path) as store:
        assert len(store) == 600


def test_a_half_made_store_is_completed(tmp_path):
    with Store.create(tmp_path / "whole", SCHEMA):
        pass
    for number, missing in enumerate(["visible.commit", "durable.commit", "manifest.json", "segments"]):
        half = tmp_path / str(number) / "shards" / "00000"
        half.mkdir(parents=True)
        for name in ("visible.commit", "durable.commit", "manifest.json", ".x.tmp"):
            if name != missing:
                (half / name).write_bytes(b"half")
        if missing != "segments":
            (half / "segments").mkdir()
        with Store.create(tmp_path / str(number), SCHEMA) as store:
            store.extend(rows(0, 10))
            assert len(store) == 10


def test_unwanted_files(path):
    """Others' files in the folders of a store stay; what a crash left goes."""
    folder = path / "shards" / "00000" / "segments"
    (folder / "notes.txt").write_text("mine")
    (folder / "00009999.arrow").write_text("left by a crash")
    (folder / ".00000000.runs.arrow.abc.tmp").write_text("left by a crash")
    with Store.open(path):
        assert (folder / "00009999.arrow").exists()
    with Store.open(path, mode="a") as store:
        assert len(store) == 600
    assert (folder / "notes.txt").exists()
    assert not (folder / "00009999.arrow").exists()
    assert not (folder / ".00000000.runs.arrow.abc.tmp").exists()


def damage(file, rng):
    """Flip a bit, cut, grow, or replace."""
    content = bytearray(file.read_bytes())
    how = rng.integers(0, 5)
    if how <= 1 and content:
        content[rng.integers(0, len(content))] ^= 1 << int(rng.integers(0, 8))
    elif how == 2:
        content = content[: rng.integers(0, len(content) + 1)]
    elif how == 3:
        content += bytes(int(rng.integers(1, 5000)))
    else:
        content = bytearray(rng.integers(0, 256, len(content), dtype=np.uint8).tobytes())
    file.write_bytes(content)


@pytest.mark.parametrize(
    "kind", ["store.json", "manifest.json", "visible.commit", "durable.commit", "seeds", "*.arrow"]
)
def test_damaged_files_of_each_kind(path, tmp_path, kind):
    """An error of ours, or it works; never anything else, and never a crash of the interpreter."""
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    files = sorted(path.rglob(kind))
    assert files
    refused = 0
    for _ in range(25):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        damage(copy / files[rng.integers(0, len(files))].relative_to(path), rng)
        for mode in ("r", "a"):
            try:
                with Store.open(copy, mode=mode) as store:
                    store.info()
                    if len(store):
                        store.sample(50)
                    if mode == "a":
                        store.extend(rows(600, 5))
                        store.flush()
            except ArrowRBError as error:
                refused += 1
                assert str(error)  # noqa: PT017
        shutil.rmtree(copy)
    assert refused or kind in ("seeds", "visible.commit", "durable.commit")


def test_missing_files(path, tmp_path):
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        (copy / file.relative_to(path)).unlink()
        for mode in ("r", "a"):
            try:
                with Store.open(copy, mode=mode) as store:
                    assert len(store) == 600
            except StoreError as error:
                assert file.name.split(".")[0] in str(error) or "shard" in str(error)  # noqa: PT017
        shutil.rmtree(copy)


def test_newer_formats(path):
    content = json.loads((path / "store.json").read_bytes())
    for change in ({"format": 2}, {"features": ["colder"]}):
        (path / "store.json").write_text(json.dumps(content | change))
        with pytest.raises(FormatError, match="Upgrade"):
            Store.open(path)
    for change in (
        {"format": None},
        {"id": 3},
        {"schema": []},
        {"created": "x"},
        {"max_rows": "x"},
        {"schema": {"columns": 1}},
    ):
        (path / "store.json").write_text(json.dumps(content | change))
        with pytest.raises(ArrowRBError):
            Store.open(path)


def test_segments_of_another_store(path, tmp_path):
    with Store.create(tmp_path / "other", SCHEMA) as store:
        for number in range(0, 600, 50):
            store.extend(rows(number, 50))
    name = "shards/00000/segments/00000000.arrow"
    shutil.copy(tmp_path / "other" / name, path / name)
    for mode in ("r", "a"):
        with pytest.raises(CorruptError, match="another segment or store"):
            Store.open(path, mode=mode)


def test_forked_children(tmp_path):
    script = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from tests.crash_child import SCHEMA, rows
from arrowrb.store import Store
store = Store.temporary(SCHEMA)
store.extend(rows(0, 50))
child = os.fork()
if child == 0:
    try:
        store.extend(rows(50, 1))
    except RuntimeError as error:
        print("refused:", error, flush=True)
    assert len(store) == 50
    store.close()
    sys.exit(0)
os.waitpid(child, 0)
assert store.path.exists()
store.extend(rows(50, 50))
print(len(store))
path = store.path
store.close()
assert not path.exists()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "alone may write" in done.stdout
    assert done.stdout.endswith("100\n")


def test_writing_in_other_threads(path):
    with Store.open(path, mode="a") as store:
        errors = []

        def work(lane):
            try:
                for number in range(20):
                    store.extend(rows(number, 3) | {"lane": np.full(3, lane)})
            except Exception as error:
                errors.append(error)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            threads = [threading.Thread(target=work, args=(lane,)) for lane in range(3, 9)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not errors
        assert len(store) == 600 + 6 * 20 * 3


def test_giant_items(tmp_path):
    schema = Schema.from_spaces(spaces.Box(-1, 1, (300_000,), np.float32), spaces.Discrete(2))
    one = {"action": [1], "reward": [0.5], "terminated": [False], "truncated": [False]}
    values = np.random.default_rng(0).normal(size=(2, 1, 300_000)).astype(np.float32)
    with Store.create(tmp_path / "store", schema, sync_interval=None) as store:
        ids = store.extend(one | {"observation": values[0], "next_observation": values[1]})
        batch = store.gather(ids)
        assert batch["observation"].numpy().tobytes() == values[0].tobytes()
        assert batch["next_observation"].numpy().tobytes() == values[1].tobytes()


def test_all_lanes_there_are(tmp_path):
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        count = 1 << 16
        batch = {name: np.repeat(values[:1], count, axis=0) for name, values in rows(0, 1).items()}
        ids = store.extend(batch | {"lane": np.arange(count)})
        assert np.unique(ids).size == count
        assert store.info().num_episodes == count
    with Store.open(tmp_path / "store", mode="a", sync_interval=None) as store:
        assert len(store) == count
        assert store.info().num_rows == 2 * count


@pytest.mark.parametrize("path", [None, 5, ["a"], "a\0b", "\udc80\ud800", b"bytes"])
def test_paths_that_are_none(path):
    for call in (lambda: Store.create(path, SCHEMA), lambda: Store.open(path)):
        with pytest.raises(OptionError, match="path is"):
            call()


def test_arguments_of_other_kinds(path):
    with Store.open(path, mode="a") as store:
        for call in (
            lambda: store.sample(2**40),
            lambda: store.sample(3, columns=5),
            lambda: store.sample(3, columns=[[1]]),
            lambda: store.sample(3, float64=np.zeros((2, 2))),
            lambda: store.sample(3, device=2**70),
            lambda: store.gather([1, [2]]),
            lambda: store.extend(rows(600, 3), contiguous=np.array([True, False, True])),
            lambda: store.sampler(batch_size=4, prefetch=-1),
            lambda: store.sampler(batch_size=4, tiers="cold"),
            lambda: Store.open(path, mode=np.zeros((2, 2))),
            lambda: Store.open(path, hot_rows=10),
            lambda: Store.open(path, cache_bytes=-1),
            lambda: Store.temporary(None),
        ):
            with pytest.raises(ArrowRBError):
                call()
        assert len(store) == 600
    with pytest.raises(StoreError):
        Store.open(path / ("x" * 300))
