"""Environments and policies that workers are given in `test_workers`.

Not in that module: a worker imports the one that its environment is of, and torch with it would take it two seconds.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from arrowrb.collector import worker
from tests.counting import Counting


def within(seconds: float, condition: Any) -> bool:
    stop = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > stop:
            return False
        time.sleep(0.02)
    return True


def varied() -> Any:
    """An environment that draws from the global generators while it is made."""
    env: Any = gym.make("CartPole-v1")
    env.unwrapped.gravity += random.random() + np.random.random()
    return env


class Valued:
    """A policy that is no module: actions are its value."""

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = value

    def __call__(self, observation: Any) -> Any:
        return np.full((len(observation), 1), self.value, np.float32)


class Waiting(Counting):
    """Its first two processes wait in their tenth step until the learner has gone on, and fail."""

    def __init__(self, folder: str) -> None:
        Path(folder, f"process-{os.getpid()}").touch()
        self.folder, self.number = Path(folder), len(list(Path(folder).glob("process-*")))
        super().__init__(fails_at=10 if self.number <= 2 else -1)

    def step(self, action: Any) -> Any:
        if self.taken == self.fails_at:
            (self.folder / f"reached-{self.number}").touch()
            assert within(60, (self.folder / f"go-on-{self.number}").exists)
        return super().step(action)


def only_in(pid: int) -> Exception:
    if os.getpid() != pid:
        raise ImportError("no such library here")
    return ArithmeticError("the motor is gone")


class OnlyThere(Exception):
    """Can be unpickled in the process alone that raised it."""

    def __reduce__(self) -> Any:
        return only_in, (os.getpid(),)


class Raising(Counting):
    """Raises what it is given in its 25th step."""

    def __init__(self, error: Any) -> None:
        super().__init__()
        self.error = error

    def step(self, action: Any) -> Any:
        if self.taken == 24:
            raise self.error("the end")
        return super().step(action)


class Worn(Counting):
    """The first process raises after 31 steps, the second one is killed after 3, the third one lasts."""

    def __init__(self, folder: str) -> None:
        Path(folder, str(os.getpid())).touch()
        number = len(os.listdir(folder))
        super().__init__(fails_at=31 if number == 1 else -1)
        self.is_killed_at = 3 if number == 2 else -1

    def step(self, action: Any) -> Any:
        if self.taken == self.is_killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def act_by(values: Any, observation: Any) -> Any:
    return np.full((len(observation), 1), values[0], np.float32)


class Helped(Counting):
    """An environment that forks a process, which stays when it is gone."""

    def __init__(self, helpers: Path) -> None:
        super().__init__(pause=0.01)
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        with helpers.open("a") as file:
            print(pid, file=file)


class Ending(Counting):
    """Raises what is no Exception, or does not close after an error."""

    def __init__(self, error: BaseException, hangs: bool = False) -> None:
        super().__init__()
        worker._GRACE_SECONDS = 1.0
        self.error, self.hangs = error, hangs

    def step(self, action: Any) -> Any:
        if self.steps == 5:
            raise self.error
        return super().step(action)

    def close(self) -> None:
        if self.hangs:
            time.sleep(100)
