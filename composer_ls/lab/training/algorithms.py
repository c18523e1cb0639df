"""From the `algorithms` mapping of a recipe to Composer algorithms."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import composer.algorithms
from composer.core import Algorithm
from torch import Tensor

from composer_ls.algorithm import LabelSmoothing
from composer_ls.errors import RecipeError
from composer_ls.lab.training.teacher import DistillationFromRun
from composer_ls.smoothing import as_prior

__all__ = ["algorithms_by_name", "build_algorithms"]


# A recipe's label_smoothing may also have ``implementation: composer``, for Composer's algorithm of that name.
OURS: dict[str, type[Algorithm]] = {"distillation": DistillationFromRun, "label_smoothing": LabelSmoothing}

# Where things are in a batch or an output, which is up to the caller of a library and fixed in a recipe.
BATCH_FORM = frozenset({"input_key", "target_key", "output_key"})


def algorithms_by_name() -> dict[str, type[Algorithm]]:
    """Every algorithm that a recipe can name: Composer's, by the names of their modules, and our own."""
    classes = [cls for cls in vars(composer.algorithms).values() if inspect.isclass(cls) and issubclass(cls, Algorithm)]
    return {cls.__module__.split(".")[2]: cls for cls in classes} | OURS


def build_algorithms(
    mapping: Mapping[str, Mapping[str, Any] | None],
    num_classes: int | None = None,
    label_counts: Callable[[], Tensor] | None = None,
) -> list[Algorithm]:
    """One algorithm an entry, in order. An entry whose value is ``None`` is switched off.

    Args:
        mapping: From names to arguments.
        num_classes: K, if it is known, so that a prior can be checked.
        label_counts: How often each class is a training label, ``(K,)``, for label smoothing's ``prior: unigram``.

    Raises:
        RecipeError: An unknown name or argument (what is allowed is named), or a value that the algorithm refuses.

    Example:
        >>> from composer_ls.lab.training.algorithms import build_algorithms
        >>> [type(algorithm).__name__ for algorithm in build_algorithms({"mixup": {"alpha": 0.2}, "cutmix": None})]
        ['MixUp']

    """
    known = algorithms_by_name()
    built = []
    for name, arguments in mapping.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise RecipeError(f"unknown key algorithms.{name}: {hint}allowed are {', '.join(sorted(known))}")
        if arguments is None:
            continue
        cls = known[name]
        if name == "label_smoothing" and "implementation" in arguments:
            cls = _implementation(arguments["implementation"])
            arguments = {key: value for key, value in arguments.items() if key != "implementation"}
        allowed = [key for key in inspect.signature(cls).parameters if key != "self"]
        for key in arguments:
            if key in BATCH_FORM and key in allowed:
                raise RecipeError(
                    f"algorithms.{name}.{key} cannot be set in a recipe, whose batches are always (images, labels) and "
                    f"whose outputs are logits: leave it out"
                )
            if key not in allowed:
                raise RecipeError(f"unknown key algorithms.{name}.{key}: allowed are {', '.join(allowed)}")
        try:
            if name == "label_smoothing" and "prior" in arguments:
                prior = _named_prior(arguments["prior"], label_counts)
                as_prior(prior, num_classes)
                arguments = {**arguments, "prior": prior}
            built.append(cls(**arguments))
        except (TypeError, ValueError, AssertionError) as error:
            raise RecipeError(f"algorithms.{name}: {error}") from error
    return built


def _implementation(name: Any) -> type[Algorithm]:
    """Our label smoothing, or Composer's own to compare it with, which stays where the recipe puts it."""
    smoothers: dict[Any, type[Algorithm]] = {
        "composer_ls": LabelSmoothing,
        "composer": composer.algorithms.LabelSmoothing,
    }
    if name not in smoothers:
        raise RecipeError(
            f"algorithms.label_smoothing.implementation is {name!r}, but must be {' or '.join(smoothers)}"
        )
    return smoothers[name]


def _named_prior(prior: Any, label_counts: Callable[[], Tensor] | None) -> Any:
    """A prior that is given as numbers, or by name: ``uniform``, or ``unigram`` for the training labels' frequencies."""
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
