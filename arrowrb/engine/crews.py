"""Processes that commit for a collector of this process, as samplers of this process see them that wait for them.

What the files of a store tell of other processes is that they are there; of these it is known why they have ended, that
they are done, and whom they wait for themselves.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Standing:
    """How a crew stands.

    Attributes:
        pids: its processes.
        error: why it has ended before its time; None if it has not.
        done: whether all that it was to collect is committed.
        asked_by: the thread that has to ask before it goes on; None where it goes on by itself.
    """

    pids: frozenset[int]
    error: BaseException | None
    done: bool
    asked_by: int | None


class Crew(Protocol):
    """A collector that has processes commit for it. Thread-safe."""

    def standing(self) -> Standing | None:
        """How it stands now; None once it is closed."""


class Crews:
    """Those that write to the store of one engine. Thread-safe."""

    def __init__(self) -> None:
        self._crews: weakref.WeakSet[Crew] = weakref.WeakSet()
        self._pid = os.getpid()

    def add(self, crew: Crew) -> None:
        """It begins."""
        self._crews.add(crew)

    def look(self) -> list[Standing]:
        """How those stand that are not closed; a forked child has none, as their locks may be held."""
        if os.getpid() != self._pid:
            return []
        standings = [crew.standing() for crew in list(self._crews)]
        return [each for each in standings if each is not None]
