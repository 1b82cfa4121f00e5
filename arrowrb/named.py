"""The samplers of a store that have a name: what checkpoints keep of them."""

from __future__ import annotations

import contextlib
import operator
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import checkpoints
from .errors import OptionError
from .sampler import Sampler


class NamedSamplers:
    """The samplers of a store that have a name, and the states from which those go on that are made yet."""

    def __init__(self) -> None:
        self._live: weakref.WeakValueDictionary[str, Sampler] = weakref.WeakValueDictionary()
        self._waiting: dict[str, Any] = {}

    def check(self, sampler: Sampler) -> None:
        """Refuse a name that is none, or is taken.

        Raises:
            OptionError: if it is.
        """
        if sampler.name is None:
            return
        other = self._live.get(checkpoints.check_name(sampler.name))
        if other is not None and not other.closed:
            raise OptionError(
                f"name is {sampler.name!r}, which another sampler of this store has. Close that one first, or choose "
                "another name."
            )

    def add(self, sampler: Sampler) -> None:
        """Note a new one; it goes on from the state that waits for it."""
        self.check(sampler)
        name = sampler.name
        if name is None:
            return
        if name in self._waiting:
            sampler.load_state_dict(self._waiting[name])
            del self._waiting[name]
        self._live[name] = sampler

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """No sampler draws or learns meanwhile; gives what tells their states.

        One that is made meanwhile is not among them: nobody holds it.
        """
        samplers = sorted(self._open(), key=operator.itemgetter(0))
        with contextlib.ExitStack() as stack:
            for _, sampler in samplers:
                stack.enter_context(sampler.guard)
            yield lambda: {
                **self._waiting,
                **{name: sampler.state_dict() for name, sampler in samplers if not sampler.closed},
            }

    def _open(self) -> list[tuple[str, Sampler]]:
        return [(name, sampler) for name, sampler in list(self._live.items()) if not sampler.closed]

    def load(self, states: Mapping[str, Any]) -> None:
        """Let those that are there go on from these states, and the others when they are made."""
        states = dict(states)
        for name, sampler in self._open():
            if name in states:
                sampler.load_state_dict(states.pop(name))
        self._waiting = states
