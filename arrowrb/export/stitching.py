"""One Parquet file out of row groups that were encoded apart, so that several threads can encode for one file.

Each comes as a small Parquet file in memory. The bytes of its columns are taken as they are; its footer tells where
they lie, counted from the start of that file, and these positions are moved. What comes out is, byte for byte, what
one writer would have written.

A footer is a `FileMetaData` of parquet.thrift (https://github.com/apache/parquet-format) in Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md). Here a structure is a dict: number
of a field -> (type, value), and a list is a pair: type of its elements, elements.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import CorruptError

MAGIC: Final = b"PAR1"
_TAIL: Final = 8  # length of the footer, and the magic bytes again

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_INTEGERS: Final = (_I16, _I32, _I64)

# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_NUM_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _GROUP_POSITION, _ORDINAL = 1, 5, 7
_CHUNK_POSITIONS: Final = (2, 4, 6)  # of the chunk, its offset index and its column index
_METADATA: Final = 3
_PAGE_POSITIONS: Final = (9, 10, 11, 14)  # of data, index and dictionary pages, and of a Bloom filter


class Stitched:
    """What of a file's footer is known so far.

    Attributes:
        position: where the next row group begins; the file must be written up to there.
    """

    def __init__(self) -> None:
        self.position = len(MAGIC)
        self._footer: dict[int, tuple[int, Any]] = {}
        self._num_rows = 0
        self._groups: list[bytes] = []

    def add(self, encoded: memoryview) -> memoryview:
        """Take the row groups of a Parquet file; returns the bytes to write at ``position``, which moves on."""
        encoded = encoded.cast("B")  # Arrow's buffers have signed bytes
        size = int.from_bytes(encoded[-_TAIL:][:4], "little")
        end = len(encoded) - _TAIL - size
        if not bytes(encoded[:4]) == bytes(encoded[-4:]) == MAGIC or end < len(MAGIC):
            raise CorruptError(f"What was encoded is no Parquet file: {len(encoded):,} bytes, footer of {size:,}.")
        footer = _Reader(encoded[end:-_TAIL]).structure()
        by = self.position - len(MAGIC)
        for group in footer[_ROW_GROUPS][1][1]:
            _move_group(group, by)
            content = bytearray()
            _write_structure(content, group)
            self._groups.append(bytes(content))
        self._num_rows += footer[_NUM_ROWS][1]
        self._footer = footer
        self.position += end - len(MAGIC)
        return encoded[len(MAGIC) : end]

    def finish(self) -> bytes:
        """The footer of all that was added, to be written at ``position``."""
        footer = dict(self._footer)
        footer[_NUM_ROWS] = (_I64, self._num_rows)
        footer[_ROW_GROUPS] = (_LIST, (_STRUCT, self._groups))
        content = bytearray()
        _write_structure(content, footer)
        return bytes(content) + len(content).to_bytes(4, "little") + MAGIC


def _move_group(group: dict[int, tuple[int, Any]], by: int) -> None:
    """Move a row group's positions; 0 says that there is none."""
    for chunk in group[_COLUMNS][1][1]:
        _move(chunk, _CHUNK_POSITIONS, by)
        if _METADATA in chunk:
            _move(chunk[_METADATA][1], _PAGE_POSITIONS, by)
    _move(group, (_GROUP_POSITION,), by)
    group.pop(_ORDINAL, None)  # its number in the file, which it need not say


def _move(structure: dict[int, tuple[int, Any]], fields: tuple[int, ...], by: int) -> None:
    for field in fields:
        kind, value = structure.get(field, (_I64, 0))
        if value > 0:
            structure[field] = (kind, value + by)


class _Reader:
    """Reads the compact protocol."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0

    def structure(self) -> dict[int, tuple[int, Any]]:
        fields: dict[int, tuple[int, Any]] = {}
        number = 0
        while header := self._byte():
            kind = header & 15
            number = number + (header >> 4) if header >> 4 else self._integer()
            fields[number] = (kind, None if kind in (_TRUE, _FALSE) else self._value(kind))
        return fields

    def _value(self, kind: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.structure()
        if kind in (_LIST, _SET):
            header = self._byte()
            count = header >> 4 if header >> 4 < 15 else self._varint()
            return header & 15, [self._value(header & 15) for _ in range(count)]
        if kind in (_TRUE, _FALSE, _BYTE):  # booleans have a byte in lists only
            return self._take(1)
        if kind == _DOUBLE:
            return self._take(8)
        raise CorruptError(f"The footer of what was encoded holds type {kind} of Thrift, which Parquet does not use.")

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _take(self, size: int) -> bytes:
        self._at += size
        return bytes(self._content[self._at - size : self._at])

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)


def _write_structure(content: bytearray, fields: dict[int, tuple[int, Any]]) -> None:
    last = 0
    for number, (kind, value) in sorted(fields.items()):
        if 0 < number - last < 16:
            content.append((number - last) << 4 | kind)
        else:
            content.append(kind)
            _write_integer(content, number)
        last = number
        if kind not in (_TRUE, _FALSE):
            _write_value(content, kind, value)
    content.append(0)


def _write_value(content: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _write_integer(content, value)
    elif kind == _BINARY:
        _write_varint(content, len(value))
        content += value
    elif kind in (_LIST, _SET):
        element, values = value
        content.append(min(len(values), 15) << 4 | element)
        if len(values) >= 15:
            _write_varint(content, len(values))
        for each in values:
            _write_value(content, element, each)
    elif isinstance(value, dict):
        _write_structure(content, value)
    else:  # bytes: written already, or of a type that is taken as it is
        content += value


def _write_varint(content: bytearray, value: int) -> None:
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)


def _write_integer(content: bytearray, value: int) -> None:
    _write_varint(content, value << 1 if value >= 0 else (-value << 1) - 1)
