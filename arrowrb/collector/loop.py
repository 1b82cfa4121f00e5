"""Steps environments with a policy in this process, writes to a store, makes record batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from arrowrb.collector import environments
from arrowrb.collector.batches import Batches
from arrowrb.collector.detached import Detached
from arrowrb.collector.environments import Made, Wanted
from arrowrb.collector.policies import Runner
from arrowrb.collector.random_actions import RandomActions
from arrowrb.collector.stepping import Stepper
from arrowrb.errors import ArrowRBError, EnvironmentFault, OptionError, SchemaError
from arrowrb.events import Events
from arrowrb.interrupts import Uninterrupted
from arrowrb.recorder import Sink, check_spaces
from arrowrb.schema import Schema
from arrowrb.staging import DISABLED, Stage, check_final_extras

ENDLESS: Final = 2**62


@dataclass(frozen=True, slots=True)
class Order:
    """A batch to collect.

    Attributes:
        frames: Transitions, exactly; with `steps` the most.
        steps: Vector steps, where these are counted.
        random_frames: So many of the transitions, the first ones, by random actions; with `frames` or more all are.
        most: Transitions that may be committed where the batch is broken off.
        version: The policy's; a worker knows that itself.
        goes_on: Whether another batch follows.
    """

    frames: int
    steps: int | None
    random_frames: int
    most: int
    version: int = 0
    goes_on: bool = True

    @property
    def num_random(self) -> int:
        """How many of its transitions are to come of random actions."""
        return min(self.frames, self.random_frames)


class Loop:
    """Collects batches, one commit each.

    An exception or an interrupt within a batch commits the steps that are whole, cuts the running episodes and is
    raised again; the next batch then begins with a reset.

    Attributes:
        schema: Of what is recorded.
        num_frames: Transitions that were committed.
        refresh: Called before each decision of the policy, where there is such a function: the policy's version.
    """

    def __init__(
        self,
        wanted: Wanted,
        policy: Any,
        *,
        frame_stack: Mapping[str, int] | None,
        frames: int,
        steps: int | None,
        random_frames: int,
        max_frames_per_episode: int | None,
        store: Any,
        schema: Schema | None = None,
        seed: int | None,
    ) -> None:
        """See `Collector`; batches have so many `frames`, or `steps`; `random_frames` is how many may be asked for."""
        known = known_schema(store, schema)
        self._seed = seed
        self._store = store  # a temporary store lasts as long as somebody holds it
        self.num_frames = 0
        self.refresh: Callable[[], int] | None = None
        self._closed = self._running = self._started = False
        self._made = made = environments.make(wanted, known)
        layout = made.layout
        try:
            self.schema = Schema.from_env(made.env) if known is None else known
            check_spaces(self.schema, made.env)
            check_policy(self.schema, policy, random_frames, frame_stack)
            _check_limit(made, max_frames_per_episode)
            self._runner = None
            if policy is not None:
                options: Any = {"single": layout.single, "frame_stack": frame_stack}
                self._runner = Runner(policy, self.schema, layout.num_lanes, **options)
            self._sink: Sink = Detached(self.schema) if store is None else engine_of(store)
            self._first = self._sink.claim_lanes(layout.num_lanes)
            self._claims = [self._sink.times_claimed(lane) - 1 for lane in self.lanes]
        except BaseException:
            if made.owned:
                environments.close(made.env)
            raise
        # A policy's extras of an observation come when it acts on it: that must be before the commit.
        extras = self.schema.extras.values()
        self._looks_ahead = self._runner is not None and any(extra.owner == "observation" for extra in extras)
        capacity = steps if steps is not None else min(frames // layout.num_lanes + 2, 1 << 16)
        self._stage = Stage(self.schema, layout, self._first, capacity)
        self._batches = Batches(self.schema, layout.num_lanes, with_row_id=store is not None)
        random = RandomActions(
            self.schema.action_space,
            self.schema.action_tree.paths,
            layout.num_lanes,
            self._sequence(layout.num_lanes, 1),
        )
        clock, limit = self._sink.clock, max_frames_per_episode
        self._stepper = Stepper(made, self._stage, random, clock=clock, runner=self._runner, limit=limit)

    def _sequence(self, lane: int, *more: int) -> np.random.SeedSequence:
        """The seeds of a lane of this collector: other ones whenever the store is opened, or the lane taken, again."""
        again = self._claims[lane] if lane < len(self._claims) else max(self._claims)
        return seeds_of(self._seed, self._sink, self._first + lane, *((2, again) if again else ()), *more)

    @property
    def policy_seeds(self) -> np.random.SeedSequence:
        """Of the random numbers that a policy draws."""
        return self._sequence(0, 3)

    def use(self, policy: Any) -> None:
        """Ask another policy from the next step on."""
        if self._runner is not None:
            self._runner.use(policy)

    def batch(self, order: Order) -> pa.RecordBatch:
        """Collect one batch and commit it: its rows."""
        return self._guarded(order, self._batches.build)

    def collect(self, order: Order) -> int:
        """Collect one batch and commit it; returns how many of its transitions came of random actions."""
        self._guarded(order, lambda *_: None)
        return self._stepper.take_random()

    def _guarded(self, order: Order, build: Callable[[Events, Any], Any]) -> Any:
        try:
            if not self._running:
                self._start()
            self._collect(order)
            self._sink.wait_to_commit()
            with Uninterrupted():
                return self._emit(order, build)
        except BaseException as error:
            with Uninterrupted():
                try:
                    self._abandon(order)
                except ArrowRBError as second:
                    error.add_note(f"Then what had been collected could not be kept: {second}")
            if isinstance(error, StopIteration):  # which would look like the end of all batches
                raise EnvironmentFault(
                    "The environment or the policy raised StopIteration, expected a step. Raise another error, or end "
                    "the episode and let reset begin anew."
                ) from error
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

    def _collect(self, order: Order) -> None:
        version: Callable[[], int] = self.refresh or (lambda: order.version)
        self._stepper.run(frames=order.frames, steps=order.steps, version=version, random_frames=order.random_frames)
        # There will be another batch, or steps are left over for it.
        if self._looks_ahead and (order.goes_on or self._stage.num_pending < order.frames):
            self._stepper.look_ahead(version=version, random_frames=order.random_frames)

    def _emit(self, order: Order, build: Callable[[Events, Any], Any]) -> Any:
        events, row_ids = self._commit(order.frames)
        try:
            batch = build(events, row_ids)
        finally:
            self._stage.retire(events)
        if not order.goes_on and events.lane.shape[0] == order.frames:
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

    def _abandon(self, order: Order) -> None:
        """After an exception: keep the steps that are whole, and cut."""
        if not self._running:
            return
        try:
            if self._stage.num_pending and order.most:
                self._commit(order.most)
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


def engine_of(store: Any) -> Sink:
    """What a store writes to."""
    engine: Sink | None = getattr(store, "_engine", None)
    if engine is None:
        raise OptionError(f"store is of type {type(store).__name__}, expected an arrowrb.Store. Open one.")
    return engine


def seeds_of(seed: int | None, sink: Sink, *key: int) -> np.random.SeedSequence:
    """The seeds of what `key` says; other ones whenever the store is opened again, and in each shard."""
    if seed is None:
        return np.random.SeedSequence()
    return np.random.SeedSequence(seed, spawn_key=(sink.times_opened, sink.shard, *key))


def batch_size(frames: int | None, steps: int | None) -> tuple[int, int | None]:
    """Transitions, or vector steps, of a batch."""
    if frames is not None and steps is not None:
        raise OptionError("Both frames_per_batch and steps_per_batch are given, expected one of them.")
    if steps is not None:
        check_number("steps_per_batch", steps, 1)
        return 0, steps
    frames = 200 if frames is None else frames
    check_number("frames_per_batch", frames, 1)
    return frames, None


def known_schema(store: Any, schema: Schema | None) -> Schema | None:
    """What is recorded, where that is known before there is an environment."""
    if store is None:
        return schema
    known = engine_of(store).schema
    if schema is not None and schema != known:
        raise OptionError("schema is given and differs from the store's, expected one of them. Leave it out.")
    return known


def check_numbers(total: Any, random_frames: Any, limit: Any, seed: Any) -> None:
    """Refuse options of `Collector` that are out of range."""
    check_number("total_frames", total, -1)
    check_number("init_random_frames", random_frames, 0)
    if limit is not None:
        check_number("max_frames_per_episode", limit, 1)
    if seed is not None:
        check_number("seed", seed, 0)


def check_number(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise OptionError(f"{name} is {value!r}, expected an integer of at least {least}.")


def check_policy(schema: Schema, policy: Any, init_random_frames: int, frame_stack: Any) -> None:
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
