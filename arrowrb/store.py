"""The public face: create, open, write, read. Everything is delegated to the modules below."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from . import sql
from .checkpoints import check_name
from .engine import (
    DEFAULT_CACHE_BYTES,
    MAIN,
    Engine,
    check_cache_bytes,
    check_path,
    check_retention,
    create_store,
    remove_store,
    writer_options,
)
from .errors import OptionError, StoreError
from .events import external
from .info import StoreInfo, describe
from .limiter import Limiter, check_limiter
from .named import NamedSamplers
from .recorder import Recorder
from .sampler import Sampler
from .samplers import Stream
from .sampling import Sampling
from .schema import Schema, encode_batch, encode_row
from .upkeep import Upkeep

__all__ = ["Sampler", "Store"]


class Store(Sampling, Upkeep):
    """A replay store: a directory that is buffer, database, checkpoint and dataset at once.

    Make one with `create`, `open` or `temporary`. Rows are visible to every reader, here and in other processes, as
    soon as the call that wrote them returns, and survive the death of the process. They survive a power failure after
    `flush`, or once ``sync_interval`` has passed.

    Thread-safe: writing is serialised, sampling and SQL may run beside it.
    """

    def __init__(self, engine: Engine, *, temporary: bool = False) -> None:
        """Not for users: see `create`, `open` and `temporary`."""
        self._engine = engine
        self._local = threading.local()  # a loader's memory is for one thread
        self._stream_guard = threading.Lock()
        self._stream: Stream | None = None
        self._named = NamedSamplers()
        self._remove = weakref.finalize(self, remove_store, engine, os.getpid()) if temporary else None

    # -- opening and closing -------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        schema: Schema,
        *,
        hot_rows: int | None = None,
        hot_bytes: int | None = None,
        max_rows: int | None = None,
        max_bytes: int | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        sync_interval: float | None = 5.0,
        limiter: Limiter = None,
    ) -> Self:
        """Create a store and open it for writing.

        Args:
            path: a directory that does not exist yet, or is empty.
            schema: what a transition holds; see `Schema.from_env`.
            hot_rows: rows that the memory-mapped tier may have allocated; older ones are moved to Parquet in the
                background. At least 1,000; more is taken where that is below a 64th of the rows (up to 32,768 rows
                or 2 MiB of them), or 256 rows a lane.
            hot_bytes: the same in bytes. The smaller of both counts; without either, 8 GB or a quarter of the memory.
            max_rows: transitions that are kept; the oldest beyond are dropped, a segment at a time, which is a
                sixteenth of it, and rows of tails and of blocks that are not full count in their segment: what is kept
                varies by about a sixteenth. Each lane needs 32 rows in a segment, though: with more than a 512th of
                ``max_rows`` in lanes segments are larger, and so is what is dropped at once. At least 1,000, where
                syncs already cost more than writing; from 100,000 on they do not. Where the hot tier holds as many,
                nothing is moved to Parquet. With several shards it bounds all of them together, see the README.
            max_bytes: bytes of segments on disk, likewise.
            cache_bytes: for decoded parts of Parquet files, in memory.
            sync_interval: seconds between syncs to disk: at most so much of the newest is lost when the power fails
                (nothing is lost when the process dies). None syncs only on `flush` and `close`.
            limiter: a `SampleToInsertRatio`, by which collecting and sampling wait for each other, in all processes.

        Raises:
            StoreExistsError: if a store, or anything else, is there already.
        """
        options = writer_options(sync_interval, hot_rows, hot_bytes)
        max_rows, max_bytes = check_retention(max_rows, max_bytes)
        cache_bytes = check_cache_bytes(cache_bytes)
        place, limiter = check_path(path), check_limiter(limiter)
        create_store(place, schema, max_rows=max_rows, max_bytes=max_bytes, limiter=limiter)
        return cls(Engine(place, writable=True, options=options, cache_bytes=cache_bytes))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mode: str = "r",
        shard: str | None = None,
        hot_rows: int | None = None,
        hot_bytes: int | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        sync_interval: float | None = 5.0,
        limiter: Limiter = None,
        at: str | None = None,
    ) -> Self:
        """Open a store. Opening never destroys anything.

        Args:
            path: the store's directory.
            mode: ``"r"`` reads, and follows a live writer; ``"a"`` goes on writing. Episodes that an earlier writer
                left unfinished are *cut* by ``"a"``; ``"r"`` shows them as running.
            shard: with ``"a"``, the name of what this process writes: actors side by side each have a shard of their
                own, which is made when it is opened first, and gone on with under the same name. By default the one
                that `create` wrote. Everybody reads all shards as one store. A shard that no process writes any more
                ages and is dropped with the rest; use names again, since a segment is a sixteenth of ``max_rows``
                divided by all shards that there ever were.
            hot_rows: for this writer, see `create`; likewise `hot_bytes`. Where there are several shards, that of the
                main shard's writer (or of another, where it has none) bounds all of them together, and each has a
                share of it. How much is kept is fixed by `create`, over all shards.
            hot_bytes: see `create`.
            cache_bytes: see `create`.
            sync_interval: see `create`.
            limiter: with ``"a"``, a `SampleToInsertRatio` in place of the one that the store has, for all processes at
                once; False takes that off. By default it stays, and its counts go on, as they do with one of the same
                ``samples_per_insert`` and ``min_size``. Of the first one that a store gets after `create`, processes
                know that open the store afterwards.
            at: the name of a checkpoint: shows the rows that there were at that point, as far as retention has not
                dropped them. For reading only.

        Raises:
            StoreNotFoundError: if there is no store, or no checkpoint of that name.
            LockedError: if another process writes this shard (``"a"``); names its pid.
            FormatError: if it was written by a newer version.
        """
        if not isinstance(mode, str) or mode not in ("r", "a"):
            raise OptionError(f'mode is {mode!r}, expected "r" (read and follow) or "a" (go on writing).')
        if at is not None and mode != "r":
            raise OptionError('at is given, but mode is "a": rows go on from the newest only. Open it with mode="r".')
        if shard is not None and mode != "a":
            raise OptionError('shard is given, but mode is "r", which reads all of them. Open it with mode="a".')
        if check_limiter(limiter) is not None and mode != "a":
            raise OptionError('limiter is given, but mode is "r". Open it with mode="a" to change how it is limited.')
        options = writer_options(sync_interval, hot_rows, hot_bytes)
        own = MAIN if shard is None else check_name(shard)
        engine = Engine(
            check_path(path),
            writable=mode == "a",
            options=options,
            cache_bytes=check_cache_bytes(cache_bytes),
            at=at,
            shard=own,
            limiter=limiter,
        )
        return cls(engine)

    @classmethod
    def temporary(
        cls,
        schema: Schema,
        *,
        hot_rows: int | None = None,
        hot_bytes: int | None = None,
        max_rows: int | None = None,
        max_bytes: int | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        limiter: Limiter = None,
    ) -> Self:
        """A store in a temporary directory, removed on `close` or when the program ends; see `create`."""
        options = writer_options(None, hot_rows, hot_bytes, durable=False)
        max_rows, max_bytes = check_retention(max_rows, max_bytes)
        cache_bytes, limiter = check_cache_bytes(cache_bytes), check_limiter(limiter)
        try:
            path = Path(tempfile.mkdtemp(prefix="arrowrb-"))
        except OSError as error:
            raise StoreError(f"No temporary folder can be made: {error}. Set TMPDIR to one that exists.") from error
        try:
            create_store(path, schema, max_rows=max_rows, max_bytes=max_bytes, limiter=limiter, durable=False)
            return cls(Engine(path, writable=True, options=options, cache_bytes=cache_bytes), temporary=True)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def close(self) -> None:
        """Cut running episodes, make everything durable, and let go of the store. May be called again."""
        self._engine.close()
        if self._remove is not None:
            self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._engine.limiting.fail()
        self.close()

    def flush(self) -> None:
        """Return once everything written so far would survive a power failure."""
        self._engine.flush()

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._engine.path

    @property
    def schema(self) -> Schema:
        """What a transition holds."""
        return self._engine.schema

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._engine.closed

    def __len__(self) -> int:
        """Transitions that can be sampled now."""
        return self._engine.snapshot().num_transitions

    def info(self) -> StoreInfo:
        """Counts, tiers and bytes at this moment."""
        return describe(self._engine)

    def __repr__(self) -> str:
        if self._engine.closed:
            return f"Store({str(self.path)!r}, closed)"
        return self.info().summary()

    def _repr_html_(self) -> str:
        if self._engine.closed:
            return f"<code>{self!r}</code>"
        return self.info().html()

    # -- writing -------------------------------------------------------------------------------------------------

    def extend(self, batch: Any, *, lane: Any = None, contiguous: bool = True) -> NDArray[np.int64]:
        """Add transitions in one commit: all of them, or none.

        Args:
            batch: a RecordBatch, a Table, a dict of arrays or tensors (nested where the space is, or with dotted
                names), or a TensorDict; with columns observation, action, reward, next_observation, terminated,
                truncated and the extras, each [n, *shape]. Optional columns ``lane``, ``episode_id`` and ``step`` say
                what goes on with what; without them a row goes on with its lane's episode if that has not ended and
                the observation's bits agree with the next observation before it. Given episode ids are kept as they
                are and yours to keep apart: an id that the store has already adds to that episode.
            lane: the lane of all rows (default 0), or one for each.
            contiguous: False declares that the rows are independent of each other.

        Returns:
            Row ids, int64[n].

        Raises:
            ColumnError: if a column is missing, unknown, or of the wrong dtype, shape or length.
            WaitError: if the store's limiter does not allow it in time; nothing was added then.
        """
        self._engine.check_writable()
        rows = encode_batch(self.schema, batch, lane=lane)
        if rows.num_rows:
            self._engine.wait_to_commit()
        return self._engine.ingest_external(external(rows, self._engine.clock(), contiguous))

    def add(self, *, lane: int = 0, contiguous: bool = True, **columns: Any) -> int:
        """Add one transition, given by column (observation=, action=, ...); see `extend`. Returns its row id."""
        self._engine.check_writable()
        rows = encode_row(self.schema, columns, lane=lane)
        self._engine.wait_to_commit()
        return int(self._engine.ingest_external(external(rows, self._engine.clock(), contiguous))[0])

    def recorder(self, env: Any, *, autoreset_mode: Any = None, lane: int | None = None) -> Recorder:
        """A recorder for a loop of your own: call its ``reset`` and ``step`` after the environment's.

        Args:
            env: the environment, single or vector, whose spaces are those of the schema.
            autoreset_mode: for vector environments that do not say theirs in ``env.metadata``.
            lane: the first lane to use; the lowest free ones by default.

        Raises:
            SchemaError: if the environment's spaces are not the schema's.
            EnvironmentFault: if it does not say its autoreset mode.
            OptionError: if the lanes are taken.
        """
        return Recorder(self._engine, env, autoreset_mode=autoreset_mode, lane=lane)

    # -- reading -------------------------------------------------------------------------------------------------

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        memory_bytes: int | None = None,
        timeout: float | None = None,
    ) -> sql.Query:
        """Ask a question of what is visible now, in DuckDB's SQL: SELECT and EXPLAIN only.

        The views are ``transitions``, ``steps`` (with final observations), ``episodes``, ``segments``, ``samples``,
        ``limiter`` and ``participants``.

        Args:
            query: one statement.
            parameters: for ``?`` or ``$name`` in it.
            threads: for this query; all cores by default.
            memory_bytes: that queries with the same limits may use together, beside the store's own; half of the
                machine's memory by default. What does not fit goes through a temporary folder of this process.
            timeout: seconds after which computing the rows is given up; none by default. Ctrl-C does the same.

        Raises:
            QueryError: if the statement is wrong, does more than read, or finds no room.
            WaitError: if it takes longer than ``timeout``.
        """
        return sql.run(self._engine, query, parameters, threads=threads, memory_bytes=memory_bytes, timeout=timeout)
