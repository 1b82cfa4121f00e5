"""What samplers take out of a store, as far as that is counted: by a limiter, and in the logs of named samplers."""

from __future__ import annotations

from dataclasses import dataclass

from arrowrb import files
from arrowrb.engine import Engine, newest_batch, sampler_folders
from arrowrb.engine.participants import shown_name
from arrowrb.limiter import SAMPLING


@dataclass(frozen=True, slots=True)
class LogInfo:
    """A named sampler.

    Attributes:
        name: its name.
        pid: the process that has it, or has died so; None where it was closed.
        alive: whether that process runs.
        num_batches: that it ever gave; None where it has no log.
        batch_size: rows of the newest one; likewise.
        num_rows: that it has given since it was made; None where no limiter counts them.
        rows_per_second: lately; None where that is not known (yet).
    """

    name: str
    pid: int | None
    alive: bool
    num_batches: int | None
    batch_size: int | None
    num_rows: int | None
    rows_per_second: float | None = None


def count_sampled(engine: Engine) -> int | None:
    """Rows that all samplers of a store have taken; None where the store does not count them."""
    info = engine.limiting.look()
    return None if info is None else int(info.samples)


def read_logs(engine: Engine) -> list[LogInfo]:
    """The samplers of a store that have a name: those that keep files, and those that a limiter counts."""
    found, counted = [], _read_counted(engine)
    for folder in sampler_folders(engine.path):
        holder = files.read_holder(folder / "writer.json")
        pid, alive = (None, False) if holder is None else (holder.pid, files.is_alive(holder.pid))
        number, size = newest_batch(folder, engine.file.store_id) or (None, None)
        told = counted.pop(shown_name(folder.name), None)
        found.append(LogInfo(folder.name, pid, alive, number, size, None if told is None else told.num_rows))
    return sorted([*found, *counted.values()], key=lambda each: each.name)


def _read_counted(engine: Engine) -> dict[str, LogInfo]:
    """What a limiter counts of samplers, by their names as participants; of forked children with their parents."""
    info = engine.limiting.look()
    counted: dict[str, LogInfo] = {}
    for each in () if info is None else info.participants:  # the living first
        if each.side == SAMPLING and each.name is not None:
            told = counted.get(each.name)
            rows = each.num_rows + (0 if told is None else told.num_rows or 0)
            pid, alive = (each.pid, each.alive) if told is None else (told.pid, told.alive)
            counted[each.name] = LogInfo(each.name, pid, alive, None, None, rows)
    return counted
