"""What workers are ordered to collect comes to the totals, whatever each order brings and whoever is done first."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from arrowrb.collector.allotment import Allotment, Share, rest_of
from arrowrb.collector.loop import ENDLESS, Order


class FakeWorker:
    """Carries out orders as a loop does: by whole vector steps, of which some lanes may bring nothing."""

    def __init__(self, num_lanes: int, rng: np.random.Generator) -> None:
        self.num_lanes, self.rng = num_lanes, rng
        self.tape: list[bool] = []  # of each transition: whether its action is random
        self.orders: deque[Order] = deque()

    def carry_out(self, order: Order) -> list[bool]:
        steps = 0
        while len(self.tape) < order.frames and (order.steps is None or steps < order.steps):
            count = self.num_lanes if self.rng.random() < 0.8 else int(self.rng.integers(self.num_lanes + 1))
            self.tape += [len(self.tape) < order.random_frames] * count
            steps += 1
        taken, self.tape = self.tape[: order.frames], self.tape[order.frames :]
        return taken

    def fail(self, order: Order) -> list[bool]:
        """A part of what is ordered; the rest of the tape is lost."""
        taken = self.carry_out(order)[: int(self.rng.integers(order.frames))]
        self.tape = []
        return taken


@pytest.mark.parametrize("size", [(30, None), (0, 10)], ids=["frames", "steps"])
@pytest.mark.parametrize("num_lanes", [1, 4])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_totals_are_exact(size: tuple[int, int | None], num_lanes: int, fails: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    total, random_frames = 1000, int(rng.integers(1, 900))
    allotment = Allotment(Share(*size, total, random_frames, sync=False))
    workers = [FakeWorker(num_lanes, rng) for _ in range(3)]
    rows: list[bool] = []

    def order_ahead(worker: FakeWorker) -> None:
        while len(worker.orders) < 2:
            order = allotment.order(allotment.of_one(num_lanes))
            if order is None:
                return
            worker.orders.append(order)

    for worker in workers:
        order_ahead(worker)
    while busy := [worker for worker in workers if worker.orders]:
        worker = busy[int(rng.integers(len(busy)))]
        order = worker.orders.popleft()
        kept: list[bool] = []
        rest: Order | None = order
        while fails and rest is not None and rng.random() < 0.3:
            kept += worker.fail(rest)
            rest = rest_of(order, len(kept))
        brought = [] if rest is None else worker.carry_out(rest)
        allotment.settle(order, len(kept) + len(brought), sum(brought) + min(len(kept), order.random_frames))
        rows += kept + brought
        order_ahead(worker)
    assert len(rows) == total
    over, whole_steps = sum(rows) - random_frames, 3 * (num_lanes - 1)
    if size[1] is None:
        assert 0 <= over <= whole_steps
    else:
        assert 1 - num_lanes <= over <= 2 * whole_steps


def test_a_batch_of_all_is_shared_out_evenly() -> None:
    allotment = Allotment(Share(101, None, 150, 0, sync=True))
    assert allotment.of_each([1, 1]) == [51, 50]
    assert [allotment.order(frames) for frames in (51, 50)] == [Order(51, None, 0, 51), Order(50, None, 0, 50)]
    assert allotment.of_each([1, 1]) == [25, 24]
    endless = Allotment(Share(0, 10, ENDLESS, 0, sync=True))
    assert endless.of_each([2, 3]) == [20, 30]
