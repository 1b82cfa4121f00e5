"""What a writer does about what a dead one left: pure."""

from __future__ import annotations

import random

from arrowrb.recovery import BlockEnd, LanePlan, WaitingCopy, plan_lanes


def end(lane, ordinal, kind, *, segment=0, position=3, stop=8, episode=5, step=3):
    return BlockEnd(segment, lane, position, stop, ordinal, kind, episode, step)


def test_nothing():
    assert plan_lanes([], []) == []


def test_ended_episodes_leave_room():
    assert plan_lanes([end(2, 9, 2)], []) == [LanePlan(2, 0, 4, 8, 5, 0, running=False)]
    assert plan_lanes([end(2, 9, 4)], []) == [LanePlan(2, 0, 4, 8, 5, 0, running=False)]


def test_running_episodes_wait_in_the_row_behind():
    assert plan_lanes([end(1, 9, 1)], []) == [LanePlan(1, 0, 4, 8, 5, 4, running=True)]


def test_the_newest_block_of_a_lane_counts():
    ends = [end(1, 9, 1, position=6), end(1, 20, 2, position=9, stop=16), end(0, 10, 1)]
    random.Random(0).shuffle(ends)
    plans = plan_lanes(ends, [])
    assert [(plan.lane, plan.cursor, plan.running) for plan in plans] == [(0, 4, True), (1, 10, False)]


def test_continued_in_a_waiting_copy():
    copies = [WaitingCopy(1, 2, 16, 24, 5, 3), WaitingCopy(1, 2, 24, 32, 5, 2), WaitingCopy(1, 3, 32, 40, 5, 3)]
    assert plan_lanes([end(2, 9, 3, position=7)], copies) == [LanePlan(2, 1, 16, 24, 5, 3, running=True)]


def test_copies_without_a_tail_never_counted():
    assert plan_lanes([end(2, 9, 2)], [WaitingCopy(1, 2, 16, 24, 5, 3)])[0].segment == 0
    assert plan_lanes([], [WaitingCopy(1, 2, 16, 24, 5, 3)]) == []


def test_tail_without_a_copy_in_reach_leaves_the_lane():
    assert plan_lanes([end(2, 9, 3)], []) == []


def test_order_of_input_does_not_matter():
    rng = random.Random(1)
    ends = [
        end(lane, 10 * i + lane, rng.choice([1, 2, 4]), position=i * 8 + 3, stop=i * 8 + 8)
        for lane in range(5)
        for i in range(4)
    ]
    expected = plan_lanes(ends, [])
    for _ in range(10):
        rng.shuffle(ends)
        assert plan_lanes(ends, []) == expected
