"""Calls that change files, watched and disturbed: killed at, failed at, or noted for what a power failure leaves.

Only calls from Python are seen: arrowrb makes all of its own through `os` and `open` of `arrowrb.files`. Bytes that are
stored into mappings are seen when they are synced.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arrowrb import commits, files

CALLS = ("mkdir", "rename", "link", "unlink", "rmdir", "fsync", "fdatasync", "ftruncate", "pwrite", "posix_fallocate")
WRITES = ("pwrite", "write")
_PLAIN = re.compile(r"\d{8}")


def kind_of(path: str) -> str:
    """A file's name without what changes from run to run."""
    name = os.path.basename(path.rstrip("/"))
    if re.fullmatch(r"\..*\.[0-9a-f]{12}\.tmp", name):
        name = name[1:-17] + " (new)"
    elif name.startswith(".") and name.endswith(".tmp"):
        name = name[1:-4] + " (new)"
    return _PLAIN.sub("N", name)


def _path_of(call: str, arguments: tuple[Any, ...]) -> str:
    first = arguments[0]
    if isinstance(first, int):
        try:
            return os.readlink(f"/proc/self/fd/{first}").removesuffix(" (deleted)")
        except OSError:
            return "?"
    return os.fspath(arguments[1] if call in ("rename", "link") else first)


Around = Callable[[str, str, Callable[..., Any], tuple[Any, ...]], Any]


class Watch:
    """Calls back around each call that changes a file.

    Attributes:
        around: called with (call, path, do, arguments); `do` makes the call. Replace it to disturb.
    """

    def __init__(self, around: Around) -> None:
        self.around = around
        self._guard = threading.RLock()

    def _call(self, name: str, path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with self._guard:  # one at a time, whatever thread makes it
            return self.around(name, path, do, arguments)

    @contextmanager
    def installed(self) -> Iterator[Watch]:
        """With all calls going through `around`."""
        real = {name: getattr(os, name) for name in CALLS}
        write = commits.CommitFile.write

        def wrap(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                def do(*args: Any) -> Any:
                    return real[name](*args, **options)

                path = _path_of(name, arguments)
                return do(*arguments) if "__pycache__" in path else self._call(name, path, do, arguments)

            return call

        def commit(file: Any, record: Any) -> None:
            self._call("commit", "visible.commit", lambda record: write(file, record), (record,))

        def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if "x" not in mode and "w" not in mode:
                return builtins.open(path, mode, *arguments, **options)
            self._call("create", str(path), lambda: None, ())
            return _Written(self, str(path), builtins.open(path, mode, *arguments, **options))

        try:
            for name in CALLS:
                setattr(os, name, wrap(name))
            commits.CommitFile.write = commit  # type: ignore[method-assign]
            files.open = opened  # type: ignore[attr-defined]
            yield self
        finally:
            for name in CALLS:
                setattr(os, name, real[name])
            commits.CommitFile.write = write  # type: ignore[method-assign]
            del files.open  # type: ignore[attr-defined]


class _Written:
    """A file whose writes are watched; nothing is held back."""

    def __init__(self, watch: Watch, path: str, file: io.BufferedWriter) -> None:
        self._watch, self._path, self._file = watch, path, file
        self.name = file.name

    def write(self, content: Any) -> int:
        def do(part: Any) -> int:
            self._file.write(part)
            self._file.flush()
            return len(part)

        return int(self._watch._call("write", self._path, do, (content,)))

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Counter:
    """Notes each call, and at the n-th does what `act` says."""

    def __init__(self, at: int = 0, act: Callable[[str, str, Callable[..., Any], tuple[Any, ...]], Any] | None = None):
        self.names: list[str] = []
        self._at, self._act = at, act

    def around(self, call: str, path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self.names.append(f"{call} {kind_of(path)}")
        if self._act is not None and len(self.names) == self._at:
            return self._act(call, path, do, arguments)
        return do(*arguments)


def kill_before(_call: str, _path: str, _do: Callable[..., Any], _arguments: tuple[Any, ...]) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(_call: str, _path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    do(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_amid(call: str, _path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """After half of a write; of other calls, before."""
    if call == "pwrite":
        do(arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
    elif call == "write":
        do(arguments[0][: len(arguments[0]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


class Failing:
    """Fails the n-th call, once or from then on."""

    def __init__(self, at: int, code: int, *, forever: bool) -> None:
        self.count = 0
        self.at, self._code, self._forever = at, code, forever

    def around(self, call: str, path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if call == "commit" or not (self._code or call == "pwrite"):
            return do(*arguments)  # a store into memory does not fail; Python sees to what else is short
        self.count += 1
        if self.count == self.at or (self._forever and self.count > self.at):
            if self._code:
                raise OSError(self._code, os.strerror(self._code))
            return do(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)], *arguments[2:])
        return do(*arguments)


class Budget:
    """A disk with room for so many bytes; what is removed makes none."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def around(self, call: str, path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        size = 4096 if call in ("create", "mkdir") else 0
        if call in WRITES:
            size = len(arguments[1] if call == "pwrite" else arguments[0])
        elif call == "posix_fallocate":
            size = arguments[2]
        if size > self._left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._left -= size
        return do(*arguments)


ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EINTR": errno.EINTR, "short": 0}


class Disk:
    """What of a folder is durable: file contents as they were last synced, names as their folder was last synced."""

    PAGE = 4096

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[int, bytes] = {}  # of files by inode, as last synced
        self.entries: dict[str, dict[str, int]] = {}  # of folders by path, as last synced: name -> inode
        self.alive: dict[int, bytes] = {}  # of files that were unlinked, as they were then
        self._held: list[int] = []  # descriptors of these, so that no other file gets their inode

    def around(self, call: str, path: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if call == "unlink" or (call == "rename" and os.path.lexists(path)):
            self._keep(path)
        result = do(*arguments)
        if call in ("fsync", "fdatasync"):
            found = os.fstat(arguments[0])
            if stat.S_ISDIR(found.st_mode):
                self.entries[path] = self._list(path)
            else:
                self.content[found.st_ino] = _read_descriptor(arguments[0])
        return result

    def _keep(self, path: str) -> None:
        try:
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode):
                self._held.append(os.open(path, os.O_RDONLY))
                self.alive[found.st_ino] = _read_descriptor(self._held[-1])
        except FileNotFoundError:
            pass

    def forget(self) -> None:
        """Begin anew, when the folder is gone."""
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()
        for known in (self.content, self.entries, self.alive):
            known.clear()

    @staticmethod
    def _list(path: str) -> dict[str, int]:
        with os.scandir(path) as entries:
            return {entry.name: entry.inode() for entry in entries}

    def image(self, target: Path, rng: Any) -> None:
        """What may be left when the power fails now: synced content and names, and any part of the rest."""
        now: dict[int, bytes] = dict(self.alive)
        for place, _, names in os.walk(self.root):
            for name in names:
                path = Path(place, name)
                now[path.lstat().st_ino] = path.read_bytes()
        self._copy_folder(str(self.root), target, now, rng)

    def _copy_folder(self, source: str, target: Path, now: dict[int, bytes], rng: Any) -> None:
        target.mkdir(parents=True)
        current = self._list(source) if os.path.isdir(source) else {}
        durable = self.entries.get(source, {})
        for name in sorted({*current, *durable}):
            old, new = durable.get(name), current.get(name)
            inode = old if old != new and rng.random() < 0.5 else new
            if inode is None:
                continue
            path = os.path.join(source, name)
            if os.path.isdir(path):
                self._copy_folder(path, target / name, now, rng)
            elif inode in now or inode in self.content:
                (target / name).write_bytes(self._mix(inode, now, rng))

    def _mix(self, inode: int, now: dict[int, bytes], rng: Any) -> bytes:
        """Pages as synced or as they are; of a file that was never synced, zeros or as they are, or cut short."""
        newest, synced = now.get(inode), self.content.get(inode)
        if newest is None:
            return synced or b""
        if synced is None:
            size = int(rng.integers(0, len(newest) + 1)) if rng.random() < 0.3 else len(newest)
            newest, synced = newest[:size], bytes(size)
        size = len(newest) if rng.random() < 0.5 else len(synced)
        share = float(rng.choice([0.0, 0.5, 1.0]))
        whole = bytearray(synced[:size].ljust(size, b"\0"))
        for first in range(0, size, self.PAGE):
            if rng.random() < share and first < len(newest):
                whole[first : first + self.PAGE] = newest[first : first + self.PAGE].ljust(
                    min(self.PAGE, size - first), b"\0"
                )
        return bytes(whole)


def _read_descriptor(descriptor: int) -> bytes:
    with builtins.open(f"/proc/self/fd/{descriptor}", "rb") as file:
        return file.read()
