"""Collector: steps environments with a policy, here or in processes of its own, and yields record batches."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa

from arrowrb.collector.allotment import Share
from arrowrb.collector.environments import Wanted
from arrowrb.collector.fleet import Fleet
from arrowrb.collector.loop import ENDLESS, Loop, Order, batch_size, check_number, check_numbers
from arrowrb.collector.policies import is_module
from arrowrb.errors import ClosedError, OptionError, UsageError
from arrowrb.events import check_version
from arrowrb.schema import Schema


class Collector:
    """An iterator over record batches of transitions, whose rows are ordered by lane, then by step.

    Each batch is committed to the store, where there is one, before it is yielded. Environments are not reset between
    batches: a batch may hold several episodes, and an episode may span batches. Iterating again goes on where the last
    iteration stopped. An exception or an interrupt within a batch commits the steps that are whole, cuts the running
    episodes and is raised again; the next iteration then begins with a reset. `close` drops what no batch was yielded
    of, cuts the running episodes, and closes the environment if it was made here. Use it from one thread.

    With ``num_workers`` processes step the environments, ``num_envs`` each, and write side by side: each has a shard
    of the store of its own, ``worker-0`` and so on, so that no transition goes through a pipe. A run that starts again
    goes on with these shards, also with another number of workers. What a worker raises is raised here, and ends the
    run. Leaving the context ends all processes, as does the end of this one.
    """

    def __init__(
        self,
        env: Any,
        policy: Any = None,
        *,
        num_envs: int = 1,
        vectorization_mode: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        vector_kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[Callable[[Any], Any]] = (),
        frame_stack: Mapping[str, int] | None = None,
        frames_per_batch: int | None = None,
        steps_per_batch: int | None = None,
        total_frames: int = -1,
        init_random_frames: int = 0,
        max_frames_per_episode: int | None = None,
        store: Any = None,
        schema: Schema | None = None,
        seed: int | None = None,
        autoreset_mode: Any = None,
        num_workers: int = 0,
        sync: bool = True,
        restart_workers: int = 0,
    ) -> None:
        """Make or take an environment, and claim lanes of the store; or start the workers, and wait until they have.

        Args:
            env: An environment's id, a function that makes one, a gymnasium Env or a VectorEnv. For workers an id or a
                function, which travels by cloudpickle: it may be one of a notebook.
            policy: `policy(observation)` returning actions or `(actions, extras)`, a torch.nn.Module, or an object with
                `act(step)` (see `Step`); all batched over lanes. Random actions by default. It sees observations as
                the environment returns them, whatever the schema casts; a module gets its own dtype. Workers have
                copies, which `update_policy` brings up to date.
            num_envs: How many environments to make, in each worker; one lane each.
            vectorization_mode: `sync`, `async` or `vector_entry_point`. By default one environment is single, and
                several are `sync`. `async` starts processes by spawn, which run the script again: keep what it does
                under ``if __name__ == "__main__":``. So do workers.
            env_kwargs: For making the environment.
            vector_kwargs: For Gymnasium's vector class.
            wrappers: Applied to each environment.
            frame_stack: Observation column -> how many frames the policy sees; single frames are recorded.
            frames_per_batch: Transitions in a batch, exactly; 200 by default. With workers and ``sync=True`` these are
                shared out evenly; with ``sync=False`` each batch is of one worker. What the last vector step brings
                beyond, up to `num_envs` - 1 transitions, opens the next batch, under the version it was collected with.
            steps_per_batch: Instead, vector steps in a batch, in each worker, however many transitions these are.
                Nothing is left over for the next one. Either way, where the schema has extras of the observation from
                the policy, a batch ends with the decision on the vector step that opens the next one.
            total_frames: Transitions of this collector, of all workers together, whatever the store has already; -1
                never ends.
            init_random_frames: Transitions before the policy is asked, of all workers together: exactly, where one
                environment is stepped at a time. Of several the last vector step is random as a whole, which is up to
                `num_envs` - 1 transitions more, from each worker; with `steps_per_batch` workers come within two vector
                steps each.
            max_frames_per_episode: A time limit: it writes truncated and resets the lane.
            store: Where to write. Workers need one; it may be open for reading.
            schema: What to record where there is no store; by default all that the environment says.
            seed: Of environments and random actions; with it synchronous workers record the same in each run. With a
                store, how often it was opened is part of it. Workers also seed `random`, NumPy's and torch's global
                generators by it.
            autoreset_mode: Of the vector environment to make, or of one that does not say it.
            num_workers: How many processes step environments; with 0 this one does. Started by spawn.
            sync: Whether all workers collect for each batch, under the same version of the policy (but for what was
                left over, see `frames_per_batch`), and wait in between; else they run freely, and the batch that is
                there first comes first.
            restart_workers: How many times workers that raised or were killed are started again; see `failures`. Their
                running episodes are cut, and what they had committed stays.

        Raises:
            EnvironmentFault: If the environment does not keep to Gymnasium's API, or does not say its autoreset mode.
            OptionError: If an option is out of range, or options do not fit each other.
            SchemaError: If the schema does not fit the environment or the policy.
            WorkerError: If a worker cannot be started, or ends without saying why.
        """
        self._frames, self._steps = batch_size(frames_per_batch, steps_per_batch)
        check_numbers(total_frames, init_random_frames, max_frames_per_episode, seed)
        check_number("num_workers", num_workers, 0)
        check_number("restart_workers", restart_workers, 0)
        if not isinstance(sync, bool):
            raise OptionError(f"sync is {sync!r}, expected True or False.")
        if num_workers == 0 and (restart_workers or not sync):
            raise OptionError("sync or restart_workers is given without workers. Give num_workers, too.")
        self._total = ENDLESS if total_frames < 0 else total_frames
        self._random_frames = init_random_frames
        self._version = 0
        self._policy = policy
        self._source: Loop | Fleet
        self.closed = False
        wanted = Wanted(env, num_envs, vectorization_mode, env_kwargs, vector_kwargs, wrappers, autoreset_mode)
        options: dict[str, Any] = {
            "frame_stack": frame_stack,
            "random_frames": init_random_frames,
            "max_frames_per_episode": max_frames_per_episode,
            "seed": seed,
        }
        if num_workers == 0:
            self._source = Loop(
                wanted, policy, frames=self._frames, steps=self._steps, store=store, schema=schema, **options
            )
            self.schema = self._source.schema
            return
        share = Share(self._frames, self._steps, self._total, init_random_frames, sync)
        self._source = fleet = Fleet(store, schema, wanted, policy, options, share, num_workers, restart_workers)
        self.schema = fleet.schema
        weakref.finalize(self, fleet.close)
        try:
            fleet.start()
        except BaseException:
            fleet.close()
            raise

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The collector itself: it goes on where it was."""
        return self

    def __next__(self) -> pa.RecordBatch:
        """Collect one batch and commit it; with ``sync=False``, wait for the next one that a worker has committed.

        Raises:
            ClosedError: After `close`.
            StopIteration: When `total_frames` have been collected.
            WaitError: If the store's limiter does not allow a commit in time; what was collected is kept. At once where
                workers wait for a thread that samples, and that is this one: see `start`.
            Exception: What a worker raised, with its traceback; or WorkerError, where it was killed.
        """
        if self.closed:
            raise ClosedError("The collector is closed. Make another one.")
        if isinstance(self._source, Fleet):
            return self._source.batch()
        left = self._total - self.num_frames
        if left <= 0:
            raise StopIteration
        counted = self._steps is not None
        frames = left if counted else min(self._frames, left)
        random_frames = self._random_frames - self.num_frames
        return self._source.batch(Order(frames, self._steps, random_frames, left, self._version, left > frames))

    def start(self) -> None:
        """Have workers collect by themselves, with ``sync=False``, in place of iterating.

        For a learner that draws from the store and needs no batches: it does not wait for any, and so cannot wait for
        workers that wait for it. Its loop is ``while collector.running: sampler.sample()``; with a limiter, too, it
        ends when all is collected, see `SampleToInsertRatio`.

        Raises:
            UsageError: If there are no workers that run freely, or a batch has been asked for.
        """
        if self.closed:
            raise ClosedError("The collector is closed. Make another one.")
        self._fleet.begin()

    @property
    def running(self) -> bool:
        """Whether workers that `start` has started go on: until `total_frames` are there, or it is closed.

        Raises:
            UsageError: If they have not been started.
            Exception: What a worker raised, with its traceback; or WorkerError, where it was killed.
        """
        return not self.closed and self._fleet.running

    @property
    def _fleet(self) -> Fleet:
        if not isinstance(self._source, Fleet):
            raise UsageError("There are no workers that could collect by themselves. Give num_workers and sync=False.")
        return self._source

    @property
    def num_frames(self) -> int:
        """Transitions that were committed here; with workers, those of the batches that were yielded.

        After `start`, those of the batches that were there when `running` was asked.
        """
        return self._source.num_frames

    @property
    def worker(self) -> int | None:
        """The number of the worker whose batch was yielded last, counted from 0; None of what all collected.

        It stands in the batch, too: ``batch.schema.metadata[b"worker"]``.
        """
        return self._source.worker if isinstance(self._source, Fleet) else None

    @property
    def num_restarts(self) -> int:
        """How many times a worker was started again."""
        return len(self.failures)

    @property
    def failures(self) -> tuple[BaseException, ...]:
        """Why workers were started again: what they raised, or a WorkerError. Told to the logger ``arrowrb``, too."""
        return tuple(self._source.failures) if isinstance(self._source, Fleet) else ()

    @property
    def policy_version(self) -> int:
        """Written with each transition. Set it when the policy has changed; with workers, call `update_policy`."""
        return self._source.version if isinstance(self._source, Fleet) else self._version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        if isinstance(self._source, Fleet):
            raise UsageError("Workers have copies of the policy. Call update_policy(version=...), which sends it.")
        check_version("policy_version", version)
        self._version = int(version)

    def update_policy(self, policy: Any = None, *, version: int | None = None) -> int:
        """Say that the policy has changed: from its next step on each worker uses it as it is now.

        Workers do not stop for it. With ``sync=True`` they use it from the next batch on that begins: one that an
        interrupt left unfinished is finished under the version that it was begun with.

        Args:
            policy: Another one of the same kind; by default the one that was given, as it is now. Of a torch.nn.Module
                parameters and buffers are copied into memory that the workers share, so another one must be of the same
                types, in all its parts; what else it holds stays as it was given first. Others are pickled.
            version: Its number, above that of the one before; by default the next one.

        Returns:
            The version that transitions under this policy are recorded with.

        Raises:
            OptionError: If the version is not above the last one or from 2**31 on, or the policy is of another kind.
        """
        if self.closed:
            raise ClosedError("The collector is closed. Make another one.")
        if policy is None and self._policy is None:
            raise OptionError("There is no policy to update: actions are random.")
        if policy is not None and (self._policy is None or is_module(policy) != is_module(self._policy)):
            raise OptionError(f"policy is of type {type(policy).__name__}, expected one of the kind that was given.")
        number = self.policy_version + 1 if version is None else version
        check_version("version", number, self.policy_version + 1)
        if isinstance(self._source, Fleet):
            self._source.publish(self._policy if policy is None else policy, number)
        else:
            self._version = number
            if policy is not None:
                self._source.use(policy)
        self._policy = self._policy if policy is None else policy
        return number

    @property
    def lanes(self) -> range:
        """The lanes that are written, in each worker."""
        return self._source.lanes

    @property
    def env(self) -> Any:
        """The environment that is stepped."""
        if isinstance(self._source, Fleet):
            raise UsageError("The environments are in the workers.")
        return self._source.env

    def close(self) -> None:
        """Cut what runs, give the lanes back, and close an environment that was made here; end workers.

        Twice does nothing.
        """
        self.closed = True
        self._source.close()

    def __enter__(self) -> Collector:
        """The collector itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """What it steps and how far it is."""
        total = "" if self._total == ENDLESS else f" of {self._total:,}"
        state = ", closed" if self.closed else ""
        source = self._source
        what = f"{source.num_workers} workers of" if isinstance(source, Fleet) else f"{source.env},"
        return f"<Collector {what} {len(self.lanes)} lanes, {self.num_frames:,}{total} frames{state}>"
