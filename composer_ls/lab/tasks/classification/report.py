"""The metrics and curves of classification."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from torch import Tensor

from composer_ls.diagnostics.calibration import (
    CrossFitted,
    accuracy,
    brier_score,
    cross_fit_temperature,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)
from composer_ls.diagnostics.selective import aurc, log_odds
from composer_ls.errors import DiagnosticsError
from composer_ls.lab.tasks.metric import ACCURACY, ECE, NLL, Metric, Predictions
from composer_ls.lab.tasks.no_better import largest_share
from composer_ls.lab.tasks.task_report import Curve, TaskReport

__all__ = ["METRICS", "REPORT", "best_temperature", "cross_fitted"]


def _of_logits(function: Callable[[Tensor, Tensor], float]) -> Callable[[Predictions], float]:
    return lambda predictions: function(predictions["logits"], predictions["labels"])


def _aurc(logits: Tensor, labels: Tensor) -> float:
    return aurc(log_odds(logits), logits.argmax(1) == labels)


@lru_cache(maxsize=1)  # of the same tensors, which a report asks for a metric and for the temperature
def cross_fitted(logits: Tensor, labels: Tensor) -> tuple[CrossFitted, bool]:
    """:func:`~composer_ls.diagnostics.cross_fit_temperature`, and whether a temperature is at its bound, in place of a warning."""
    with warnings.catch_warnings(record=True) as at_a_bound:
        warnings.simplefilter("always")
        fitted = cross_fit_temperature(logits, labels)
    return fitted, bool(at_a_bound)


def best_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature that fits best.

    ``None`` if the best is beyond all bounds, the network has diverged, or it masks a label's own class.
    """
    with warnings.catch_warnings(record=True) as beyond:
        warnings.simplefilter("always")
        try:
            fitted = fit_temperature(logits, labels)
        except DiagnosticsError:
            return None
    return None if beyond else fitted


def _scaled_calibration_error(logits: Tensor, labels: Tensor) -> float:
    return expected_calibration_error(cross_fitted(logits, labels)[0].logits, labels)


def _mean_temperature(predictions: Predictions) -> float | None:
    """The geometric mean of the two temperatures of a cross-fit; ``None`` if every example is right, so that none is best."""
    (_, (odd, even)), at_a_bound = cross_fitted(predictions["logits"], predictions["labels"])
    return None if at_a_bound else math.sqrt(odd * even)


def _has_learnt(predictions: Predictions) -> bool:
    """Whether it is right more often than an answer that is always the largest class."""
    labels = predictions["labels"]
    return accuracy(predictions["logits"], labels) > largest_share(labels.bincount())


METRICS = (
    replace(
        ACCURACY,
        meaning="The fraction of examples whose most probable class is the label.",
        compute=_of_logits(accuracy),
    ),
    replace(
        NLL,
        compute=_of_logits(negative_log_likelihood),
    ),
    Metric(
        key="brier",
        name="Brier score",
        meaning="Mean squared distance between the probabilities and the one-hot label, from 0 to 2.",
        higher_is_better=False,
        worth=0.005,
        highest=2,
        compute=_of_logits(brier_score),
        result_unit="0 to 2",
    ),
    replace(
        ECE,
        compute=_of_logits(expected_calibration_error),
    ),
    Metric(
        key="ece_scaled",
        name="ECE, scaled",
        meaning="The same after temperature scaling. No example is scaled by a temperature fitted to its own label: "
        "alternate examples form two halves, and each is scaled by the temperature with the lowest NLL on the other.",
        higher_is_better=False,
        worth=0.005,
        highest=1,
        compute=_of_logits(_scaled_calibration_error),
        in_result=False,
    ),
    Metric(
        key="aurc",
        name="AURC",
        meaning="Area under the risk-coverage curve: the error rate on the most confident part of the examples, "
        "averaged over all sizes of that part.",
        higher_is_better=False,
        worth=0.0005,
        digits=5,
        highest=1,
        compute=_of_logits(_aurc),
        in_result=False,
    ),
)

REPORT = TaskReport(
    counted="examples",
    metrics=METRICS,
    curves=(
        Curve("metrics/train/CrossEntropy", "training loss", "nats", logarithmic=True),
        Curve("metrics/{part}/CrossEntropy", "{part} NLL", "nats", metric="nll"),
        Curve("metrics/{part}/MulticlassAccuracy", "{part} accuracy", metric="accuracy"),
    ),
    bins=lambda predictions: reliability_bins(predictions["logits"], predictions["labels"]),
    temperature=_mean_temperature,
    labels=lambda predictions: predictions["labels"],
    has_learnt=_has_learnt,
)
