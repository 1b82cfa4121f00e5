"""Making environments from ids and factories, and what must sit beneath Gymnasium's vector layer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from arrowrb.collector.spawning import without_a_missing_script
from arrowrb.errors import EnvironmentFault, OptionError
from arrowrb.recorder import describe, parse_mode
from arrowrb.schema import Schema
from arrowrb.staging import SAME_STEP, Layout

_VECTORIZATION = ("sync", "async", "vector_entry_point")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asks for; see `Collector`."""

    env: Any
    num_envs: int = 1
    vectorization_mode: str | None = None
    env_kwargs: Mapping[str, Any] | None = None
    vector_kwargs: Mapping[str, Any] | None = None
    wrappers: Sequence[Callable[[Any], Any]] = ()
    autoreset_mode: Any = None


@dataclass(frozen=True, slots=True)
class Made:
    """An environment to step.

    Attributes:
        env: The environment.
        layout: How it returns its lanes.
        owned: Whether it was made here, and so is closed here.
    """

    env: Any
    layout: Layout
    owned: bool


class Faithful(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Beneath Gymnasium's vector layer, keeps what that layer loses.

    The layer gives an array of info the type of the first lane's value, so declared entries get their dtype here. With
    SAME_STEP it holds on to the final observation while the reset already overwrites an array that the environment
    uses again, so final observations are copied here.
    """

    def __init__(self, env: Any, dtypes: Mapping[str, str], copies: bool) -> None:
        """Wrap one environment.

        Args:
            env: The environment.
            dtypes: The declared entries of info and their dtypes.
            copies: Whether final observations are copied.
        """
        super().__init__(env)
        self._dtypes = dict(dtypes)
        self._copies = copies

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment."""
        observation, info = self.env.reset(**options)
        return observation, self._typed(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._copies and (terminated or truncated):
            observation = copy.deepcopy(observation)
        return observation, reward, terminated, truncated, self._typed(info)

    def _typed(self, info: dict[str, Any]) -> dict[str, Any]:
        for name, dtype in self._dtypes.items():
            info = _retype(info, name, dtype)
        return info


def _retype(info: dict[str, Any], name: str, dtype: str) -> dict[str, Any]:
    """`info` with an entry in its declared dtype, where that is the wider one; without it where it is None."""
    if name not in info:
        head, dot, rest = name.partition(".")
        inner = info.get(head) if dot else None
        return {**info, head: _retype(inner, rest, dtype)} if isinstance(inner, dict) else info
    value = info[name]
    if value is None:
        return {key: other for key, other in info.items() if key != name}
    array = np.asarray(value)
    ranks = {"b": 0, "i": 1, "u": 1, "f": 2}
    target = np.dtype("float32" if dtype == "bfloat16" else dtype)
    if ranks.get(array.dtype.kind, 9) >= ranks[target.kind] and array.dtype != target:
        # As wide as it came, but of the wide type in every lane.
        target = np.dtype(np.float64) if array.dtype.kind == "f" else np.dtype(np.int64)
        if array.dtype.kind not in "iuf":
            return info
    typed: Any = array.astype(target)
    return {**info, name: typed if typed.ndim else typed.item() if target.kind == "b" else typed[()]}


def make(wanted: Wanted, schema: Schema | None) -> Made:
    """Make the environment that is asked for, or take the one that is given.

    Args:
        wanted: What is asked for.
        schema: Its declared entries of info, where known.

    Raises:
        EnvironmentFault: If what a factory returns is no environment, or a vector environment does not say its mode.
        OptionError: If the options do not fit each other, or there is no environment of this id.
    """
    env = wanted.env
    if isinstance(env, VectorEnv | gymnasium.Env):
        _check_given(wanted)
        return Made(env, describe(env, wanted.autoreset_mode), owned=False)
    if isinstance(wanted.num_envs, bool) or not isinstance(wanted.num_envs, int) or wanted.num_envs < 1:
        raise OptionError(f"num_envs is {wanted.num_envs!r}, expected a positive integer.")
    mode = wanted.vectorization_mode or ("sync" if wanted.num_envs > 1 else None)
    if mode is not None and mode not in _VECTORIZATION:
        raise OptionError(f"vectorization_mode is {mode!r}, expected one of {_VECTORIZATION}.")
    if not isinstance(env, str | EnvSpec) and not callable(env):
        raise OptionError(
            f"env is of type {type(env).__name__}, expected an environment's id, a function that makes one, an Env "
            f"or a VectorEnv."
        )
    if mode is None and wanted.vector_kwargs:
        raise OptionError(
            "vector_kwargs is given, but one environment without a vectorization_mode is no vector environment. "
            "Give vectorization_mode=, or leave vector_kwargs out."
        )
    try:
        if mode == "async":
            made = _explaining_processes(lambda: _make_vector(wanted, mode, schema))
        else:
            made = _make_single(wanted) if mode is None else _make_vector(wanted, mode, schema)
    except gymnasium.error.Error as error:
        raise OptionError(f"env {env!r} cannot be made: {error}") from error
    if not isinstance(made, VectorEnv | gymnasium.Env):
        raise EnvironmentFault(
            f"The factory returned {type(made).__name__}, expected a gymnasium Env or VectorEnv. Return one."
        )
    try:
        # The mode of environments made here is theirs already; only others need telling.
        return Made(made, describe(made, wanted.autoreset_mode), owned=True)
    except BaseException:
        made.close()
        raise


def _check_given(wanted: Wanted) -> None:
    env = wanted.env
    for name in ("env_kwargs", "vector_kwargs", "wrappers", "vectorization_mode"):
        if getattr(wanted, name):
            raise OptionError(f"{name} is given, but env is an environment already. Leave it out, or give a factory.")
    count = env.num_envs if isinstance(env, VectorEnv) else 1
    if wanted.num_envs not in (1, count):
        raise OptionError(f"num_envs is {wanted.num_envs}, but the environment given has {count}. Leave it out.")


def _make_single(wanted: Wanted) -> Any:
    """One environment; a factory may also return a vector environment of its own."""
    env = wanted.env
    if isinstance(env, str | EnvSpec):
        made: Any = gymnasium.make(env, **dict(wanted.env_kwargs or {}))
    else:
        made = env(**dict(wanted.env_kwargs or {}))
    for wrapper in wanted.wrappers:
        made = wrapper(made)
    return made


def _make_vector(wanted: Wanted, mode: str, schema: Schema | None) -> Any:
    env, count = wanted.env, wanted.num_envs
    kwargs = dict(wanted.vector_kwargs or {})
    is_id = isinstance(env, str | EnvSpec)
    if mode == "vector_entry_point":
        if not is_id or kwargs or wanted.wrappers:
            raise OptionError(
                "vectorization_mode is 'vector_entry_point', which takes an environment's id and neither wrappers nor "
                "vector_kwargs. Leave these out, or take 'sync'."
            )
        return gymnasium.make_vec(env, num_envs=count, vectorization_mode=mode, **dict(wanted.env_kwargs or {}))
    if wanted.autoreset_mode is not None:
        kwargs.setdefault("autoreset_mode", AutoresetMode(parse_mode(wanted.autoreset_mode)))
    if mode == "async":
        # Forked workers would inherit threads and locks of pyarrow and DuckDB.
        kwargs.setdefault("context", "spawn")
    same_step = parse_mode(kwargs.get("autoreset_mode", AutoresetMode.NEXT_STEP)) == SAME_STEP
    wrappers = list(wanted.wrappers)
    dtypes = {} if schema is None else _info_dtypes(schema)
    if dtypes or same_step:
        wrappers.append(partial(Faithful, dtypes=dtypes, copies=same_step))
    if is_id:
        return gymnasium.make_vec(
            env,
            num_envs=count,
            vectorization_mode=mode,
            vector_kwargs=kwargs,
            wrappers=wrappers,
            **dict(wanted.env_kwargs or {}),
        )
    build = partial(_build, env, dict(wanted.env_kwargs or {}), wrappers)
    vector = SyncVectorEnv if mode == "sync" else AsyncVectorEnv
    return vector([build] * count, **kwargs)


def _explaining_processes(make: Callable[[], Any]) -> Any:
    """A vector environment that starts processes; what most often goes wrong with these is told."""
    try:
        with without_a_missing_script():
            return make()
    except (ConnectionError, EOFError) as error:
        raise EnvironmentFault(
            f"A process of the vector environment ended while it was started ({type(error).__name__}). Processes are "
            'started by spawn and run the script again: keep what it does under `if __name__ == "__main__":`.'
        ) from error


def _build(factory: Callable[..., Any], kwargs: dict[str, Any], wrappers: Sequence[Callable[[Any], Any]]) -> Any:
    made = factory(**kwargs)
    if not isinstance(made, gymnasium.Env):
        raise EnvironmentFault(
            f"The factory returned {type(made).__name__}, expected a gymnasium Env. Return one environment."
        )
    for wrapper in wrappers:
        made = wrapper(made)
    return made


def _info_dtypes(schema: Schema) -> dict[str, str]:
    return {name: schema.column(name).cast_from or schema.column(name).dtype for name in schema.info}


def is_pending(env: Any) -> bool:
    """Whether an interrupt has left a call to worker processes half-way; nothing but ending them helps then."""
    base = env.unwrapped
    return isinstance(base, AsyncVectorEnv) and base._state is not AsyncState.DEFAULT


def close(env: Any) -> None:
    """Close an environment, by force where its workers are in the middle of a call."""
    if not is_pending(env):
        env.close()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the pending call
        env.close(terminate=True)
