"""Copying a store, beside a live writer, to a place that opens.

Sealed files never change, so that the copy may share them by hard links; open ones are copied, and what they hold
beyond the commit is undone there. All is put together in a hidden folder: each shard's manifest is written after its
files, and the folder takes its name last. What speaks of rows (checkpoints, samplers' files) is copied before these,
so that none is spoken of that is not there. A crash in between leaves the hidden folder, which says by its name that it
is none.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from .. import checkpoints, commits, files, kernels
from .. import manifest as manifests
from ..commits import Record
from ..errors import CorruptError, StoreError, StoreNotFoundError, WaitError
from ..manifest import Manifest
from ..schema import Schema
from ..tiers import hot
from . import limiter_file
from .paths import (
    SAMPLERS,
    SPARE_STORE_FILE,
    STORE_FILE,
    ShardPaths,
    identity,
    list_shards,
    outside_stores,
    shard_paths,
)
from .priority_files import files_of
from .sample_logs import log_files
from .sampler_folders import sampler_folders
from .shards import tell_count
from .tables import KIND, ORDINAL

_TRIES: Final = 20
_TRIES_OF_ALL: Final = 3


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a backup holds.

    Attributes:
        path: its directory, a store.
        num_transitions: that had been committed, dropped ones included.
        num_files: in it.
        copied_bytes: that were copied.
        linked_bytes: of files that it shares with the store it was made from.
    """

    path: Path
    num_transitions: int
    num_files: int
    copied_bytes: int
    linked_bytes: int


class _Copying:
    """Puts files into the new folder, and counts them."""

    def __init__(self) -> None:
        self.num_files = self.copied_bytes = self.linked_bytes = 0

    def share(self, source: Path, target: Path) -> None:
        """A file that will not change: by a hard link, or a copy where the file system has none or it is another."""
        try:
            os.link(source, target, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError:
            with open(files.open_file(source), "rb") as file:
                self.copy(file.fileno(), target)
            return
        self.linked_bytes += target.stat().st_size
        self.num_files += 1

    def leave_out(self, target: Path) -> None:
        """Take a file back that was shared or copied."""
        size, shared = target.stat().st_size, target.stat().st_nlink > 1
        target.unlink()
        self.num_files -= 1
        self.linked_bytes -= size if shared else 0
        self.copied_bytes -= 0 if shared else size

    def copy(self, descriptor: int, target: Path) -> None:
        """The bytes of an open file, made durable."""
        with open(descriptor, "rb", closefd=False) as source, open(target, "xb") as sink:
            source.seek(0)
            shutil.copyfileobj(source, sink, 1 << 20)
            sink.flush()
            os.fsync(sink.fileno())
            self.copied_bytes += sink.tell()
        self.num_files += 1


def back_up(store: Path, store_id: str, schema: Schema, target: Path) -> BackedUp:
    """Copy a store as it is at one commit of each shard.

    Raises:
        StoreExistsError: if there is something at the target, or it lies within a store.
        FullError: if there is no room; nothing of the copy is left.
    """
    with files.explaining(target, "looking at the target"):
        target = outside_stores(target)
        files.check_vacant(target)
    with files.publishing_folder(target) as folder, files.explaining(target, "copying the store"):
        for left in reversed(range(_TRIES_OF_ALL)):
            copying = _Copying()
            points = _copy_checkpoints(store, folder, copying)
            for sampler in sampler_folders(store):
                _copy_sampler(sampler, folder / SAMPLERS / sampler.name, copying)
            (folder / "shards").mkdir(parents=True)
            transitions = {
                shard: _copy_shard(shard_paths(store, shard), shard_paths(folder, shard), store_id, schema, copying)
                for shard in list_shards(store)
            }
            torn = _let_go(store, folder, store_id, points)
            if not torn or not left:
                break
            for name in ("shards", SAMPLERS, checkpoints.FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
        for path in torn:
            copying.leave_out(path)
        if points:
            files.sync_directory(folder / checkpoints.FOLDER)
        copying.num_files += limiter_file.copy(store, folder, store_id, transitions)
        for name in (SPARE_STORE_FILE, STORE_FILE):
            files.publish(folder / name, files.read_file(store / STORE_FILE, "copying"))
            copying.num_files += 1
        tell_count(folder)
        copying.num_files += 1
        for each in (folder / "shards", folder):
            files.sync_directory(each)
    return BackedUp(target, sum(transitions.values()), copying.num_files, copying.copied_bytes, copying.linked_bytes)


def _copy_checkpoints(store: Path, folder: Path, copying: _Copying) -> list[Path]:
    """Copy all checkpoints; returns their copies. To be done first: one made later speaks of rows that come later."""
    copies = []
    if (store / checkpoints.FOLDER).is_dir():
        (folder / checkpoints.FOLDER).mkdir(parents=True)
        for name in checkpoints.names(store):
            path = store / checkpoints.FOLDER / checkpoints.file_name(name)
            with suppress(FileNotFoundError):  # it was removed meanwhile
                copying.share(path, folder / checkpoints.FOLDER / path.name)
                copies.append(folder / checkpoints.FOLDER / path.name)
    return copies


def _let_go(store: Path, folder: Path, store_id: str, copies: list[Path]) -> list[Path]:
    """Of these copies of checkpoints, those that keep their rows and were removed or replaced before these were copied.

    Until then all rows were there; some may have been dropped since.
    """
    torn = []
    for path in copies:
        try:
            now = checkpoints.read(store, store_id, path.stem)
        except StoreNotFoundError:
            now = None
        except CorruptError:
            continue  # copied as it is
        then = checkpoints.read(folder, store_id, path.stem)
        if then.keep and then != now:
            torn.append(path)
    return torn


def _copy_sampler(source: Path, copy: Path, copying: _Copying) -> None:
    """Copy priorities and log, which may change meanwhile: each priority is one that was given, each batch whole."""
    copy.mkdir(parents=True)
    for path in (*files_of(source), *log_files(source).values()):
        try:
            descriptor = files.open_file(path)
        except FileNotFoundError:
            continue  # it has gone meanwhile
        with open(descriptor, "rb") as file:
            copying.copy(file.fileno(), copy / path.name)
    for folder in (copy, copy.parent):
        files.sync_directory(folder)


def _copy_shard(source: ShardPaths, copy: ShardPaths, store_id: str, schema: Schema, copying: _Copying) -> int:
    """Copy one shard; returns the transitions that it has committed."""
    why: StoreError | None = None
    for _ in range(_TRIES):
        try:
            with ExitStack() as stack:
                taken = _take(source, stack)
                if taken is None:
                    continue
                return _copy_taken(*taken, source, copy, store_id, schema, copying)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            why = error
        except FileNotFoundError as error:
            why = StoreError(f"{source.root}: {error}")
        shutil.rmtree(copy.root, ignore_errors=True)  # a file has gone meanwhile: the manifest is another by now
    raise why or WaitError(f"{source.root}: the manifest changed {_TRIES} times while it was read.")


def _take(source: ShardPaths, stack: ExitStack) -> tuple[Manifest, Record, dict[str, int]] | None:
    """A manifest, a commit of which it lists all segments, and its open segments' files, opened; None: it changed."""
    manifest, held = manifests.read_mapped(source.manifest, source.number)
    opened: dict[str, int] = {}
    for entry in manifest.segments:
        if not entry.sealed:
            opened[entry.name] = files.open_file(source.segments / entry.name)
            stack.callback(os.close, opened[entry.name])
    visible, durable = commits.read_file(source.visible), commits.read_file(source.durable)
    record, _ = commits.trusted(visible, durable, files.boot_id())
    return (manifest, record, opened) if files.stamp_of(os.stat(source.manifest)) == held.stamp else None


def _copy_taken(
    manifest: Manifest,
    record: Record,
    opened: dict[str, int],
    source: ShardPaths,
    copy: ShardPaths,
    store_id: str,
    schema: Schema,
    copying: _Copying,
) -> int:
    copy.segments.mkdir(parents=True)
    for name in sorted(manifest.files - opened.keys()):
        copying.share(source.segments / name, copy.segments / name)
    for name, descriptor in opened.items():
        copying.copy(descriptor, copy.segments / name)
    for entry in manifest.segments:
        if not entry.sealed:
            told = identity(store_id, manifest.shard, entry.number)
            path = copy.segments / entry.name
            segment = hot.open_segment(path, schema, told, entry.rows, entry.bytes, writable=True)
            addresses = segment.addresses
            kernels.wipe(int(addresses[ORDINAL]), int(addresses[KIND]), entry.rows, record.watermark)
            files.sync_file(path)
    if source.seeds.exists():
        with open(files.open_file(source.seeds), "rb") as file:
            copying.copy(file.fileno(), copy.seeds)
    # Nothing lies beyond the commit here, as if its writer had been closed after it.
    last = replace(record, sequence=record.sequence + 1, boot_id=files.boot_id(), clean=True)
    for path in (copy.visible, copy.durable):
        commits.create_file(path, replace(last, sequence=record.sequence), last, sync=True)
    for folder in (copy.segments, copy.root):
        files.sync_directory(folder)
    manifests.write(copy.manifest, manifest)
    copying.num_files += 3
    return record.num_transitions
