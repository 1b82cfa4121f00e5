"""What is done with a store as a whole: data sets out of it, moving and dropping what is due, verifying it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import checkpoints
from .checkpoints import Checkpoint
from .engine import Action, BackedUp, Engine, Repaired, Verified, back_up, check_path
from .engine import repair as repair_directory
from .engine import verify as verify_directory
from .errors import StoreNotFoundError
from .export import Exported, export
from .named import NamedSamplers


def verify(path: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None) -> Verified:
    """Read all that is in a store's directory, and hold it against checksums, tables and itself.

    For a store that does not open any more, too: what cannot be read is named, and the rest is looked at. Changes
    nothing; a writer may go on meanwhile.

    Args:
        path: the store's directory.
        progress: called with the segments that are done, and all.

    Returns:
        True where all is well; otherwise its ``problems`` say what is wrong with which file, column and rows.

    Raises:
        StoreNotFoundError: if there is no store.
    """
    return verify_directory(check_path(path), progress=progress)


def repair(path: str | os.PathLike[str]) -> Repaired:
    """Make a damaged store open again: keep what is intact, set aside what is not, and say what was lost.

    Nothing is deleted: damaged files are moved to ``damaged/<time>`` within the store, with a ``report.json``. Does
    nothing to a store of which `verify` says that all is well. Needs the place of the writer.

    Args:
        path: the store's directory.

    Raises:
        StoreNotFoundError: if there is no store.
        LockedError: if a process has it open for writing.
        CorruptError: if nothing says any more what its columns are.
    """
    return repair_directory(check_path(path))


class Upkeep:
    """The part of a `Store` that is about all of it."""

    _engine: Engine
    _named: NamedSamplers

    def checkpoint(self, name: str, *, tensors: Any = None, state: Any = None, keep: bool = False) -> Checkpoint:
        """Name this point: the rows that are committed now, where named samplers stand, and what you give.

        Atomic: after a crash there is all of it or, of that name, what was there before. The rows are made durable
        first. Call it where nobody draws or collects, so that what you give belongs to that point.

        Args:
            name: of letters, digits, ``.``, ``_`` and ``-``. A checkpoint of that name is replaced.
            tensors: what to keep of an agent: ``agent.state_dict()``, an optimizer's, or dicts, lists and tuples of
                tensors, arrays and numbers, as deep as you like. Tensors lie in a file of safetensors,
                ``checkpoints/<name>.safetensors``; nothing is pickled.
            state: what else to keep, likewise: counters, states of random generators.
            keep: keep its rows, of all shards, whatever ``max_rows`` and ``max_bytes`` say; they do not count for
                these.

        Raises:
            OptionError: if the name or a value cannot be kept; says which.
            ReadOnlyError: if the store was not opened for writing.
        """
        checkpoints.check_name(name)
        return self._engine.checkpoint(name, bool(keep), tensors, state, self._named)

    def restore(self, name: str | None = None) -> tuple[Any, Any]:
        """What was given to `checkpoint`: tensors (on the CPU) and state; named samplers go on where they stood.

        Rows that came later stay in the store. To see only those of that point, see `Store.open` with ``at``.

        Args:
            name: of the checkpoint; the newest by default.

        Raises:
            StoreNotFoundError: if there is none.
            CorruptError: if it is damaged.
        """
        self._engine.check_open()
        store_id, path = self._engine.file.store_id, self._engine.path
        if name is None:
            there = checkpoints.read_all(path, store_id)
            if not there:
                raise StoreNotFoundError(f"{path} has no checkpoint. Make one with store.checkpoint(name, ...).")
            name = there[-1].name
        _, content = checkpoints.load(path, store_id, name)
        self._named.load(content.samplers)
        return content.tensors, content.state

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that there are, oldest first."""
        self._engine.check_open()
        return checkpoints.read_all(self._engine.path, self._engine.file.store_id)

    def remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint. Its rows stay; those that only it kept are subject to retention again.

        Raises:
            StoreNotFoundError: if there is none of that name.
            ReadOnlyError: if the store was not opened for writing.
        """
        self._engine.remove_checkpoint(name)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "parquet",  # noqa: A002
        where: str | None = None,
        rows: str = "transitions",
        images: str = "binary",
        file_bytes: int = 256 << 20,
        compression: str = "lz4",
        progress: Callable[[int, int], None] | None = None,
    ) -> Exported:
        """Write what is visible now as a data set of Parquet files, which need nothing of arrowrb to be read.

        Rows come in the order of episodes, and of steps within them, each with its ``row_id``. Flags are booleans,
        vectors fixed-size lists; what is missing is NULL. The schema, with spaces and environment, is in each file's
        metadata under ``arrowrb.schema``. The files appear all at once: an interrupted export leaves nothing.

        Args:
            path: a folder that does not exist yet, or is empty.
            format: ``"parquet"``.
            where: a condition in SQL over the rows, such as ``"reward > 0"`` or
                ``"episode_id IN (SELECT episode_id FROM episodes WHERE complete)"``; all rows by default.
            rows: ``"transitions"``, with ``next_observation``; or ``"steps"``, each observation once, with the final
                ones, whose action and reward are NULL. The newest observation of an episode that is still running is
                no row yet: it is in ``next_observation`` only.
            images: uint8 tensors, and those of over 1,024 numbers, as ``"binary"`` or ``"list"``.
            file_bytes: about how large each file becomes.
            compression: ``"lz4"``, ``"zstd"``, ``"snappy"``, ``"gzip"`` or ``"none"``.
            progress: called with the rows that are written and those that will be.

        Raises:
            StoreExistsError: if the folder is not empty.
        """
        options: Any = {"format": format, "where": where, "rows": rows, "images": images, "progress": progress}
        return export(self._engine, check_path(path), file_bytes=file_bytes, compression=compression, **options)

    def backup(self, path: str | os.PathLike[str]) -> BackedUp:
        """Copy the store as it is now to another folder, which opens as a store; a writer may go on meanwhile.

        Files that will not change are shared by hard links where the file system has them, so that this takes little
        time and room; a copy on another disk takes all of it. Checkpoints are part of it. The copy appears when it is
        whole and durable.

        Args:
            path: a folder that does not exist yet, or is empty, outside of stores.

        Raises:
            StoreExistsError: if there is something.
            FullError: if there is no room.
        """
        self._engine.check_open()
        return back_up(self._engine.path, self._engine.file.store_id, self._engine.schema, check_path(path))

    def maintain(self, *, dry_run: bool = False) -> list[Action]:
        """Do now what a writer does in the background: seal, drop and move what is due; returns once it is done.

        Of other shards: those that no process writes are seen to as well, by the process that coordinates (the writer
        of the main shard, where it has one); writers of others are told, and do their part within moments.

        Args:
            dry_run: only say what would be done; a store that was opened with ``mode="r"`` can too.

        Returns:
            What was or would be done: each ``evict`` or ``demote`` of a segment of a shard, with its rows and bytes.
        """
        return self._engine.maintain(dry_run=dry_run)

    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> Verified:
        """Read all that is in the store's directory now, and hold it against checksums, tables and itself.

        True where all is well. `arrowrb.verify` does the same by the directory of a store that does not open any more.

        Args:
            progress: called with the segments that are done, and all.
        """
        self._engine.check_open()
        return verify_directory(self._engine.path, progress=progress)
