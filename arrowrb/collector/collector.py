"""Collector: steps environments with a policy, writes to a store, yields record batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from arrowrb.collector import environments
from arrowrb.collector.batches import Batches
from arrowrb.collector.detached import Detached
from arrowrb.collector.environments import Made, Wanted
from arrowrb.collector.policies import Runner
from arrowrb.collector.random_actions import RandomActions
from arrowrb.collector.stepping import Stepper
from arrowrb.errors import ArrowRBError, ClosedError, OptionError, SchemaError
from arrowrb.events import Events
from arrowrb.interrupts import Uninterrupted
from arrowrb.recorder import Sink, check_spaces
from arrowrb.schema import Schema
from arrowrb.staging import DISABLED, Stage, check_final_extras

_ENDLESS = 2**62


class Collector:
    """An iterator over record batches of transitions, whose rows are ordered by lane, then by step.

    Each batch is committed to the store, where there is one, before it is yielded. Environments are not reset between
    batches: a batch may hold several episodes, and an episode may span batches. Iterating again goes on where the last
    iteration stopped. An exception or an interrupt within a batch commits the steps that are whole, cuts the running
    episodes and is raised again; the next iteration then begins with a reset. `close` drops what no batch was yielded
    of, cuts the running episodes, and closes the environment if it was made here. Use it from one thread.

    Attributes:
        policy_version: Written with each transition; set it when the policy has changed.
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
    ) -> None:
        """Make or take an environment, and claim lanes of the store.

        Args:
            env: An environment's id, a function that makes one, a gymnasium Env or a VectorEnv.
            policy: `policy(observation)` returning actions or `(actions, extras)`, a torch.nn.Module, or an object with
                `act(step)` (see `Step`); all batched over lanes. Random actions by default. It sees observations as
                the environment returns them, whatever the schema casts; a module gets its own dtype.
            num_envs: How many environments to make; one lane each.
            vectorization_mode: `sync`, `async` or `vector_entry_point`. By default one environment is single, and
                several are `sync`. `async` starts processes by spawn, which run the script again: keep what it does
                under ``if __name__ == "__main__":``.
            env_kwargs: For making the environment.
            vector_kwargs: For Gymnasium's vector class.
            wrappers: Applied to each environment.
            frame_stack: Observation column -> how many frames the policy sees; single frames are recorded.
            frames_per_batch: Transitions in a batch, exactly; 200 by default.
            steps_per_batch: Instead, vector steps in a batch, however many transitions these are.
            total_frames: Transitions of this collector, whatever the store has already; -1 never ends.
            init_random_frames: Transitions before the policy is asked.
            max_frames_per_episode: A time limit: it writes truncated and resets the lane.
            store: Where to write.
            schema: What to record where there is no store; by default all that the environment says.
            seed: Of environments and random actions. With a store, how often it was opened is part of it.
            autoreset_mode: Of the vector environment to make, or of one that does not say it.

        Raises:
            EnvironmentFault: If the environment does not keep to Gymnasium's API, or does not say its autoreset mode.
            OptionError: If an option is out of range, or options do not fit each other.
            SchemaError: If the schema does not fit the environment or the policy.
        """
        self._frames, self._steps = _batch_size(frames_per_batch, steps_per_batch)
        _check_numbers(total_frames, init_random_frames, max_frames_per_episode, seed)
        known = _known_schema(store, schema)
        self._total = _ENDLESS if total_frames < 0 else total_frames
        self._init_random_frames = init_random_frames
        self._seed = seed
        self._store = store  # a temporary store lasts as long as somebody holds it
        self.policy_version = 0
        self.num_frames = 0
        self._closed = self._running = self._started = False
        wanted = Wanted(env, num_envs, vectorization_mode, env_kwargs, vector_kwargs, wrappers, autoreset_mode)
        self._made = made = environments.make(wanted, known)
        layout = made.layout
        try:
            self.schema = Schema.from_env(made.env) if known is None else known
            check_spaces(self.schema, made.env)
            _check_policy(self.schema, policy, init_random_frames, frame_stack)
            _check_limit(made, max_frames_per_episode)
            runner = None
            if policy is not None:
                options: Any = {"single": layout.single, "frame_stack": frame_stack}
                runner = Runner(policy, self.schema, layout.num_lanes, **options)
            self._sink: Sink = Detached(self.schema) if store is None else _engine(store)
            self._first = self._sink.claim_lanes(layout.num_lanes)
            self._claims = [self._sink.times_claimed(lane) - 1 for lane in self.lanes]
        except BaseException:
            if made.owned:
                environments.close(made.env)
            raise
        # A policy's extras of an observation come when it acts on it: that must be before the commit.
        extras = self.schema.extras.values()
        self._looks_ahead = runner is not None and any(extra.owner == "observation" for extra in extras)
        self._stage = Stage(self.schema, layout, self._first, self._capacity())
        self._batches = Batches(self.schema, layout.num_lanes, with_row_id=store is not None)
        random = RandomActions(
            self.schema.action_space,
            self.schema.action_tree.paths,
            layout.num_lanes,
            self._sequence(layout.num_lanes, 1),
        )
        clock, limit = self._sink.clock, max_frames_per_episode
        self._stepper = Stepper(made, self._stage, random, clock=clock, runner=runner, limit=limit)

    def _capacity(self) -> int:
        lanes = self._made.layout.num_lanes
        return self._steps if self._steps is not None else min(self._frames // lanes + 2, 1 << 16)

    def _sequence(self, lane: int, *more: int) -> np.random.SeedSequence:
        """The seeds of a lane of this collector: other ones whenever the store is opened, or the lane taken, again."""
        if self._seed is None:
            return np.random.SeedSequence()
        key = (self._sink.times_opened, self._sink.shard, self._first + lane)
        again = self._claims[lane] if lane < len(self._claims) else max(self._claims)
        return np.random.SeedSequence(self._seed, spawn_key=(*key, *((2, again) if again else ()), *more))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The collector itself: it goes on where it was."""
        return self

    def __next__(self) -> pa.RecordBatch:
        """Collect one batch and commit it.

        Raises:
            ClosedError: After `close`.
            StopIteration: When `total_frames` have been collected.
            WaitError: If the store's limiter does not allow a commit in time; what was collected is kept.
        """
        if self._closed:
            raise ClosedError("The collector is closed. Make another one.")
        if self.num_frames >= self._total:
            raise StopIteration
        try:
            if not self._running:
                self._start()
            self._collect()
            self._sink.wait_to_commit()
            with Uninterrupted():
                return self._emit()
        except BaseException as error:
            with Uninterrupted():
                try:
                    self._abandon()
                except ArrowRBError as second:
                    error.add_note(f"Then what had been collected could not be kept: {second}")
            raise

    def _start(self) -> None:
        self._running = True
        lanes = range(self._made.layout.num_lanes)
        seeds = None
        if self._seed is not None and not self._started:
            seeds = [int(self._sequence(lane).generate_state(1)[0]) for lane in lanes]
        self._started = True
        used = self._stepper.start(seeds)
        self._sink.note_seeds([(self._first + lane, used_seed) for lane, used_seed in enumerate(used)])

    def _collect(self) -> None:
        left = self._total - self.num_frames
        frames = left if self._steps is not None else min(self._frames, left)
        version, random_frames = self.policy_version, self._init_random_frames - self.num_frames
        self._stepper.run(frames=frames, steps=self._steps, version=version, random_frames=random_frames)
        if self._looks_ahead and min(self._stage.num_pending, frames) < left:  # there will be another batch
            self._stepper.look_ahead(version=version, random_frames=random_frames)

    def _emit(self) -> pa.RecordBatch:
        left = self._total - self.num_frames
        events, row_ids = self._commit(left if self._steps is not None else min(self._frames, left))
        try:
            batch = self._batches.build(events, row_ids)
        finally:
            self._stage.retire(events)
        if self.num_frames >= self._total:
            self._stop()
        return batch

    def _commit(self, limit: int) -> tuple[Events, Any]:
        events = self._stage.events(limit)
        try:
            row_ids = self._sink.ingest(events)
        except BaseException:
            self._stage.forget()  # trying again would fail again
            raise
        self.num_frames += events.lane.shape[0]
        return events, row_ids

    def _stop(self) -> None:
        """Drop what is on the tape and cut what runs; a reset of all lanes must follow."""
        self._running = False
        self._stage.forget()
        self._sink.cut(self.lanes)

    def _abandon(self) -> None:
        """After an exception: keep the steps that are whole, and cut."""
        if not self._running:
            return
        try:
            if self._stage.num_pending and self.num_frames < self._total:
                self._commit(self._total - self.num_frames)
        finally:
            self._stop()

    @property
    def lanes(self) -> range:
        """The lanes that are written."""
        return range(self._first, self._first + self._made.layout.num_lanes)

    @property
    def env(self) -> Any:
        """The environment that is stepped."""
        return self._made.env

    def close(self) -> None:
        """Cut what runs, give the lanes back, and close an environment that was made here. Twice does nothing."""
        if self._closed:
            return
        with Uninterrupted():
            self._closed = True
            self._running = False
            try:
                # Cuts what runs; what is on the tape was in no batch.
                self._sink.release_lanes(self._first, self._made.layout.num_lanes)
            finally:
                if self._made.owned:
                    environments.close(self._made.env)

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
        total = "" if self._total == _ENDLESS else f" of {self._total:,}"
        state = ", closed" if self._closed else ""
        layout = self._made.layout
        return f"<Collector {self._made.env}, {layout.num_lanes} lanes, {self.num_frames:,}{total} frames{state}>"


def _engine(store: Any) -> Sink:
    engine: Sink | None = getattr(store, "_engine", None)
    if engine is None:
        raise OptionError(f"store is of type {type(store).__name__}, expected an arrowrb.Store. Open one.")
    return engine


def _batch_size(frames: int | None, steps: int | None) -> tuple[int, int | None]:
    if frames is not None and steps is not None:
        raise OptionError("Both frames_per_batch and steps_per_batch are given, expected one of them.")
    if steps is not None:
        _check_number("steps_per_batch", steps, 1)
        return 0, steps
    frames = 200 if frames is None else frames
    _check_number("frames_per_batch", frames, 1)
    return frames, None


def _known_schema(store: Any, schema: Schema | None) -> Schema | None:
    if store is None:
        return schema
    known = _engine(store).schema
    if schema is not None and schema != known:
        raise OptionError("schema is given and differs from the store's, expected one of them. Leave it out.")
    return known


def _check_numbers(total: Any, random_frames: Any, limit: Any, seed: Any) -> None:
    _check_number("total_frames", total, -1)
    _check_number("init_random_frames", random_frames, 0)
    if limit is not None:
        _check_number("max_frames_per_episode", limit, 1)
    if seed is not None:
        _check_number("seed", seed, 0)


def _check_number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise OptionError(f"{name} is {value!r}, expected an integer of at least {least}.")


def _check_policy(schema: Schema, policy: Any, init_random_frames: int, frame_stack: Any) -> None:
    """Refuse extras that nobody would supply, and frames that nobody would see."""
    if policy is None and frame_stack:
        raise OptionError("frame_stack is given without a policy, which would see the frames. Leave it out.")
    check_final_extras(schema, "a policy")
    needed = [name for name, extra in schema.extras.items() if not extra.nullable]
    if needed and (policy is None or init_random_frames):
        raise SchemaError(
            f"Extra {needed[0]!r} is not nullable, but random actions come without extras. Declare it nullable, "
            f"or give a policy and no init_random_frames."
        )


def _check_limit(made: Made, limit: int | None) -> None:
    layout = made.layout
    if limit is not None and not (layout.single or layout.merged or layout.mode == DISABLED):
        raise OptionError(
            f"max_frames_per_episode is {limit}, but {type(made.env.unwrapped).__name__} resets its lanes itself, "
            f"and none of them alone. Take vectorization_mode='sync', or limit the episodes in the environment."
        )
