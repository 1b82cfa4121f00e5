"""The only place that publishes, allocates, maps, syncs and locks files.

Mappings are made by libc's ``mmap`` without keeping a descriptor, so that a snapshot of thousands of segments
costs no descriptors; the last reference to a `Mapping` (or to an array over it) unmaps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import json
import os
import secrets
import shutil
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import ArrowRBError, CorruptError, FullError, LockedError, StoreError, StoreExistsError
from .unmapping import unmap_with

PROT_READ: Final = 1
PROT_WRITE: Final = 2
MAP_SHARED: Final = 1
MAP_PRIVATE: Final = 2
MAP_ANONYMOUS: Final = 32
MADV_HUGEPAGE: Final = 14
PAGE: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.memset.restype = ctypes.c_void_p
_libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def check_platform() -> None:
    """Refuse machines whose memory order or file calls the format does not describe."""
    if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 2**63 - 1:
        raise StoreError(
            f"arrowrb needs 64-bit little-endian Linux, got {sys.platform}, {sys.byteorder}-endian. "
            "Run it on such a machine; an exported Parquet data set can be read anywhere."
        )


@contextlib.contextmanager
def explaining(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into an error of ours that says what was being done to which file."""
    try:
        yield
    except ArrowRBError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FullError(
                error.errno, f"No room left while {doing}. Nothing committed is lost: free space, then go on", str(path)
            ) from error
        if error.errno is None:  # Arrow's own, about what is in a file
            raise StoreError(f"{path.name}: {error} while {doing}") from error
        raise StoreError(error.errno, f"{error.strerror or error} while {doing}", str(path)) from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with explaining(path, f"syncing the folder {path.name}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def stamp_of(stat: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is replaced: for sure while somebody has it mapped or open, so that its inode stays.

    Otherwise the second to replace it may get the inode of the first again, within one tick of the clock.
    """
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def publish(path: Path, content: bytes, *, sync: bool = True, sync_name: bool = True) -> None:
    """Replace a file atomically: unique temporary name, sync, rename, sync the directory."""
    with publishing(path, sync=sync, sync_name=sync_name) as file:
        file.write(content)


@contextlib.contextmanager
def publishing(
    path: Path, *, sync: bool = True, sync_name: bool = True, verify: Callable[[Path], None] | None = None
) -> Iterator[io.BufferedWriter]:
    """A file to write, which takes its name when the block ends; if that raises, nothing of it is left.

    Args:
        path: the name; what has it is replaced.
        sync: make content and name durable.
        sync_name: False leaves the name to a sync of the directory that follows.
        verify: called with the temporary file when it is whole and synced; may raise.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with explaining(path, f"writing {path.name}"):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            if verify is not None:
                verify(temporary)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        if sync and sync_name:
            sync_directory(path.parent)


def check_vacant(path: Path) -> None:
    """Refuse a name at which no folder can appear: a file, a mount, or a folder that holds something."""
    if path.is_mount():
        raise StoreExistsError(f"{path} is where a disk is mounted. Name a folder to make in it.")
    if path.exists() and not path.is_dir():
        raise StoreExistsError(f"{path} is a file, expected a folder to make or an empty one. Choose another path.")
    if path.is_dir() and any(path.iterdir()):
        raise StoreExistsError(f"{path} is not empty, it holds something else. Choose a new or an empty folder.")


@contextlib.contextmanager
def publishing_folder(path: Path) -> Iterator[Path]:
    """A hidden folder to make and fill, which takes its name when the block ends; if that raises, nothing is left.

    Args:
        path: the name, of nothing or of an empty folder; missing parents may be made. The block makes durable what it
            writes; the name is made so.
    """
    name = os.fsdecode(os.fsencode(path.name)[:200])
    temporary = path.with_name(f".{name}.{secrets.token_hex(6)}.tmp")
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        yield temporary
        with explaining(path, "giving the folder its name"):
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: others use them by now
            for parent in missing:
                parent.rmdir()
        raise
    sync_directory(path.parent)


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file; refuses links, and pipes and devices, on which a read could wait for ever."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptError(f"{path} is no regular file. A store consists of plain files and folders only.")
    return descriptor


def read_file(path: Path, doing: str, *, most: int = 1 << 30) -> bytes:
    """All bytes of a regular file of at most ``most`` bytes."""
    with explaining(path, doing), open(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise CorruptError(f"{path} has {size:,} bytes, expected at most {most:,}. It is none of ours.")
        return file.read()


def allocate(path: Path, size: int) -> int:
    """Create a file with all its blocks allocated, so that a full disk is an exception and never a SIGBUS.

    Returns a descriptor open for reading and writing; the caller closes it.
    """
    with explaining(path, f"allocating {size:,} bytes for {path.name}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except BaseException:
            os.close(descriptor)
            os.unlink(path)
            raise
    return descriptor


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Write all of it: a call may write less than it was given."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def sync_descriptor(descriptor: int, path: Path) -> None:
    """Make a file's bytes durable, those written through a mapping included."""
    with explaining(path, f"syncing {path.name}"):
        os.fdatasync(descriptor)


def sync_file(path: Path) -> None:
    """`sync_descriptor` by name."""
    with explaining(path, "opening for sync"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_descriptor(descriptor, path)
    finally:
        os.close(descriptor)


class _Window:
    """An array interface over part of a mapping; NumPy keeps it, and so the mapping, alive."""

    __slots__ = ("__array_interface__", "mapping")

    def __init__(self, mapping: Mapping, offset: int, count: int, dtype: np.dtype[Any]) -> None:
        self.mapping = mapping
        self.__array_interface__ = {
            "version": 3,
            "shape": (count,),
            "typestr": dtype.str,
            "data": (mapping.address + offset, not mapping.writable),
        }


class Mapping:
    """A whole file mapped shared; ``address`` is valid as long as this object or an array over it lives."""

    __slots__ = ("__weakref__", "address", "path", "size", "stamp", "writable")

    def __init__(self, path: Path, *, writable: bool = False, size: int | None = None, doing: str = "") -> None:
        """Map ``path``; with ``size``, refuse a file of another size (a truncated one would die by SIGBUS)."""
        self.path = path
        self.writable = writable
        with explaining(path, doing or f"mapping {path.name}"):
            descriptor = open_file(path, os.O_RDWR if writable else os.O_RDONLY)
            try:
                found = os.fstat(descriptor)
                actual = found.st_size
                if size is not None and actual != size:
                    raise CorruptError(f"{path.name} has {actual:,} bytes, expected {size:,}. The file is damaged.")
                if actual == 0:
                    raise CorruptError(f"{path.name} is empty. The file is damaged.")
                protection = PROT_READ | (PROT_WRITE if writable else 0)
                address = _libc.mmap(None, actual, protection, MAP_SHARED, descriptor, 0)
                if address is None or address == ctypes.c_void_p(-1).value:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code), str(path))
            finally:
                os.close(descriptor)
        # Asks for large pages where the file system has them; where it has not, small ones do.
        _libc.madvise(address, actual, MADV_HUGEPAGE)
        self.address: int = address
        self.size: int = actual
        self.stamp = stamp_of(found)
        unmap_with(self, address, actual)

    @classmethod
    def anonymous(cls, path: Path, size: int) -> Mapping:
        """Memory of its own, all zeros, in place of the file of that name."""
        made = cls.__new__(cls)
        address = _libc.mmap(None, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            raise MemoryError(f"No room in memory for {size:,} bytes of {path.name}.")
        made.path, made.writable, made.address, made.size, made.stamp = path, True, address, size, (0, 0, 0)
        unmap_with(made, address, size)
        return made

    def array(self, offset: int, count: int, dtype: Any) -> NDArray[Any]:
        """A one-dimensional array over the mapping, which it keeps alive. No copy."""
        kind = np.dtype(dtype)
        if offset < 0 or count < 0 or offset + count * kind.itemsize > self.size:
            raise CorruptError(f"{self.path.name}: bytes {offset} to {offset + count * kind.itemsize} lie outside it.")
        return np.asarray(_Window(self, offset, count, kind))

    def clear(self, first: int, stop: int) -> None:
        """Write zeros to the bytes ``first`` to ``stop``, without the GIL."""
        if not (self.writable and 0 <= first <= stop <= self.size):
            raise CorruptError(f"{self.path.name}: bytes {first} to {stop} cannot be cleared.")
        _libc.memset(self.address + first, 0, stop - first)

    def __repr__(self) -> str:
        return f"Mapping({self.path.name!r}, {self.size:,} bytes)"


def boot_id() -> bytes:
    """Sixteen bytes that change whenever the machine restarts."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return bytes.fromhex(text.replace("-", ""))


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: process id, host, and since when (seconds since the epoch)."""

    pid: int
    host: str
    since: float


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that died and that its parent has not asked about does not."""
    return start_of(pid) is not None


def start_of(pid: int) -> int | None:
    """When a process that runs was started, in ticks since the machine was; None where it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[:1] in (["Z"], ["X"]) else int(fields[19])


_held: dict[tuple[int, int, int], Path] = {}  # by process id (a forked child holds nothing), device and inode
_held_guard = threading.Lock()
_FLOCK: Final = "hhqqi4x"  # struct flock on 64-bit Linux: type, whence, start, len, pid


class Lock:
    """A POSIX record lock, one holder a file over all processes, freed by the kernel when its holder dies.

    The lock file is opened once a process and never by readers: closing any descriptor of it would drop the lock.
    Who holds it is written to a file of its own beside it.
    """

    def __init__(self, path: Path, holder_path: Path, *, what: str, remedy: str) -> None:
        """Take the lock, or raise `LockedError` naming the holder's pid; ``what`` is so, and what to do about it."""
        self.path = path
        self._told = (what, remedy)
        self._holder_path = holder_path
        with explaining(path, "locking"), _held_guard:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(path)
                if (os.getpid(), found.st_dev, found.st_ino) in _held:
                    raise LockedError(self._refusal(os.getpid()))
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                self._take()
            except BaseException:
                os.close(self._descriptor)
                raise
            found = os.fstat(self._descriptor)
            self._key = (os.getpid(), found.st_dev, found.st_ino)
            _held[self._key] = path
        self._pid = os.getpid()
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        try:
            with contextlib.suppress(FullError):  # it only says more of who holds the lock
                publish(holder_path, json.dumps(holder).encode(), sync=False)
        except BaseException:
            self.release()
            raise

    def _take(self) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            probe = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            pid = struct.unpack(_FLOCK, fcntl.fcntl(self._descriptor, fcntl.F_GETLK, probe))[4]
            raise LockedError(self._refusal(pid)) from None

    def renew(self) -> None:
        """Take the lock once more: nothing where it is held, and at once where something dropped it.

        Any close of the lock file by this process drops it, a copy of the store's folder by user code for one.

        Raises:
            LockedError: if another process has it by now.
        """
        with explaining(self.path, "locking"):
            self._take()

    def _refusal(self, pid: int) -> str:
        holder = read_holder(self._holder_path)
        detail = ""
        if holder is not None and holder.pid == pid:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
            detail = f" on {holder.host} since {since}"
        who = "this process" if pid == os.getpid() else f"process {pid}"
        what, remedy = self._told
        return f"{what} by {who} (pid {pid}){detail}. {remedy}"

    def release(self) -> None:
        """Free the lock. Does nothing in a forked child, which never held it, or when called again."""
        if self._pid != os.getpid():
            return
        with _held_guard:
            if _held.pop(self._key, None) is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._holder_path)
                os.close(self._descriptor)


def read_holder(path: Path) -> Holder | None:
    """Who wrote the holder file last; None where there is none or it cannot be read. It may be dead."""
    try:
        value = json.loads(read_file(path, "reading", most=1 << 16))
        return Holder(int(value["pid"]), str(value["host"]), float(value["since"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
