"""What is read of a store by index: batches that are drawn, and rows by their ids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .arrivals import Watermark, newest_rows, rows_since, watermark_of
from .engine import Engine, PriorityFiles, SampleLog
from .errors import OptionError
from .loader import Batch, BatchReader, Loader, as_row_ids, check_transform
from .named import NamedSamplers
from .sampler import Sampler
from .samplers import (
    ROW,
    AnyView,
    Asking,
    BlockRows,
    Chains,
    FromRows,
    Learning,
    Reading,
    Strategy,
    Stream,
    Uniform,
    Viewing,
    check_batch_size,
    check_tiers,
    check_view,
    with_history,
)
from .sql import Posing


class Sampling:
    """The part of a `Store` that draws and gathers."""

    _engine: Engine
    _named: NamedSamplers
    _local: threading.local
    _stream_guard: threading.Lock
    _stream: Stream | None

    def sample(
        self,
        batch_size: int,
        *,
        columns: Sequence[str] | None = None,
        float64: str = "keep",
        device: Any = None,
        tiers: str = "all",
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Draw transitions uniformly, with replacement, from all that are visible now.

        Args:
            batch_size: how many.
            columns: names to read: those of a batch (``observation``, ``next_observation``, ``action``, ``reward``,
                ``terminated``, ``truncated``, an extra, ``next_<extra>`` of an observation's), a leaf
                (``observation.camera``, not nested then), or a system column (``ordinal``, ``time``, ``episode_id``,
                ``lane``, ``step``, ``policy_version``). A nullable one comes with its mask, ``<name>.valid``. None
                reads all but the system columns.
            float64: ``"keep"``, or ``"float32"`` to cast float64 columns while they are read.
            device: a torch device to move the batch to.
            tiers: ``"all"``, or ``"hot"`` to leave out what lies in Parquet: faster, and no longer uniform over all.
            seed: draws the same rows whenever the store holds the same; None goes on with a stream of its own.

        Returns:
            name -> tensor [batch_size, *shape], nested as the spaces are, with ``row_id`` (int64). Flags are
            ``torch.bool``; where ``<name>.valid`` is False the value is 0.

        Raises:
            EmptyError: if there is no transition.
            ColumnError: if a name is unknown.
            OptionError: if an option is out of range.
        """
        size = check_batch_size(batch_size)
        snapshot = self._engine.snapshot()
        if seed is None:
            with self._stream_guard:
                self._stream = self._stream or Uniform().start(None)
                drawn = self._stream.draw(snapshot, size, tiers=check_tiers(tiers))
        else:
            drawn = Uniform().start(seed).draw(snapshot, size, tiers=check_tiers(tiers))
        return self._loader(columns, float64, device).load(snapshot, Reading({ROW: drawn.rows}))

    def gather(
        self, row_ids: Any, *, columns: Sequence[str] | None = None, float64: str = "keep", device: Any = None
    ) -> dict[str, Any]:
        """Read transitions by row id, in the order given; see `sample` for the rest.

        Raises:
            RowError: if a row id names no transition.
            ColumnError: if a name is unknown, or row_ids are no row ids.
        """
        ids = as_row_ids(row_ids)
        snapshot = self._engine.snapshot()
        return self._loader(columns, float64, device).load(snapshot, Reading({ROW: snapshot.locate(ids)}))

    def latest(
        self, count: int, *, columns: Sequence[str] | None = None, float64: str = "keep", device: Any = None
    ) -> dict[str, Any]:
        """The newest transitions, in the order of their episodes: lane by lane, and in each as they came.

        Args:
            count: how many; all, where there are fewer.
            columns: see `sample`; likewise `float64` and `device`.
            float64: see `sample`.
            device: see `sample`.

        Returns:
            As `sample`, with ``run_end``, bool[n], true where the next row is not the next step of the same episode.

        Raises:
            EmptyError: if there is no transition.
        """
        snapshot = self._engine.snapshot()
        rows, ends = newest_rows(snapshot, check_batch_size(count, "count"))
        return self._loader(columns, float64, device).load(snapshot, Reading({ROW: rows}, {"run_end": ends}))

    def watermark(self) -> Watermark:
        """The moment now, for `since`: what is committed by now."""
        return watermark_of(self._engine.snapshot())

    def since(
        self,
        mark: Watermark | Sequence[Any] | None,
        *,
        columns: Sequence[str] | None = None,
        float64: str = "keep",
        device: Any = None,
    ) -> tuple[dict[str, Any], Watermark]:
        """All transitions that came after a moment, in the order of their episodes, and the moment now.

        With ``batch, mark = store.since(mark)`` a learner sees every transition once. What retention drops before it
        is read is missing, and counted in the new moment's ``num_missing``.

        Args:
            mark: what `watermark` or `since` returned, or came back out of a checkpoint's state; None for the
                beginning.
            columns: see `sample`; likewise `float64` and `device`.
            float64: see `sample`.
            device: see `sample`.

        Returns:
            A batch as that of `latest`, of any size, also of 0 rows; and the moment.

        Raises:
            OptionError: if it is no moment of this store.
        """
        snapshot = self._engine.snapshot()
        rows, ends, now = rows_since(snapshot, mark)
        loader = self._loader(columns, float64, device)
        return loader.load(snapshot, Reading({ROW: rows}, {"run_end": ends})), now

    def sampler(
        self,
        strategy: Strategy | Asking | None = None,
        *,
        batch_size: int,
        columns: Sequence[str] | None = None,
        float64: str = "keep",
        device: Any = None,
        n_step: int | None = None,
        gamma: float = 0.99,
        frame_stack: Mapping[str, int] | None = None,
        padding: str = "repeat",
        strict: bool = False,
        windows: Mapping[str, tuple[int, int]] | None = None,
        return_to_go: float | None = None,
        transform: Callable[[dict[str, Any]], Batch] | None = None,
        as_tensordict: bool = False,
        prefetch: int = 0,
        tiers: str = "all",
        cold: str = "exact",
        seed: int | None = None,
        name: str | None = None,
        log: bool | int = False,
        limited: bool = True,
    ) -> Sampler:
        """An endless stream of batches: ``for batch in store.sampler(batch_size=256): ...``.

        Of sequences and episodes, ``n_step``, ``frame_stack``, ``windows`` and ``return_to_go`` are at each step,
        [batch_size, steps, ...]; where no transition is at a step, what they give of it is zero. Under a goal in
        hindsight ``n_step`` sums the rewards of that goal, up to a step that reaches it.

        Args:
            strategy: how to draw: `Uniform()`, the default, `Shuffled(...)`, `Prioritized(...)`, `Sequences(...)`,
                `PrioritizedSequences(...)`, `Episodes(...)`, `Hindsight(...)`, `Where(...)` or `Weighted(...)`.
            batch_size: transitions a batch, or sequences.
            columns: see `sample`; likewise `float64`, `device` and `tiers`.
            float64: see `sample`.
            device: see `sample`.
            n_step: ``reward`` becomes the discounted sum of so many rewards, to the end of the episode at most (float64
                where rewards are whole numbers);
                ``next_observation``, its extras, ``terminated`` and ``truncated`` are those of the last step summed.
                Adds ``num_steps``, int64[n], how many there were, and ``discount``, float32[n], gamma ** num_steps:
                the target is reward + discount * ~terminated * V(next_observation). Where an episode is still running
                or was cut, the sum ends at the newest step.
            gamma: the discount of a step.
            frame_stack: observations of so many steps, by column: with ``{"observation": 4}`` that of a batch is
                [n, 4, *shape], the newest last; likewise ``next_observation``. Never out of another episode.
            padding: for frames before the first of an episode, or before the first that retention has left:
                ``"repeat"`` that one, or ``"zero"``.
            strict: leave out transitions (sequences, by their first step) of which retention has dropped steps that
                their frame stacks or windows would show; else the oldest one that is left stands for these. For
                `Uniform`, `Hindsight` and `Sequences` over starts, restricted and weighted ones, too.
            windows: values of the steps from ``first`` to ``stop`` (excluded) beside the row's own, by column:
                ``{"observation": (-1, 1), "action": (0, 16)}`` gives [n, 2, *shape] and [n, 16, *shape]. Steps beyond
                the episode's ends repeat the one at the end, where ``<name>_is_pad``, bool[n, stop - first], is True.
            return_to_go: the discount of the rewards to come: adds ``return_to_go``, their discounted sum to the end of
                the episode, the row's own included, as far as the episode is there; of sequences, at each step.
            transform: called with each batch; what it returns takes its place.
            as_tensordict: batches are TensorDicts, where tensordict is installed.
            prefetch: how many batches are drawn ahead of the one that is asked for. A thread reads them (and transforms
                them), so that a batch is there when it is asked for: 16 is good for that. Half of them are read in one
                go, and what lies in Parquet is decoded once for all of these: 63 is good where much does. Each batch
                may lag so many batches behind what is written and what `Sampler.update` was told. The batches are the
                same as without.
            tiers: see `sample`.
            cold: how rows of the cold tier are drawn by `Uniform` and `Hindsight`, and by `Sequences` that begin at
                every step. ``"exact"``: independently, whatever has to be decoded. ``"block"``: out of a pool of row
                groups, of which one goes and another comes when each of its rows was drawn four times in the mean;
                every transition is as likely as before, but rows of one group come together more often, for a while.
                The pool takes up to half of the store's ``cache_bytes``.
            seed: the same seed over the same rows draws the same batches, whatever tier they lie in.
            name: under which checkpoints keep where it stands. After `restore`, a sampler of that name goes on there,
                whatever its seed; batches that had been drawn ahead come first. Priorities of a sampler with a name lie
                in files of the store (``samplers/<name>``): they survive the process, and whoever makes a sampler of
                that name next goes on with them, in any process that may write there, but one at a time. Without a
                name they are kept in memory.
            log: keep a log of which rows went into which batch, with what weight, beside these (about 40 bytes a row):
                what `store.sql` shows as ``samples``, and `Sampler.redraw` reads again. True keeps all of it, a number
                about so many of its newest rows. It survives the process; of a power failure, but the newest.
            limited: its batches wait for the store's limiter, and their rows count for that when they are handed out
                (`SampleToInsertRatio`), drawn ahead or not. False for what does not feed training, such as an
                evaluation. Where the limiter's file cannot be written (a read-only disk, or a store as it was at a
                checkpoint), nothing waits or counts; nor does what `sample`, `gather`, `latest` and `since` read.

        Raises:
            OptionError: if an option is out of range, or a sampler of that name is there.
            LockedError: if another process has a sampler of that name.
        """
        size, schema = check_batch_size(batch_size), self._engine.schema
        view = check_view(
            schema,
            n_step=n_step,
            gamma=gamma,
            frame_stack=frame_stack,
            padding=padding,
            windows=windows,
            return_to_go=return_to_go,
        )
        chosen: object = Uniform() if strategy is None else strategy
        if isinstance(chosen, type):
            raise OptionError(f"strategy is the class {chosen.__name__}, expected a value: {chosen.__name__}(...).")
        if not isinstance(strict, bool):
            raise OptionError(f"strict is {strict!r}, expected True or False.")
        if strict:
            chosen = with_history(chosen, view)
        if not isinstance(limited, bool):
            raise OptionError(f"limited is {limited!r}, expected True or False.")
        if cold not in ("exact", "block"):
            raise OptionError(f'cold is {cold!r}, expected "exact" or "block".')
        if cold == "block":
            stream = self._from_blocks(chosen, seed)
        elif isinstance(chosen, Asking):
            stream = chosen.start_asking(seed, Posing(self._engine))
        elif isinstance(chosen, Strategy):
            stream = chosen.start(seed)
        else:
            raise OptionError(f"strategy is {chosen!r}, expected a strategy such as arrowrb.Uniform().")
        read: AnyView = stream.view.combined(view) if isinstance(stream, Viewing) else view
        loader = Loader(
            schema,
            columns=columns,
            float64=float64,
            device=device,
            places=read.places(schema),
            computed=read.computed,
            needs=read.needs,
            length=read.length,
        )
        # What a thread reads goes by chains of its own.
        chains = stream.chains if isinstance(stream, Viewing) and not prefetch else Chains()
        reader = BatchReader(schema, read, chains, loader, check_transform(transform, as_tensordict))
        gate = self._engine.limiting.sampling_gate(name) if limited else None
        made = Sampler(self._engine, stream, reader, size, prefetch=prefetch, tiers=tiers, name=name, gate=gate)
        self._named.check(made)
        self._keep_files(made, stream, name, log)
        self._named.add(made)
        return made

    def _keep_files(self, sampler: Sampler, stream: Stream, name: str | None, log: bool | int) -> None:
        """Let a sampler that has a name keep on disk what it is to keep."""
        keep: Any = log
        if not isinstance(keep, bool) and (not isinstance(keep, int | np.integer) or keep < 1):
            raise OptionError(f"log is {log!r}, expected True, False, or how many rows to keep.")
        if log and name is None:
            raise OptionError("log is kept under the sampler's name. Give it a name, such as name='learner'.")
        if name is None or not (isinstance(stream, Learning) or log):
            return
        folder = self._engine.sampler_folder(name)
        if folder is None:
            if log:
                raise OptionError("A store as it was at a checkpoint keeps no log. Open it without at.")
            return
        try:
            if isinstance(stream, Learning):
                stream.keep_in(PriorityFiles(folder))
            kept = SampleLog(folder, None if log is True else int(log), sampler.reading) if log else None
            sampler.keep_in(folder, kept)
        except BaseException:
            folder.close()  # not when the error goes, which somebody may hold
            raise

    def _from_blocks(self, strategy: object, seed: int | None) -> Stream:
        """A stream that draws cold rows out of a pool of row groups."""

        def choose(own: object) -> BlockRows:
            if own is not None:
                raise OptionError(f'cold is "block", but {strategy!r} cannot begin at every transition. Use "exact".')
            return BlockRows(self._engine.cache.limit)

        if not isinstance(strategy, FromRows):
            raise OptionError(f'cold is "block", which {strategy!r} cannot draw by. Use "exact".')
        return strategy.start_from(seed, choose)

    def _loader(self, columns: Sequence[str] | None, float64: str, device: Any) -> Loader:
        key = repr((columns, float64, device))
        loaders: dict[Any, Loader] = self._local.__dict__
        loader = loaders.get(key)
        if loader is None:
            loader = loaders[key] = Loader(self._engine.schema, columns=columns, float64=float64, device=device)
        return loader
