"""A part of each torture, in processes of their own: they fork, and take the calls of the operating system over."""

from __future__ import annotations

import pytest

from tests.torture.__main__ import TORTURES, start_part

PARTS = [(name, part, torture.parts) for name, torture in TORTURES.items() for part in range(torture.parts)]


@pytest.mark.parametrize(("name", "part", "parts"), PARTS)
def test_no_row_is_lost(name: str, part: int, parts: int) -> None:
    counts = start_part(name, TORTURES[name].in_test, part, parts)
    assert counts["cases"] > 0
