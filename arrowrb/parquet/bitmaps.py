"""Which values of a column are there: as Arrow's bitmaps, and as flags."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def pack_bits(valid: NDArray[np.bool_]) -> pa.Buffer | None:
    """Which values are there as a bitmap; None where all are."""
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def validity_of(array: pa.Array) -> NDArray[np.bool_] | None:
    """Which values of an array are there; None where all are."""
    if not array.null_count:
        return None
    bits = np.frombuffer(array.buffers()[0], np.uint8)
    whole = np.unpackbits(bits, count=array.offset + len(array), bitorder="little")
    return whole[array.offset :].view(np.bool_)
