"""The log of seeds."""

from __future__ import annotations

import pytest

from arrowrb.errors import StoreError
from arrowrb.seeds import ENTRY_BYTES, SeedEntry, SeedLog, parse, read

ENTRIES = [SeedEntry(i, i % 3, 10 * i + 1, 2**64 - 1 - i) for i in range(20)]


@pytest.fixture
def log(tmp_path):
    log = SeedLog(tmp_path / "seeds", 10**9)
    yield log
    log.close()


def test_round_trip(tmp_path, log):
    log.append(ENTRIES[:5])
    log.append([])
    log.append(ENTRIES[5:])
    log.sync()
    assert read(tmp_path / "seeds", 10**9) == ENTRIES
    assert read(tmp_path / "seeds", 51) == ENTRIES[:6]
    assert read(tmp_path / "none", 10**9) == []


def test_entries_beyond_the_watermark_go(tmp_path, log):
    log.append(ENTRIES)
    log.trim(51)
    log.append(ENTRIES[10:11])
    assert read(tmp_path / "seeds", 10**9) == [*ENTRIES[:6], ENTRIES[10]]
    again = SeedLog(tmp_path / "seeds", 31)
    again.close()
    assert read(tmp_path / "seeds", 10**9) == ENTRIES[:4]


def test_every_damaged_byte_is_found(tmp_path, log):
    log.append(ENTRIES[:3])
    content = (tmp_path / "seeds").read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            left = parse(bytes(damaged), 10**9)
            expected = [entry for i, entry in enumerate(ENTRIES[:3]) if i != place // ENTRY_BYTES]
            assert left == expected
    for size in range(len(content)):
        assert parse(content[:size], 10**9) == ENTRIES[: size // ENTRY_BYTES]


def test_torn_append_is_written_over(tmp_path, log):
    log.append(ENTRIES[:2])
    with open(tmp_path / "seeds", "ab") as file:
        file.write(b"torn")
    log.append(ENTRIES[2:4])
    assert read(tmp_path / "seeds", 10**9) == ENTRIES[:4]


def test_no_folder(tmp_path):
    with pytest.raises(StoreError, match="opening seeds"):
        SeedLog(tmp_path / "none" / "seeds", 0)
