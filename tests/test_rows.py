"""Row ids and runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowrb.engine.runs import find_runs
from arrowrb.rows import MAX_SEGMENT_ROWS, MAX_SEGMENTS, MAX_SHARDS, End, pack_row_id, row_id_base

shards, segments = st.integers(0, MAX_SHARDS - 1), st.integers(0, MAX_SEGMENTS - 1)
positions = st.integers(0, MAX_SEGMENT_ROWS - 1)


@given(st.lists(st.tuples(shards, segments, positions), min_size=2, max_size=2, unique=True))
def test_row_ids_are_addresses(places):
    one, other = (pack_row_id(*place) for place in places)
    assert 0 <= one < 2**63
    assert one != other
    assert (one < other) == (places[0] < places[1])
    assert one == row_id_base(*places[0][:2]) + places[0][2]


@st.composite
def blocks_of_episodes(draw):
    """(block_rows, columns, runs): a segment made of runs, and those runs."""
    block_rows = draw(st.integers(2, 9))
    columns = {name: [] for name in ("kind", "episode", "step", "terminated", "truncated")}
    runs = []
    for block in range(draw(st.integers(0, 5))):
        left = block_rows
        while left and draw(st.booleans()):
            length = draw(st.integers(1, left))
            tail = draw(st.sampled_from([0, 2, 3, 4]))
            if tail == 2 and length == 1:
                tail = 4
            flags = draw(st.integers(1, 3)) if tail == 2 else 0
            episode, step = len(runs), draw(st.integers(0, 99))
            num_transitions = length - (tail > 0)
            for i in range(length):
                last = i == num_transitions - 1
                columns["kind"].append(1 if i < num_transitions else tail)
                columns["episode"].append(episode)
                columns["step"].append(step + i)
                columns["terminated"].append(flags & 1 if last else 0)
                columns["truncated"].append(flags >> 1 if last else 0)
            end = {0: End.RUNNING, 2: flags, 3: End.CONTINUED, 4: End.CUT}[tail]
            first = block * block_rows + block_rows - left
            runs.append((first, length, num_transitions, step, int(end)))
            left -= length
        for values in columns.values():
            values.extend([0] * left)
    return block_rows, columns, runs


@settings(deadline=None)
@given(blocks_of_episodes())
def test_find_runs(made):
    block_rows, columns, expected = made
    found = find_runs(
        np.array(columns["kind"], np.uint8),
        np.array(columns["episode"], np.int64),
        np.array(columns["step"], np.int32),
        np.array(columns["terminated"], np.uint8),
        np.array(columns["truncated"], np.uint8),
        block_rows,
    )
    got = zip(found.first, found.num_rows, found.num_transitions, found.first_step, found.end, strict=True)
    assert [tuple(map(int, run)) for run in got] == expected


@pytest.mark.parametrize("gap", [True, False])
def test_rows_beyond_the_watermark_split_nothing(gap):
    kinds = np.array([1, 1, 0, 0] if gap else [1, 1, 1, 2], np.uint8)
    steps = np.arange(4, dtype=np.int32)
    flags = np.array([0, 0, 1, 0], np.uint8)
    found = find_runs(kinds, np.zeros(4, np.int64), steps, flags, flags, 4)
    assert found.num_rows.tolist() == [2 if gap else 4]
    assert found.end.tolist() == [End.RUNNING if gap else End.BOTH]
