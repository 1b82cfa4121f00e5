"""Loads, stores, copies, prefetch and fences at addresses, for use in kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_PREFETCH = "llvm.prefetch.p0"
_HERE = Path(__file__).parent


def _drop_stale_code() -> None:
    """Numba compiles a kernel anew where its own module has changed, not where one has that it takes functions from."""
    newest = max(path.stat().st_mtime_ns for path in _HERE.glob("*.py"))
    for index in _HERE.glob("__pycache__/*.nbi"):
        with contextlib.suppress(OSError):  # another process does the same, or the installation is not ours to change
            if index.stat().st_mtime_ns < newest:
                index.unlink()


_drop_stale_code()


def kernel(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for one signature, without the GIL; cached on disk where the installation is writable."""
    cache = os.access(_HERE, os.W_OK) or "NUMBA_CACHE_DIR" in os.environ
    compiled: Callable[[Callable[..., Any]], Any] = numba.njit(signature, nogil=True, cache=cache, boundscheck=False)
    return compiled


inline: Callable[[Callable[..., Any]], Any] = numba.njit(nogil=True, boundscheck=False, inline="never")


@intrinsic  # type: ignore[untyped-decorator]
def copy(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy ``size`` bytes from one address to another; they must not overlap."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        to = builder.inttoptr(arguments[0], byte_pointer)
        out_of = builder.inttoptr(arguments[1], byte_pointer)
        cgutils.raw_memcpy(builder, to, out_of, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, as far as the second level; a wrong address does no harm."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        integer = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer.type, integer, integer, integer]),
            _PREFETCH,
        )
        builder.call(function, [pointer, integer(0), integer(2), integer(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def release(typingctx: Any) -> Any:
    """A release fence: every store before it is visible before any store after it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("release")
        return context.get_dummy_value()

    return types.void(), codegen


def _load(native: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], context.get_value_type(native).as_pointer())
            return builder.load(pointer)

        return native(types.int64), codegen

    return load


def _store(native: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], context.get_value_type(native).as_pointer())
            given = context.cast(builder, arguments[1], signature.args[1], native)
            builder.store(given, pointer)
            return context.get_dummy_value()

        return types.void(types.int64, value), codegen

    return store


load_u8: Callable[[int], int] = _load(types.uint8)
load_i32: Callable[[int], int] = _load(types.int32)
load_i64: Callable[[int], int] = _load(types.int64)
load_u64: Callable[[int], Any] = _load(types.uint64)
load_f32: Callable[[int], float] = _load(types.float32)
load_f64: Callable[[int], float] = _load(types.float64)
store_u8 = _store(types.uint8)
store_i32 = _store(types.int32)
store_i64 = _store(types.int64)
store_u64 = _store(types.uint64)
store_f32 = _store(types.float32)
store_f64 = _store(types.float64)


@inline
def same_bytes(one: int, other: int, size: int) -> bool:
    """Whether two stretches of memory hold the same bytes (so that NaN equals itself)."""
    words = size >> 3
    difference = 0
    for i in range(words):
        difference |= load_i64(one + (i << 3)) ^ load_i64(other + (i << 3))
    for i in range(words << 3, size):
        difference |= load_u8(one + i) ^ load_u8(other + i)
    return difference == 0


@inline
def address_of(array: Any) -> Any:
    """Where an array's elements begin. Inner functions take addresses: an array costs an atomic count a call."""
    return np.int64(array.ctypes.data)


@inline
def copy_item(target: int, source: int, size: int) -> None:
    """Copy one item of a column without a call, which would cost more than the bytes.

    Known lengths become plain moves; others go by 32, 16 or 8 bytes, the last of which overlap those before them.
    """
    if size == 4:
        copy(target, source, 4)
    elif size == 1:
        copy(target, source, 1)
    elif size == 8:
        copy(target, source, 8)
    elif 32 <= size <= 512:
        last = size - 32
        for i in range(0, last, 32):
            copy(target + i, source + i, 32)
        copy(target + last, source + last, 32)
    elif 16 <= size < 32:
        copy(target, source, 16)
        copy(target + size - 16, source + size - 16, 16)
    elif 8 < size < 16:
        copy(target, source, 8)
        copy(target + size - 8, source + size - 8, 8)
    else:
        copy(target, source, size)


@kernel("void()")
def fence() -> None:
    """Order all stores so far before the commit record that follows."""
    release()
