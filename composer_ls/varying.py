"""A factor that an Algorithm is given: a number, a schedule, a function of Composer's State, or one number per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from composer.core import State
from torch import Tensor

from composer_ls.smoothing import Schedule, as_factors, as_schedule

__all__ = ["as_factor", "factor_at", "in_words"]

Check = Callable[[Any], float]
"""Returns a checked number, or raises an error that names it."""


def as_factor(value: Any, name: str, check: Check, *, by_class: bool = True) -> Any:
    """The checked factor: a number, a Schedule or another callable, or a tensor ``(K,)``.

    Args:
        value: What the user gave.
        name: The argument's name, for error messages.
        check: Checks one number.
        by_class: Whether one factor per class is possible.

    Raises:
        TypeError: It is none of these.
        ValueError: A number is outside the allowed range, or a schedule leaves it.

    """
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number in [0, 1], but is the string {value!r}: write it without quotes")
    if isinstance(value, Mapping):
        value = as_schedule(value, name)
    if isinstance(value, Schedule):
        for end in ("start", "end"):
            try:
                check(getattr(value, end))
            except ValueError as error:
                raise ValueError(f"{name}={value!r} goes out of range at its {end}: {error}") from None
        return value
    if callable(value):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    is_array = type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1
    if by_class and (isinstance(value, (Tensor, list, tuple)) or is_array):
        return as_factors(value).detach().clone()  # its graph would be gone after one step
    return check(value)


def factor_at(factor: Any, state: State, name: str, check: Check) -> Any:
    """The factor of this step, a number or a tensor ``(K,)``.

    Raises:
        ValueError: A schedule's number is outside the allowed range; the message says when.

    """
    if not callable(factor):
        return factor
    value = factor(state)
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        time = state.timestamp
        raise type(error)(
            f"the schedule of {name} ({factor!r}) gives {value!r} at batch {int(time.batch)}, epoch {int(time.epoch)}: {error}"
        ) from None


def in_words(factor: Any) -> str:
    """A factor for the description of the plan."""
    if isinstance(factor, Tensor):
        return f"{factor.min():g} to {factor.max():g} by class"
    if isinstance(factor, Schedule):
        if factor.shape == "constant":
            return f"{factor.start:g}"
        return f"{factor.start:g} to {factor.end:g} ({factor.shape} over {factor.duration})"
    return f"by {getattr(factor, '__name__', type(factor).__name__)}" if callable(factor) else f"{factor:g}"
