"""Making a checkpoint and dropping segments exclude each other; what checkpoints keep is seen by everybody."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from arrowrb import checkpoints
from arrowrb.engine import keeping
from arrowrb.engine.paths import shard_paths
from arrowrb.errors import StoreNotFoundError
from arrowrb.store import Store
from tests.test_shards import SCHEMA, Actor


def test_they_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path, SCHEMA).close()
    Store.open(path, mode="a", shard="one").close()
    first, second = shard_paths(path, 0), shard_paths(path, 1)
    with keeping.dropping(first) as one, keeping.dropping(second) as other, keeping.dropping(first) as again:
        assert (one, other, again) == (True, True, False)
        made = threading.Event()

        def make() -> None:
            with keeping.nothing_is_dropped(path):
                made.set()

        thread = threading.Thread(target=make)
        thread.start()
        assert not made.wait(0.1)
    thread.join()
    assert made.is_set()
    with keeping.nothing_is_dropped(path):
        for paths in (first, second):
            with keeping.dropping(paths) as allowed:
                assert not allowed
        with keeping.no_checkpoint_is_made(path) as alone:
            assert not alone
    with keeping.dropping(second) as allowed, keeping.no_checkpoint_is_made(path) as alone:
        assert (allowed, alone) == (True, True)


def test_what_is_kept_follows_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path, SCHEMA) as main, Store.open(path, mode="a", shard="one") as other:
        kept = keeping.Kept(path, main._engine.file.store_id)
        assert [kept.below(0), kept.below(1)] == [0, 0]
        Actor(1).extend(other, 50)
        main.checkpoint("free")
        assert [kept.below(0), kept.below(1)] == [0, 0]
        for number in range(3):  # within one tick of the clock of files
            main.checkpoint("point", keep=True)
            assert kept.below(1) > 0, number
            main.remove_checkpoint("point")
            assert kept.below(1) == 0, number


def test_an_unfinished_checkpoint_of_another_writer_stays(tmp_path: Path) -> None:
    """A shard that is opened removes what a dead process left, not what a live one is just writing."""
    path = tmp_path / "store"
    with Store.create(path, SCHEMA) as main:
        main.checkpoint("point")
        unfinished = path / "checkpoints" / ".other.safetensors.0123.tmp"
        unfinished.write_bytes(b"half")
        with keeping.nothing_is_dropped(path):
            Store.open(path, mode="a", shard="one").close()
            assert unfinished.exists()
        Store.open(path, mode="a", shard="one").close()
        assert not unfinished.exists()


def test_a_checkpoint_is_removed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    with Store.create(path, SCHEMA) as store:
        Actor(0).extend(store, 50)
        store.checkpoint("one")
        store.checkpoint("two", keep=True)
        kept = keeping.Kept(path, store._engine.file.store_id)
        real = checkpoints.path_of

        def removing(folder: Path, name: str) -> Path:
            found = real(folder, name)
            if name == "one":
                found.unlink()
            return found

        monkeypatch.setattr(checkpoints, "path_of", removing)
        assert [each.name for each in kept.look()] == ["two"]
        with pytest.raises(StoreNotFoundError, match="'one'"):
            store.restore("one")
