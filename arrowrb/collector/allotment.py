"""How much workers are ordered to collect, and what is still to be ordered. Numbers alone: no process, no lock."""

from __future__ import annotations

from dataclasses import dataclass, replace

from arrowrb.collector.loop import Order


@dataclass(frozen=True, slots=True)
class Share:
    """How much is to be collected; see `Collector`.

    Attributes:
        frames: Transitions of a batch; 0 where steps are counted.
        steps: Vector steps of a batch.
        total: Transitions in all.
        random_frames: So many of them by random actions, the first ones.
        sync: Whether all workers collect for each batch.
    """

    frames: int
    steps: int | None
    total: int
    random_frames: int
    sync: bool


class Allotment:
    """Hands out orders until all is ordered. What an order brings less than it might have is ordered again."""

    def __init__(self, share: Share) -> None:
        """Nothing is ordered yet."""
        self._share = share
        self._granted = 0  # transitions that were ordered, or are there
        self._random = 0  # those of them that were ordered from random actions

    @property
    def left(self) -> int:
        """Transitions that are still to be ordered."""
        return self._share.total - self._granted

    def of_one(self, num_lanes: int) -> int:
        """Transitions of one worker's batch, at most."""
        steps = self._share.steps
        return self._share.frames if steps is None else steps * num_lanes

    def of_each(self, lanes: list[int]) -> list[int]:
        """A batch of all workers, shared out evenly: transitions of each, at most.

        Args:
            lanes: How many each worker has.
        """
        if self._share.steps is not None:
            return [self.of_one(num_lanes) for num_lanes in lanes]
        each, more = divmod(min(self._share.frames, self.left), len(lanes))
        return [each + (number < more) for number in range(len(lanes))]

    def order(self, frames: int) -> Order | None:
        """An order of so many transitions, at most; None where there are no more to order."""
        frames = min(frames, self.left)
        if frames <= 0:
            return None
        order = Order(frames, self._share.steps, max(0, self._share.random_frames - self._random), frames)
        self._granted += frames
        self._random += order.num_random
        return order

    def settle(self, order: Order, frames: int, random_frames: int) -> None:
        """Take note of what an order has brought, which may be less than it might have."""
        self._granted += frames - order.frames
        self._random += random_frames - order.num_random


def rest_of(order: Order, frames: int) -> Order | None:
    """What is missing of an order that was broken off after so many transitions; None where it is whole."""
    left = order.frames - frames
    if left <= 0:
        return None
    return replace(order, frames=left, most=left, random_frames=max(0, order.random_frames - frames))
