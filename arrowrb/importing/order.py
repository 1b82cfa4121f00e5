"""The order in which rows must come, so that the row behind is the next of the same episode.

Where episodes are numbered: all rows of an episode together within their lane, one step after the other, nothing
behind its end but its final observation. Where they are not: a final observation has a row before it. What breaks this
is refused before anything is made of it: joined rows that do not belong together look like any others afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ColumnError
from ..events import MAX_EPISODE, MAX_STEP
from ..writer import MAX_LANES

FLAGS: Final = ("terminated", "truncated")
_KEPT: Final = ("lane", "episode_id", "step", "done", "final", "file", "row")
_SORTED: Final = (
    "Sort the rows by episode_id and step first, in DuckDB for example: "
    "COPY (SELECT * FROM 'data.parquet' ORDER BY episode_id, step) TO 'sorted.parquet'"
)
_ANEW: Final = "If ids start anew in each file, import the files one by one into an open store: it keeps them apart"


class Order:
    """Looks at the rows of one file after the other.

    Args:
        follows: whether next observations are those of the rows behind, so that NULL tells a final one.
        trusted: whether an export of ours was read, whose episodes may have several runs.

    Attributes:
        gap: where a step is missing for the first time, in words; None where none is.
    """

    def __init__(self, *, follows: bool, trusted: bool) -> None:
        self.gap: str | None = None
        self._follows, self._trusted = follows, trusted
        self._files: list[Path] = []
        self._num_rows = 0  # of the newest file so far
        self._last: dict[str, NDArray[Any]] = {}  # of each lane the newest row
        self._begun: dict[int, int] = {}  # episode -> lane

    def check(self, table: pa.Table, path: Path) -> None:
        """The next rows of a file.

        Raises:
            ColumnError: if they are not in order.
        """
        if not self._files or self._files[-1] != path:
            self._files.append(path)
            self._num_rows = 0
        now = self._described(table)
        self._num_rows += table.num_rows
        if not table.num_rows:
            return
        for name, most in (("lane", MAX_LANES - 1), ("episode_id", MAX_EPISODE), ("step", MAX_STEP)):
            for wrong in now[name][(now[name] < 0) | (now[name] > most)][:1]:
                raise ColumnError(f"Column {name!r} has the value {wrong} in {path}, expected 0 to {most}.")
        known = {name: np.concatenate([self._last[name], now[name]]) for name in _KEPT} if self._last else now
        by_lane = np.argsort(known["lane"], kind="stable")
        rows = {name: values[by_lane] for name, values in known.items()}
        behind = np.flatnonzero(np.diff(rows["lane"]) == 0) + 1
        starts = np.flatnonzero(np.diff(rows["lane"], prepend=-1) != 0)
        if "episode_id" in table.column_names:
            self._check_numbered(rows, starts, behind, has_step="step" in table.column_names)
        elif self._follows:
            self._check_plain(rows, starts, behind)
        newest = np.append(starts[1:], rows["lane"].size) - 1
        self._last = {name: values[newest] for name, values in rows.items()}

    def _described(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        count = table.num_rows
        return {
            "lane": integers(table, "lane"),
            "episode_id": integers(table, "episode_id"),
            "step": integers(table, "step"),
            "done": is_done(table),
            "final": is_final(table) if self._follows else np.zeros(count, np.bool_),
            "file": np.full(count, len(self._files) - 1),
            "row": np.arange(self._num_rows, self._num_rows + count),
        }

    def _check_numbered(
        self, rows: dict[str, NDArray[Any]], starts: NDArray[np.int64], behind: NDArray[np.int64], *, has_step: bool
    ) -> None:
        episode = rows["episode_id"]
        same = behind[episode[behind] == episode[behind - 1]]
        begins = np.concatenate([starts[~self._has_seen(rows["lane"][starts])], behind[~np.isin(behind, same)]])
        for at in np.sort(begins).tolist():
            lane, which = int(rows["lane"][at]), int(episode[at])
            other = self._begun.get(which)
            if other is None:
                self._begun[which] = lane
            elif other == lane:
                self._refuse(rows, at, f"comes again after others of lane {lane}", f"{_SORTED}. {_ANEW}.")
            elif not self._trusted:
                remedy = "Numbers must differ between lanes: make one of lane and number, or leave the lanes out"
                self._refuse(rows, at, f"is in lane {lane}, and in lane {other} too", f"{remedy}.")
        if not self._trusted:
            self._check_within(rows, same, has_step=has_step)

    def _check_within(self, rows: dict[str, NDArray[Any]], same: NDArray[np.int64], *, has_step: bool) -> None:
        """Rows that are behind another of the same episode."""
        for at in same[rows["done"][same - 1] & ~rows["final"][same]][:1]:
            self._refuse(rows, at, "goes on after its end", f"A number is for one episode. {_ANEW}.")
        for at in same[rows["final"][same - 1]][:1]:
            self._refuse(
                rows,
                at,
                "goes on after a row whose reward or action is NULL",
                "Only its last row, the final observation, may be such. Where rewards lie one row late (with the "
                "observation that came with them), move them up first: lead(reward) OVER (PARTITION BY episode_id "
                "ORDER BY step) in SQL.",
            )
        if not has_step:
            for at in same[rows["file"][same] != rows["file"][same - 1]][:1]:
                self._refuse(
                    rows,
                    at,
                    f"is that of the last row of {self._files[rows['file'][at - 1]]} too",
                    f"Without a column step nothing says whether it goes on there. Name that column. {_ANEW}.",
                )
            return
        step = rows["step"]
        for at in same[step[same] <= step[same - 1]][:1]:
            self._refuse(rows, at, f"goes from step {step[at - 1]} back to {step[at]}", f"{_SORTED}. {_ANEW}.")
        for at in same[step[same] != step[same - 1] + 1][:1]:
            self.gap = self.gap or f"episode {rows['episode_id'][at]} goes from step {step[at - 1]} to {step[at]}"

    def _check_plain(self, rows: dict[str, NDArray[Any]], starts: NDArray[np.int64], behind: NDArray[np.int64]) -> None:
        """Final observations where nothing numbers episodes; each file begins new ones."""
        lacking = rows["final"].copy()
        lacking[behind] &= rows["final"][behind - 1] | (rows["file"][behind] != rows["file"][behind - 1])
        lacking[starts] &= ~self._has_seen(rows["lane"][starts])
        for at in np.flatnonzero(lacking)[:1]:
            raise ColumnError(
                f"Row {rows['row'][at]:,} of {self._files[rows['file'][at]]} has a NULL reward or action, and is no "
                "final observation: no row of the same episode is before it. Where rewards lie one row late (with the "
                "observation that came with them), move them up first."
            )

    def _has_seen(self, lanes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of which lanes there were rows in the tables before."""
        return np.isin(lanes, self._last["lane"]) if self._last else np.zeros(lanes.size, np.bool_)

    def _refuse(self, rows: dict[str, NDArray[Any]], at: int, what: str, remedy: str) -> NoReturn:
        raise ColumnError(
            f"Row {rows['row'][at]:,} of {self._files[rows['file'][at]]}: episode {rows['episode_id'][at]} {what}. "
            f"{remedy}"
        )


def integers(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column of integers, or zeros where there is none."""
    if name not in table.column_names:
        return np.zeros(table.num_rows, np.int64)
    return np.asarray(table.column(name)).astype(np.int64, copy=False)


def is_done(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows end their episode."""
    found = np.zeros(table.num_rows, np.bool_)
    for name in FLAGS:
        if name in table.column_names:
            found |= np.asarray(table.column(name).fill_null(False)).astype(np.bool_)
    return found


def is_final(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows hold an episode's final observation and nothing else: their reward or action is NULL."""
    found = np.zeros(table.num_rows, np.bool_)
    for name in table.column_names:
        column = table.column(name)
        if (name == "reward" or name.split(".")[0] == "action") and column.null_count:
            found |= np.asarray(column.is_null())
    return found
