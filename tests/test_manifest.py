"""The manifest: round trip, damage, and hostile values with a correct checksum."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import pytest

from arrowrb import manifest as manifests
from arrowrb.errors import CorruptError, FormatError, StoreError
from arrowrb.manifest import FileEntry, Manifest, SegmentEntry, decode, encode

FILE = FileEntry("00000000.runs.arrow", 123, 2**32 - 1)
SEALED = SegmentEntry(0, 64, 8, "hot", "00000000.arrow", 9999, True, 60, 50, 1, 70, -5, 2**62, FILE, FILE)
MANIFEST = Manifest(3, "main", 9, 2, 5, (SEALED, SegmentEntry(4, 64, 8, "hot", "00000004.arrow", 9999)))


def crafted(change, *, header=None):
    """A manifest with a value changed and the checksum right."""
    body = json.loads(encode(MANIFEST).split(b"\n")[1])
    change(body)
    text = json.dumps(body).encode()
    head = {"format": 1, "features": [], "crc32": zlib.crc32(text)} | (header or {})
    return json.dumps(head).encode() + b"\n" + text


def test_round_trip(tmp_path):
    assert decode(encode(MANIFEST), "here") == MANIFEST
    manifests.write(tmp_path / "manifest.json", MANIFEST)
    assert manifests.read(tmp_path / "manifest.json", 3) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    with pytest.raises(CorruptError, match="shard 3, expected 4"):
        manifests.read(tmp_path / "manifest.json", 4)
    with pytest.raises(StoreError, match="reading the manifest"):
        manifests.read(tmp_path / "none.json", 3)


def test_with_segment():
    grown = MANIFEST.with_segment(SegmentEntry(7, 16, 8, "hot", "00000007.arrow", 1))
    assert [entry.number for entry in grown.segments] == [0, 4, 7]
    assert grown.next_segment == 8
    assert grown.with_segment(replace(SEALED, num_rows=3)).segments[0].num_rows == 3


def test_every_damaged_byte_is_found():
    content = encode(MANIFEST)
    for place in range(len(content) - 1):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            try:
                found = decode(bytes(damaged), "here")
            except (CorruptError, FormatError):
                continue
            assert found == MANIFEST  # a blank of the header that became another blank
            assert place < content.index(b"\n")
    for size in range(len(content) - 1):
        with pytest.raises(CorruptError):
            decode(content[:size], "here")


def test_unknown_keys_are_kept():
    def change(body):
        body["later"] = {"a": [1, None]}
        body["segments"][0]["tint"] = "blue"

    found = decode(crafted(change), "here")
    assert found.unknown == {"later": {"a": [1, None]}}
    assert found.segments[0].unknown == {"tint": "blue"}
    assert decode(encode(found), "here") == found


@pytest.mark.parametrize("header", [{"format": 2}, {"features": ["cold"]}, {"format": 10**9, "features": ["x", "y"]}])
def test_newer_formats_are_refused(header):
    with pytest.raises(FormatError, match="Upgrade arrowrb"):
        decode(crafted(lambda body: None, header=header), "here")


@pytest.mark.parametrize(
    "header", [{"format": 0}, {"format": -1}, {"format": "1"}, {"format": True}, {"features": None}]
)
def test_headers_that_say_nothing(header):
    with pytest.raises(CorruptError):
        decode(crafted(lambda body: None, header=header), "here")


NAMES = ["../x", "/etc/passwd", "a/b", "", ".", "..", ".hidden", "A", "a\0b", "a\n", "x" * 65, None, 3, ["a"]]
NUMBERS = [-1, 2**63, 1.0, "1", None, True, [], float("inf"), float("nan")]


@pytest.mark.parametrize("key", ["name", "blocks.name"])
@pytest.mark.parametrize("name", NAMES)
def test_names_cannot_point_elsewhere(key, name):
    def change(body):
        place = body["segments"][0]
        for part in key.split(".")[:-1]:
            place = place[part]
        place["name"] = name

    with pytest.raises(CorruptError):
        decode(crafted(change), "here")


@pytest.mark.parametrize(
    "key",
    [
        "number",
        "rows",
        "block_rows",
        "bytes",
        "num_rows",
        "num_transitions",
        "first_ordinal",
        "last_ordinal",
        "last_time",
    ],
)
@pytest.mark.parametrize("value", NUMBERS)
def test_counts_of_segments_are_checked(key, value):
    if key == "last_time" and value == -1:
        return
    with pytest.raises(CorruptError):
        decode(crafted(lambda body: body["segments"][0].update({key: value})), "here")


@pytest.mark.parametrize("key", ["shard", "sequence", "times_opened", "next_segment", "name", "segments"])
@pytest.mark.parametrize("value", NUMBERS)
def test_counts_are_checked(key, value):
    if (key, value) in (("segments", []), ("name", "1")):
        return
    with pytest.raises(CorruptError):
        decode(crafted(lambda body: body.update({key: value})), "here")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["segments"].reverse(),
        lambda body: body["segments"].append(body["segments"][0]),
        lambda body: body.update(next_segment=4),
        lambda body: body.update(shard=1 << 15),
        lambda body: body.pop("segments"),
        lambda body: body["segments"][0].pop("rows"),
        lambda body: body["segments"][0].update(tier="warm"),
        lambda body: body["segments"][0].update(sealed=1),
        lambda body: body["segments"][0].update(rows=63),
        lambda body: body["segments"][0].update(block_rows=1),
        lambda body: body["segments"][0].update(rows=1 << 25, block_rows=1 << 25),
        lambda body: body["segments"][0].update(blocks=[]),
        lambda body: body["segments"][0]["runs"].update(crc32=2**32),
        lambda body: body["segments"].append(7),
    ],
)
def test_hostile_values(change):
    with pytest.raises(CorruptError):
        decode(crafted(change), "here")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}", b"[]\n[]", b"\xff\xfe\n", b"null\nnull", b"[" * 100_000, b"1e999\n"]
)
def test_rubbish(content):
    with pytest.raises(CorruptError):
        decode(content, "here")


def test_deep_nesting_with_a_right_checksum():
    text = b'{"shard":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    header = json.dumps({"format": 1, "features": [], "crc32": zlib.crc32(text)}).encode()
    with pytest.raises(CorruptError):
        decode(header + b"\n" + text, "here")
