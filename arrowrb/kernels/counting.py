"""Counts that several processes keep in one place, without a lock: single instructions of the processor.

A process that dies has done such an instruction, or has not; in between there is nothing.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .memory import kernel


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


def _change(how: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def change(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.atomic_rmw(how, _pointer(builder, arguments[0]), arguments[1], "seq_cst")

        return types.int64(types.int64, types.int64), codegen

    return change


@intrinsic  # type: ignore[untyped-decorator]
def _exchange(typingctx: Any, address: Any, expected: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(builder, arguments[0])
        pair = builder.cmpxchg(pointer, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


_add_to = _change("add")
_raise_to = _change("max")


@kernel("int64(int64, int64)")
def add_to(address: int, amount: int) -> int:
    """Add to an int64 at an address that is a multiple of 8; what it was before."""
    return _add_to(address, amount)  # type: ignore[no-any-return]


@kernel("int64(int64, int64)")
def raise_to(address: int, least: int) -> int:
    """Make an int64 at least so large; what it was before."""
    return _raise_to(address, least)  # type: ignore[no-any-return]


@kernel("boolean(int64, int64, int64)")
def take_over(address: int, expected: int, value: int) -> bool:
    """Put a value in the place of another one, if that is there; whether it was."""
    return _exchange(address, expected, value)  # type: ignore[no-any-return]
