"""Conditions that DuckDB hands to a scan, where they are comparisons of whole numbers: most are.

A condition of pyarrow's can be evaluated by Arrow only, and does not tell what it is made of. What its text says is put
together again and held against it, so that nothing depends on how it is printed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_TERM: Final = re.compile(r"\(([^\s()]+) (==|!=|<=|>=|<|>) (-?\d+)\)")
_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Term:
    """A comparison of a column with a number."""

    name: str
    comparison: str
    number: int

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """In which rows it holds."""
        found: NDArray[np.bool_] = _COMPARE[self.comparison](values, self.number)
        return found

    def possible(self, least: NDArray[Any], most: NDArray[Any]) -> NDArray[np.bool_]:
        """Where it holds for a value from the least to the most."""
        found: NDArray[np.bool_]
        if self.comparison == "==":
            found = (least <= self.number) & (most >= self.number)
        elif self.comparison == "!=":
            found = (least != self.number) | (most != self.number)
        else:
            found = self.holds(most if self.comparison in (">", ">=") else least)
        return found


def terms_of(condition: Any, schema: pa.Schema) -> tuple[Term, ...] | None:
    """The comparisons all of which make the condition; None where it is made of something else."""
    found = tuple(Term(name, comparison, int(number)) for name, comparison, number in _TERM.findall(str(condition)))
    if not found or any(term.name not in schema.names for term in found):
        return None
    whole = None
    for term in found:
        kind = schema.field(term.name).type
        if not pa.types.is_integer(kind) or kind == pa.uint64():  # whose bounds int64 does not hold
            return None
        each = _expression(term, kind)
        whole = each if whole is None else whole & each
    return found if whole is not None and whole.equals(condition) else None


def _expression(term: Term, kind: pa.DataType) -> Any:
    """What DuckDB makes of a comparison: the number is of the column's type."""
    import pyarrow.dataset as ds

    try:
        return _COMPARE[term.comparison](ds.field(term.name), ds.scalar(pa.scalar(term.number, kind)))
    except (pa.ArrowException, OverflowError):  # no value of that type: then DuckDB does not compare so
        return ds.scalar(False)
