"""The writer's lock, and what drops it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from arrowrb.engine import shard_writer
from arrowrb.errors import LockedError, OptionError, ReadOnlyError, StoreError, WaitError
from arrowrb.store import Store
from tests.crash_child import SCHEMA, rows

OPEN = """
import sys
from arrowrb.store import Store
try:
    with Store.open(sys.argv[1], mode="a") as store:
        print("opened", len(store), flush=True)
        sys.stdin.readline()
except OSError as error:
    print(type(error).__name__, error, flush=True)
"""


def other_process(path):
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_dropped_lock_is_taken_again(tmp_path):
    """Copying the folder closes a descriptor of the lock file, which drops a POSIX lock."""
    with Store.create(tmp_path / "store", SCHEMA, sync_interval=None) as store:
        store.extend(rows(0, 30))
        shutil.copytree(store.path, tmp_path / "copy")
        store.extend(rows(30, 30))  # notices
        out, _ = other_process(store.path).communicate(timeout=60)
        assert out.startswith("LockedError")
        assert f"(pid {os.getpid()})" in out


def test_a_lock_that_another_process_took_ends_writing(tmp_path):
    store = Store.create(tmp_path / "store", SCHEMA, sync_interval=None)
    store.extend(rows(0, 30))
    shutil.copytree(store.path, tmp_path / "copy")
    with other_process(store.path) as other:
        assert other.stdout.readline() == "opened 30\n"
        with pytest.raises(LockedError, match=rf"\(pid {other.pid}\)"):
            store.extend(rows(30, 30))
        with pytest.raises(ReadOnlyError, match="its lock was dropped"):
            store.extend(rows(30, 30))
        with pytest.raises(ReadOnlyError, match="its lock was dropped"):
            store.flush()
        store.close()
        other.communicate("\n", timeout=60)
    with Store.open(tmp_path / "store") as reader:
        assert len(reader) == 30


@pytest.mark.usefixtures("no_garbage")
def test_an_interrupted_close_keeps_the_lock_until_its_threads_have_ended(tmp_path, monkeypatch):
    """Ctrl-C while sealing is slow: nobody else may write meanwhile, and no manifest is overwritten later."""
    real = shard_writer.write_tables

    def slow(*arguments, **options):
        time.sleep(1)
        return real(*arguments, **options)

    monkeypatch.setattr(shard_writer, "write_tables", slow)
    path, before = tmp_path / "store", threading.enumerate()
    store = Store.create(path, SCHEMA, sync_interval=None)
    store.extend(rows(0, 20_000), contiguous=False)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        store.close()
    started = [each.name for each in threading.enumerate() if each not in before]
    assert set(started) <= {"arrowrb-unmap"}  # that of the process
    with Store.open(path, mode="a") as again:
        assert len(again) == 20_000


def test_a_close_that_waited_in_vain_can_be_called_again(tmp_path, monkeypatch):
    stuck = threading.Event()
    real = shard_writer.write_tables

    def waiting(*arguments, **options):
        stuck.wait(30)
        return real(*arguments, **options)

    monkeypatch.setattr(shard_writer, "write_tables", waiting)
    monkeypatch.setattr(shard_writer, "PREPARE_TIMEOUT_SECONDS", 0.2)
    path = tmp_path / "store"
    store = Store.create(path, SCHEMA, sync_interval=None)
    store.extend(rows(0, 20_000), contiguous=False)
    with pytest.raises(WaitError):
        store.close()
    with pytest.raises(LockedError):
        Store.open(path, mode="a")
    stuck.set()
    monkeypatch.setattr(shard_writer, "PREPARE_TIMEOUT_SECONDS", 30.0)
    store.close()
    with Store.open(path, mode="a") as again:
        assert len(again) == 20_000


def test_opening_that_fails_gives_the_lock_back(tmp_path):
    path = tmp_path / "store"
    Store.create(path, SCHEMA).close()
    holder = path / "shards" / "00000" / "writer.json"
    holder.mkdir()
    with pytest.raises(StoreError):
        Store.open(path, mode="a")
    holder.rmdir()
    with Store.open(path, mode="a") as store:
        store.extend(rows(0, 10))


def test_a_forked_child_reads_though_the_parent_was_writing(tmp_path):
    script = f"""
import os, sys, threading, time
sys.path[:0] = {sys.path!r}
from tests.crash_child import SCHEMA, rows
from arrowrb.store import Store
store = Store.create({str(tmp_path / "store")!r}, SCHEMA, sync_interval=None)
store.extend(rows(0, 500))
store.sample(4)
def write():
    number = 500
    while True:
        store.extend(rows(number, 100))
        number += 100
threading.Thread(target=write, daemon=True).start()
for _ in range(8):
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        assert len(store) >= 500
        assert store.sample(4)["reward"].shape == (4,)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("done", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("interval", [0, -1, float("inf"), float("nan"), 1e10, "abc", True])
def test_sync_intervals_out_of_range(tmp_path, interval):
    with pytest.raises(OptionError, match="sync_interval"):
        Store.create(tmp_path / "store", SCHEMA, sync_interval=interval)
    assert not (tmp_path / "store").exists()
