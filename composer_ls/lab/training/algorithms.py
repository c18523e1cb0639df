"""Builds Composer algorithms from the `algorithms` mapping of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import composer.algorithms
from composer.core import Algorithm
from torch import Tensor

from composer_ls.algorithm import LabelSmoothing
from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.algorithm_arguments import check_algorithms
from composer_ls.lab.training.teacher import DistillationFromRun
from composer_ls.max_sup import MaxSup
from composer_ls.online_label_smoothing import OnlineLabelSmoothing
from composer_ls.smoothing import as_prior

__all__ = ["algorithms_by_name", "build_algorithms"]


# A recipe's label_smoothing may also have ``implementation: composer``, for Composer's algorithm of that name.
OURS: dict[str, type[Algorithm]] = {
    "distillation": DistillationFromRun,
    "label_smoothing": LabelSmoothing,
    "max_sup": MaxSup,
    "online_label_smoothing": OnlineLabelSmoothing,
}

SMOOTHERS: dict[str, type[Algorithm]] = {
    "composer_ls": LabelSmoothing,
    "composer": composer.algorithms.LabelSmoothing,  # stays at its position in the recipe
}


def algorithms_by_name() -> dict[str, type[Algorithm]]:
    """Every algorithm that a recipe can name: Composer's, under the names of their modules, and our own."""
    classes = [cls for cls in vars(composer.algorithms).values() if inspect.isclass(cls) and issubclass(cls, Algorithm)]
    return {cls.__module__.split(".")[2]: cls for cls in classes} | OURS


def build_algorithms(
    mapping: Mapping[str, Mapping[str, Any] | None],
    num_classes: int | None = None,
    label_counts: Callable[[], Tensor] | None = None,
) -> list[Algorithm]:
    """One algorithm per entry, in order. An entry whose value is ``None`` is switched off.

    Args:
        mapping: Arguments by the algorithm's name.
        num_classes: K, if known, to check a prior.
        label_counts: Returns the number of training labels of each class, ``(K,)``, for ``prior: unigram``.

    Raises:
        RecipeError: A name or an argument is unknown (the message lists what is allowed), or an algorithm refuses a
            value.

    Example:
        >>> from composer_ls.lab.training.algorithms import build_algorithms
        >>> [type(algorithm).__name__ for algorithm in build_algorithms({"mixup": {"alpha": 0.2}, "cutmix": None})]
        ['MixUp']

    """
    check_algorithms(mapping)
    known = algorithms_by_name()
    built = []
    for name, arguments in mapping.items():
        if arguments is None:
            continue
        cls = known[name]
        if name == "label_smoothing" and "implementation" in arguments:
            cls = SMOOTHERS[arguments["implementation"]]
            arguments = {key: value for key, value in arguments.items() if key != "implementation"}
        try:
            if name == "label_smoothing" and "prior" in arguments:
                prior = _named_prior(arguments["prior"], label_counts)
                as_prior(prior, num_classes)
                arguments = {**arguments, "prior": prior}
            built.append(cls(**arguments))
        except (TypeError, ValueError, AssertionError) as error:
            raise RecipeError(f"algorithms.{name}: {error}") from error
    return built


def _named_prior(prior: Any, label_counts: Callable[[], Tensor] | None) -> Any:
    """The prior for numbers, or for a name: ``uniform``, or ``unigram`` for the frequencies of the training labels."""
    if not isinstance(prior, str):
        return prior
    if prior not in {"uniform", "unigram"}:
        raise ValueError(
            f"prior is {prior!r}, but must be uniform, unigram (the frequencies of the training labels) or a row"
        )
    if prior == "uniform" or label_counts is None:
        return None
    counts = label_counts().double()
    return (counts / counts.sum()).float()
