"""Data sets out of a store: Parquet files that need nothing of ours to be read.

ordering    which rows, in which order: episodes as they came, steps within them
writing     files of a target size, which appear all at once
"""

from __future__ import annotations

from .writing import Exported, export

__all__ = ["Exported", "export"]
