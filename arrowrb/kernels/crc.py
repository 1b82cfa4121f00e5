"""CRC-32, as `zlib.crc32`, without the GIL and as fast as memory where the processor multiplies without carries.

Sixty-four bytes at a time are folded into as many that have the same remainder: V. Gopal et al., "Fast CRC Computation
for Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009), whose constants these are.
"""

from __future__ import annotations

import platform
import zlib
from typing import Any, Final

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from .memory import address_of, inline, kernel, load_i64, load_u8

_POLYNOMIAL: Final = 0xEDB88320
_BY_64: Final = (0x0154442BD4, 0x01C6E41596)
_BY_16: Final = (0x01751997D0, 0x00CCAA009E)
_LEAST_BYTES: Final = 256
_VECTOR: Final = ir.VectorType(ir.IntType(64), 2)


def _make_table() -> Any:
    """The tables of Intel's slicing-by-8, uint32[8, 256]."""
    table = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table[0, byte] = value
    for k in range(1, 8):
        table[k] = (table[k - 1] >> np.uint32(8)) ^ table[0][table[k - 1] & np.uint32(0xFF)]
    return table


CRC_TABLE = _make_table()
BEGUN: Final = np.uint32(0xFFFFFFFF)  # what a sum begins with


@intrinsic  # type: ignore[untyped-decorator]
def _fold(typingctx: Any, address: Any, blocks: Any, target: Any, begun: Any) -> Any:
    """Fold ``blocks`` of 64 bytes, at least one, into 16 at ``target``, from which a sum that began with 0 goes on.

    ``begun`` is what the sum was before.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, blocks, target, begun = arguments
        integer, byte, pointer = ir.IntType(64), ir.IntType(8), _VECTOR.as_pointer()
        multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, byte]), "llvm.x86.pclmulqdq"
        )

        def load(at: Any) -> Any:
            return builder.load(builder.inttoptr(at, pointer), align=1)

        def fold(value: Any, by: tuple[int, int], other: Any) -> Any:
            factors = ir.Constant(_VECTOR, [integer(each) for each in by])
            halves = (builder.call(multiply, [value, factors, byte(which)]) for which in (0x00, 0x11))
            return builder.xor(builder.xor(*halves), other)

        lanes = [cgutils.alloca_once(builder, _VECTOR) for _ in range(4)]
        none = ir.Constant(_VECTOR, [integer(0), integer(0)])
        first = builder.insert_element(none, builder.zext(begun, integer), ir.IntType(32)(0))
        for lane, place in enumerate(lanes):
            value = load(builder.add(source, integer(16 * lane)))
            builder.store(builder.xor(value, first) if lane == 0 else value, place)
        with cgutils.for_range_slice(builder, integer(1), blocks, integer(1), integer) as (block, _):
            begin = builder.add(source, builder.shl(block, integer(6)))
            for lane, place in enumerate(lanes):
                value = load(builder.add(begin, integer(16 * lane)))
                builder.store(fold(builder.load(place), _BY_64, value), place)
        value = builder.load(lanes[0])
        for place in lanes[1:]:
            value = fold(value, _BY_16, builder.load(place))
        builder.store(value, builder.inttoptr(target, pointer), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.uint32), codegen


def _can_fold() -> bool:
    """Whether code that is compiled here may multiply so; another instruction set than the processor's own may not."""
    chosen = numba.config.CPU_NAME or numba.config.CPU_FEATURES
    return platform.machine() == "x86_64" and not chosen and bool(binding.get_host_cpu_features().get("pclmul"))


@inline
def _go_on(crc: Any, source: Any, size: Any, table: Any) -> Any:
    """Go on with a sum, eight bytes at a time."""
    while size >= 8:
        word = np.uint64(load_i64(source)) ^ np.uint64(crc)
        crc = (
            table[7, word & np.uint64(0xFF)]
            ^ table[6, (word >> np.uint64(8)) & np.uint64(0xFF)]
            ^ table[5, (word >> np.uint64(16)) & np.uint64(0xFF)]
            ^ table[4, (word >> np.uint64(24)) & np.uint64(0xFF)]
            ^ table[3, (word >> np.uint64(32)) & np.uint64(0xFF)]
            ^ table[2, (word >> np.uint64(40)) & np.uint64(0xFF)]
            ^ table[1, (word >> np.uint64(48)) & np.uint64(0xFF)]
            ^ table[0, word >> np.uint64(56)]
        )
        source += 8
        size -= 8
    for i in range(size):
        crc = table[0, (crc ^ np.uint32(load_u8(source + i))) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
    return crc


@inline
def sum_zeros(crc: Any, size: Any, table: Any) -> Any:
    """Go on with a sum of which the last bits are turned still, with bytes that are zero."""
    for _ in range(size):
        crc = table[0, crc & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
    return crc


_SUM = "uint32(uint32, int64, int64, uint32[:, ::1], uint8[::1])"

if CAN_FOLD := _can_fold():

    @kernel(_SUM)
    def sum_bytes(crc: Any, source: int, size: int, table: Any, left: Any) -> Any:
        """Go on with a sum of which the last bits are turned still; ``left`` has 16 bytes to work with."""
        blocks = size >> 6
        if blocks > 0:
            _fold(source, blocks, address_of(left), crc)
            crc = _go_on(np.uint32(0), address_of(left), np.int64(16), table)
        return _go_on(crc, source + (blocks << 6), size - (blocks << 6), table)

else:

    @kernel(_SUM)
    def sum_bytes(crc: Any, source: int, size: int, table: Any, left: Any) -> Any:
        """Go on with a sum of which the last bits are turned still."""
        return _go_on(crc, source, size, table)


def crc32(content: NDArray[np.uint8]) -> int:
    """The checksum of some bytes, which lie one after another."""
    if not CAN_FOLD or content.size < _LEAST_BYTES:
        return zlib.crc32(content.data)
    address = content.__array_interface__["data"][0]
    return int(sum_bytes(BEGUN, address, content.size, CRC_TABLE, np.empty(16, np.uint8))) ^ int(BEGUN)
