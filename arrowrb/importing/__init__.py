"""Data sets into stores: Parquet files (ours or anybody's), Minari, other stores.

sources     Parquet files, and where in them a store's columns are
inference   the schema of files that do not say theirs
order       what is refused, because its rows do not belong together
steps       rows that hold one observation each -> transitions
filling     rows -> commits; a new store appears when it is whole
parquet, minari, merging    what users call
"""

from __future__ import annotations

from .filling import Imported
from .merging import merge
from .minari import import_minari
from .parquet import import_parquet

__all__ = ["Imported", "import_minari", "import_parquet", "merge"]
