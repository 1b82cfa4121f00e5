"""Commit records: slots, tearing, and which record opening trusts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arrowrb import commits
from arrowrb.commits import CommitFile, DurableFile, Record, newest, pack, trusted, unpack
from arrowrb.errors import CorruptError, StoreError

BOOT, OTHER = bytes(range(16)), bytes(16)
RECORD = Record(7, 100, 60, 5, 6, 2, BOOT, clean=False)


@pytest.mark.parametrize("record", [Record(), RECORD, replace(RECORD, clean=True, watermark=2**62)])
def test_round_trip(record):
    assert unpack(pack(record)) == record


def test_every_damaged_byte_is_found():
    slot = pack(RECORD)
    for place in range(len(slot)):
        for bit in range(8):
            damaged = bytearray(slot)
            damaged[place] ^= 1 << bit
            assert unpack(bytes(damaged)) is None
    for size in range(len(slot)):
        assert unpack(slot[:size]) is None


def test_impossible_counts_are_refused():
    for wrong in ({"watermark": -1}, {"num_transitions": 101}, {"next_episode": -2}):
        assert unpack(pack(replace(RECORD, **wrong))) is None


def test_a_torn_slot_leaves_the_other(tmp_path):
    path = tmp_path / "commit"
    commits.create_file(path, RECORD, sync=False)
    file, reader = CommitFile(path, writable=True), CommitFile(path)
    following = replace(RECORD, sequence=8, watermark=110)
    file.write(following)
    assert reader.read() == following
    content = path.read_bytes()
    slot = pack(replace(RECORD, sequence=9, watermark=120))
    for size in range(len(slot)):  # the ninth record goes over the seventh
        torn = bytearray(content)
        torn[512 : 512 + size] = slot[:size]
        assert newest(bytes(torn)).sequence in ((7, 8) if size == 0 else (8,))
    assert newest(bytes(1024)) is None


def test_a_reader_never_goes_back(tmp_path):
    path = tmp_path / "commit"
    commits.create_file(path, replace(RECORD, sequence=8), sync=False)
    writer, reader = CommitFile(path, writable=True), CommitFile(path)
    assert reader.read().sequence == 8
    writer.write(replace(RECORD, sequence=4))
    assert reader.read().sequence == 8
    with open(path, "r+b") as file:
        file.write(bytes(4096))
    assert reader.read().sequence == 8
    assert CommitFile(path).read() is None


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_files_of_another_size_are_refused(tmp_path, size):
    path = tmp_path / "commit"
    path.write_bytes(bytes(size))
    with pytest.raises(CorruptError, match=r"bytes|empty"):
        CommitFile(path)


def test_durable_slots_alternate(tmp_path):
    path = tmp_path / "commit"
    commits.create_file(path, RECORD, sync=False)
    for number in range(3):
        file = DurableFile(path)
        for step in (1, 4):
            before = commits.read_file(path)
            record = replace(RECORD, sequence=before.sequence + step, watermark=100 + number)
            content = path.read_bytes()
            file.write(record)
            assert commits.read_file(path) == record
            now = path.read_bytes()
            changed = [place for place in (0, 512) if content[place : place + 512] != now[place : place + 512]]
            kept = 512 - changed[0]
            assert newest(now[kept : kept + 512]) == before
        file.close()
    with pytest.raises(StoreError):
        commits.read_file(tmp_path / "none")


def test_trusted():
    visible, durable = replace(RECORD, sequence=9), replace(RECORD, sequence=8, watermark=90)
    assert trusted(visible, durable, BOOT) == (visible, False)
    assert trusted(visible, None, BOOT) == (visible, False)
    assert trusted(visible, durable, OTHER) == (durable, True)
    assert trusted(None, durable, BOOT) == (durable, True)
    assert trusted(None, replace(durable, clean=True), OTHER) == (replace(durable, clean=True), False)
    # A visible record that was torn back to before the durable one: the durable one is the floor.
    assert trusted(replace(visible, sequence=3), durable, BOOT) == (durable, True)
    for visible_one, boot in ((None, BOOT), (visible, OTHER)):
        with pytest.raises(CorruptError, match="Neither commit record"):
            trusted(visible_one, None, boot)
