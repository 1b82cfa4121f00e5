"""Checkpoints: named points of a store, each one file of safetensors in its folder ``checkpoints``.

A file says which rows there were (a commit of each shard), and holds what the caller gave: tensors, and all else as
JSON in the file's metadata. It is published whole and replaced atomically, after the rows it speaks of were made
durable: whatever is under a name is a point that can be gone back to. Any reader of safetensors can take the tensors.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from . import files, nested
from .commits import Record
from .errors import CorruptError, OptionError, StoreError, StoreNotFoundError
from .manifest import FORMAT, check_format
from .rows import MAX_SEGMENTS, MAX_SHARDS

FOLDER: Final = "checkpoints"
_SUFFIX: Final = ".safetensors"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KEY: Final = "arrowrb.checkpoint"
_SUM: Final = "arrowrb.crc32"
_MOST_HEADER_BYTES: Final = 100 << 20  # as safetensors has it
_MOST_BYTES: Final = 1 << 40
_MOST_COUNT: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Mark:
    """A commit of a shard: rows with an ordinal of 1 to ``watermark``, in segments below ``next_segment``."""

    shard: int
    watermark: int
    num_transitions: int  # ever committed, the evicted ones included
    num_episodes: int
    next_episode: int
    num_breaks: int
    next_segment: int

    @classmethod
    def of(cls, shard: int, record: Record, next_segment: int) -> Mark:
        """The mark of a commit."""
        counts = (record.watermark, record.num_transitions, record.num_episodes, record.next_episode)
        return cls(shard, *counts, record.num_breaks, next_segment)

    @classmethod
    def at(cls, shard: int, watermark: int) -> Mark:
        """The mark of a commit of which no more is known; there are at most so many transitions and episodes."""
        return cls(shard, watermark, watermark, watermark, watermark, 0, 1 << 62)

    def bound(self, record: Record) -> Record:
        """The commit that this is the mark of; that record itself where it is an older one, which power loss left."""
        if record.watermark <= self.watermark:
            return record
        return replace(
            record,
            watermark=self.watermark,
            num_transitions=self.num_transitions,
            num_episodes=self.num_episodes,
            next_episode=self.next_episode,
            num_breaks=self.num_breaks,
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A named point of a store.

    Attributes:
        name: its name.
        created: when it was made, in seconds since the epoch.
        num_transitions: that had been committed by then, dropped ones included.
        keep: whether retention keeps its rows.
        bytes: of its file.
        marks: the commits of the shards.
    """

    name: str
    created: float
    num_transitions: int
    keep: bool
    bytes: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint holds beside rows: of samplers by name, and of the caller."""

    samplers: Mapping[str, Any]
    tensors: Any
    state: Any


def check_name(name: Any) -> str:
    """The name of a checkpoint, checked."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise OptionError(
            f"name is {name!r}, expected letters, digits, '.', '_' and '-', up to 100, such as 'step-100000'."
        )
    return name


def write(store: Path, store_id: str, name: str, marks: tuple[Mark, ...], keep: bool, content: Content) -> Checkpoint:
    """Publish a checkpoint, in place of one of that name. The rows of the marks are durable already.

    Raises:
        OptionError: if the content is none that can be kept.
    """
    from safetensors.torch import save

    held: dict[str, Any] = {}
    values = {
        "tensors": nested.encode(content.tensors, "tensors", held),
        "state": nested.encode(content.state, "state", held),
        "samplers": nested.encode(dict(content.samplers), "samplers", held),
    }
    # Copies: several names may share memory, which safetensors refuses.
    tensors = {key: value.to("cpu", copy=True).contiguous() for key, value in held.items()}
    created = time.time()
    document = {
        "format": FORMAT,
        "features": [],
        "store": store_id,
        "name": name,
        "created": created,
        "keep": keep,
        "shards": [asdict(mark) for mark in marks],
        "held": {key: _describe(value) for key, value in tensors.items()},
        **values,
    }
    try:
        text = json.dumps(document, allow_nan=False)
        whole = save(tensors, {_KEY: text, _SUM: str(zlib.crc32(text.encode()))})
    except Exception as error:  # of safetensors, which names no class of its own for a dtype that it lacks
        raise OptionError(f"The checkpoint {name!r} cannot be written: {type(error).__name__}: {error}") from error
    folder = store / FOLDER
    with files.explaining(folder, "making the folder of checkpoints"):
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            files.sync_directory(store)
    files.publish(folder / (name + _SUFFIX), whole)
    return Checkpoint(name, created, sum(mark.num_transitions for mark in marks), keep, len(whole), marks)


def _describe(tensor: Any) -> list[Any]:
    return [str(tensor.dtype), list(tensor.shape), zlib.crc32(_bytes_of(tensor))]


def _bytes_of(tensor: Any) -> Any:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def names(store: Path) -> list[str]:
    """The names of the checkpoints that a store has."""
    folder = store / FOLDER
    with files.explaining(folder, "looking for checkpoints"):
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    plain = [name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)]
    return sorted(name for name in plain if _NAME.fullmatch(name))


def read_all(store: Path, store_id: str) -> list[Checkpoint]:
    """The checkpoints that a store has, oldest first."""
    return sorted((read(store, store_id, name) for name in names(store)), key=lambda each: (each.created, each.name))


def file_name(name: str) -> str:
    """What the file of a checkpoint is called."""
    return name + _SUFFIX


def path_of(store: Path, name: str) -> Path:
    """The file of a checkpoint.

    Raises:
        StoreNotFoundError: if there is none of that name.
    """
    path = store / FOLDER / file_name(check_name(name))
    if not os.path.lexists(path):
        there = ", ".join(map(repr, names(store))) or "none"
        raise StoreNotFoundError(f"{store} has no checkpoint {name!r}. There are: {there}.")
    return path


def _opened(store: Path, name: str, path: Path) -> BinaryIO:
    try:
        return open(files.open_file(path), "rb")
    except FileNotFoundError:
        raise StoreNotFoundError(f"{store} has no checkpoint {name!r} any more: it was removed just now.") from None


def read(store: Path, store_id: str, name: str) -> Checkpoint:
    """What a checkpoint says of the store's rows, without its tensors.

    Raises:
        StoreNotFoundError: if there is none of that name.
        CorruptError: if it is damaged, or of another store.
    """
    path = path_of(store, name)
    with files.explaining(path, "reading a checkpoint"), _opened(store, name, path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _MOST_HEADER_BYTES))
    return _checkpoint(path, _document(path, header, length, store_id, name), size)


def load(store: Path, store_id: str, name: str) -> tuple[Checkpoint, Content]:
    """A checkpoint with all that it holds, checked.

    Raises:
        CorruptError: if it is damaged, or of another store.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as decode

    path = path_of(store, name)
    whole = files.read_file(path, "reading a checkpoint", most=_MOST_BYTES)
    length = int.from_bytes(whole[:8], "little")
    document = _document(path, whole[8 : 8 + min(length, _MOST_HEADER_BYTES)], length, store_id, name)
    try:
        tensors = decode(whole)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CorruptError(f"The checkpoint {path} is damaged: {error}.") from None
    held = document["held"]
    for key in dict.fromkeys((*held, *tensors)):
        if key not in tensors or key not in held or _describe(tensors[key]) != held[key]:
            raise CorruptError(f"The checkpoint {path} is damaged: the tensor {key!r} is not as it was written.")
    try:
        values = {key: nested.decode(document[key], tensors) for key in ("samplers", "tensors", "state")}
    except (KeyError, RecursionError) as error:
        raise CorruptError(f"The checkpoint {path} is damaged: {error!r}.") from None
    return _checkpoint(path, document, len(whole)), Content(**values)


def _document(path: Path, header: bytes, length: int, store_id: str, name: str) -> dict[str, Any]:
    """The JSON in a file's metadata, checked against its checksum, its store and its name."""
    try:
        if length != len(header):
            raise ValueError("its header is cut off")
        metadata = json.loads(header)["__metadata__"]
        text = metadata[_KEY]
        if zlib.crc32(text.encode()) != int(metadata[_SUM]):
            raise ValueError("its checksum does not agree")
        document: dict[str, Any] = json.loads(text)
        check_format(document.get("format"), document.get("features"), f"The checkpoint {path}")
        if not isinstance(document["held"], dict):
            raise TypeError("it does not say what it holds")
    except StoreError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptError(f"The checkpoint {path} is damaged: {error}.") from None
    if document.get("store") != store_id or document.get("name") != name:
        raise CorruptError(f"The checkpoint {path} belongs to another store, or has another name.")
    return document


def _checkpoint(path: Path, document: dict[str, Any], size: int) -> Checkpoint:
    limits = {"shard": MAX_SHARDS - 1, "next_segment": MAX_SEGMENTS}
    try:
        marks = tuple(Mark(**each) for each in document["shards"])
        for mark in marks:
            for key, value in asdict(mark).items():
                if type(value) is not int or not 0 <= value <= limits.get(key, _MOST_COUNT):
                    raise ValueError(f"{key} is {value!r}")
        created, keep = float(document["created"]), document["keep"]
        if not isinstance(keep, bool):
            raise TypeError("it does not say whether it is kept")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"The checkpoint {path} is damaged: {error}.") from None
    total = sum(mark.num_transitions for mark in marks)
    return Checkpoint(str(document["name"]), created, total, keep, size, marks)


def keep_below(store: Path, store_id: str, shard: int) -> int:
    """Below which number the segments of a shard are kept for good, since a checkpoint says so."""
    marks = [mark for each in read_all(store, store_id) if each.keep for mark in each.marks if mark.shard == shard]
    return max((mark.next_segment for mark in marks), default=0)


def remove(store: Path, name: str) -> None:
    """Remove a checkpoint's file."""
    path = path_of(store, name)
    with files.explaining(path, "removing a checkpoint"):
        path.unlink()
        files.sync_directory(path.parent)
