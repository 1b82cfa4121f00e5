"""The folders of named samplers: each belongs to whoever holds its lock, a writer of the store or not.

They are ``samplers/<name>``. What lies in them is told in `priority_files` and `sample_logs`.
"""

from __future__ import annotations

import weakref
from pathlib import Path

from .. import checkpoints, files
from ..errors import CorruptError
from .paths import SAMPLERS


def sampler_folders(store: Path) -> list[Path]:
    """The folders of the named samplers that a store has had."""
    folder = store / SAMPLERS
    with files.explaining(folder, "looking for samplers"):
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


class SamplerFolder:
    """The folder of one sampler. Holds its lock until `close`, or until nobody holds this any more."""

    def __init__(self, store: Path, store_id: str, name: str, *, durable: bool) -> None:
        """Take the folder; makes it where there is none.

        Raises:
            LockedError: if another process, or another sampler of this one, has it.
        """
        self.path = store / SAMPLERS / checkpoints.check_name(name)
        self.store_id = store_id
        self.durable = durable
        self._make()
        self._lock = files.Lock(
            self.path / "lock",
            self.path / "writer.json",
            what=f"The sampler {name!r} of {store} is in use",
            remedy="Close it there, or choose another name.",
        )
        self._release = weakref.finalize(self, self._lock.release)
        try:
            with files.explaining(self.path, "removing what an earlier sampler left"):
                for path in self.path.glob(".*.tmp"):
                    path.unlink()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for folder in (self.path.parent, self.path):
            with files.explaining(folder, "making the folder of a sampler"):
                if folder.is_symlink():
                    raise CorruptError(f"{folder} is a link. A store consists of plain files and folders only.")
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True)
                    if self.durable:
                        files.sync_directory(folder.parent)

    def close(self) -> None:
        """Let go of the folder. May be called again."""
        self._release()
