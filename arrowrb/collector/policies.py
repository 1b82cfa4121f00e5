"""The policy protocol: what a policy is given, and how what it returns becomes actions and extras."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from arrowrb.arrival import Cell
from arrowrb.errors import ColumnError, EnvironmentFault, OptionError
from arrowrb.schema import Schema


@dataclass(frozen=True, slots=True)
class Step:
    """What `act` is given, batched over lanes (a single environment is a batch of one).

    Attributes:
        observation: Arrays `[lanes, ...]`, nested as the observation space; with `frame_stack` `[lanes, k, ...]`.
        is_first: bool `[lanes]`: the observation is the first of an episode.
        info: The info that came with the observation: arrays by lane, and `_key` masks of the lanes that have it.
        state: What the previous call returned, zeroed in the lanes where `is_first`; None in the first call.
        policy_version: The collector's.
    """

    observation: Any
    is_first: Any
    info: Mapping[str, Any]
    state: Any
    policy_version: int


@runtime_checkable
class Actor(Protocol):
    """A policy with a memory. Called from one thread, once per vector step."""

    def act(self, step: Step) -> tuple[Any, Mapping[str, Any] | None, Any]:
        """The actions `[lanes, ...]`, extras by name, and the state for the next call (first axis: lanes)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Actions of one vector step.

    Attributes:
        actions: One array `[lanes, *shape]` per action column.
        extras: What came with them, or None; of a single environment without the axis of lanes.
        version: The policy's version.
        is_random: Whether the actions are random ones.
    """

    actions: list[NDArray[Any]]
    extras: Mapping[str, Any] | None
    version: int
    is_random: bool = False


class Runner:
    """Calls a policy and checks what it returns."""

    def __init__(
        self,
        policy: Any,
        schema: Schema,
        num_lanes: int,
        *,
        single: bool,
        frame_stack: Mapping[str, int] | None,
    ) -> None:
        """Prepare to call.

        Args:
            policy: A callable, a `torch.nn.Module`, or an object with `act`.
            schema: The columns of observations, actions and extras.
            num_lanes: How many lanes act together.
            single: Whether observations come without the axis of lanes.
            frame_stack: Observation columns -> how many frames the policy sees.

        Raises:
            OptionError: If it cannot be called, or a frame stack names no column.
        """
        self.use(policy)
        self._tree, self._action_tree = schema.observation_tree, schema.action_tree
        self._cells = [Cell.of(c) for c in schema.observation_columns[: len(self._tree.paths)]]
        stop = 2 + len(self._action_tree.paths)
        self._action_cells = [Cell.of(c, rounds=True) for c in schema.transition_columns[2:stop]]
        self._bounds = [schema.discrete_bounds.get(cell.name) for cell in self._action_cells]
        self._extra_shapes = {name: extra.shape for name, extra in schema.extras.items()}
        self._num_lanes, self._single = num_lanes, single
        self._stacks = _stacks(frame_stack, self._cells)
        self._frames: dict[int, NDArray[Any]] = {}
        self._state: Any = None

    def use(self, policy: Any) -> None:
        """Call this policy from now on; the state of the one before is passed on.

        Raises:
            OptionError: If it cannot be called.
        """
        self._stateful = check_callable(policy)
        self._policy = policy
        self._torch: Any = sys.modules["torch"] if is_module(policy) else None

    @property
    def wants_info(self) -> bool:
        """Whether the policy is given info."""
        return self._stateful

    def forget(self) -> None:
        """Start anew: no state, no frames."""
        self._state = None
        self._frames.clear()

    def decide(self, observation: Any, is_first: NDArray[np.bool_], info: Mapping[str, Any], version: int) -> Decision:
        """Call the policy.

        Args:
            observation: As the environment returned it.
            is_first: bool `[num_lanes]`.
            info: As the environment returned it; looked at only if the policy has `act`.
            version: To be recorded.

        Raises:
            ColumnError: If an action does not fit its space.
            EnvironmentFault: If the policy does not return what its protocol asks for.
        """
        leaves = self.watch(observation, is_first)
        if self._torch is None:
            result = self._call(self._policy, self._tree.build(leaves), is_first, info, version)
        else:
            result = self._call_module(leaves, is_first, info, version)
        action, extras = result
        return Decision(self._actions(action), self._extras(extras), version)

    @property
    def stacks(self) -> bool:
        """Whether the policy sees earlier frames, so that it must `watch` steps that it does not decide."""
        return bool(self._stacks)

    def watch(self, observation: Any, is_first: NDArray[np.bool_]) -> list[Any]:
        """Put an observation on the stacks of frames; its leaves, stacked."""
        leaves = self._leaves(observation)
        for index, depth in self._stacks.items():
            leaves[index] = self._stack(index, depth, leaves[index], is_first)
        return leaves

    def _extras(self, extras: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Extras laid out as the environment's values: of a single environment without the axis of lanes."""
        if extras is None or not self._single:
            return extras
        single = {}
        for name, value in extras.items():
            shape = self._extra_shapes.get(name, ())
            batched = value is not None and tuple(np.shape(value)) == (1, *shape)
            single[name] = value[0] if batched else value
        return single

    def _leaves(self, observation: Any) -> list[Any]:
        leaves = self._tree.leaves(observation)
        if not self._single:
            return leaves
        return [
            leaf[None] if isinstance(leaf, np.ndarray) else np.asarray(leaf, cell.direct)[None]
            for leaf, cell in zip(leaves, self._cells, strict=True)
        ]

    def _stack(self, index: int, depth: int, leaf: NDArray[Any], is_first: NDArray[np.bool_]) -> NDArray[Any]:
        before = self._frames.get(index)
        repeated = np.repeat(leaf[:, None], depth, axis=1)
        if before is not None and not is_first.all():
            # Made anew each time: a policy may keep what it was given.
            stacked = np.concatenate([before[:, 1:], leaf[:, None]], axis=1)
            stacked[is_first] = repeated[is_first]
            repeated = stacked
        self._frames[index] = repeated
        return repeated.copy()

    def _call(
        self, policy: Any, observation: Any, is_first: Any, info: Mapping[str, Any], version: int
    ) -> tuple[Any, Mapping[str, Any] | None]:
        if not self._stateful:
            return self._split(policy(observation))
        firsts = np.asarray(is_first)
        state = zero_lanes(self._state, firsts) if firsts.any() else self._state
        result = policy.act(Step(observation, is_first, self._lane_info(info), state, version))
        if not isinstance(result, tuple) or len(result) != 3:
            raise EnvironmentFault(
                f"policy.act returned {_what(result)}, expected a tuple (action, extras, state). Return all three."
            )
        action, extras, self._state = result
        if extras is not None and not isinstance(extras, Mapping):
            raise EnvironmentFault(f"policy.act returned extras of type {type(extras).__name__}, expected a dict.")
        return action, extras or None

    def _split(self, result: Any) -> tuple[Any, Mapping[str, Any] | None]:
        """`action` or `(action, extras)`. A tuple may be an action too, where the space is one."""
        if isinstance(result, tuple) and len(result) == 2 and (result[1] is None or isinstance(result[1], Mapping)):
            paths = self._action_tree.paths
            is_tuple_space = bool(paths[0]) and not isinstance(paths[0][0], str)
            if not is_tuple_space or (isinstance(result[0], tuple | list) and not self._is_action(result)):
                return result[0], result[1] or None
        return result, None

    def _is_action(self, value: Any) -> bool:
        """Whether something is nested as actions are."""
        with contextlib.suppress(ColumnError):
            self._action_tree.leaves(value)
            return True
        return False

    def _call_module(
        self,
        leaves: Sequence[NDArray[Any]],
        is_first: NDArray[np.bool_],
        info: Mapping[str, Any],
        version: int,
    ) -> tuple[Any, Mapping[str, Any] | None]:
        torch, module = self._torch, self._policy
        known = next(module.parameters(), None)
        known = next(module.buffers(), None) if known is None else known
        device = torch.device("cpu") if known is None else known.device

        def tensor(array: NDArray[Any]) -> Any:
            array = np.ascontiguousarray(array)
            made = torch.from_numpy(array if array.flags.writeable else array.copy())
            if known is not None and made.is_floating_point() and known.is_floating_point():
                return made.to(device, known.dtype)
            return made.to(device)

        with torch.no_grad():
            observation = self._tree.build([tensor(leaf) for leaf in leaves])
            firsts = torch.from_numpy(np.array(is_first)) if self._stateful else is_first
            return self._call(module, observation, firsts, info, version)

    def _lane_info(self, info: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._single:
            return info
        batched: dict[str, Any] = {}
        for key, value in info.items():
            if isinstance(value, Mapping):
                batched[key] = self._lane_info(value)
            elif isinstance(value, np.ndarray | np.generic | int | float):
                batched[key] = np.asarray(value)[None]
            else:
                batched[key] = np.empty(1, object)
                batched[key][0] = value
            batched["_" + key] = np.ones(1, np.bool_)
        return batched

    def _actions(self, action: Any) -> list[NDArray[Any]]:
        leaves = self._action_tree.leaves(action)
        actions = []
        for cell, leaf, bounds in zip(self._action_cells, leaves, self._bounds, strict=True):
            shape = (self._num_lanes, *cell.column.shape)
            unbatched = self._num_lanes == 1 and tuple(np.shape(leaf)) == cell.column.shape
            array = cell.convert(np.asarray(_host(leaf))[None] if unbatched else leaf, shape)
            array = array if array.dtype == cell.direct else array.astype(cell.direct)
            if bounds is not None:
                low, high = int(array.min()), int(array.max())
                if low < bounds[0] or high >= bounds[0] + bounds[1]:
                    raise ColumnError(
                        f"'{cell.name}' has the value {low if low < bounds[0] else high}, expected {bounds[0]} to "
                        f"{bounds[0] + bounds[1] - 1}. Fix the policy."
                    )
            actions.append(array)
        return actions


def is_module(policy: Any) -> bool:
    """Whether a policy is a `torch.nn.Module`."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(policy, torch.nn.Module)


def check_callable(policy: Any) -> bool:
    """Whether a policy has `act`; refuses what is no policy."""
    stateful = callable(getattr(policy, "act", None))
    if not stateful and not callable(policy):
        raise OptionError(
            f"policy is of type {type(policy).__name__}, expected a callable, a torch.nn.Module, or an object with "
            f"act(step)."
        )
    return stateful


def zero_lanes(state: Any, lanes: NDArray[np.bool_]) -> Any:
    """A copy of a state, zero in the lanes where `lanes` is true.

    Args:
        state: Arrays or tensors `[num_lanes, ...]`, nested in dicts, tuples and lists; None stays.
        lanes: bool `[num_lanes]`.

    Raises:
        EnvironmentFault: If a leaf is no array, or its first axis is not that of lanes.
    """
    if state is None:
        return None
    if isinstance(state, Mapping):
        return {key: zero_lanes(value, lanes) for key, value in state.items()}
    if isinstance(state, tuple | list):
        parts = [zero_lanes(value, lanes) for value in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if not hasattr(state, "shape") or not state.shape or state.shape[0] != len(lanes):
        raise EnvironmentFault(
            f"policy.act returned a state with {_what(state)}, expected arrays or tensors whose first axis is that of "
            f"the {len(lanes)} lanes. Move that axis to the front."
        )
    if isinstance(state, np.ndarray):
        zeroed: Any = state.copy()
        zeroed[lanes] = 0
        return zeroed
    zeroed = state.clone()
    zeroed[sys.modules["torch"].from_numpy(lanes.copy()).to(zeroed.device)] = 0
    return zeroed


def _stacks(frame_stack: Mapping[str, int] | None, cells: Sequence[Cell]) -> dict[int, int]:
    stacks: dict[int, int] = {}
    for name, depth in (frame_stack or {}).items():
        chosen = [i for i, cell in enumerate(cells) if cell.name == name or cell.name.startswith(name + ".")]
        if not chosen:
            raise OptionError(
                f"frame_stack names {name!r}, expected observation columns: {[cell.name for cell in cells]}."
            )
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise OptionError(f"frame_stack[{name!r}] is {depth!r}, expected a positive number of frames.")
        stacks.update(dict.fromkeys(chosen, depth))
    return stacks


def _host(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _what(value: Any) -> str:
    shape = getattr(value, "shape", None)
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{type(value).__name__}{length}" + ("" if shape is None else f" of shape {tuple(shape)}")


Policy = Callable[[Any], Any] | Actor
