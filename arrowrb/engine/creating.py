"""Creating a store, and the file that says which store it is."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import commits, files
from .. import manifest as manifests
from ..commits import Record
from ..errors import CorruptError, StoreExistsError, StoreNotFoundError
from ..limiter import Limiter
from ..manifest import Manifest, check_format
from ..network import check_local
from ..rows import first_episode
from ..schema import Schema
from . import limiter_file
from .options import check_schema
from .paths import (
    COUNT_FILE,
    LIMITER_FILE,
    SPARE_STORE_FILE,
    STORE_FILE,
    ShardPaths,
    find_foreign,
    is_store,
    shard_paths,
)

_MAX_STORE_FILE_BYTES: Final = 256 << 20
_MAX_LIMIT: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class StoreFile:
    """What `store.json` says: which store this is, and of what schema. Written once, by create, last."""

    store_id: str
    schema: Schema
    created: float
    max_rows: int | None = None
    max_bytes: int | None = None


def create_store(
    path: Path,
    schema: Schema,
    *,
    max_rows: int | None = None,
    max_bytes: int | None = None,
    limiter: Limiter = None,
    durable: bool = True,
) -> None:
    """Lay out an empty store with one shard. A crash in between leaves a folder that create completes.

    Raises:
        StoreExistsError: if a store is there already, or files that are not ours.
    """
    files.check_platform()
    check_local(path)
    check_schema(schema)
    if is_store(path):
        raise StoreExistsError(
            f'{path} is a store already. Open it with Store.open({str(path)!r}, mode="a") to go on with it.'
        )
    if path.exists() and not path.is_dir():
        raise StoreExistsError(f"{path} is a file, expected a folder to create or an empty one. Choose another path.")
    if path.is_dir():
        foreign = find_foreign(path)
        if foreign:
            raise StoreExistsError(
                f"{path} holds other files ({', '.join(foreign[:3])}, ...). Choose an empty or new folder."
            )
    with files.explaining(path, "creating the store"):
        path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path / "shards", ignore_errors=True)  # a half-made create; there is no store.json
        paths = shard_paths(path, 0)
        create_shard(paths, 0, "main", durable=durable)
        if durable:
            for folder in (paths.root.parent, path):
                files.sync_directory(folder)
        store_id = secrets.token_hex(16)
        content = {
            "format": manifests.FORMAT,
            "features": [],
            "id": store_id,
            "created": time.time(),
            "max_rows": max_rows,
            "max_bytes": max_bytes,
            "schema": schema.to_json(),
        }
        text = json.dumps(content, indent=1, allow_nan=False).encode()
        files.publish(path / SPARE_STORE_FILE, text, sync=durable)  # for a repair
        files.publish(path / COUNT_FILE, count_bytes(1), sync=durable)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path / LIMITER_FILE)  # likewise of a half-made create
        if limiter:
            limiter_file.make(path, store_id, limiter, durable=durable)
        files.publish(path / STORE_FILE, text, sync=durable)
        if durable:
            files.sync_directory(path.parent)


def count_bytes(count: int) -> bytes:
    """What the file says that counts the shards."""
    return count.to_bytes(8, "little")


def create_shard(paths: ShardPaths, shard: int, name: str, *, durable: bool) -> None:
    """Lay out an empty shard, its manifest last. Its episodes are counted from a number that no other shard has."""
    paths.segments.mkdir(parents=True, exist_ok=True)
    record = Record(sequence=1, boot_id=files.boot_id(), clean=True, next_episode=first_episode(shard))
    for each in (paths.visible, paths.durable):
        commits.create_file(each, record, sync=durable)
    manifests.write(paths.manifest, Manifest(shard, name), sync=durable)
    if durable:
        files.sync_directory(paths.root)


def read_store_file(path: Path, name: str = STORE_FILE) -> StoreFile:
    """Read and check `store.json`, or its copy."""
    file = path / name
    with files.explaining(file, "looking for a store"):
        there = file.is_file()
    if not there:
        raise StoreNotFoundError(
            f"{path} is no store: it has no {STORE_FILE}. Create one with Store.create({str(path)!r}, schema)."
        )
    text = files.read_file(file, "reading", most=_MAX_STORE_FILE_BYTES)
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError("it is no object")
        check_format(content.get("format"), content.get("features"), str(file))
        limits = [content.get("max_rows"), content.get("max_bytes")]
        if not isinstance(content["id"], str) or not all(each is None or _is_limit(each) for each in limits):
            raise TypeError("id, max_rows or max_bytes is no such thing")
        return StoreFile(content["id"], Schema.from_json(content["schema"]), float(content["created"]), *limits)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptError(f"{file} is damaged: {error}.") from None


def _is_limit(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX_LIMIT
