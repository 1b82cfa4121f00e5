"""Backups: copies that open, of a store that goes on being written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import arrowrb
from arrowrb import checkpoints
from arrowrb.cli import app
from arrowrb.engine import backup
from arrowrb.errors import ClosedError, CorruptError, FullError, OptionError, StoreExistsError
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema
from tests.test_checkpoints import shown
from tests.test_sql import rich_schema, write_rich
from tests.test_tiers import create, fill, reopen, settle, small_segments, tiers_of

__all__ = ["small_segments"]  # a fixture


@pytest.mark.parametrize("hot_rows", [None, 1])
def test_a_copy_is_the_store(tmp_path: Path, hot_rows: int | None) -> None:
    store = create(tmp_path / "store", rich_schema(), hot_rows=hot_rows)
    rng = np.random.default_rng(1)
    for lane in (0, 3, 1, 0, 3) * 3:
        write_rich(store, rng, 45, lane)
    store.checkpoint("a", state=5)
    expected = shown(store)
    done = store.backup(tmp_path / "copies/one")
    assert done.num_transitions == len(store)
    assert done.linked_bytes > 0
    assert done.num_files == sum(len(names) for _, _, names in os.walk(done.path))
    for lane in (0, 3, 7):
        write_rich(store, rng, 45, lane)
    after = shown(store)
    store.close()
    copy = Store.open(done.path)
    assert shown(copy) == expected
    assert copy.restore() == (None, 5)
    assert copy.verify()
    copy.close()
    with reopen(done.path, hot_rows=1) as copy:  # it goes on, and the first does not notice
        for lane in (0, 3, 1, 2) * 5:
            write_rich(copy, rng, 45, lane)
        assert tiers_of(copy)["cold"] > 3
        assert set(expected["transitions"]) <= set(shown(copy)["transitions"])
        assert copy.verify()
    with Store.open(store.path) as first:
        assert first.verify()
        assert shown(first)["transitions"] == after["transitions"]
    shutil.rmtree(store.path)
    with Store.open(done.path) as copy:
        assert copy.verify()


def test_beside_a_writer_that_moves_and_drops(tmp_path: Path) -> None:
    """Each copy is one commit: all rows up to it and no others."""
    store = create(tmp_path / "store", hot_rows=1, max_rows=1000)
    stop, errors = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            seed = 0
            while not stop.is_set():
                fill(store, 200, seed)
                seed += 1
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with Store.open(store.path) as reader:
            for number in range(8):
                path = tmp_path / str(number)
                (reader if number % 2 else store).backup(path)
                with Store.open(path) as copy:
                    assert copy.verify()
                    ordinals = copy.sql("SELECT ordinal FROM steps ORDER BY 1").arrow()["ordinal"].to_numpy()
                    assert len(copy) == copy.sql("SELECT count(*) FROM transitions").fetchall()[0][0]
                    if ordinals.size:
                        copy.sample(10)
                with reopen(path) as copy:
                    fill(copy, 100)
                    assert copy.verify()
                shutil.rmtree(path)
    finally:
        stop.set()
        thread.join()
    store.close()
    assert not errors


def test_on_another_disk_all_is_copied(tmp_path: Path) -> None:
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        with create(tmp_path / "store", hot_rows=1) as store:
            fill(store, 500)
            settle(store)
            if os.stat(elsewhere).st_dev == os.stat(tmp_path).st_dev:
                raise RuntimeError("both folders are on one disk, which this test cannot use")
            done = store.backup(elsewhere / "copy")
            assert done.linked_bytes == 0
            assert done.copied_bytes > 0
            with Store.open(done.path) as copy:
                assert shown(copy) == shown(store)
    finally:
        shutil.rmtree(elsewhere)


@pytest.mark.parametrize("hot_rows", [None, 1])
def test_checkpoints_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hot_rows: int | None) -> None:
    """A copy has no point of rows that it has not: later ones would take their place."""
    store = create(tmp_path / "store", rich_schema(), hot_rows=hot_rows)
    rng = np.random.default_rng(1)
    write_rich(store, rng, 45, 0)
    store.checkpoint("agent", state=45)
    real = backup._copy_shard

    def goes_on(*arguments: Any) -> int:
        copied = real(*arguments)
        write_rich(store, rng, 45, 0)
        store.checkpoint("agent", state=len(store))
        store.checkpoint("other", state=len(store))
        return copied

    monkeypatch.setattr(backup, "_copy_shard", goes_on)
    done = store.backup(tmp_path / "copy")
    store.close()
    with Store.open(done.path) as copy:
        assert [(point.name, point.num_transitions) for point in copy.checkpoints()] == [("agent", 45)]
        assert copy.restore("agent") == (None, 45)
    with Store.open(done.path, at="agent") as then:
        assert len(then) == 45
    assert done.num_files == sum(len(names) for _, _, names in os.walk(done.path))


def test_checkpoints_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(tmp_path / "store", rich_schema())
    write_rich(store, np.random.default_rng(1), 45, 0)
    for name in "abc":
        store.checkpoint(name, state=45)
    real = checkpoints.names

    def removed(path: Path) -> list[str]:
        found = real(path)
        if "b" in found:
            store.remove_checkpoint("b")
        return found

    monkeypatch.setattr(checkpoints, "names", removed)
    done = store.backup(tmp_path / "copy")
    store.close()
    with Store.open(done.path) as copy:
        assert [point.name for point in copy.checkpoints()] == ["a", "c"]


@pytest.mark.parametrize("times", [1, 10])
def test_checkpoints_that_keep_rows_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Rows that a point keeps are there, or it is not: by the time they are copied they may have been dropped."""
    store = create(tmp_path / "store", rich_schema(), max_rows=200)
    rng = np.random.default_rng(1)
    write_rich(store, rng, 45, 0)
    store.checkpoint("agent", state=45, keep=True)
    real, done = backup._copy_shard, 0

    def drops(*arguments: Any) -> int:
        nonlocal done
        if done < times:
            done += 1
            for lane in (0, 1, 2, 3) * 5:
                write_rich(store, rng, 45, lane)
            store.checkpoint("agent", state=len(store), keep=True)
            for lane in (0, 1, 2, 3) * 5:
                write_rich(store, rng, 45, lane)
            settle(store)
        return real(*arguments)

    monkeypatch.setattr(backup, "_copy_shard", drops)
    made = store.backup(tmp_path / "copy")
    store.close()
    assert made.num_files == sum(len(names) for _, _, names in os.walk(made.path))
    with Store.open(made.path) as copy:
        assert copy.verify()
        names = [point.name for point in copy.checkpoints()]
        assert names == (["agent"] if times == 1 else [])
        expected = copy.restore("agent")[1] if names else 0
    if names:
        with Store.open(made.path, at="agent") as then:
            assert len(then) == expected


def test_where_no_copy_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 100)
        for target, error in (
            (tmp_path, StoreExistsError),
            (store.path, StoreExistsError),
            (store.path / "copy", StoreExistsError),
            (store.path / "shards/copy", StoreExistsError),
            ("a\0b", OptionError),
            (5, OptionError),
        ):
            with pytest.raises(error):
                store.backup(target)  # type: ignore[arg-type]

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(backup._Copying, "copy", full)
        with pytest.raises(FullError):
            store.backup(tmp_path / "a/b/copy")
        assert sorted(os.listdir(tmp_path)) == ["store"]
        assert store.verify()
    with pytest.raises(ClosedError):
        store.backup(tmp_path / "copy")


def test_a_damaged_store_is_not_copied(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", plain_schema()) as store:
        store.extend(plain_batch(100))
    with Store.open(tmp_path / "store", mode="r") as store:
        manifest = store.path / "shards/00000/manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:-10])
        with pytest.raises(CorruptError, match=r"manifest\.json"):
            store.backup(tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_the_command(tmp_path: Path) -> None:
    with create(tmp_path / "store") as store:
        fill(store, 100)
        result = CliRunner().invoke(app, ["backup", str(store.path), str(tmp_path / "copy")])
        assert result.exit_code == 0, result.output
        assert "100 transitions" in result.output
    with arrowrb.Store.open(tmp_path / "copy") as copy:
        assert len(copy) == 100
