"""Whole column chunks of a mapped Parquet file as Arrow arrays: what a scan reads.

Arrow's own dataset scanner reads the same files, but takes twice as long over a narrow column: it parses footers again,
checks pages each time, and hands on small batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .. import kernels, parquet
from ..errors import CorruptError
from .decoding import READING_ERRORS, Footer, buffer_of, open_file, plainly

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_MOST_PAGE_BYTES = 64 << 20


def _bounds_of(statistics: pq.Statistics | None) -> tuple[int, int]:
    if statistics is None or not statistics.has_min_max:
        return _LEAST, _MOST
    least, most = statistics.min, statistics.max
    known = isinstance(least, int) and isinstance(most, int) and _LEAST <= least <= most <= _MOST
    return (least, most) if known else (_LEAST, _MOST)


class Chunks:
    """Reads columns of row groups. Thread-safe.

    The pages of a chunk are held against their checksums when it is first read, and not again: the file is mapped, and
    what was right once stays right as far as software can tell.
    """

    def __init__(self, footer: Footer) -> None:
        self._footer, self._mapping, self._metadata = footer, footer.mapping, footer.metadata
        self._bounds: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._checked: set[tuple[int, str]] = set()
        self._places: dict[str, NDArray[np.int64]] = {}
        self._idle: list[pq.ParquetFile] = []  # one at most: opening it costs as much as reading a narrow column

    def read(self, groups: Sequence[int], names: Sequence[str]) -> list[pa.ChunkedArray]:
        """Columns by their names in the file, each over all of these row groups.

        Raises:
            CorruptError: if a page is damaged; says in which column.
        """
        chunks = {(group, name) for group in groups for name in names}
        known = chunks <= self._checked
        try:
            file = self._idle.pop() if known else self._open(checking=True)
        except IndexError:  # another thread has it
            file = self._open(checking=False)
        try:
            table = file.read_row_groups(list(groups), columns=list(names), use_threads=False)
            columns = [table.column(name) for name in names]
        except READING_ERRORS as error:
            if len(chunks) > 1:
                for group, name in sorted(chunks):
                    self.read([group], [name])  # which names the chunk
            raise CorruptError(
                f"Segment {self._mapping.path.name} is damaged: column {', '.join(names)}, "
                f"row group {', '.join(map(str, groups))}: {plainly(error)}."
            ) from None
        if not known:
            self._checked |= chunks
        elif not self._idle:
            self._idle.append(file)
        return columns

    def packed(self, groups: Sequence[int], name: str, count: int, kind: np.dtype[Any]) -> NDArray[Any] | None:
        """The values of a column that are not NULL, one after another; None where `read` has to be asked.

        That is so for a chunk that was not read before, whose checksums are not known to agree, and for one that is
        not a column of floats that may be NULL, plainly encoded.

        Args:
            groups: row groups.
            name: of the column in the file.
            count: how many values there must be.
            kind: of these.
        """
        if not all((group, name) in self._checked for group in groups):
            return None
        places = self._places.get(name)
        if places is None:
            places = self._places[name] = self._find(name, kind)
        if not places.size:
            return None
        chosen = np.array(groups)
        firsts, sizes, plain = places[0][chosen], places[1][chosen], int(places[2][chosen].max(initial=0))
        target = parquet.empty(count * kind.itemsize, np.uint8)
        scratch = parquet.empty(min(plain, _MOST_PAGE_BYTES), np.uint8)
        content = self._mapping.array(0, self._mapping.size, np.uint8)
        filled = kernels.read_packed(content, firsts, sizes, target, scratch)
        return target.view(kind) if filled == target.size else None

    def _find(self, name: str, kind: np.dtype[Any]) -> NDArray[np.int64]:
        """Where the pages of a column lie, how many bytes they have, and how many without compression: [3, groups].

        None where they are not such as `packed` reads.
        """
        place = self._place(name)
        physical = {4: parquet.FLOAT, 8: parquet.DOUBLE}.get(kind.itemsize) if kind.kind == "f" else None
        if place is None or physical is None or self._metadata.schema.column(place).max_definition_level != 1:
            return np.zeros((3, 0), np.int64)
        chunks = self.table()
        said = np.stack([each[:, place] for each in (chunks.codecs, chunks.types, chunks.dictionaries)])
        if (said != np.array([[parquet.LZ4], [physical], [-1]])).any():
            return np.zeros((3, 0), np.int64)
        return np.stack([each[:, place] for each in (chunks.positions, chunks.compressed_bytes, chunks.num_bytes)])

    def matching(self, condition: Any, schema: pa.Schema) -> list[int]:
        """The row groups that may hold rows which fulfil a condition (pyarrow), by their statistics.

        Raises:
            CorruptError: if the footer is damaged.
        """
        self.table()
        return [group.id for group in self._fragment.subset(condition, schema=schema).row_groups]

    def bounds(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Least and most of a column of whole numbers in each row group, by the statistics; of all numbers, if none.

        They are what they are for 64 bits with a sign; other columns have no bounds here.

        Raises:
            CorruptError: if the footer is damaged.
        """
        found = self._bounds.get(name)
        if found is None:
            self.table()
            groups = range(self._metadata.num_row_groups)
            parts = [self._metadata.row_group(group) for group in groups]
            place = self._place(name)
            pairs = [(_LEAST, _MOST) if place is None else _bounds_of(part.column(place).statistics) for part in parts]
            table = np.array(pairs, np.int64).reshape(-1, 2)
            found = self._bounds[name] = table[:, 0].copy(), table[:, 1].copy()
        return found

    def table(self) -> parquet.ChunkTable:
        """What the footer says of the chunks, which is checked before Arrow is asked about them.

        Raises:
            CorruptError: if it cannot be.
        """
        try:
            return self._footer.chunks
        except CorruptError as error:
            raise CorruptError(f"Segment {self._mapping.path.name} is damaged: {error}.") from None

    def _place(self, name: str) -> int | None:
        columns = (self._metadata.schema.column(place) for place in range(self._metadata.num_columns))
        return next((place for place, column in enumerate(columns) if column.path == name), None)

    def _open(self, *, checking: bool) -> pq.ParquetFile:
        # A file object for each reader: one is not for several threads.
        return open_file(self._mapping, self._mapping.path.name, self._metadata, checking=checking)

    @cached_property
    def _fragment(self) -> Any:
        """The file as a fragment of an Arrow dataset, over the mapping: it needs no file name."""
        import pyarrow.dataset as ds

        return ds.ParquetFileFormat().make_fragment(buffer_of(self._mapping))
