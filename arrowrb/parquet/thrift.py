"""Thrift's compact protocol, in which Parquet writes footers and the headers of pages.

See https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md, and parquet.thrift in
https://github.com/apache/parquet-format for what is written in it. Here a structure is a dict: number of a field ->
(type, value), and a list is a pair: type of its elements, elements. What is read may be damaged.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import CorruptError

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_INTEGERS: Final = (I16, I32, I64)
_MOST_DEPTH: Final = 32  # of structures and lists in each other; a footer has 6
_MOST_BITS: Final = 63

Structure = dict[int, tuple[int, Any]]


def read(content: memoryview, raw_depth: int = 0) -> tuple[Structure, int]:
    """The structure at the beginning of some bytes, and how many it takes.

    With ``raw_depth``, structures that lie so deep (in others and in lists) are bytes, which is faster.

    Raises:
        CorruptError: if there is none.
    """
    reader = _Reader(content, raw_depth)
    try:
        return reader.structure(0), reader.at
    except IndexError:
        raise CorruptError(f"a structure of Thrift goes on behind the {len(content):,} bytes there are") from None


def write(fields: Structure) -> bytes:
    """A structure's bytes. A value of bytes stands for itself where a structure or a list's element is meant."""
    content = bytearray()
    _write_structure(content, fields)
    return bytes(content)


class _Reader:
    def __init__(self, content: memoryview, raw_depth: int) -> None:
        self._content, self._raw_depth = content, raw_depth
        self.at = 0

    def structure(self, depth: int) -> Structure:
        fields: Structure = {}
        number = 0
        while header := self._byte():
            kind = header & 15
            number = number + (header >> 4) if header >> 4 else self._integer()
            fields[number] = (kind, None if kind in (TRUE, FALSE) else self.value(kind, depth + 1))
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            value = self._content[self.at]
            if value < 0x80:  # most are
                self.at += 1
                return value >> 1 ^ -(value & 1)
            return self._integer()
        if kind == BINARY:
            return self._take(self.varint())
        if depth > _MOST_DEPTH:
            raise CorruptError(f"structures of Thrift lie {depth} deep in each other")
        if kind == STRUCT and depth == self._raw_depth:
            first = self.at
            self.at = _skip(self._content, first, depth)
            return bytes(self._content[first : self.at])
        if kind == STRUCT:
            return self.structure(depth)
        if kind in (LIST, SET):
            header = self._byte()
            count = header >> 4 if header >> 4 < 15 else self.varint()
            return header & 15, [self.value(header & 15, depth + 1) for _ in range(count)]
        if kind in (TRUE, FALSE, BYTE):  # booleans have a byte in lists only
            return self._take(1)
        if kind == DOUBLE:
            return self._take(8)
        raise CorruptError(f"type {kind} of Thrift, which Parquet does not use")

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _take(self, size: int) -> bytes:
        if size > len(self._content) - self.at:
            raise IndexError
        self.at += size
        return bytes(self._content[self.at - size : self.at])

    def varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > _MOST_BITS:
                raise CorruptError("a number of Thrift has more than 64 bits")
        return value | byte << shift

    def _integer(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)


def _skip(content: memoryview, at: int, depth: int) -> int:
    """Where the structure ends that begins at a position."""
    while header := content[at]:
        at += 1
        if header < 16:  # the field's number follows
            at = _skip_varint(content, at)
        kind = header & 15
        if kind in _INTEGERS and content[at] < 0x80:  # most are
            at += 1
        elif kind > FALSE:
            at = _skip_value(content, at, kind, depth + 1)
    return at + 1


def _skip_value(content: memoryview, at: int, kind: int, depth: int) -> int:
    if kind in _INTEGERS:
        return _skip_varint(content, at)
    if kind == STRUCT and depth <= _MOST_DEPTH:
        return _skip(content, at, depth)
    if kind in (BINARY, LIST, SET) and content[at] < 0x80:
        header = content[at]
        at += 1
        if kind == BINARY:
            return at + header
        for _ in range(header >> 4):
            at = _skip_value(content, at, header & 15, depth + 1)
        return at
    reader = _Reader(content[at:], 0)
    reader.value(kind, depth)
    return at + reader.at


def _skip_varint(content: memoryview, at: int) -> int:
    while content[at] > 0x7F:
        at += 1
    return at + 1


def _write_structure(content: bytearray, fields: Structure) -> None:
    last = 0
    for number, (kind, value) in sorted(fields.items()):
        if 0 < number - last < 16:
            content.append((number - last) << 4 | kind)
        else:
            content.append(kind)
            _write_integer(content, number)
        last = number
        if kind not in (TRUE, FALSE):
            _write_value(content, kind, value)
    content.append(0)


def _write_value(content: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _write_integer(content, value)
    elif kind == BINARY:
        _write_varint(content, len(value))
        content += value
    elif kind in (LIST, SET):
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
