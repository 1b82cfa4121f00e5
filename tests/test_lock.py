"""The writer's lock, and what drops it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from crash_child import SCHEMA, rows

from arrowrb.errors import LockedError, ReadOnlyError
from arrowrb.store import Store

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
