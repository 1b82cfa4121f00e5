"""The files of named samplers: they outlive processes, are one process's at a time, and damage is told."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import arrowrb
from arrowrb.engine import segments
from arrowrb.errors import CorruptError, FullError, LockedError, OptionError, StoreError
from arrowrb.sizing import SegmentShape
from arrowrb.store import Store
from tests.plain_store import plain_batch, plain_schema

PRIORITIZED = arrowrb.Prioritized(alpha=1.0)


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "shape_segment", lambda **_: SegmentShape(128, 32))


def make(path: Path, rows: int = 300, *, max_rows: int | None = None) -> np.ndarray:
    """A store whose sampler "learner" has given its rows the priorities 1, 2, ...; returns their ids."""
    with Store.create(path, plain_schema(), max_rows=max_rows) as store:
        row_ids = store.extend(plain_batch(rows, 0))
        learner(store).update(row_ids, priority=np.arange(rows) + 1.0)
    return row_ids


def learner(store: Store, **options: object) -> arrowrb.Sampler:
    return store.sampler(PRIORITIZED, batch_size=8, seed=0, name="learner", **options)


def priorities(store: Store, name: str | None = "learner") -> np.ndarray:
    """The priorities of all transitions, in order of row ids."""
    sampler = store.sampler(PRIORITIZED, batch_size=8, name=name)
    raw = sampler.state_dict()["stream"]["priorities"]["raw"]
    ids = [row_id for (row_id,) in store.sql("SELECT row_id FROM transitions ORDER BY row_id").fetchall()]
    return np.array([raw[f"{each >> 48}-{each >> 24 & 0xFFFFFF}"][each & 0xFFFFFF] for each in ids])


def test_closing_and_opening(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with Store.open(tmp_path / "store", mode="a") as store:
        new = store.extend(plain_batch(1, 1))
        assert priorities(store).tolist() == [*np.arange(300) + 1.0, 300.0]
        assert priorities(store, "another").tolist() == [1.0] * 301
        assert priorities(store, None).tolist() == [1.0] * 301
        learner(store).update(new, priority=[1000.0])
    with Store.open(tmp_path / "store") as reader:  # writes none of the shards, but its own folder
        assert priorities(reader)[-1] == 1000.0
        learner(reader).update(new, [-7.0])
        assert priorities(reader)[-1] == np.float32(7 + 1e-6)


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """Nothing is synced, nothing is closed."""
    code = (
        "import os, sys, numpy as np, signal; from pathlib import Path; from tests import test_priority_files as t;"
        "from arrowrb.store import Store;"
        "store = Store.open(sys.argv[1], mode='a'); row_ids = store.extend(t.plain_batch(500, 3));"
        "t.learner(store).update(row_ids, priority=np.arange(500) + 1000.0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    make(tmp_path / "store")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=False, cwd=Path.cwd())
    assert done.returncode == -signal.SIGKILL
    with Store.open(tmp_path / "store", mode="a") as store:
        assert sorted(priorities(store).tolist()) == [*np.arange(300) + 1.0, *np.arange(500) + 1000.0]
        learner(store).update(store.extend(plain_batch(1, 5)), priority=[2.0])


def _try(path: Path, pipe: object) -> None:
    with Store.open(path) as store:
        try:
            learner(store)
            told = "taken"
        except LockedError as error:
            told = str(error)
        pipe.send(told)  # type: ignore[attr-defined]


def other_process(path: Path) -> str:
    """What another process is told that wants the same sampler."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_try, args=(path, theirs))
    process.start()
    told: str = ours.recv()
    process.join()
    return told


def test_one_at_a_time(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with Store.open(tmp_path / "store", mode="a") as store, Store.open(tmp_path / "store") as reader:
        sampler = learner(store)
        told = other_process(tmp_path / "store")
        assert f"'learner' of {tmp_path / 'store'} is in use by process {os.getpid()}" in told
        assert "another name" in told
        with pytest.raises(LockedError, match="this process"):
            learner(reader)
        with pytest.raises(OptionError, match="another sampler of this store"):
            learner(store)
        del sampler
        assert other_process(tmp_path / "store") == "taken"
        held = learner(reader)
        reader.close()
        assert learner(store).sample()["row_id"].shape == (8,)
        assert held.name == "learner"


def test_files_go_with_their_segments(tmp_path: Path) -> None:
    make(tmp_path / "store", max_rows=1000)
    with Store.open(tmp_path / "store", mode="a") as store:
        sampler = learner(store)
        for seed in range(20):
            store.extend(plain_batch(300, seed))
            store.maintain()
            sampler.sample()
            there = {path.name for path in (tmp_path / "store" / "samplers" / "learner").glob("*.priorities")}
            views = store._engine.snapshot().layout.views
            assert there == {f"00000-{view.entry.number:08d}.priorities" for view in views}
        assert len(there) < 20
        del sampler
        for seed in range(20):
            store.extend(plain_batch(300, seed))
        store.maintain()
    with Store.open(tmp_path / "store") as store:  # nobody drew while segments went
        learner(store).sample()
        there = {path.name for path in (tmp_path / "store" / "samplers" / "learner").glob("*.priorities")}
        assert len(there) == len(store._engine.snapshot().layout.views)


def damage_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def of_another_store(path: Path) -> None:
    make(path.with_name("other"))
    shutil.copyfile(path.with_name("other") / "samplers" / "learner" / path.name, path)


def nan(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[64:68] = np.float32(np.nan).tobytes()
    path.write_bytes(content)


def negative(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(-0.5).tobytes()
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


@pytest.mark.parametrize("how", [damage_header, cut, empty, of_another_store, nan, negative, link])
def test_damage(tmp_path: Path, how) -> None:
    """It is named, the rest of the store works, and after a repair the rows of that segment are new ones."""
    make(tmp_path / "store")
    path = tmp_path / "store" / "samplers" / "learner" / "00000-00000001.priorities"
    how(path)
    with Store.open(tmp_path / "store", mode="a") as store:
        assert len(store.sample(4)["row_id"]) == 4
        with pytest.raises(StoreError, match=path.name):
            learner(store).sample()
        with pytest.raises(StoreError, match=path.name):
            learner(store).sample()
        found = store.verify()
        assert [problem.file for problem in found.problems] == [f"samplers/learner/{path.name}"]
    repaired = arrowrb.repair(tmp_path / "store")
    assert repaired.after
    assert not repaired.lost
    with Store.open(tmp_path / "store") as store:
        kept = priorities(store)
        first = store.sql("SELECT count(*) FROM transitions WHERE row_id < (1 << 24)").fetchall()[0][0]
        assert kept[:first].tolist() == (np.arange(first) + 1.0).tolist()
        assert 300.0 in kept[first:]


def test_the_largest_is_damaged(tmp_path: Path) -> None:
    make(tmp_path / "store")
    path = tmp_path / "store" / "samplers" / "learner" / "largest"
    damage_header(path)
    with Store.open(tmp_path / "store") as store, pytest.raises(CorruptError, match="largest"):
        learner(store)
    assert [problem.file for problem in arrowrb.verify(tmp_path / "store").problems] == ["samplers/learner/largest"]
    assert arrowrb.repair(tmp_path / "store").after
    with Store.open(tmp_path / "store") as store:
        assert priorities(store).tolist() == (np.arange(300) + 1.0).tolist()


def test_folders_that_are_links(tmp_path: Path) -> None:
    make(tmp_path / "store")
    folder = tmp_path / "store" / "samplers" / "learner"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with Store.open(tmp_path / "store") as store, pytest.raises(CorruptError, match="is a link"):
        learner(store)


def test_a_store_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "store", plain_schema()) as store:
        store.extend(plain_batch(30, 0))
    with Store.open(tmp_path / "store") as store:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(StoreError, match="Permission denied while making the folder of a sampler"):
            learner(store)
        assert store.sampler(PRIORITIZED, batch_size=4).sample()["weight"].tolist() == [1.0] * 4


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new segment finds no room for its priorities; when there is room, all goes on."""
    make(tmp_path / "store")
    with Store.open(tmp_path / "store", mode="a") as store:
        sampler = learner(store)
        sampler.sample()
        new = store.extend(plain_batch(500, 2))
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", _no_room)
            for _ in range(2):
                with pytest.raises(FullError, match=r"priorities"):
                    sampler.sample()
        sampler.update(new, priority=np.arange(500) + 500.0)
        del sampler
        assert sorted(priorities(store).tolist()) == [*np.arange(300) + 1.0, *np.arange(500) + 500.0]
        assert not list((tmp_path / "store" / "samplers" / "learner").glob(".*"))


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_store_as_it_was(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with Store.open(tmp_path / "store", mode="a") as store:
        store.checkpoint("point")
        store.extend(plain_batch(100, 1))
        now = priorities(store)
        with Store.open(tmp_path / "store", at="point") as past:
            sampler = learner(past)  # beside the one of now: in memory
            assert learner(store).sample()["row_id"].shape == (8,)
            sampler.update(sampler.sample()["row_id"], priority=[9999.0] * 8)
        assert priorities(store).tolist() == now.tolist()


def test_backups_hold_them(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with Store.open(tmp_path / "store", mode="a") as store:
        sampler = learner(store)
        store.backup(tmp_path / "copy")
        sampler.update(sampler.sample()["row_id"], priority=[9999.0] * 8)
    assert arrowrb.verify(tmp_path / "copy")
    with Store.open(tmp_path / "copy", mode="a") as copy:
        assert priorities(copy).tolist() == (np.arange(300) + 1.0).tolist()


def test_points_hold_them_before_the_first_draw(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with Store.open(tmp_path / "store", mode="a") as store:
        sampler = learner(store)
        store.checkpoint("point")
        sampler.update(sampler.sample()["row_id"], priority=[9999.0] * 8)
        store.restore("point")
        del sampler
        assert priorities(store).tolist() == (np.arange(300) + 1.0).tolist()
