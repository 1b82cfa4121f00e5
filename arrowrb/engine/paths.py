"""Where things lie in a store's directory."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import checkpoints, files
from ..errors import CorruptError, StoreExistsError

STORE_FILE: Final = "store.json"
CHECKPOINTS: Final = checkpoints.FOLDER
SAMPLERS: Final = "samplers"
SPARE_STORE_FILE: Final = "shards/store.json"  # the same once more: nothing else says what the columns are
LIMITER_FILE: Final = "limiter"
MAKER_LOCK: Final = "shards/lock"  # of whoever makes a shard, or changes the limiter
MAKER_FILE: Final = "shards/maker.json"
COUNT_FILE: Final = "shards/count"  # of the shards, which readers look at for others
_SHARD: Final = re.compile(r"\d{5}")
_MADE_ANEW: Final = re.compile(
    r"((lock|coordinator|keeping|dropping-\d{5})(\.json)?|maker\.json|count|visit-\d{5}\.json)"
)
_SEGMENT_FILE: Final = re.compile(r"\d{8}(\.runs|\.blocks)?\.arrow|\d{8}\.parquet|\d{8}-\d{8}\.runs\.arrow|\..*\.tmp")


def is_store(path: Path) -> bool:
    """Whether a folder is a store."""
    return (path / STORE_FILE).exists()


def enclosing_store(path: Path) -> Path | None:
    """The store in whose folder a path lies."""
    return next((parent for parent in Path(os.path.realpath(path)).parents if is_store(parent)), None)


def outside_stores(path: Path) -> Path:
    """A folder to make, without links; refused where it lies in the folder of a store."""
    path = Path(os.path.realpath(path))
    store = enclosing_store(path)
    if store is not None:
        raise StoreExistsError(f"{path} lies inside the store {store}. Choose a folder beside it.")
    return path


@dataclass(frozen=True, slots=True)
class ShardPaths:
    """The files of one shard."""

    root: Path

    @property
    def number(self) -> int:
        """The shard's number, by its folder."""
        return int(self.root.name)

    @property
    def lock(self) -> Path:
        """Locked by the writer; nobody else opens it."""
        return self.root / "lock"

    @property
    def holder(self) -> Path:
        """Who holds the lock, in words."""
        return self.root / "writer.json"

    def take_lock(self, *, visiting: bool = False) -> files.Lock:
        """Become the writer of the shard, or do what a writer would for a moment.

        Raises:
            LockedError: if somebody is already.
        """
        which = "" if self.number == 0 else f" in shard {self.number}"
        return files.Lock(
            self.lock,
            self.visit if visiting else self.holder,
            what=f"Store {self.root.parent.parent} is already open for writing{which}",
            remedy='Close it there, or open it with mode="r", which follows a live writer, or with a shard of its own.',
        )

    @property
    def manifest(self) -> Path:
        """The list of segments."""
        return self.root / "manifest.json"

    @property
    def reserve(self) -> Path:
        """Room for the next manifest."""
        return self.root / "reserve"

    @property
    def visible(self) -> Path:
        """The visible commit record."""
        return self.root / "visible.commit"

    @property
    def durable(self) -> Path:
        """The durable commit record."""
        return self.root / "durable.commit"

    @property
    def seeds(self) -> Path:
        """The seeds of episodes."""
        return self.root / "seeds"

    @property
    def orders(self) -> Path:
        """What the shard is told of limits over all shards."""
        return self.root / "orders"

    @property
    def visit(self) -> Path:
        """Who has the lock for a moment, in place of a writer."""
        return self.root.parent / f"visit-{self.root.name}.json"

    @property
    def segments(self) -> Path:
        """The folder of segment files."""
        return self.root / "segments"


def shard_paths(store: Path, shard: int) -> ShardPaths:
    """The files of a shard by number."""
    return ShardPaths(store / "shards" / f"{shard:05d}")


def list_shards(store: Path) -> list[int]:
    """Numbers of the shards. The first one is there once it has its manifest; others take their name when whole."""
    folder = store / "shards"
    if not folder.is_dir():
        raise CorruptError(f"{store} has no folder 'shards': the store is damaged.")
    names = sorted(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    shards = [shard_paths(store, int(name)) for name in names]
    for place in (
        folder,
        store / CHECKPOINTS,
        store / SAMPLERS,
        *(each.root for each in shards),
        *(each.segments for each in shards),
    ):
        if place.is_symlink():
            raise CorruptError(f"{place} is a link. A store consists of plain files and folders only.")
    return [each.number for each in shards if each.number > 0 or each.manifest.exists()]


def find_foreign(store: Path) -> list[str]:
    """What lies in a folder beside that which a half-made create leaves: files of others, or segments with rows."""
    paths = shard_paths(store, 0)
    folders = {paths.root.parent, paths.root, paths.segments}
    files = {paths.manifest, paths.visible, paths.durable}
    files |= {store / name for name in (SPARE_STORE_FILE, COUNT_FILE, LIMITER_FILE)}
    foreign = []
    for place, names, file_names in os.walk(store):
        inner = {Path(place, name) for name in names}
        outer = {Path(place, name) for name in file_names if not (name.startswith(".") and name.endswith(".tmp"))}
        foreign += [str(path.relative_to(store)) for path in (inner - folders) | (outer - files)]
        names[:] = [path.name for path in inner & folders]
    return sorted(foreign)


def find_misplaced(store: Path) -> list[Path]:
    """Whatever lies in the place of a file that a writer makes where there is none, and is no regular file.

    None of these files says anything that is not known without it; but while it cannot be opened, nobody can write.
    """
    folder = store / "shards"
    names = os.listdir(folder) if folder.is_dir() else []
    places = [folder / name for name in names if _MADE_ANEW.fullmatch(name)]
    for shard in (shard_paths(store, int(name)) for name in names if _SHARD.fullmatch(name)):
        places += [shard.lock, shard.holder, shard.orders, shard.reserve]
    return sorted(place for place in places if _is_no_file(place))


def _is_no_file(path: Path) -> bool:
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_leftover(name: str) -> bool:
    """Whether a file in the folder of segments has a name of ours, so that it may be removed where nothing lists it."""
    return bool(_SEGMENT_FILE.fullmatch(name))


def segment_name(number: int) -> str:
    """The name of a hot segment's file."""
    return f"{number:08d}.arrow"


def cold_name(number: int) -> str:
    """The name of a cold segment's file."""
    return f"{number:08d}.parquet"


def merged_name(first: str, last: str) -> str:
    """The name of a run table that is merged from neighbours, by their names."""
    return f"{first[:8]}-{last.partition('.')[0][-8:]}.runs.arrow"


def identity(store_id: str, shard: int, number: int) -> str:
    """What a segment's file says it is."""
    return f"{store_id}/{shard}/{number}"
