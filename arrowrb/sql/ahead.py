"""``next_observation`` of cold rows: functions that DuckDB calls with row ids, for the rows that it needs only.

A window over the cold tier would read and sort all of it before the first row is shown. A function is asked for the
rows that are left after filters and limits, and finds them as `Store.gather` does, through the cache of decoded row
groups.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ..engine import Snapshot
from ..schema import Column
from .relations import arrow_type

_serial = itertools.count()
_TYPES: Final = {
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "uint8": "UTINYINT",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
    "float16": "USMALLINT",  # its bits
    "float32": "FLOAT",
    "float64": "DOUBLE",
}


class Ahead:
    """Functions over one snapshot, one an observation column; `remove` takes them out of the database."""

    def __init__(self, snapshot: Snapshot, cursor: Any) -> None:
        self._cursor = cursor
        self._functions: list[Any] = []  # DuckDB calls them, but does not keep them
        self.names: dict[str, str] = {}
        prefix = f"_next_{next(_serial)}"
        for place, column in enumerate(snapshot.layout.schema.columns):
            if column.owner == "observation":
                name = f"{prefix}_{place}"
                self._functions.append(_reader(snapshot, place, column))
                cursor.create_function(name, self._functions[-1], ["BIGINT"], _sql_type(column), type="arrow")
                self.names[column.name] = name

    def remove(self) -> bool:
        """Forget the functions, and so the snapshot; False where a result is still being streamed."""
        import duckdb

        try:
            for column, name in list(self.names.items()):
                self._cursor.remove_function(name)
                del self.names[column]
        except duckdb.Error:
            return False
        self._functions.clear()
        return True


# By the thread that let go of them. To remove a function of a cursor from which another thread reads just then would
# wait for it, with Python's lock in hand that the other needs.
_streaming: list[tuple[threading.Thread, Ahead]] = []


def let_go(functions: list[Ahead]) -> None:
    """Remove functions that nobody asks for any more; those that a stream still calls are kept until `sweep`."""
    me = threading.current_thread()
    _streaming.extend((me, each) for each in functions if not each.remove())


def sweep() -> None:
    """Remove what was still being streamed when this thread, or one that has ended, let go of it, and is no more."""
    me = threading.current_thread()
    for entry in list(_streaming):
        thread, each = entry
        if (thread is me or not thread.is_alive()) and each.remove() and entry in _streaming:
            _streaming.remove(entry)


def _reader(snapshot: Snapshot, place: int, column: Column) -> Any:
    """From row ids (Arrow) to the column's values one row on (Arrow)."""
    kind = arrow_type(column)

    # DuckDB would evaluate annotations.
    def read(row_ids):  # type: ignore[no-untyped-def]
        whole = row_ids.combine_chunks() if isinstance(row_ids, pa.ChunkedArray) else row_ids
        ids = np.array(whole.to_numpy(zero_copy_only=False), np.int64)
        values = np.empty((ids.size, column.item_bytes), np.uint8)
        target = values.__array_interface__["data"][0]
        snapshot.gather(snapshot.locate(ids), np.array([[place, 1, column.item_bytes, 0, target]], np.int64))
        content = pa.py_buffer(values)
        if pa.types.is_fixed_size_list(kind):
            items = pa.Array.from_buffers(kind.value_type, ids.size * column.num_elements, [None, content])
            return pa.Array.from_buffers(kind, ids.size, [None], children=[items])
        return pa.Array.from_buffers(kind, ids.size, [None, content])

    return read


def _sql_type(column: Column) -> str:
    if column.encoding == "binary":
        return "BLOB"
    name = _TYPES[column.storage.name]
    return f"{name}[{column.num_elements}]" if column.shape else name
