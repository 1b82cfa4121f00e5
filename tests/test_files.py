"""Publishing, allocating, mapping and locking."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from arrowrb import files
from arrowrb.errors import CorruptError, FullError, LockedError, StoreError
from arrowrb.files import Lock, Mapping, allocate, open_file, publish, read_file, read_holder


def test_publish_replaces_or_leaves(tmp_path, monkeypatch):
    path = tmp_path / "file"
    publish(path, b"one")
    publish(path, b"two")
    assert path.read_bytes() == b"two"
    for name in ("fsync", "rename"):
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="writing file"):  # noqa: PT012
            patch.setattr(os, name, _fail(errno.EIO))
            publish(path, b"three")
        assert [each.name for each in tmp_path.iterdir()] == ["file"]
        assert path.read_bytes() == b"two"


def _fail(code):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "posix_fallocate", _fail(code))
    with pytest.raises(FullError, match="free space") as caught:
        allocate(tmp_path / "file", 100)
    assert caught.value.errno == code
    assert not list(tmp_path.iterdir())


def test_allocate(tmp_path):
    descriptor = allocate(tmp_path / "file", 10_000)
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == bytes(10_000)
    assert (tmp_path / "file").stat().st_blocks * 512 >= 10_000
    with pytest.raises(StoreError, match="allocating"):
        allocate(tmp_path / "file", 10)


def num_descriptors():
    return len(os.listdir("/proc/self/fd"))


def is_mapped(path):
    with open("/proc/self/maps") as maps:
        return str(path) in maps.read()


def wait_until_unmapped(path):
    """A thread does it."""
    patience = time.monotonic() + 20
    while is_mapped(path):
        assert time.monotonic() < patience
        time.sleep(0.001)


def test_mappings_live_as_long_as_arrays_over_them(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.arange(1000, dtype="<i8").tobytes())
    before = num_descriptors()
    array = Mapping(path).array(8, 999, "<i8")[5:]
    assert num_descriptors() == before
    path.unlink()
    gc.collect()
    assert array[0] == 6
    assert is_mapped(path)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    del array
    gc.collect()
    wait_until_unmapped(path)


def test_writable_mappings(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64))
    mapping = Mapping(path, writable=True, size=64)
    mapping.array(0, 64, "u1")[:] = 7
    assert path.read_bytes() == b"\7" * 64
    mapping.clear(1, 63)
    assert path.read_bytes() == b"\7" + bytes(62) + b"\7"
    for first, stop in ((-1, 3), (5, 4), (0, 65)):
        with pytest.raises(CorruptError):
            mapping.clear(first, stop)
    with pytest.raises(CorruptError, match="cannot be cleared"):
        Mapping(path).clear(0, 1)


@pytest.mark.parametrize(("offset", "count"), [(0, 9), (8, 8), (-8, 1), (64, 1), (0, -1), (0, 1 << 60)])
def test_windows_stay_inside(tmp_path, offset, count):
    path = tmp_path / "file"
    path.write_bytes(bytes(64))
    with pytest.raises(CorruptError):
        Mapping(path).array(offset, count, "<i8")


def test_what_is_no_plain_file_is_refused(tmp_path):
    (tmp_path / "real").write_bytes(bytes(10))
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    for name in ("link", "pipe", "folder", "none", "empty"):
        with pytest.raises(StoreError):
            Mapping(tmp_path / name)
    for name in ("link", "pipe", "folder", "none"):
        with pytest.raises(StoreError):
            read_file(tmp_path / name, "reading")
    with pytest.raises(CorruptError, match="no regular file"):
        open_file(tmp_path / "pipe")
    with pytest.raises(CorruptError, match="expected 11"):
        Mapping(tmp_path / "real", size=11)
    with pytest.raises(CorruptError, match="at most 9"):
        read_file(tmp_path / "real", "reading", most=9)
    assert read_file(tmp_path / "real", "reading", most=10) == bytes(10)


def try_lock(tmp_path):
    """What another process gets."""
    code = (
        "import sys; from pathlib import Path; from arrowrb.files import Lock; p = Path(sys.argv[1]);"
        "Lock(p / 'lock', p / 'writer.json', what='It is held', remedy='Wait.'); print('taken')"
    )
    return subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)


def test_locks(tmp_path):
    lock = Lock(tmp_path / "lock", tmp_path / "writer.json", what="It is held", remedy="Wait.")
    assert read_holder(tmp_path / "writer.json").pid == os.getpid()
    with pytest.raises(LockedError, match=rf"this process \(pid {os.getpid()}\).*since"):
        Lock(tmp_path / "lock", tmp_path / "writer.json", what="It is held", remedy="Wait.")
    refused = try_lock(tmp_path)
    assert f"process {os.getpid()} (pid {os.getpid()})" in refused.stderr
    lock.release()
    lock.release()
    assert not (tmp_path / "writer.json").exists()
    assert try_lock(tmp_path).stdout == "taken\n"
    Lock(tmp_path / "lock", tmp_path / "writer.json", what="It is held", remedy="Wait.").release()


def test_a_forked_child_is_another_process(tmp_path):
    lock = Lock(tmp_path / "lock", tmp_path / "writer.json", what="It is held", remedy="Wait.")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lock.release()
            Lock(tmp_path / "lock", tmp_path / "writer.json", what="It is held", remedy="Wait.")
            os.write(write, b"taken")
        except LockedError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert f"by process {os.getpid()} (pid {os.getpid()})" in answer
    assert "(pid" in try_lock(tmp_path).stderr  # still held
    lock.release()


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b'{"pid": "x"}', b"\xff", b"[" * 100_000])
def test_holders_that_cannot_be_read(tmp_path, content):
    (tmp_path / "writer.json").write_bytes(content)
    assert read_holder(tmp_path / "writer.json") is None


def test_boot_id():
    assert len(files.boot_id()) == 16
    assert files.boot_id() == files.boot_id()


def test_a_process_that_died_is_not_alive():
    assert files.is_alive(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()  # it has closed it: nothing is left but to die
        for _ in range(1000):
            if not files.is_alive(process.pid):
                break
            time.sleep(0.01)
        assert not files.is_alive(process.pid), "it waits to be asked about, and is dead"
    assert not files.is_alive(process.pid)


def test_no_function_runs_where_a_mapping_goes(tmp_path: Path) -> None:
    """A Ctrl-C that fell into one would be lost. The memory is unmapped nevertheless, and soon."""
    path = tmp_path / "mapped"
    path.write_bytes(bytes(1 << 20))
    calls: list[str] = []
    mapping: files.Mapping | None = files.Mapping(path)
    sys.setprofile(lambda frame, event, _: calls.append(f"{event} {frame.f_code.co_name}"))
    mapping = None
    sys.setprofile(None)
    assert mapping is None
    assert [call for call in calls if call.startswith("call")] == []
    wait_until_unmapped(path)


def test_a_forked_process_unmaps_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(1 << 20))
    files.Mapping(path)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            files.Mapping(path)
            wait_until_unmapped(path)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
