"""Environments that end at random and write down what really happened, beneath any vector layer."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

NESTED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (2, 3), np.uint8),
        "a.b": spaces.Tuple((spaces.Box(-9, 9, (2,), np.float64), spaces.Discrete(5, start=2))),
        "bits": spaces.MultiBinary(3),
    }
)
FLAT = spaces.Box(-1e6, 1e6, (3,), np.float32)
NESTED_ACTION = spaces.Dict({"move": spaces.Box(-1, 1, (2,), np.float32), "press": spaces.Discrete(3)})
FLAT_ACTION = spaces.Discrete(4)
INFO = {"score": "float64", "success": "bool", "deep.depth": "int64"}


class World(gymnasium.Env[Any, Any]):
    """Random observations, rewards, ends (both at once, too) and info; one set of arrays used over and over."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, *, nested: bool = False, end: float = 0.15, reuse: bool = True) -> None:
        self.observation_space = NESTED if nested else FLAT
        self.action_space = NESTED_ACTION if nested else FLAT_ACTION
        self._end, self._reuse = end, reuse
        self._kept: Any = None

    def _observe(self) -> Any:
        made = _draw(self.observation_space, self.np_random)
        if not self._reuse:
            return made
        if self._kept is None:
            self._kept = made
        self._kept = _overwrite(self._kept, made)
        return self._kept

    def _info(self) -> dict[str, Any]:
        rng, info = self.np_random, {}
        if rng.random() < 0.6:
            # An int now, a float then: Gymnasium gives the array of all lanes the first lane's type.
            info["score"] = 0 if rng.random() < 0.5 else float(rng.random())
        if rng.random() < 0.5:
            info["success"] = bool(rng.random() < 0.5)
        if rng.random() < 0.5:
            info["deep"] = {"depth": int(rng.integers(100))}
        info["legal"] = rng.integers(0, 2, 4).astype(np.int8)
        return info

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        rng = self.np_random
        terminated, truncated = bool(rng.random() < self._end), bool(rng.random() < self._end)
        return self._observe(), float(rng.normal()), terminated, truncated, self._info()


def _draw(space: Any, rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _draw(part, rng) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_draw(part, rng) for part in space)
    if isinstance(space, spaces.Discrete):
        return space.start + rng.integers(space.n)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 2, space.shape).astype(np.int8)
    if space.dtype == np.uint8:
        return rng.integers(0, 256, space.shape, dtype=np.uint8)
    return rng.uniform(-9, 9, space.shape).astype(space.dtype)


def _overwrite(kept: Any, made: Any) -> Any:
    if isinstance(kept, dict):
        return {key: _overwrite(kept[key], made[key]) for key in kept}
    if isinstance(kept, tuple):
        return tuple(_overwrite(a, b) for a, b in zip(kept, made, strict=True))
    if isinstance(kept, np.ndarray):
        kept[...] = made
        return kept
    return made


class Logged(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Appends every call to a list, or to a file where it runs in another process."""

    def __init__(self, env: Any, log: list[Any] | Path) -> None:
        super().__init__(env)
        self._log = log

    def _note(self, *entry: Any) -> None:
        if isinstance(self._log, list):
            self._log.append(copy.deepcopy(entry))
        else:
            with self._log.open("ab") as file:
                pickle.dump(entry, file)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._note("reset", options.get("seed"), observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        given = copy.deepcopy(action)
        result = self.env.step(action)
        self._note("step", given, *result)
        return result


def read_log(path: Path) -> list[Any]:
    entries = []
    with path.open("rb") as file:
        while True:
            try:
                entries.append(pickle.load(file))
            except EOFError:
                return entries


@dataclass
class Episode:
    """What one episode really was."""

    seed: int | None
    observations: list[Any]
    infos: list[dict[str, Any]]
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    flags: list[tuple[bool, bool]] = field(default_factory=list)


def episodes_of(log: list[Any], limit: int | None = None) -> list[Episode]:
    """The episodes of a lane. A time limit of the collector's shows as truncated."""
    episodes: list[Episode] = []
    for entry in log:
        if entry[0] == "reset":
            episodes.append(Episode(entry[1], [entry[2]], [entry[3]]))
            continue
        _, action, observation, reward, terminated, truncated, info = entry
        episode = episodes[-1]
        episode.actions.append(action)
        episode.rewards.append(float(reward))
        if len(episode.actions) == limit and not (terminated or truncated):
            truncated = True
        episode.flags.append((bool(terminated), bool(truncated)))
        episode.observations.append(observation)
        episode.infos.append(info)
    return [episode for episode in episodes if episode.actions]


class Maker:
    """A factory whose every environment has a log of its own."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.logs: list[list[Any]] = []

    def __call__(self) -> Any:
        self.logs.append([])
        return Logged(World(**self.options), self.logs[-1])


@dataclass
class FileMaker:
    """The same for worker processes: one file each, named by the process."""

    folder: str
    options: dict[str, Any]

    def __call__(self) -> Any:
        import os

        return Logged(World(**self.options), Path(self.folder) / f"{os.getpid()}.log")
