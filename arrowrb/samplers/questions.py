"""Draws that SQL defines: which transitions, and how likely each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine import Located, Snapshot
from ..errors import OptionError, QueryError
from .sources import Both, Choose, Listed, News, Source, nothing_to_draw
from .strategy import Stream
from .sum_tree import SumTree
from .uniform import Uniform

Marks = list[int]
"""How far something was asked: the watermark of each shard."""

_EVERY: Final = 1000
_UNIFORM: Final = Uniform()


class Question(Protocol):
    """A question in SQL about the transitions of a store.

    Attributes:
        text: in SQL.
        steady: what it says of a row never changes, so that it need only be asked about rows that are new.
    """

    text: str
    steady: bool

    def ask(self, since: Sequence[int], until: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Row ids and weights, of rows with ordinals in these bounds of their shards."""
        ...


class Pose(Protocol):
    """Puts questions to a store."""

    def condition(self, text: str) -> Question:
        """Which transitions meet a condition; the weights are 1."""
        ...

    def weighting(self, text: str) -> Question:
        """The rows and weights of a query."""
        ...


@runtime_checkable
class Asking(Protocol):
    """A strategy that asks the store."""

    def start_asking(self, seed: int | None, pose: Pose) -> Stream:
        """A new stream of draws."""
        ...


@runtime_checkable
class FromRows(Protocol):
    """A strategy that can begin with any rows."""

    def start_from(self, seed: int | None, choose: Choose) -> Stream:
        """A new stream of draws that begins with chosen rows."""
        ...


@runtime_checkable
class Within(Protocol):
    """A strategy that can leave out rows."""

    def start_within(self, seed: int | None, source: Source) -> Stream:
        """A new stream of draws of the rows of a source."""
        ...


def _check(name: str, text: object, every: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise OptionError(f"{name} is {text!r}, expected SQL as a string.")
    if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
        raise OptionError(f"every is {every!r}, expected a number of transitions from 1 on.")


@dataclass(frozen=True, slots=True)
class Where:
    """Draw only transitions that meet a condition in SQL; sequences, that begin with one.

    The condition is asked when the first batch is drawn, and again whenever ``every`` more transitions have been
    committed. If what it says of a transition cannot change, it is asked of the new ones only; otherwise (it holds a
    subquery, a window, or a function such as ``random`` or ``now``) of all.

    Attributes:
        condition: over the columns of the view ``transitions``, such as ``"reward > 0 AND policy_version >= 12"``, or
            ``"episode_id IN (SELECT episode_id FROM episodes WHERE return > 100)"``.
        strategy: how to draw from these: ``Uniform()``, ``Prioritized(...)``, ``Sequences(...)`` over starts,
            ``PrioritizedSequences(...)`` or ``Hindsight(...)``.
        every: so many transitions are committed before it is asked again.
    """

    condition: str
    strategy: Any = _UNIFORM
    every: int = _EVERY

    def __post_init__(self) -> None:
        _check("condition", self.condition, self.every)
        if isinstance(self.strategy, type) or not isinstance(self.strategy, FromRows | Within):
            raise OptionError(
                f"strategy is {self.strategy!r}, which cannot be restricted by a condition. Give a value of Uniform, "
                "Prioritized, Hindsight, Sequences or PrioritizedSequences."
            )

    def start_asking(self, seed: int | None, pose: Pose) -> Stream:
        """A new stream of draws."""
        source = Matching(pose.condition(self.condition), int(self.every))
        nothing = f"No transition meets {self.condition!r}, or none that {self.strategy!r} can draw."
        if isinstance(self.strategy, Within):
            return self.strategy.start_within(seed, source)
        strategy: FromRows = self.strategy
        return strategy.start_from(seed, lambda own: Listed(source if own is None else Both(own, source), nothing))


@dataclass(frozen=True, slots=True)
class Weighted:
    """Draw transitions in proportion to weights that a query gives; sequences, by the weight of their first step.

    The query is asked when the first batch is drawn, and again whenever ``every`` more transitions have been committed.
    Transitions that it does not name are not drawn.

    Attributes:
        query: gives columns ``row_id`` and ``weight``, such as
            ``"SELECT row_id, exp(reward) AS weight FROM transitions"``; none below 0, none twice.
        strategy: what is drawn so: ``Uniform()`` transitions, ``Sequences(...)`` over starts or ``Hindsight(...)``.
        every: so many transitions are committed before it is asked again.
    """

    query: str
    strategy: Any = _UNIFORM
    every: int = _EVERY

    def __post_init__(self) -> None:
        _check("query", self.query, self.every)
        if isinstance(self.strategy, type) or not isinstance(self.strategy, FromRows):
            raise OptionError(f"strategy is {self.strategy!r}, which has weights of its own.")

    def start_asking(self, seed: int | None, pose: Pose) -> Stream:
        """A new stream of draws."""
        question, every = pose.weighting(self.query), int(self.every)
        strategy: FromRows = self.strategy
        return strategy.start_from(seed, lambda own: WeightedRows(own, question, every))


class _Due(NamedTuple):
    """Of which rows a question is to be asked: from where on, how far, and how many were committed by then."""

    since: Marks
    until: Marks
    committed: int


class _Timetable:
    """When a question is asked, and of which rows. It has been once `note` says so: what fails is asked again.

    Args:
        text: the question.
        every: see `Where`.
    """

    def __init__(self, text: str, every: int) -> None:
        self._text = text
        self._every = every
        self._asked: tuple[Marks, int] | None = None  # how far, and how many transitions had been committed then
        self._again: tuple[Marks, int] | None = None  # as far as it is to be asked the next time

    def due(self, snapshot: Snapshot) -> _Due | None:
        """What to ask now; None if it is not time yet."""
        marks = [record.watermark for record in snapshot.records]
        committed = sum(record.num_transitions for record in snapshot.records)
        if self._again is None and self._asked is not None and committed - self._asked[1] < self._every:
            return None
        since = [] if self._asked is None else self._asked[0]
        return _Due(since + [0] * (len(marks) - len(since)), *(self._again or (marks, committed)))

    def note(self, due: _Due) -> None:
        """It was asked."""
        self._asked, self._again = (due.until, due.committed), None

    def restart(self) -> None:
        """Ask anew, as far as it was asked."""
        self._asked, self._again = None, self._asked or self._again

    def save(self) -> Any:
        """Plain values: the question, and how far it was asked; None if it was not yet."""
        asked = self._again if self._asked is None else self._asked
        return {"question": self._text, "asked": None if asked is None else [list(asked[0]), asked[1]]}

    def load(self, state: Any) -> None:
        """Ask anew, as far as it was asked then."""
        question = state.get("question") if isinstance(state, dict) else None
        if question != self._text:
            raise OptionError(
                f"The sampler draws what {self._text!r} says, but the state that it is to go on from is of "
                f"{'one that asks nothing' if question is None else repr(question)}. Make it with the strategy that it "
                "had."
            )
        asked = state.get("asked")
        whole = isinstance(asked, list | tuple) and len(asked) == 2 and isinstance(asked[0], list | tuple)
        if asked is not None and not (
            whole and all(isinstance(each, int) and each >= 0 for each in (*asked[0], asked[1]))
        ):
            raise OptionError(
                f"The state that the sampler is to go on from is damaged: it was asked as far as {asked!r}."
            )
        self._asked, self._again = None, None if asked is None else (list(asked[0]), asked[1])


class Matching:
    """The transitions that meet a condition, as far as it was asked."""

    def __init__(self, question: Question, every: int) -> None:
        self._question = question
        self._timetable = _Timetable(question.text, every)
        self._anew = False

    def restart(self) -> None:
        """Ask anew, as far as it was asked."""
        self._anew = True
        self._timetable.restart()

    def save(self) -> Any:
        """How far it was asked."""
        return self._timetable.save()

    def load(self, state: Any) -> None:
        """Ask anew, as far."""
        self._timetable.load(state)
        self._anew = True

    def follow(self, snapshot: Snapshot) -> News:
        """Those that were found since."""
        news = News()
        while (due := self._timetable.due(snapshot)) is not None:  # after a state, first as far as it was asked then
            anew = self._anew or not self._question.steady
            row_ids, _ = self._question.ask([0] * len(due.until) if anew else due.since, due.until)
            rows = snapshot.find(row_ids)
            found = {slot: rows.positions[rows.slots == slot] for slot in np.unique(rows.slots).tolist()}
            news = News(anew=True) if anew else news
            for slot, positions in found.items():
                before = news.rows.get(slot, np.zeros(0, np.int32))
                news.rows[slot] = np.concatenate([before, positions.astype(np.int32)])
            self._timetable.note(due)
            self._anew = False
        return news


class WeightedRows:
    """Draws in proportion to weights that a query gives.

    Args:
        own: the rows that may be drawn; None: all transitions.
        question: gives weights.
        every: see `Weighted`.
    """

    joins = False

    def __init__(self, own: Source | None, question: Question, every: int) -> None:
        self._question = question
        self._timetable = _Timetable(question.text, every)
        self._tree = SumTree(1.0, source=own, newest=0.0)
        self._named = np.zeros(0, np.int64)

    def save(self) -> Any:
        """How far it was asked."""
        return self._timetable.save()

    def load(self, state: Any) -> None:
        """Ask anew, as far."""
        self._timetable.load(state)

    def draw(self, snapshot: Snapshot, state: NDArray[np.uint64], count: int, *, tiers: str) -> Located:
        """Draw rows by weight, with replacement."""
        while (due := self._timetable.due(snapshot)) is not None:
            self._weigh(snapshot, due.until)
            self._timetable.note(due)
        located, _, _ = self._tree.draw(snapshot, state, count, hot_only=tiers == "hot")
        if located.row_ids.size < count:
            raise nothing_to_draw(snapshot, "The query gives no transition (that can be drawn) a weight above 0.")
        return located

    def _weigh(self, snapshot: Snapshot, until: Marks) -> None:
        """Ask for weights, and set them."""
        row_ids, weights = self._question.ask([0] * len(until), until)
        raw = np.empty(weights.size, np.float32)
        wrong = kernels.to_raw(weights, 0.0, False, raw)
        if wrong >= 0:
            raise QueryError(
                f"The weight of row {row_ids[wrong]} is {weights[wrong]}, expected a finite one, 0 or more."
            )
        order = np.argsort(row_ids, kind="stable")
        row_ids, raw = row_ids[order], raw[order]
        twice = np.flatnonzero(np.diff(row_ids) == 0)
        if twice.size:
            raise QueryError(
                f"The query names row {row_ids[twice[0]]} twice. Give each row one weight: GROUP BY row_id."
            )
        gone = np.setdiff1d(self._named, row_ids, assume_unique=True)
        self._tree.update(snapshot, gone, np.zeros(gone.size, np.float32))
        self._tree.update(snapshot, row_ids, raw)
        self._named = row_ids
