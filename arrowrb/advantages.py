"""Advantages of on-policy steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .errors import ColumnError, OptionError


def gae(
    reward: Any,
    value: Any,
    next_value: Any,
    terminated: Any,
    run_end: Any,
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
) -> tuple[Any, Any]:
    """Generalized advantage estimates over runs of steps that lie one behind the other.

    The advantage of a step is the sum over the steps behind it in its run, itself included, of
    (gamma lam) ** k delta, where delta = reward + gamma * ~terminated * next_value - value (Schulman et al. 2016,
    https://arxiv.org/abs/1506.02438, equations 11, 12 and 16). Runs may have any lengths: `Store.since` and
    `Store.latest` give them with their ``run_end``. An episode that was truncated, or goes on, is bootstrapped with the
    value of its true next observation.

    Args:
        reward: [n], a tensor, or an array.
        value: [n], V(observation).
        next_value: [n], V(next_observation).
        terminated: bool[n].
        run_end: bool[n], where the next row is not the next step of the same episode.
        gamma: the discount of a step.
        lam: how far ahead is looked: 0 one step, 1 to the end of the run.

    Returns:
        Advantages and returns (advantage + value), [n], as ``value`` is: a tensor without gradients on its device, or
        an array. Sums are float64, cast to the dtype of ``value``.

    Raises:
        ColumnError: if shapes do not fit.
        OptionError: if gamma or lam is not from 0 to 1.
    """
    for name, number in (("gamma", gamma), ("lam", lam)):
        real = isinstance(number, int | float | np.integer | np.floating) and not isinstance(number, bool)
        if not real or not 0 <= number <= 1:
            raise OptionError(f"{name} is {number!r}, expected a number from 0 to 1.")
    given = {"reward": reward, "value": value, "next_value": next_value}
    flags = {"terminated": terminated, "run_end": run_end}
    numbers = {name: _array(name, each, np.float64) for name, each in given.items()}
    marks = {name: _array(name, each, np.bool_).view(np.uint8) for name, each in flags.items()}
    count = numbers["value"].size
    for name, array in (*numbers.items(), *marks.items()):
        if array.shape != (count,):
            raise ColumnError(f"{name} has shape {array.shape}, expected ({count},): one number a step.")
    advantage = np.empty(count, np.float64)
    kernels.sum_advantages(*numbers.values(), *marks.values(), float(gamma), float(lam), advantage)
    return _like(value, advantage), _like(value, advantage + numbers["value"])


def _array(name: str, value: Any, dtype: Any) -> NDArray[Any]:
    """A contiguous array of its own, as kernels take them."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value).numpy()
    try:
        array = np.asarray(value)
        if array.dtype.kind == "c":
            raise TypeError("it is complex")
        if dtype == np.bool_ and array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
            raise TypeError("flags are True or False")
        return np.require(array, dtype, ("C", "W"))
    except (TypeError, ValueError) as error:
        raise ColumnError(f"{name} is a {type(value).__name__}, expected one number a step: {error}.") from None


def _like(value: Any, array: NDArray[np.float64]) -> Any:
    """Numbers as a tensor or an array of the dtype of a value."""
    if hasattr(value, "detach"):
        like = value.detach()
        return (like if like.is_floating_point() else like.double()).new_tensor(array)
    dtype = np.asarray(value).dtype
    return array.astype(dtype if dtype.kind == "f" else np.float64)
