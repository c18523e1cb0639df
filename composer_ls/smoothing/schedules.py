"""Schedules: a smoothing factor as a function of training time."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Schedule", "as_schedule", "constant", "cosine", "linear"]

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 0.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}
"""How far the factor is from ``start`` to ``end``, as a function of progress from 0 to 1."""

UNITS = ("dur", "ep", "ba", "sp", "tok")


@dataclass(frozen=True)
class Schedule:
    """A factor that goes from ``start`` to ``end`` over ``duration`` and then stays there.

    Called with Composer's ``State``, it returns the factor of the current step. It depends on the timestamp only, so a run
    that resumes from a checkpoint continues where it stopped.

    Attributes:
        shape: ``"constant"``, ``"linear"`` or ``"cosine"``.
        start: The first value.
        end: The last value.
        duration: How long it takes, as Composer writes time: ``"0.5dur"`` (half of training), ``"10ep"``, ``"500ba"``,
            ``"1000sp"`` or ``"1000tok"``. Epochs count in fractions if the length of the dataloader is known.

    """

    shape: str
    start: float
    end: float
    duration: str = "1dur"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"schedule must be {', '.join(SHAPES)}, but is {self.shape!r}")
        for name in ("start", "end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(f"the {name} of a schedule must be a number, but is {value!r}")
            object.__setattr__(self, name, float(value))
        if self.shape == "constant" and self.start != self.end:
            raise ValueError(
                f"a constant schedule goes from {self.start:g} to {self.end:g}: give it one value, or take linear or cosine"
            )
        _parsed(self.duration)

    def __call__(self, state: Any) -> float:
        """The factor at the timestamp of ``state``."""
        return self.start if self.shape == "constant" else self.at(_progress(state, self.duration))

    def at(self, progress: float) -> float:
        """The factor after this fraction of ``duration``, clipped to between 0 and 1."""
        return self.start + (self.end - self.start) * SHAPES[self.shape](min(1.0, max(0.0, progress)))

    def __repr__(self) -> str:
        """The call that makes it."""
        if self.shape == "constant":
            return f"constant({self.start:g})"
        return f"{self.shape}({self.start:g}, {self.end:g}, {self.duration!r})"


def constant(value: float) -> Schedule:
    """The same factor at every step."""
    return Schedule("constant", value, value)


def linear(start: float, end: float, duration: str = "1dur") -> Schedule:
    r"""From ``start`` to ``end`` in equal steps: :math:`s + (e - s)\,t` after the fraction t of ``duration``.

    Example:
        >>> from composer_ls.smoothing import linear
        >>> warmup = linear(0.0, 0.1, "0.5dur")
        >>> warmup, warmup.at(0.5), warmup.at(2.0)
        (linear(0, 0.1, '0.5dur'), 0.05, 0.1)

    """
    return Schedule("linear", start, end, duration)


def cosine(start: float, end: float, duration: str = "1dur") -> Schedule:
    r"""From ``start`` to ``end`` along half a cosine: :math:`s + (e - s)(1 - \cos \pi t)/2`.

    Example:
        >>> from composer_ls.smoothing import cosine
        >>> [round(cosine(0.2, 0.0).at(t), 3) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.2, 0.171, 0.1, 0.0]

    References:
        Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983 (the shape, there for learning rates).

    """
    return Schedule("cosine", start, end, duration)


def as_schedule(value: Any, name: str = "smoothing") -> Any:
    """The Schedule that a mapping spells, as in YAML; anything else as it is.

    Args:
        value: ``{"schedule": "cosine", "start": 0.2, "end": 0.0}``, with an optional ``duration``.
        name: The argument's name, for error messages.

    Raises:
        ValueError: A key is missing or unknown, or a value is wrong.

    Example:
        >>> from composer_ls.smoothing import as_schedule
        >>> as_schedule({"schedule": "linear", "start": 0.0, "end": 0.1, "duration": "5ep"})
        linear(0, 0.1, '5ep')

    """
    if not isinstance(value, Mapping):
        return value
    given = dict(value)
    shape = given.pop("schedule", None)
    if shape == "constant" and "value" in given and not {"start", "end"} & set(given):
        given["start"] = given["end"] = given.pop("value")
    unknown = set(given) - {"start", "end", "duration"}
    if shape not in SHAPES or unknown or not {"start", "end"} <= set(given):
        raise ValueError(
            f"{name} is {dict(value)!r}, but a schedule is written as {{schedule: cosine, start: 0.2, end: 0.0, duration: "
            f"1dur}}, where schedule is {' or '.join(SHAPES)} and duration may be left out"
        )
    return Schedule(shape, **given)


def _parsed(duration: str) -> tuple[float, str]:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(dur|ep|ba|sp|tok)", duration) if isinstance(duration, str) else None
    if match is None or float(match[1]) == 0:
        raise ValueError(
            f"the duration of a schedule must be a positive number with a unit ({', '.join(UNITS)}), such as '0.5dur' or "
            f"'10ep', but is {duration!r}"
        )
    return float(match[1]), match[2]


def _progress(state: Any, duration: str) -> float:
    amount, unit = _parsed(duration)
    if unit != "dur":
        return _elapsed(state, unit) / amount
    whole = state.max_duration
    if whole is None:
        raise ValueError(f"a schedule over {duration!r} needs the Trainer's max_duration, which is not set")
    if whole.unit.value == "iter":  # whose number stays the same for many epochs
        raise ValueError(
            f"a schedule over {duration!r} needs a max_duration that grows with every step, but it is '{whole.value}iter': "
            f"give the schedule a duration in {', '.join(UNITS[1:])}, such as '10ep'"
        )
    return _elapsed(state, whole.unit.value) / float(whole.value) / amount


def _elapsed(state: Any, unit: str) -> float:
    """How much training has gone by, in this unit."""
    elapsed = float(state.timestamp.get(unit).value)
    length = getattr(state, "dataloader_len", None) if unit == "ep" else None
    if length is not None and int(length) > 0:
        elapsed += min(1.0, int(state.timestamp.batch_in_epoch) / int(length))
    return elapsed
