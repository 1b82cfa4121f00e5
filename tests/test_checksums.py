"""The kernel's checksums are zlib's."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowrb import kernels


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 9), st.integers(1, 6), st.booleans(), st.booleans()
)
def test_blocks_are_summed_as_by_zlib(seed, item, block_rows, num_blocks, of_transitions, masked):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (block_rows * num_blocks, item), np.uint8)
    kinds = rng.integers(0, 5, len(values)).astype(np.uint8)
    mask = rng.integers(0, 2, len(values)).astype(np.uint8)
    there = (kinds == 1) if of_transitions else (kinds != 0)
    there &= (mask != 0) | (not masked)
    expected = np.where(there[:, None], values, 0).astype(np.uint8).reshape(num_blocks, -1)
    sums = np.zeros((1, num_blocks), np.uint32)
    flags = mask.__array_interface__["data"][0] if masked else 0
    row = (values.__array_interface__["data"][0], item, of_transitions, flags)
    columns, scratch = np.array([row], np.int64), np.empty(16, np.uint8)
    kernels.checksum_blocks(columns, kinds, block_rows, kernels.CRC_TABLE, scratch, sums)
    assert sums[0].tolist() == [zlib.crc32(block.tobytes()) for block in expected]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5000), st.integers(0, 70))
def test_bytes_are_summed_as_by_zlib(seed, size, skipped):
    content = np.random.default_rng(seed).integers(0, 256, size + skipped, np.uint8)[skipped:]
    assert kernels.crc32(content) == zlib.crc32(content.tobytes())
    assert kernels.crc32(content * np.uint8(0)) == zlib.crc32(bytes(size))
