"""What is done with a store as a whole: data sets out of it, moving and dropping what is due, verifying it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .engine import Action, Engine, Verified, check_path
from .engine import verify as verify_directory
from .export import Exported, export


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


class Upkeep:
    """The part of a `Store` that is about all of it."""

    _engine: Engine

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
                ones, whose action and reward are NULL.
            images: uint8 tensors, and those of over 1,024 numbers, as ``"binary"`` or ``"list"``.
            file_bytes: about how large each file becomes.
            compression: ``"lz4"``, ``"zstd"``, ``"snappy"``, ``"gzip"`` or ``"none"``.
            progress: called with the rows that are written and those that will be.

        Raises:
            StoreExistsError: if the folder is not empty.
        """
        options: Any = {"format": format, "where": where, "rows": rows, "images": images, "progress": progress}
        return export(self._engine, check_path(path), file_bytes=file_bytes, compression=compression, **options)

    def maintain(self, *, dry_run: bool = False) -> list[Action]:
        """Do now what a writer does in the background: seal, drop and move what is due; returns once it is done.

        Args:
            dry_run: only say what would be done; a store that was opened with ``mode="r"`` can too.

        Returns:
            What was or would be done: each ``evict`` or ``demote`` of a segment, with its rows and bytes.
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
