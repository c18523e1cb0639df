"""The order in which smoothing and the other algorithms run."""

from __future__ import annotations

from collections.abc import Sequence

from composer.core import Algorithm

from composer_ls.composition.mixers import mixer_of

__all__ = ["place"]


def place(algorithms: Sequence[Algorithm], smoother: Algorithm) -> list[Algorithm]:
    """``algorithms`` with ``smoother`` where it belongs, whatever its place was; the others keep their order.

    It belongs after every algorithm unknown to us, which may rewrite targets, and before the first mixer that follows,
    so that the mixer's own arithmetic works on smoothed targets that need no dense tensor. A mixer that must run
    earlier mixes hard rows, which are smoothed afterwards: the result is the same.
    """
    others = [algorithm for algorithm in algorithms if algorithm is not smoother]
    position = next((i for i, algorithm in reversed(list(enumerate(others, 1))) if _may_rewrite_targets(algorithm)), 0)
    while position < len(others) and mixer_of(others[position]) is None:
        position += 1
    return [*others[:position], smoother, *others[position:]]


def _may_rewrite_targets(algorithm: Algorithm) -> bool:
    """Whether an algorithm is unknown to us: not a mixer, nor one of Composer's own, which leave targets alone."""
    return mixer_of(algorithm) is None and not type(algorithm).__module__.startswith("composer.")
