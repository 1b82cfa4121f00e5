"""How large segments are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arrowrb.rows import MAX_SEGMENT_ROWS
from arrowrb.sizing import FIRST_ROWS, MIN_MAX_ROWS, MOST_BLOCK_ROWS, MOST_BYTES, MOST_ROWS, shape_segment

lanes = st.one_of(st.integers(0, 70_000), st.sampled_from([0, 1, 8, 64, 512, 5000, 65_536]))
row_bytes = st.one_of(st.integers(1, 2000), st.integers(1, 1 << 31))
limits = st.one_of(st.none(), st.integers(MIN_MAX_ROWS, 10**9))


@given(lanes, row_bytes, st.integers(0, 1 << 40), limits, st.integers(1, 1024))
def test_shapes(num_lanes, size, so_far, max_rows, list_size):
    shape = shape_segment(
        num_lanes=num_lanes, row_bytes=size, rows_so_far=so_far, max_rows=max_rows, list_size=list_size
    )
    again = shape_segment(
        num_lanes=num_lanes, row_bytes=size, rows_so_far=so_far, max_rows=max_rows, list_size=list_size
    )
    assert shape == again
    assert shape.rows % shape.block_rows == 0
    assert 2 <= shape.block_rows <= MOST_BLOCK_ROWS
    assert 0 < shape.rows <= MAX_SEGMENT_ROWS
    assert shape.rows * list_size < 2**31
    num_blocks = shape.rows // shape.block_rows
    if 4 * num_lanes * shape.block_rows * list_size <= 1 << 30 and num_lanes <= 1 << 18:
        assert num_blocks >= 4 * max(1, num_lanes)
    needed = 4 * max(1, num_lanes) * shape.block_rows
    assert shape.rows <= max(needed, min(MOST_ROWS, max(64, MOST_BYTES // size)))
    if max_rows is not None:
        assert shape.rows <= max(needed, max_rows // 16, 8)


def test_segments_grow_with_the_store():
    total, sizes = 0, []
    for _ in range(12):
        sizes.append(shape_segment(num_lanes=1, row_bytes=100, rows_so_far=total).rows)
        total += sizes[-1]
    assert sizes[0] == FIRST_ROWS
    assert sizes == sorted(sizes)
    assert sizes[-1] == MOST_ROWS


def test_giant_rows():
    shape = shape_segment(num_lanes=1, row_bytes=100 << 20, rows_so_far=10**9)
    assert shape.rows == 64


def test_a_small_hot_tier_makes_no_tiny_segments():
    """Its segments become cold ones, which are never made larger."""

    def rows(hot_rows: int, row_bytes: int, max_rows: int | None = None, so_far: int = 10**7) -> int:
        return shape_segment(
            num_lanes=1, row_bytes=row_bytes, rows_so_far=so_far, hot_rows=hot_rows, max_rows=max_rows
        ).rows

    assert rows(1000, 60) == 4096
    assert rows(1000, 60, so_far=50_000) <= 125  # the bound holds as long as segments are few
    assert rows(1000, 60, so_far=512_000) == 896  # whole blocks
    assert rows(80_000, 60) == 9728  # an eighth, in whole blocks
    assert 120 <= rows(1000, 2000) <= 131  # 256 KiB
    assert rows(1000, 100_000) == 112  # rows are large: an eighth, in whole blocks
    assert rows(1000, 60, max_rows=4000) <= 250  # what retention drops at a time stays as fine
