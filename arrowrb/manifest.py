"""The manifest of a shard: the durable list of its segments, replaced atomically, checked when read.

It changes when a segment is prepared, sealed, demoted or evicted, never with a commit. A segment is listed before
the commit that puts the first row into it, so a reader that takes a watermark and then the manifest finds every
segment that the watermark speaks of.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from .errors import CorruptError, FormatError
from .files import Mapping, publish
from .rows import MAX_SEGMENT_ROWS, MAX_SEGMENTS, MAX_SHARDS

FORMAT: Final = 1
KNOWN_FEATURES: Final[frozenset[str]] = frozenset()
_NAME: Final = re.compile(r"[0-9a-z][0-9a-z._-]{0,63}")
_MAX_MANIFEST_BYTES: Final = 256 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a segment: its name within the shard's ``segments`` folder, size, and CRC-32 of all of it."""

    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True)
class SegmentEntry:
    """One segment: where its rows lie and, once it is sealed, what is known of them for good."""

    number: int
    rows: int  # allocated
    block_rows: int
    tier: str  # "hot" or "cold"
    name: str  # of the file that holds the rows
    bytes: int
    sealed: bool = False
    num_rows: int = 0  # committed; this and the following are known once sealed
    num_transitions: int = 0
    first_ordinal: int = 0
    last_ordinal: int = 0
    first_time: int = 0
    last_time: int = 0
    blocks: FileEntry | None = None
    runs: FileEntry | None = None
    footer_crc32: int | None = None  # of a cold segment's footer, by which queries pass over rows
    unknown: dict[str, Any] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether its rows may not be durable yet."""
        return self.tier == "hot" and not self.sealed

    @cached_property
    def text(self) -> str:
        """As JSON. Kept, since every change of a manifest writes all of its entries."""
        value = asdict(self)
        value.update(value.pop("unknown"))
        return _json(value)


@dataclass(frozen=True, slots=True)
class Evicted:
    """What retention has dropped: sums over the segments that were, and their runs, which outlive them."""

    num_segments: int = 0
    rows: int = 0  # allocated
    num_rows: int = 0
    num_transitions: int = 0
    last_ordinal: int = 0
    runs: tuple[FileEntry, ...] = ()  # oldest first; each of one segment, or merged from neighbours

    def with_segment(self, entry: SegmentEntry) -> Evicted:
        """The sums with one more sealed segment."""
        return Evicted(
            self.num_segments + 1,
            self.rows + entry.rows,
            self.num_rows + entry.num_rows,
            self.num_transitions + entry.num_transitions,
            max(self.last_ordinal, entry.last_ordinal),
            self.runs if entry.runs is None else (*self.runs, entry.runs),
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """All segments of a shard, in order of number, and what outlives a writer."""

    shard: int
    name: str
    sequence: int = 0
    times_opened: int = 0
    next_segment: int = 0  # numbers below it are used up for good
    segments: tuple[SegmentEntry, ...] = ()
    evicted: Evicted = Evicted()
    lost: tuple[int, ...] = ()  # numbers of segments that a repair has set aside
    unknown: dict[str, Any] = field(default_factory=dict)

    def with_segment(self, entry: SegmentEntry) -> Manifest:
        """The manifest with this segment added, or replaced where its number is listed."""
        return self.with_segments([entry])

    def with_segments(self, entries: Sequence[SegmentEntry]) -> Manifest:
        """The manifest with these segments added, or replaced where their numbers are listed."""
        listed = {each.number: each for each in (*self.segments, *entries)}
        segments = tuple(listed[number] for number in sorted(listed))
        following = max([self.next_segment, *(entry.number + 1 for entry in entries)])
        return replace(self, segments=segments, next_segment=following)

    def segment(self, number: int) -> SegmentEntry:
        """The entry of a segment."""
        return next(entry for entry in self.segments if entry.number == number)

    def without_segment(self, entry: SegmentEntry) -> Manifest:
        """The manifest when a segment has been evicted."""
        segments = tuple(each for each in self.segments if each.number != entry.number)
        return replace(self, segments=segments, evicted=self.evicted.with_segment(entry))

    @property
    def reach(self) -> int:
        """The ordinal of the newest row that is not in the hot tier any more."""
        cold = [entry.last_ordinal for entry in self.segments if entry.tier == "cold"]
        return max(self.evicted.last_ordinal, *cold, 0)

    @property
    def files(self) -> set[str]:
        """Names of all files in the folder of segments that belong to the shard."""
        tables = [file for entry in self.segments for file in (entry.blocks, entry.runs) if file is not None]
        return {entry.name for entry in self.segments} | {file.name for file in (*tables, *self.evicted.runs)}


def encode(manifest: Manifest) -> bytes:
    """The manifest as JSON with its checksum; keys that this version does not know are kept."""
    body = {each.name: getattr(manifest, each.name) for each in fields(manifest)}
    body["evicted"] = asdict(manifest.evicted)
    body.update(body.pop("unknown"))
    del body["segments"]
    entries = ",".join(entry.text for entry in manifest.segments)
    text = f'{{"segments":[{entries}],{_json(body)[1:]}'.encode()
    header = {"format": FORMAT, "features": [], "crc32": zlib.crc32(text)}
    return json.dumps(header).encode() + b"\n" + text + b"\n"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def check_format(found: object, features: object, where: str) -> None:
    """Refuse a format or a required feature that this version does not know."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1 or not isinstance(features, list):
        raise CorruptError(f"{where} does not say which format it has.")
    missing = sorted(str(name) for name in set(map(str, features)) - KNOWN_FEATURES)
    if found > FORMAT or missing:
        what = f"format {found}" + (f" with features {', '.join(missing)}" if missing else "")
        raise FormatError(f"{where} has {what}; this arrowrb reads up to format {FORMAT}. Upgrade arrowrb to read it.")


def decode(content: bytes, where: str) -> Manifest:
    """Read what `encode` wrote. Every count is range-checked and every name confined before anything uses it."""
    head, _, body = content.partition(b"\n")
    try:
        header = json.loads(head)
        if not isinstance(header, dict):
            raise TypeError("the header is no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptError(f"{where} is no manifest: {error}.") from None
    check_format(header.get("format"), header.get("features"), where)
    body = body.rstrip(b"\n")
    if header.get("crc32") != zlib.crc32(body):
        raise CorruptError(f"{where} is damaged: its checksum does not agree.")
    try:
        value = json.loads(body)
        segments = tuple(_segment(each) for each in value.pop("segments"))
        manifest = Manifest(
            shard=_count(value.pop("shard"), MAX_SHARDS - 1),
            name=_name(value.pop("name")),
            sequence=_count(value.pop("sequence")),
            times_opened=_count(value.pop("times_opened")),
            next_segment=_count(value.pop("next_segment"), MAX_SEGMENTS),
            segments=segments,
            evicted=_evicted(value.pop("evicted")),
            lost=tuple(_count(each, MAX_SEGMENTS - 1) for each in value.pop("lost", ())),
            unknown=value,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{where} is damaged: {error!r}.") from None
    numbers = [entry.number for entry in segments]
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= manifest.next_segment):
        raise CorruptError(f"{where} is damaged: its segments are not in order.")
    return manifest


def _count(value: object, limit: int = 1 << 62) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise ValueError(f"{value!r} is no count of 0 to {limit}")
    return value


def _time(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{value!r} is no time in microseconds")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no plain file name")
    return value


def _optional(value: object, read: Callable[[Any], _T]) -> _T | None:
    return None if value is None else read(value)


def _file(value: dict[str, Any]) -> FileEntry:
    return FileEntry(_name(value["name"]), _count(value["bytes"]), _count(value["crc32"], (1 << 32) - 1))


def _evicted(value: dict[str, Any]) -> Evicted:
    return Evicted(
        num_segments=_count(value["num_segments"], MAX_SEGMENTS),
        rows=_count(value["rows"]),
        num_rows=_count(value["num_rows"]),
        num_transitions=_count(value["num_transitions"]),
        last_ordinal=_count(value["last_ordinal"]),
        runs=tuple(_file(each) for each in value["runs"]),
    )


def _segment(value: dict[str, Any]) -> SegmentEntry:
    value = dict(value)
    tier, sealed = value.pop("tier"), value.pop("sealed")
    if tier not in ("hot", "cold") or not isinstance(sealed, bool) or (tier == "cold" and not sealed):
        raise ValueError(f"no segment has tier {tier!r}, sealed {sealed!r}")
    rows = _count(value.pop("rows"), MAX_SEGMENT_ROWS)
    block_rows = _count(value.pop("block_rows"), MAX_SEGMENT_ROWS)
    if block_rows < 2 or rows < block_rows or rows % block_rows:
        raise ValueError(f"{rows} rows do not divide into blocks of {block_rows}")
    entry = SegmentEntry(
        number=_count(value.pop("number"), MAX_SEGMENTS - 1),
        rows=rows,
        block_rows=block_rows,
        tier=tier,
        sealed=sealed,
        name=_name(value.pop("name")),
        bytes=_count(value.pop("bytes")),
        num_rows=_count(value.pop("num_rows"), rows),
        num_transitions=_count(value.pop("num_transitions"), rows),
        first_ordinal=_count(value.pop("first_ordinal")),
        last_ordinal=_count(value.pop("last_ordinal")),
        first_time=_time(value.pop("first_time")),
        last_time=_time(value.pop("last_time")),
        blocks=_optional(value.pop("blocks"), _file),
        runs=_optional(value.pop("runs"), _file),
        footer_crc32=_optional(value.pop("footer_crc32", None), lambda each: _count(each, (1 << 32) - 1)),
    )
    return replace(entry, unknown=value)


def write(path: Path, manifest: Manifest, *, sync: bool = True) -> None:
    """Replace the manifest file atomically."""
    publish(path, encode(manifest), sync=sync)


def read(path: Path, shard: int) -> Manifest:
    """Read and check the manifest file of a shard."""
    return read_mapped(path, shard)[0]


def read_mapped(path: Path, shard: int) -> tuple[Manifest, Mapping]:
    """The same with a mapping of the file, which tells whether it is still the one: see `stamp_of`."""
    mapping = Mapping(path, doing="reading the manifest")
    if mapping.size > _MAX_MANIFEST_BYTES:
        raise CorruptError(f"{path} has {mapping.size:,} bytes, expected at most {_MAX_MANIFEST_BYTES:,}.")
    manifest = decode(mapping.array(0, mapping.size, np.uint8).tobytes(), str(path))
    if manifest.shard != shard:
        raise CorruptError(f"{path} is the manifest of shard {manifest.shard}, expected {shard}. Files were mixed up.")
    return manifest, mapping
