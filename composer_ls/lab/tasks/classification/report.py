"""The metrics and curves of classification."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

from torch import Tensor

from composer_ls.diagnostics.calibration import (
    accuracy,
    brier_score,
    cross_fit_temperature,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)
from composer_ls.diagnostics.selective import aurc, log_odds
from composer_ls.lab.tasks.metric import Metric, Predictions
from composer_ls.lab.tasks.task_report import Curve, TaskReport

__all__ = ["METRICS", "REPORT"]


def _of_logits(function: Callable[[Tensor, Tensor], float]) -> Callable[[Predictions], float]:
    return lambda predictions: function(predictions["logits"], predictions["labels"])


def _aurc(logits: Tensor, labels: Tensor) -> float:
    return aurc(log_odds(logits), logits.argmax(1) == labels)


def _scaled_calibration_error(logits: Tensor, labels: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a temperature at its bound, which scales all the same
        return expected_calibration_error(cross_fit_temperature(logits, labels).logits, labels)


def _mean_temperature(predictions: Predictions) -> float | None:
    """The geometric mean of the two temperatures of a cross-fit; ``None`` if every example is right, so that none is best."""
    with warnings.catch_warnings(record=True) as at_a_bound:
        warnings.simplefilter("always")
        odd, even = cross_fit_temperature(predictions["logits"], predictions["labels"]).temperatures
    return None if at_a_bound else math.sqrt(odd * even)


def _has_learnt(predictions: Predictions) -> bool:
    """Whether it is right more often than an answer that is always the largest class."""
    labels = predictions["labels"]
    return accuracy(predictions["logits"], labels) > int(labels.bincount().max()) / len(labels)


METRICS = (
    Metric(
        key="accuracy",
        name="accuracy",
        meaning="The fraction of examples whose most probable class is the label.",
        higher_is_better=True,
        worth=0.1,
        unit="points",
        scale=100,
        digits=2,
        highest=1,
        compute=_of_logits(accuracy),
        result_unit="fraction",
    ),
    Metric(
        key="nll",
        name="NLL",
        meaning="Mean negative log probability of the label.",
        higher_is_better=False,
        worth=0.01,
        unit="nats",
        compute=_of_logits(negative_log_likelihood),
        result_unit="nats",
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
    Metric(
        key="ece",
        name="ECE",
        meaning="Expected calibration error: the mean distance between confidence and accuracy over 15 bins of confidence.",
        higher_is_better=False,
        worth=0.005,
        highest=1,
        compute=_of_logits(expected_calibration_error),
        result_unit="fraction, 15 bins",
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
        Curve("metrics/{part}/CrossEntropy", "{part} NLL", "nats"),
        Curve("metrics/{part}/MulticlassAccuracy", "{part} accuracy"),
    ),
    bins=lambda predictions: reliability_bins(predictions["logits"], predictions["labels"]),
    temperature=_mean_temperature,
    labels=lambda predictions: predictions["labels"],
    has_learnt=_has_learnt,
)
