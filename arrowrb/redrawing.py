"""Batches out of a sampler's log once more."""

from __future__ import annotations

from .engine import Engine
from .errors import OptionError, RowError
from .loader import Batch, BatchReader
from .samplers import Chains, Drawn


def redrawn(engine: Engine, reader: BatchReader, name: str, number: int) -> Batch:
    """A batch of the log of a sampler of this name; see `Sampler.redraw`.

    Raises:
        RowError: if it is not in the log, or what it has read is no longer there.
        OptionError: if the reader reads otherwise.
    """
    logged, snapshot = engine.logged_batch(name, number)
    which = f"Batch {number:,} of sampler {name!r}"
    if logged.reading not in ("", reader.reading):
        raise OptionError(
            f"{which} was read by {logged.reading}, but this one reads by {reader.reading}. Make it with the strategy "
            "and options of that one."
        )
    try:
        rows = snapshot.locate(logged.row_ids)
    except RowError:
        raise RowError(f"{which} has rows that retention has dropped since.") from None
    if not reader.has_history(snapshot, rows):
        raise RowError(f"{which} may have read steps before its rows that retention has dropped.")
    try:
        return reader.read(snapshot, Drawn(rows, logged.columns, logged.hidden, snapshot), chains=Chains())
    except KeyError as missing:
        raise OptionError(
            f"{which} was drawn by another strategy: its log has no {missing}. Make this sampler as that one."
        ) from None
