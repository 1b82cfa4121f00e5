"""Batches: rows gathered into torch tensors, and record batches turned into them.

A batch's tensors are views into one stretch of memory (a slab), which is used again only once nobody holds any of
them: whoever keeps a batch, or a view of a part of it, keeps it unchanged.
"""

from __future__ import annotations

from .batches import Ahead, Batch, BatchReader, check_transform
from .converting import as_row_ids, to_torch
from .loader import Loader

__all__ = ["Ahead", "Batch", "BatchReader", "Loader", "as_row_ids", "check_transform", "to_torch"]
