"""Recorder: a user's own loop, committed step by step; and how an environment says that it returns its lanes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arrowrb.errors import (
    ClosedError,
    ColumnError,
    EnvironmentFault,
    OptionError,
    SchemaError,
)
from arrowrb.events import Events, check_version
from arrowrb.schema import Column, Schema
from arrowrb.staging import DISABLED, NEXT_STEP, SAME_STEP, Layout, Stage, check_final_extras

_MODES = (NEXT_STEP, SAME_STEP, DISABLED)


class Sink(Protocol):
    """What recorders and collectors write to: an engine, or a stand-in where there is no store.

    Calls come from one thread at a time. `ingest` takes all events or none and copies what it keeps; it fills
    `episode_id` and `step` of the events in place.
    """

    @property
    def schema(self) -> Schema:
        """The columns."""

    @property
    def times_opened(self) -> int:
        """How often the store was opened for writing; part of every seed."""

    @property
    def shard(self) -> int:
        """The writer's number; part of every seed."""

    @property
    def clock(self) -> Callable[[], int]:
        """Tells microseconds."""

    def wait_to_commit(self) -> None:
        """Return when another commit is allowed; `ingest` itself does not wait."""

    def ingest(self, events: Events) -> NDArray[np.int64]:
        """Commit transitions; their row ids."""

    def cut(self, lanes: Sequence[int]) -> None:
        """Abandon the running episodes of these lanes."""

    def claim_lanes(self, count: int, first: int | None = None) -> int:
        """Take neighbouring lanes, the lowest free ones unless `first` says; the first."""

    def times_claimed(self, lane: int) -> int:
        """How often a lane was taken since the store was opened; part of the seeds of whoever takes it again."""

    def release_lanes(self, first: int, count: int) -> None:
        """Give lanes back; their running episodes are cut. Does nothing after closing."""

    def note_seeds(self, pairs: Sequence[tuple[int, int | None]]) -> None:
        """The seeds of the episodes that begin next: lane and seed."""


def describe(env: Any, autoreset_mode: Any = None) -> Layout:
    """How an environment returns its lanes.

    Args:
        env: A gymnasium Env or VectorEnv.
        autoreset_mode: The mode of a vector environment that does not say it: an AutoresetMode, its value or name.

    Raises:
        EnvironmentFault: If it is neither, or a vector environment does not say its mode.
        OptionError: If the mode is unknown, or contradicts the environment.
    """
    import gymnasium
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

    given = None if autoreset_mode is None else parse_mode(autoreset_mode)
    # VectorEnv before Env: some environments are both.
    if isinstance(env, VectorEnv):
        metadata = env.metadata if isinstance(env.metadata, Mapping) else {}
        said = metadata.get("autoreset_mode")
        mode = given if said is None else parse_mode(said)
        if mode is None:
            raise EnvironmentFault(
                f"{type(env).__name__} does not say its autoreset mode (metadata['autoreset_mode'] is missing), "
                f"expected one of {_MODES}. Give autoreset_mode=."
            )
        if given is not None and given != mode:
            raise OptionError(
                f"autoreset_mode is {given!r}, but {type(env).__name__} says {mode!r}. Leave the option out."
            )
        base = env.unwrapped
        keeps = isinstance(base, AsyncVectorEnv) and not base.shared_memory and mode == NEXT_STEP
        merged = isinstance(base, SyncVectorEnv | AsyncVectorEnv)
        return Layout(env.num_envs, mode, single=False, merged=merged, keeps_autoreset=keeps)
    if isinstance(env, gymnasium.Env):
        if given not in (None, DISABLED):
            raise OptionError(
                f"autoreset_mode is {given!r}, but {type(env).__name__} is a single environment, which has none. "
                f"Leave the option out."
            )
        return Layout(1, DISABLED, single=True)
    raise EnvironmentFault(
        f"env is of type {type(env).__name__}, expected a gymnasium Env or VectorEnv. Make one with gymnasium.make."
    )


def parse_mode(mode: Any) -> str:
    """The value of an autoreset mode given as an AutoresetMode, its value (`NextStep`) or name (`next_step`).

    Raises:
        OptionError: If it is none of them.
    """
    text = str(getattr(mode, "value", mode)).replace("_", "").lower()
    for known in _MODES:
        if text == known.lower():
            return known
    raise OptionError(f"autoreset_mode is {mode!r}, expected one of {_MODES}.")


def check_final(env: Any, layout: Layout, schema: Schema, info: Any) -> None:
    """Refuse final observations that the vector layer has let be overwritten.

    With SAME_STEP, SyncVectorEnv holds on to the array that an environment returned as final observation while it
    resets it. An environment that uses one array for all observations then overwrites it before anyone sees it.

    Raises:
        EnvironmentFault: If that has happened.
    """
    if layout.mode != SAME_STEP or not layout.merged or not isinstance(info, Mapping) or "final_obs" not in info:
        return
    kept, final_obs = getattr(env.unwrapped, "_env_obs", None), info["final_obs"]
    if not isinstance(kept, list) or not isinstance(final_obs, np.ndarray) or final_obs.dtype != object:
        return
    for lane, final in enumerate(final_obs):
        if final is None:
            continue
        pairs = zip(schema.observation_tree.leaves(final), schema.observation_tree.leaves(kept[lane]), strict=True)
        if any(isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.shares_memory(a, b) for a, b in pairs):
            raise EnvironmentFault(
                f"The final observation of lane {lane} was overwritten by the reset: the environment uses one array "
                f"for all observations, and SyncVectorEnv with SAME_STEP keeps no copy. Copy in the environment, take "
                f"another autoreset mode, or let the Collector make the environments."
            )


def check_spaces(schema: Schema, env: Any) -> None:
    """Refuse an environment whose observations and actions are not those of the schema.

    Raises:
        SchemaError: Naming the first column that differs.
    """
    of_env = Schema.from_env(env, float64=schema.float64)
    for mine, theirs in (
        (schema.observation_columns[: len(schema.observation_tree.paths)], of_env.observation_columns),
        (schema.transition_columns[2 : 2 + len(schema.action_tree.paths)], of_env.transition_columns[2:-1]),
    ):
        for column in dict.fromkeys((*mine, *theirs)):
            if (column in mine) != (column in theirs):
                found = {"the store's schema": mine, "the environment": theirs}
                has = " and ".join(f"{where} has {_described(column.name, side)}" for where, side in found.items())
                raise SchemaError(
                    f"'{column.name}' differs: {has}. Give the environment that the schema was made from"
                    f"{f' ({schema.env_id})' if schema.env_id else ''}, or create a store for this one."
                )


def _described(name: str, columns: Sequence[Column]) -> str:
    for column in columns:
        if column.name == name:
            return f"dtype {column.dtype}, shape {column.shape}"
    return "no such column"


class Recorder:
    """Writes what a user's own loop does to a store; every `step` is one commit.

    The order of calls is that of the environment: `reset` with what `env.reset` returned, then `step` with each action
    and what `env.step` returned for it. All three autoreset modes work: with NEXT_STEP and SAME_STEP just call `step`
    (a step that only resets a lane is not recorded as a transition of it). With DISABLED, and with a single
    environment, `reset` comes after every end. All arrays are copied. Not safe for several threads at once.
    """

    def __init__(self, engine: Sink, env: Any, *, autoreset_mode: Any = None, lane: int | None = None) -> None:
        """Claim lanes for an environment. The environment itself is never called.

        Args:
            engine: Where to write.
            env: The gymnasium Env or VectorEnv that the loop steps.
            autoreset_mode: Where a vector environment does not say its mode.
            lane: The first lane; by default free ones are claimed.

        Raises:
            EnvironmentFault: If a vector environment does not say its autoreset mode.
            OptionError: If autoreset_mode is none, or the lanes are taken.
            SchemaError: If the environment's spaces are not the schema's.
        """
        self._layout = describe(env, autoreset_mode)
        check_spaces(engine.schema, env)
        if self._layout.mode == SAME_STEP:
            check_final_extras(engine.schema, "a SAME_STEP environment")
        if lane is not None and (isinstance(lane, bool) or not isinstance(lane, int) or lane < 0):
            raise OptionError(f"lane is {lane!r}, expected a number that is not negative.")
        self._env = env
        self._engine = engine
        self._first = engine.claim_lanes(self._layout.num_lanes, lane)
        self._stage = Stage(engine.schema, self._layout, self._first)
        self._closed = False

    @property
    def lanes(self) -> range:
        """The lanes that are written."""
        return range(self._first, self._first + self._layout.num_lanes)

    def reset(
        self,
        observation: Any,
        info: Mapping[str, Any] | None = None,
        *,
        seed: int | Sequence[int | None] | None = None,
        mask: Any = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        """Take what `env.reset` returned. An episode that still runs is cut by the next step.

        Args:
            observation: The first observation, of a vector environment of all lanes.
            info: The info that came with it.
            seed: The seed given to `env.reset`, to be recorded with the episodes: one number, or one a lane.
            mask: bool `[num_lanes]`, the lanes that were reset. By default those that ended where any has (DISABLED),
                else all.
            extras: The extras that belong to the observation.

        Raises:
            ClosedError: After `close`.
            ColumnError: If a value does not fit the schema.
            EnvironmentFault: If the environment did not keep to the mask.
            UsageError: If the first reset leaves lanes out.
        """
        self._check_open()
        lanes = self._chosen(mask)
        self._stage.reset(observation, {} if info is None else info, lanes, extras)
        self._engine.note_seeds(self._seeds(seed, lanes))

    def _chosen(self, mask: Any) -> NDArray[np.bool_] | None:
        if mask is None:
            waiting = self._stage.waiting
            ended = self._layout.mode == DISABLED and not self._layout.single and waiting.any()
            return waiting if ended and self._stage.started else None
        lanes = np.asarray(mask)
        if lanes.dtype != np.bool_ or lanes.shape != (self._layout.num_lanes,) or not lanes.any():
            raise ColumnError(
                f"mask has dtype {lanes.dtype} and shape {lanes.shape}, expected bool of shape "
                f"({self._layout.num_lanes},) with at least one lane."
            )
        return lanes

    def _seeds(self, seed: Any, lanes: NDArray[np.bool_] | None) -> list[tuple[int, int | None]]:
        count = self._layout.num_lanes
        if seed is None:
            seeds: list[Any] = [None] * count
        elif isinstance(seed, int | np.integer):
            # Gymnasium's own classes give lane i the seed plus i; others seed all lanes by one generator.
            seeds = [int(seed) + (i if self._layout.merged else 0) for i in range(count)]
        else:
            seeds = list(seed)
        if len(seeds) != count:
            raise ColumnError(f"seed has {len(seeds)} values, expected {count}. Give one number, or one a lane.")
        for each in seeds:
            if each is not None and not 0 <= int(each) < 1 << 64:
                raise ColumnError(f"seed is {each}, expected 0 to 2**64 - 1, as Gymnasium's environments take.")
        chosen = range(count) if lanes is None else np.flatnonzero(lanes)
        return [(self._first + int(i), None if seeds[i] is None else int(seeds[i])) for i in chosen]

    def step(
        self,
        action: Any,
        observation: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        info: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        *,
        policy_version: int = 0,
    ) -> NDArray[np.int64]:
        """Commit one step: the action, and what `env.step` returned for it.

        A step that is refused leaves everything as it was: give the same step again, corrected, or reset. After an
        interrupt (Ctrl-C) within it, a reset must come next.

        Args:
            action: The action given to `env.step`; of a vector environment one per lane.
            observation: As returned.
            reward: As returned.
            terminated: As returned.
            truncated: As returned.
            info: As returned; needed for SAME_STEP and where the schema declares entries of it.
            extras: Values of the schema's extras: those of the transition, and those of the observation that this step
                returned.
            policy_version: Recorded with the transitions.

        Returns:
            The row ids of the transitions, int64, in order of lanes. Lanes that this step only reset have none.

        Raises:
            ClosedError: After `close`.
            ColumnError: If a value does not fit the schema.
            EnvironmentFault: If the environment does not keep to its autoreset mode.
            OptionError: If the version is no integer from 0 to 2**31 - 1.
            UsageError: If a reset is due.
            WaitError: If the store's limiter does not allow a commit in time.
        """
        self._check_open()
        check_version("policy_version", policy_version)
        self._engine.wait_to_commit()  # first, so that Ctrl-C meanwhile leaves everything as it was
        stage = self._stage
        info = {} if info is None else info
        stage.act(stage.schema.action_tree.leaves(action), extras)
        self._check_discrete()
        check_final(self._env, self._layout, stage.schema, info)
        before, now = (stage.fresh, stage.waiting), self._engine.clock()
        try:
            stage.step(observation, reward, terminated, truncated, info, extras, time=now, version=policy_version)
            events = stage.events()
            row_ids = self._engine.ingest(events)
            stage.retire(events)
        except Exception:
            stage.undo(before)
            raise
        except BaseException:
            # An interrupt does not tell whether the commit came first. After a reset that makes no difference.
            stage.forget()
            raise
        return row_ids

    def _check_discrete(self) -> None:
        """Refuse an action outside a Discrete space, as `Store.extend` does."""
        stage = self._stage
        for index, column in enumerate(stage.schema.transition_columns[2 : stage.reward_index], 2):
            bounds = stage.schema.discrete_bounds.get(column.name)
            if bounds is None:
                continue
            # A lane that this step only resets ignores its action.
            taken = stage.outcome[index][stage.num_steps][~stage.waiting]
            first, last = bounds[0], bounds[0] + bounds[1] - 1
            if taken.size and not (taken.min() >= first and taken.max() <= last):
                wrong = taken.min() if taken.min() < first else taken.max()
                raise ColumnError(
                    f"'{column.name}' has the value {wrong}, expected {first} to {last} (a Discrete space). "
                    "Give the action that the environment was stepped with."
                )

    def close(self) -> None:
        """Cut the episodes that run and give the lanes back. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._engine.release_lanes(self._first, self._layout.num_lanes)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("The recorder is closed. Make another one with store.recorder(env).")

    def __enter__(self) -> Recorder:
        """The recorder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """The lanes and mode."""
        state = "closed" if self._closed else f"lanes {self._first} to {self.lanes.stop - 1}"
        return f"<Recorder {state}, autoreset {self._layout.mode}>"
