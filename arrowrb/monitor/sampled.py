"""What samplers take out of a store, as far as that is counted: by the store, and in the logs of named samplers."""

from __future__ import annotations

from dataclasses import dataclass

from arrowrb import files
from arrowrb.engine import Engine, newest_batch, sampler_folders


@dataclass(frozen=True, slots=True)
class LogInfo:
    """A named sampler.

    Attributes:
        name: its name.
        pid: the process that has it, or has died so; None where it was closed.
        alive: whether that process runs.
        num_batches: that it ever gave; None where it has no log.
        batch_size: rows of the newest one; likewise.
        rows_per_second: lately; None where that is not known (yet).
    """

    name: str
    pid: int | None
    alive: bool
    num_batches: int | None
    batch_size: int | None
    rows_per_second: float | None = None


def count_sampled(engine: Engine) -> int | None:
    """Rows that all samplers of a store have taken; None where the store does not count them."""
    info = engine.limiting.look()
    return None if info is None else int(info.samples)


def read_logs(engine: Engine) -> list[LogInfo]:
    """The named samplers of a store."""
    found = []
    for folder in sampler_folders(engine.path):
        holder = files.read_holder(folder / "writer.json")
        pid, alive = (None, False) if holder is None else (holder.pid, files.is_alive(holder.pid))
        number, size = newest_batch(folder, engine.file.store_id) or (None, None)
        found.append(LogInfo(folder.name, pid, alive, number, size))
    return found
