"""Whether anybody could still release who waits for a limiter: looked at now and then, while it waits."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from ..limiter import SAMPLING, Side
from . import participants
from .crews import Crews, Standing
from .limiter_file import LimiterFile

_LOOK_SECONDS: Final = 0.1
_GONE_SECONDS: Final = 1.0  # in which another one may come

ASK: Final = (
    "Nobody could change that: the workers of the collector wait until this thread, which waits here, asks for another "
    "batch. Ask for more in between; or have the workers collect by themselves: sync=False, and collector.start() in "
    "place of iterating."
)
GONE: Final = (
    "Nobody collects any more: all who did have closed their store, or their threads have ended. A learner is done "
    "here; to sample on, make the sampler limited=False."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Nobody will release who waits.

    Attributes:
        why: in words; None where all simply wait for each other.
        is_done: whether that is because all is collected.
        cause: the error that it comes of.
    """

    why: str | None = None
    is_done: bool = False
    cause: BaseException | None = None


class Lookout:
    """Looks out during one wait."""

    def __init__(self, file: LimiterFile, side: Side, crews: Crews, inserts: int, made: int) -> None:
        """Begin to wait.

        Args:
            file: of the limiter.
            side: of who waits.
            crews: of its process.
            inserts: transitions that there were when it began to take part.
            made: when that was, in nanoseconds since the epoch.
        """
        self._file, self._side, self._crews = file, side, crews
        self._inserts, self._made = inserts, made
        self._looked, self._alone = -_LOOK_SECONDS, False
        self._gone: float | None = None

    def look(self, now: float) -> Verdict | None:
        """None as long as somebody might, or it is too soon for another look; ``now`` of `time.monotonic`."""
        if now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        standings = self._crews.look()
        for each in standings:
            if each.error is not None:
                error = each.error
                said = str(error).partition("\n")[0]
                return Verdict(f"The collector has ended with an error: {type(error).__name__}: {said}", cause=error)
        if not all(each.done or each.asked_by == threading.get_ident() for each in standings):
            self._alone, self._gone = False, None
            return None
        return self._idle(standings) or self._left(now)

    def _idle(self, standings: list[Standing]) -> Verdict | None:
        """Where all wait for this thread themselves, or are done; these crews among them."""
        pids = frozenset().union(*(each.pids for each in standings))
        alone = participants.nobody_is_left(self._file, self._side, idle=pids)
        before, self._alone = self._alone, alone
        if alone and standings and all(each.done for each in standings):
            return Verdict("All is collected that the collector was to collect.", is_done=True)
        if alone and before:  # at two looks
            return Verdict(ASK if standings else None)
        return None

    def _left(self, now: float) -> Verdict | None:
        """Where all who collected since it takes part have gone in good order, and nobody comes."""
        came = self._side == SAMPLING and self._file.inserts() > self._inserts
        if not came or not participants.have_left(self._file, self._made):
            self._gone = None
            return None
        self._gone = now if self._gone is None else self._gone
        return Verdict(GONE) if now - self._gone > _GONE_SECONDS else None
