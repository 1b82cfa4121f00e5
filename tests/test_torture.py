"""A part of each torture, in processes of their own: they fork, and take the calls of the operating system over."""

from __future__ import annotations

import pytest

from tests.torture.__main__ import TORTURES, start_part

PARTS = [part for name, torture in TORTURES.items() for part in torture.parts(name, torture.in_test)]


@pytest.mark.parametrize(("name", "cases", "part", "parts"), PARTS)
def test_no_row_is_lost(name: str, cases: int, part: int, parts: int) -> None:
    counts = start_part(name, cases, part, parts)
    assert counts["cases"] > 0
