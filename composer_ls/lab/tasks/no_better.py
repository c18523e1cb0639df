"""Telling that a network knows nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["largest_share", "no_better_than_nothing"]


def largest_share(counts: Tensor) -> float:
    """The accuracy of always answering the largest class, for at least one example in ``counts`` (K,)."""
    return int(counts.max()) / int(counts.sum())


def no_better_than_nothing(metrics: Mapping[str, float], counts: Tensor, classes: Sequence[str]) -> list[str]:
    """Say, in sentences, if a network is no better than one answer to everything, or than equal probabilities.

    Args:
        metrics: Its ``accuracy`` and ``nll``.
        counts: How many examples are of each class, ``(K,)``.
        classes: The names of the K classes.

    Example:
        >>> import torch
        >>> from composer_ls.lab.tasks.no_better import no_better_than_nothing
        >>> no_better_than_nothing({"accuracy": 0.5, "nll": 0.7}, torch.tensor([2, 1, 1]), ["cat", "dog", "owl"])
        ['Its accuracy of 50.0% is no better than that of always answering cat.']

    """
    found = []
    if int(counts.sum()) and metrics["accuracy"] <= largest_share(counts):
        always = classes[int(counts.argmax())]
        found.append(f"Its accuracy of {metrics['accuracy']:.1%} is no better than that of always answering {always}.")
    if math.isfinite(metrics["nll"]) and metrics["nll"] > math.log(len(classes)):
        found.append(
            f"Its NLL of {metrics['nll']:.2f} is worse than that of equal probabilities for all {len(classes)} classes, "
            f"{math.log(len(classes)):.2f}: the training diverged, or has hardly begun."
        )
    return found
