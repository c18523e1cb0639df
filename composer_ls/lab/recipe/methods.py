"""The methods of a recipe that smooth targets, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["METHODS", "amount_key", "amount_of", "given_amount", "is_amount", "method_of"]

METHODS: dict[str, tuple[str, float]] = {
    "label_smoothing": ("smoothing", 0.1),
    "max_sup": ("strength", 0.1),
    "online_label_smoothing": ("smoothing", 0.5),
}
"""The algorithms that smooth: the argument that says how much, and its default."""


def amount_key(method: str) -> str:
    """The dotted key of the argument that says how much a method smooths.

    Example:
        >>> from composer_ls.lab.recipe.methods import amount_key
        >>> amount_key("max_sup")
        'algorithms.max_sup.strength'

    """
    return f"algorithms.{method}.{METHODS[method][0]}"


def given_amount(method: str, arguments: Mapping[str, Any] | None) -> Any:
    """How much a method smooths, as a recipe has it: a number, a schedule, or factors per class."""
    argument, default = METHODS[method]
    return (arguments or {}).get(argument, default)


def amount_of(method: str, arguments: Mapping[str, Any]) -> float:
    """How much a method smooths: its factor, or the largest one of a schedule or of factors per class.

    Example:
        >>> from composer_ls.lab.recipe.methods import amount_of
        >>> amount_of("max_sup", {}), amount_of("label_smoothing", {"smoothing": {"schedule": "linear", "start": 0, "end": 0.2}})
        (0.1, 0.2)

    """
    value = given_amount(method, arguments)
    if isinstance(value, Mapping):
        value = [value[key] for key in ("start", "end", "value") if key in value]
    return max(map(float, value), default=0.0) if isinstance(value, list | tuple) else float(value)


def method_of(algorithms: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """The first method of a recipe that smooths at all."""
    given = ((name, algorithms.get(name)) for name in METHODS)
    return next((name for name, arguments in given if arguments is not None and amount_of(name, arguments)), None)


def is_amount(method: str, value: Any) -> bool:
    """Whether a value has the form of a factor: a number in range, a schedule, or factors per class."""
    if isinstance(value, Mapping):
        return "schedule" in value and set(value) <= {"schedule", "start", "end", "value", "duration"}
    if isinstance(value, list):
        return method != "max_sup" and bool(value) and all(is_amount(method, one) for one in value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0 <= value < 1 if method == "max_sup" else 0 <= value <= 1
