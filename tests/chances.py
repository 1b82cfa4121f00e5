"""Whether draws are as likely as they should be."""

from __future__ import annotations

from collections import Counter


def chi_square(found: Counter[int], expected: dict[int, float]) -> None:
    assert set(found) <= set(expected)
    statistic = sum((found[key] - each) ** 2 / each for key, each in expected.items())
    freedom = len(expected) - 1
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5 + 12, (statistic, freedom)
