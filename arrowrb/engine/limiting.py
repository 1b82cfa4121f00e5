"""Waiting for a limiter: where a store's writer, and each of its samplers, asks whether it may go on.

A gate is asked before a commit or a batch, where nothing is held: other threads go on meanwhile, so that one that
samples can release one that commits, and Ctrl-C ends a wait at once. It looks at mapped memory, ever less often. A wait
ends when the balance allows, when store or sampler is closed, or with an error: when the other side has done nothing
for so long, or when nobody could release it. Samplers are let through where that is because all is collected.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Final

from ..errors import WaitError
from ..limiter import COLLECTING, SAMPLING, Limiter, LimiterInfo, Participant, Rule, Side
from . import limiter_file, participants
from .crews import Crew, Crews
from .limiter_file import NUM_SHARDS, SAMPLES, SEQUENCE, LimiterFile
from .lookout import Lookout, Verdict
from .participants import Place
from .paths import LIMITER_FILE
from .shard_writer import ShardWriter

_SHORTEST_PAUSE: Final = 0.0002
_LONGEST_PAUSE: Final = 0.01
_GROWTH: Final = 1.5
_MOST_NAMED: Final = 3


_fork = 0  # which process this is, counted by forks


def _count_forks() -> None:
    global _fork
    _fork += 1


os.register_at_fork(after_in_child=_count_forks)


class Gate:
    """Where one participant waits.

    Its place among the others is taken when it is first asked. Thread-safe; `count` for one thread at a time.

    Attributes:
        wait_seconds: how long it has made wait.
        closed: whether it lets everybody through.
    """

    def __init__(self, file: LimiterFile, side: Side, name: str | None, crews: Crews) -> None:
        self._file, self._side, self._name, self._crews = file, side, name or "", crews
        self._inserts, self._made = file.inserts(), time.time_ns()
        self._words, self._counts = file.words, file.counts
        self._known, self._fork = -1, -1  # of what the bounds are, and in which process it has its place
        self._places: dict[int, Place] = {}
        self.wait_seconds = 0.0
        self.closed = False

    def wait(self) -> None:
        """Return when the balance allows a commit or a batch.

        Raises:
            WaitError: if that takes too long, or nobody could see to it.
        """
        words = self._words
        if self._known == words[SEQUENCE] and self._fork == _fork:  # the way of most, as short as can be
            inserts = self._counts[0] if words[NUM_SHARDS] == 1 else self._file.inserts()
            if inserts >= self._first and self._least <= inserts * self._ratio - words[SAMPLES] <= self._most:
                return
        self._aim()
        if not self.closed:
            self._joined()
            if self._waits():
                self._wait()

    def _aim(self) -> None:
        """Know the bounds within which the rule surely lets through."""
        sequence, rule = self._words[SEQUENCE], self._file.rule
        first, least, most = 0, -math.inf, math.inf
        even = rule.start_inserts * rule.samples_per_insert - rule.start_samples
        if rule.enabled and self._side == COLLECTING:
            most = even + rule.tolerance
        elif rule.enabled:
            first, least = rule.min_size, even - rule.tolerance
        self._ratio, self._first, self._least, self._most = rule.samples_per_insert, first, least, most
        self._known = sequence  # last: another thread may be on its way

    def _waits(self) -> bool:
        rule, inserts, samples = self._file.rule, self._file.inserts(), self._file.samples()
        if self._side == COLLECTING:
            return rule.collecting_waits(inserts, samples)
        return rule.sampling_waits(inserts, samples)

    def count(self, rows: int) -> None:
        """Note rows that were committed or sampled."""
        if self._side == SAMPLING:
            self._file.count_samples(rows)
        if not self.closed:
            self._joined().count(rows)

    def close(self) -> None:
        """Let everybody through from now on, and be seen no more."""
        self.closed = True
        if self._fork == _fork:
            self._leave()

    def fail(self) -> None:
        """Be seen as one who has died."""
        if self._fork == _fork:
            self._place.fail(os.getpid())

    def _joined(self) -> Place:
        """Its place, which is taken when it is first asked for; a forked child takes one of its own."""
        if self._fork != _fork:
            made = Place(self._file, self._side, self._name)
            self._place = place = self._places.setdefault(_fork, made)
            if place is made:
                self._leave = weakref.finalize(self, place.leave, os.getpid())
                self._leave.atexit = self._side == SAMPLING  # a writer that nobody closes has died
            else:
                made.leave(os.getpid())  # another thread was first
            self._fork = _fork
        return self._place

    def _wait(self) -> None:
        place, begin = self._place, time.monotonic()
        since, pause = begin, _SHORTEST_PAUSE
        lookout = Lookout(self._file, self._side, self._crews, self._inserts, self._made)
        seen = self._progress()
        try:
            while not self.closed and self._waits():
                place.wait(self._why())
                time.sleep(pause)
                pause = min(pause * _GROWTH, _LONGEST_PAUSE)
                now, done = time.monotonic(), self._progress()
                if done != seen:
                    seen, since = done, now
                if now - since > self._file.rule.patience and self._waits():
                    raise WaitError(self._complaint(now - begin, now - since))
                verdict = lookout.look(now)
                if verdict is not None and self._waits():  # it is so still
                    if verdict.is_done and not self._has_too_few():
                        return
                    raise WaitError(self._hopeless(now - begin, verdict)) from verdict.cause
        finally:
            self.wait_seconds += time.monotonic() - begin
            place.go_on()

    def _progress(self) -> int:
        return self._file.samples() if self._side == COLLECTING else self._file.inserts()

    def _has_too_few(self) -> bool:
        return self._file.inserts() < self._file.rule.min_size

    def _why(self) -> str:
        if self._side == COLLECTING:
            return participants.SAMPLING_OWES
        return participants.TOO_FEW if self._has_too_few() else participants.SAMPLING_AHEAD

    def _complaint(self, seconds: float, idle: float) -> str:
        """Why it gives up after so long: the numbers, who else is there, and what to do."""
        verb = "samples" if self._side == COLLECTING else "collects"
        others = [each for each in participants.look(self._file) if each.side != self._side]
        return (
            f"{_told(self._file, self._side, seconds)} {_who(others, verb)} Nothing came of it for {idle:,.1f} s, and "
            f"patience is {self._file.rule.patience:g} s. "
            f"See `arrowrb info`; start who {verb}, or give a limiter with more patience or tolerance."
        )

    def _hopeless(self, seconds: float, verdict: Verdict) -> str:
        """Why it gives up at once."""
        told, verb = _told(self._file, self._side, seconds), "samples" if self._side == COLLECTING else "collects"
        few = self._has_too_few()
        if verdict.is_done:
            return f"{told} {verdict.why} Collect more, or give a limiter with a smaller min_size."
        if verdict.why is not None:
            return f"{told} {verdict.why}"
        return (
            f"{told} Nobody could change that: only the thread that waits here {verb}, or others that wait as it "
            f"does. {_remedy(self._side, few)}"
        )


def _told(file: LimiterFile, side: Side, seconds: float) -> str:
    """What was waited for, how long, and the numbers."""
    what = "a commit" if side == COLLECTING else "a batch"
    numbers = _balance(file.rule, *file.balance())
    return f"Waited {seconds:,.1f} s for the limiter of {file.path.parent} to allow {what}: {numbers}"


def _balance(rule: Rule, inserts: int, samples: int) -> str:
    if inserts < rule.min_size:
        return f"{inserts:,} transitions are committed, and min_size is {rule.min_size:,}."
    owed = rule.owed(inserts, samples)
    return (
        f"at {rule.samples_per_insert:g} samples an insert, {inserts:,} transitions and {samples:,} sampled rows, "
        f"sampling {'owes' if owed > 0 else 'is ahead by'} {abs(owed):,.0f} rows; tolerance is {rule.tolerance:,.0f}."
    )


def _who(others: list[Participant], verb: str) -> str:
    def named(each: Participant) -> str:
        return f"process {each.pid}" + ("" if each.name is None else f" ({each.name})")

    alive, dead = ([each for each in others if each.alive is wanted] for wanted in (True, False))
    if alive:
        told = [
            f"{named(each)}, last {participants.seconds_since(1000 * each.active_at):,.1f} s ago"
            for each in alive[:_MOST_NAMED]
        ]
        return f"Of {len(alive):,} who could change that: {'; '.join(told)}."
    gone = f": {', '.join(map(named, dead[:_MOST_NAMED]))} died" if dead else ""
    return f"Nobody {verb} now{gone}."


def _remedy(side: Side, few: bool) -> str:
    if side == COLLECTING:
        return "Sample more in between, or sooner; or give a limiter with more tolerance, a larger min_size, or False."
    if few:
        return "Collect at least min_size transitions before the first batch, or give a limiter with a smaller one."
    return (
        "Collect more in between; or give a limiter with more tolerance, or False; or make the sampler limited=False."
    )


class Limiting:
    """The limiter of a store, as one engine has it; does nothing where there is none."""

    def __init__(self, store: Path, store_id: str, *, is_past: bool = False) -> None:
        """Look for a limiter.

        Args:
            store: its folder.
            store_id: which it is.
            is_past: whether the store is opened as it was at a checkpoint, so that nobody waits.

        Raises:
            CorruptError: if its file is damaged.
        """
        self._gates: weakref.WeakSet[Gate] = weakref.WeakSet()
        self._crews = Crews()
        self._file: LimiterFile | None = None
        self._writer: Gate | None = None
        self._shard = self._committed = 0
        if not is_past and os.path.lexists(store / LIMITER_FILE):
            self._file = LimiterFile(store, store_id)

    def collect(self, shard: int, name: str, committed: int) -> None:
        """This engine writes a shard, in which so many transitions are committed."""
        if self._file is not None and self._file.writable:
            self._shard, self._committed = shard, committed
            self._file.note_shard(shard)
            self._file.note_inserts(shard, committed)
            self._writer = self._gate(COLLECTING, name)

    def _gate(self, side: Side, name: str | None) -> Gate | None:
        if self._file is None or not self._file.writable:
            return None
        gate = Gate(self._file, side, name, self._crews if side == SAMPLING else Crews())
        self._gates.add(gate)
        return gate

    def sampling_gate(self, name: str | None) -> Gate | None:
        """Where a sampler waits; None where nobody does, or the limiter's file cannot be written."""
        return self._gate(SAMPLING, name)

    def wait_to_commit(self) -> None:
        """Return when the balance allows a commit; see `Gate.wait`."""
        if self._writer is not None:
            self._writer.wait()

    def add_crew(self, crew: Crew) -> None:
        """A collector of this process has others commit for it: samplers look at how it stands while they wait."""
        self._crews.add(crew)

    def check_asking(self, pids: Collection[int], seconds: float) -> None:
        """Refuse to wait for commits of other processes that nobody but the calling thread could release.

        Args:
            pids: the processes.
            seconds: how long it has waited for them.

        Raises:
            WaitError: if all of them wait for the limiter, and only this thread samples.
        """
        file = self._file
        if not pids or file is None or not file.rule.collecting_waits(*file.balance()):
            return
        all_wait = participants.waiting_pids(file, COLLECTING).issuperset(pids)
        if all_wait and participants.nobody_is_left(file, COLLECTING):
            raise WaitError(
                f"{_told(file, COLLECTING, seconds)} Nobody could change that: only the thread that waits here for a "
                "batch of the workers samples. Sample more in between; or have the workers collect by themselves: "
                "sync=False, and collector.start() in place of iterating."
            )

    def note(self, committed: int) -> None:
        """So many transitions are committed now; the caller holds the guard of commits."""
        if self._writer is not None and self._file is not None:
            self._file.note_inserts(self._shard, committed)
            self._writer.count(committed - self._committed)
            self._committed = committed

    def look(self) -> LimiterInfo | None:
        """The limiter now; None where there is none."""
        file = self._file
        if file is None:
            return None
        return LimiterInfo.of(file.rule, *file.balance(), participants.look(file))

    def fail(self) -> None:
        """An error closes the store, whose writer may be started again: that is waited for as if it had died."""
        if self._writer is not None:
            self._writer.fail()

    def close(self) -> None:
        """Let everybody through who waits."""
        for gate in list(self._gates):
            gate.close()


def limit(store: Path, store_id: str, shard: ShardWriter, limiter: Limiter, *, durable: bool) -> Limiting:
    """Put a limiter in force, if one is given, and obey the one that there is as the writer of a shard.

    Where that fails the shard is closed.
    """
    try:
        limiter_file.change(store, store_id, limiter, durable=durable)
        limiting = Limiting(store, store_id)
        limiting.collect(shard.paths.number, shard.manifest.name, shard.writer.record.num_transitions)
    except BaseException:
        shard.close()
        raise
    return limiting
