"""Stepping an environment onto a tape: actions, steps, and the resets that are the collector's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowrb.collector.environments import Made, is_pending
from arrowrb.collector.policies import Decision, Runner
from arrowrb.collector.random_actions import RandomActions
from arrowrb.collector.single_lane import SingleLane, fits
from arrowrb.errors import EnvironmentFault
from arrowrb.recorder import check_final
from arrowrb.staging import DISABLED, Stage


class Stepper:
    """Steps one environment, single or vector."""

    def __init__(
        self,
        made: Made,
        stage: Stage,
        random: RandomActions,
        *,
        clock: Callable[[], int],
        runner: Runner | None,
        limit: int | None,
    ) -> None:
        """Prepare to step.

        Args:
            made: The environment.
            stage: The tape.
            random: Random actions.
            clock: Tells microseconds.
            runner: The policy, if any.
            limit: The largest number of steps in an episode.
        """
        self._env, self._layout, self._stage = made.env, made.layout, stage
        self._clock, self._random, self._runner, self._limit = clock, random, runner, limit
        # Only an environment that others have stepped may owe an autoreset that a reset does not clear.
        self._settled = made.owned or not made.layout.keeps_autoreset
        self._observation: Any = None
        self._info: Any = {}
        self._elapsed = np.zeros(made.layout.num_lanes, np.int64)
        self._decision: Decision | None = None
        self._num_random = 0  # of the transitions on the tape, those by random actions
        self._was_random = False  # the last vector step
        self._short = SingleLane(made.env, stage, clock, random, limit) if fits(stage) else None

    def start(self, seeds: Sequence[int] | None) -> list[int | None]:
        """Reset all lanes.

        Args:
            seeds: One seed a lane.

        Returns:
            The seeds used, one a lane.
        """
        if is_pending(self._env):
            raise EnvironmentFault(
                "An interrupt left the environment's worker processes in the middle of a call. Make a new collector."
            )
        if not self._settled:
            self._flush()
            self._settled = True
        self._decision = None
        self._num_random = 0
        if self._runner is not None:
            self._runner.forget()
        self._elapsed[:] = 0
        used: list[int | None] = [None] * self._layout.num_lanes
        if seeds is None:
            observation, info = self._reset()
        elif self._layout.single or not self._layout.merged:
            # A vector environment of its own kind takes one seed for all its lanes.
            used = [seeds[0]] * self._layout.num_lanes
            observation, info = self._reset(seed=seeds[0])
        else:
            used = list(seeds)
            observation, info = self._reset(seed=list(seeds))
        self._stage.reset(observation, info)
        self._observation, self._info = observation, info
        if self._short is not None:
            self._short.elapsed = 0
        return used

    def _reset(self, **options: Any) -> tuple[Any, Mapping[str, Any]]:
        result = self._env.reset(**options)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
            raise EnvironmentFault(
                f"reset returned {type(result).__name__}, expected a tuple (observation, info). Update the environment "
                f"to Gymnasium's API."
            )
        return result

    def _flush(self) -> None:
        """One step that is not recorded, after which it is known which lanes owe an autoreset.

        AsyncVectorEnv without shared memory does not clear that on a reset (Gymnasium 1.4), nor tell. Its array of
        observations is all zeros until it is first used.
        """
        kept = self._stage.schema.observation_tree.leaves(self._env.unwrapped.observations)
        if not any(np.asarray(leaf).any() for leaf in kept):
            return
        self._reset()
        actions = self._random.next()
        result = self._env.step(self._stage.schema.action_tree.build(actions))
        self._stage.waiting = np.asarray(result[2], np.bool_) | np.asarray(result[3], np.bool_)

    def run(self, *, frames: int, steps: int | None, version: Callable[[], int], random_frames: int) -> None:
        """Step until the tape holds enough.

        Args:
            frames: Transitions on the tape.
            steps: Vector steps on the tape, if they are counted.
            version: Tells the policy's version, before each step that it decides.
            random_frames: Transitions on the tape up to which actions are random.
        """
        stage = self._stage
        while stage.num_pending < frames and (steps is None or stage.num_steps < steps):
            before = stage.num_pending
            is_random = self._runner is None or (self._decision is None and stage.num_pending < random_frames)
            if self._short is not None and is_random and not (self._runner is not None and self._runner.stacks):
                count = min(frames - stage.num_pending, frames if steps is None else steps - stage.num_steps)
                if self._runner is not None:
                    count = min(count, random_frames - stage.num_pending)
                self._short.run(count, version())
                self._observation, self._info = self._short.observation, self._short.info
                self._elapsed[0] = self._short.elapsed
            else:
                decision = self._decide(version, random_frames)
                is_random = decision.is_random
                self._step(decision)
            self._was_random = is_random
            self._num_random += (stage.num_pending - before) * is_random

    def take_random(self) -> int:
        """How many of the transitions that have left the tape came of random actions. Tells each of them once."""
        left = self._stage.num_pending if self._was_random else 0  # which is of the last vector step
        taken, self._num_random = self._num_random - left, left
        return taken

    def look_ahead(self, *, version: Callable[[], int], random_frames: int) -> None:
        """Decide on the actions of the next step now, since the extras that come with them belong to the batch."""
        if self._decision is None:
            self._decision = self._decide(version, random_frames)

    def _decide(self, version: Callable[[], int], random_frames: int) -> Decision:
        decision, self._decision = self._decision, None
        if decision is not None:
            return decision
        stage = self._stage
        if self._runner is None or stage.num_pending < random_frames:
            if self._runner is not None and self._runner.stacks:
                self._runner.watch(self._observation, stage.fresh)
            return Decision(self._random.next(), None, version(), is_random=True)
        decision = self._runner.decide(self._observation, stage.fresh, self._info, version())
        stage.note(decision.extras)
        return decision

    def _step(self, decision: Decision) -> None:
        stage, single = self._stage, self._layout.single
        actions = [leaf[0, ...] for leaf in decision.actions] if single else decision.actions
        stage.act(actions, decision.extras)
        if single:
            # Numbers, where the space's own sample() returns numbers.
            actions = [leaf[()] if leaf.dtype.kind in "iu" and not leaf.shape else leaf for leaf in actions]
        result = self._env.step(stage.schema.action_tree.build(actions))
        now = self._clock()
        if not isinstance(result, tuple) or len(result) != 5:
            raise EnvironmentFault(
                f"step returned {type(result).__name__}, expected a tuple (observation, reward, terminated, truncated, "
                f"info). Update the environment to Gymnasium's API."
            )
        observation, reward, terminated, truncated, info = result
        check_final(self._env, self._layout, stage.schema, info)
        stage.step(observation, reward, terminated, truncated, info, time=now, version=decision.version)
        self._observation, self._info = observation, info
        if self._limit is not None or self._layout.mode == DISABLED:
            self._reset_lanes()

    def _reset_lanes(self) -> None:
        """Reset the lanes whose episode ended, or is as long as it may be."""
        stage, t = self._stage, self._stage.num_steps - 1
        due = stage.waiting if self._layout.mode == DISABLED else np.zeros_like(stage.waiting)
        if self._limit is not None:
            self._elapsed = np.where(stage.begin[t] == 1, 1, self._elapsed + stage.happened[t])
            ended = (stage.outcome[0][t] | stage.outcome[1][t]).astype(np.bool_)
            late = (self._elapsed >= self._limit) & stage.happened[t] & ~ended
            if late.any():
                stage.truncate(late)
                due = due | late
        if not due.any():
            return
        if self._layout.single:
            observation, info = self._reset()
            stage.reset(observation, info)
            self._observation, self._info = observation, info
            if self._short is not None:
                self._short.elapsed = 0
        else:
            self._reset_some(due)
        self._elapsed[due] = 0

    def _reset_some(self, due: NDArray[np.bool_]) -> None:
        # A dict and an array of their own: SyncVectorEnv takes the mask out of the dict.
        observation, info = self._reset(options={"reset_mask": due.copy()})
        self._stage.reset(observation, info, due)
        self._observation = observation
        if self._runner is not None and self._runner.wants_info:
            self._info = merge_info(self._info, info, due)


def merge_info(before: Mapping[str, Any], after: Mapping[str, Any], lanes: NDArray[np.bool_]) -> dict[str, Any]:
    """Info by lane, of some lanes from `after`, of the others from `before`."""
    merged: dict[str, Any] = {}
    for key in (key for key in dict.fromkeys((*before, *after)) if not key.startswith("_")):
        sources = [(before, ~lanes), (after, lanes)]
        values = [source.get(key) for source, _ in sources]
        masks = [np.asarray(source.get("_" + key, np.zeros_like(lanes)), np.bool_) & own for source, own in sources]
        if any(isinstance(value, Mapping) for value in values):
            first, second = (value if isinstance(value, Mapping) else {} for value in values)
            merged[key] = merge_info(first, second, lanes)
        else:
            known = [value for value in values if isinstance(value, np.ndarray)]
            if not known or any(value.shape != known[0].shape for value in known):
                continue
            merged[key] = np.zeros_like(known[0], dtype=np.result_type(*known))
            for value, mask in zip(values, masks, strict=True):
                if isinstance(value, np.ndarray):
                    merged[key][mask] = value[mask]
        merged["_" + key] = masks[0] | masks[1]
    return merged
