"""All diagnostics of one network on one set of examples, as far as they can be computed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from composer_ls.diagnostics.calibration import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
)
from composer_ls.diagnostics.checks import IGNORED, check_logits
from composer_ls.diagnostics.classwise import brier_decomposition, classwise_calibration_error
from composer_ls.diagnostics.geometry import (
    class_means,
    neural_collapse,
    relative_spread,
    simplex_deviation,
    template_distances,
)
from composer_ls.diagnostics.inspection import Penultimate
from composer_ls.diagnostics.normalisation import normalised_confidence
from composer_ls.diagnostics.selective import aurc, log_odds
from composer_ls.diagnostics.teaching import equivalent_smoothing
from composer_ls.errors import DiagnosticsError

__all__ = ["summarise"]


def summarise(
    taken: Penultimate, weight: Tensor | DiagnosticsError, bias: Tensor | None, ignore_index: int = IGNORED
) -> tuple[dict[str, float], dict[str, str]]:
    """All diagnostics that can be computed, and the reasons why others cannot.

    Args:
        taken: Features, logits and labels of some examples.
        weight: The last linear layer's weight ``(K, D)``, or the error that explains why it is not available.
        bias: Its bias ``(K,)``, or ``None``.
        ignore_index: The label of examples that do not count.

    Returns:
        Numbers by name, and reasons by name. The names are ``accuracy``, ``nll``, ``ece``, ``classwise_ece``,
        ``brier_reliability``, ``brier_resolution``, ``aurc``, ``normalised_aurc`` (of normalised logits),
        ``equivalent_smoothing``, ``relative_spread``, ``nc1``, ``simplex_deviation``, ``template_distance`` (from the
        own template, divided by that from the others) and ``template_unevenness``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.inspection import Penultimate
        >>> from composer_ls.diagnostics.summary import summarise
        >>> features, weight = torch.eye(3).repeat(2, 1), 5 * torch.eye(3)
        >>> one_class = Penultimate(features, features @ weight.T, torch.zeros(6).long())
        >>> numbers, reasons = summarise(one_class, weight, None)
        >>> round(numbers["accuracy"], 3), reasons["nc1"][:40]
        (0.333, 'NC1 needs examples of at least 2 classes')

    """
    features, logits, labels = taken
    recipes: dict[str, Callable[[], dict[str, float]]] = {
        "accuracy nll ece classwise_ece brier_reliability brier_resolution": lambda: _calibration(
            logits, labels, ignore_index
        ),
        "aurc": lambda: {"aurc": _aurc(log_odds, logits, labels, ignore_index)},
        "normalised_aurc": lambda: {"normalised_aurc": _aurc(normalised_confidence, logits, labels, ignore_index)},
        "equivalent_smoothing": lambda: {
            "equivalent_smoothing": equivalent_smoothing(logits, labels, ignore_index=ignore_index)
        },
        "relative_spread": lambda: {"relative_spread": relative_spread(features, labels, ignore_index)},
        "nc1": lambda: {"nc1": neural_collapse(features, labels, ignore_index)},
        "simplex_deviation": lambda: {
            "simplex_deviation": simplex_deviation(class_means(features, labels, ignore_index))
        },
        "template_distance template_unevenness": lambda: _templates(features, labels, weight, bias, ignore_index),
    }
    numbers: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for names, compute in recipes.items():
        try:
            numbers |= compute()
        except DiagnosticsError as error:
            reasons |= dict.fromkeys(names.split(), str(error))
    return numbers, reasons


def _calibration(logits: Tensor, labels: Tensor, ignore_index: int) -> dict[str, float]:
    logits, labels = check_logits(logits, labels, ignore_index)
    parts = brier_decomposition(logits, labels)
    return {
        "accuracy": accuracy(logits, labels),
        "nll": negative_log_likelihood(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "classwise_ece": classwise_calibration_error(logits, labels),
        "brier_reliability": parts.reliability,
        "brier_resolution": parts.resolution,
    }


def _aurc(score: Callable[[Tensor], Tensor], logits: Tensor, labels: Tensor, ignore_index: int) -> float:
    logits, labels = check_logits(logits, labels, ignore_index)
    return aurc(score(logits), logits.argmax(1) == labels)


def _templates(
    features: Tensor, labels: Tensor, weight: Tensor | DiagnosticsError, bias: Tensor | None, ignore_index: int
) -> dict[str, float]:
    if isinstance(weight, DiagnosticsError):
        raise weight
    distances = template_distances(features, labels, weight, bias, ignore_index)
    return {"template_distance": distances.own / distances.others, "template_unevenness": distances.unevenness}
