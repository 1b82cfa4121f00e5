"""What a writer does every so often because of other shards: as it is told, and what the coordinator does, if it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from .. import checkpoints
from ..errors import WaitError
from ..retention import Action
from .coordinator import Coordinator
from .creating import StoreFile
from .options import WriterOptions
from .paths import shard_paths
from .shard_writer import PREPARE_TIMEOUT_SECONDS, ShardWriter
from .shards import ShardCount

_PERIOD_SECONDS: Final = 0.03  # of the coordinator, where something comes near a limit
_ALONE_SECONDS: Final = 0.2  # while there is no other shard: only whether there is one by now
_SELDOM_SECONDS: Final = 0.25  # of all others, who do as they are told with each commit, too
_AFTER_ERROR_SECONDS: Final = 5.0


class Rounds:
    """Daemon threads of a writer. What they run into reaches the next one who writes.

    One looks; the other one, which the coordinator has, visits shards without a writer, which takes longer.
    """

    def __init__(self, shard: ShardWriter, coordinator: Coordinator, num_shards: ShardCount) -> None:
        self.shard = shard
        self._coordinator = coordinator
        self._num_shards = num_shards
        self._stopping = threading.Event()
        self._seldom = 0.0
        if num_shards() > 1 or shard.paths.number == 0:
            coordinator.take_role()
        if num_shards() > 1:
            coordinator.look()
            shard.obey(look_around=False)
        self._threads: list[threading.Thread] = []
        self._start("arrowrb-rounds", self._turn)

    def _start(self, name: str, turn: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._run, args=(turn,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, turn: Callable[[], None]) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            if self._num_shards() == 1:
                pause = _ALONE_SECONDS
                continue
            try:
                turn()
                pause = _PERIOD_SECONDS if self._coordinator.in_haste else _SELDOM_SECONDS
            except BaseException as error:
                self.shard.note_error(error)
                pause = _AFTER_ERROR_SECONDS

    def _turn(self) -> None:
        now = time.monotonic()
        seldom = now > self._seldom + _SELDOM_SECONDS
        if seldom:
            self._seldom = now
            if self._coordinator.take_role() and len(self._threads) == 1:
                self._start("arrowrb-visits", self._coordinator.visit_next)
        self._coordinator.look()
        self.shard.obey(look_around=seldom)

    def maintain(self, *, dry_run: bool) -> list[Action]:
        """Do what is due in the own shard; as the coordinator, in those that have no writer, too, and tell others."""
        actions = self.shard.maintain(dry_run=dry_run)
        if not dry_run and self._num_shards() > 1:
            told = self._coordinator.look(plan=True)
            self.shard.maintain(dry_run=False)
            self._coordinator.visit_all()
            known = {(each.shard, each.segment) for each in actions}
            actions += [each for each in told if (each.shard, each.segment) not in known]
        return actions

    def stop(self) -> None:
        """End the threads, and let another process be the coordinator.

        Raises:
            WaitError: if they do not end in time; call it again.
        """
        self._stopping.set()
        for thread in self._threads:
            thread.join(PREPARE_TIMEOUT_SECONDS)
            if thread.is_alive():
                raise WaitError(
                    f"Waited {PREPARE_TIMEOUT_SECONDS:g} s for a shard without a writer, in which segments are moved."
                )
        self._coordinator.leave_role()


def begin_rounds(store: Path, own: int, file: StoreFile, options: WriterOptions, clock: Callable[[], int]) -> Rounds:
    """Open a shard of a store for writing; see to the limits over all shards, where nobody else does.

    Args:
        store: its folder.
        own: the number of the shard.
        file: what the store is.
        options: with the limits of the whole store.
        clock: of rows, in microseconds.
    """
    num_shards = ShardCount(store)
    kept = replace(options.limits, keep_below=checkpoints.keep_below(store, file.store_id, own))
    shard = ShardWriter(
        shard_paths(store, own), file.schema, file.store_id, replace(options, limits=kept), clock, num_shards
    )
    try:
        return Rounds(shard, Coordinator(store, file, options, own), num_shards)
    except BaseException:
        shard.close()
        raise
