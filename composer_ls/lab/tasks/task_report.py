"""How runs of each task are judged and drawn: their metrics, reliability and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from composer_ls.diagnostics.calibration import (
    ReliabilityBins,
    accuracy,
    brier_score,
    cross_fit_temperature,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)
from composer_ls.diagnostics.pixels import (
    PixelCounts,
    mean_iou,
    pixel_accuracy,
    pixel_bins,
    pixel_calibration_error,
    pixel_nll,
)
from composer_ls.diagnostics.selective import aurc, log_odds
from composer_ls.diagnostics.tokens import TokenScores, token_accuracy, token_bins, token_calibration_error, token_nll
from composer_ls.errors import InputError
from composer_ls.lab.tasks.metric import Metric, Predictions

__all__ = ["CLASSIFICATION", "TASK_REPORTS", "Curve", "TaskReport"]


@dataclass(frozen=True)
class Curve:
    """A training curve. Where key and name hold ``{part}``, that is the part of the data that runs are judged on.

    Attributes:
        key: Of the lines of ``metrics.jsonl``, with ``{part}`` for the part of the data.
        name: For people.
        unit: Of its values, "nats" for losses and "" for fractions.
        logarithmic: Whether its axis is.

    """

    key: str
    name: str
    unit: str = ""
    logarithmic: bool = False

    @property
    def heading(self) -> str:
        """The name with the unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def of(self, part: str) -> Curve:
        """The curve of a part of the data."""
        return replace(self, key=self.key.format(part=part), name=self.name.format(part=part))


@dataclass(frozen=True)
class TaskReport:
    """What a report says of runs of one task.

    Attributes:
        counted: What predictions are of, in the plural.
        metrics: In the order in which they are shown.
        curves: Likewise.
        bins: The reliability diagram.
        temperature: The one that suits the examples best; ``None`` where logits are not kept.

    """

    counted: str
    metrics: tuple[Metric, ...]
    curves: tuple[Curve, ...]
    bins: Callable[[Predictions], ReliabilityBins]
    temperature: Callable[[Predictions], float] | None = None

    def metric(self, key: str | None) -> Metric:
        """The metric of this key, by default the first.

        Raises:
            InputError: There is none.

        """
        by_key = {metric.key: metric for metric in self.metrics}
        if key is not None and key not in by_key:
            raise InputError(f"--for is {key!r}, but must be {', '.join(list(by_key)[:-1])} or {list(by_key)[-1]}")
        return self.metrics[0] if key is None else by_key[key]


def _of_logits(function: Callable[[Tensor, Tensor], float]) -> Callable[[Predictions], float]:
    return lambda predictions: function(predictions["logits"], predictions["labels"])


def _of_pixels(function: Callable[[PixelCounts], float]) -> Callable[[Predictions], float]:
    return lambda predictions: function(PixelCounts(**predictions))


def _of_tokens(function: Callable[[TokenScores], float]) -> Callable[[Predictions], float]:
    return lambda predictions: function(TokenScores(**predictions))


def _scaled_calibration_error(logits: Tensor, labels: Tensor) -> float:
    return expected_calibration_error(cross_fit_temperature(logits, labels).logits, labels)


def _aurc(logits: Tensor, labels: Tensor) -> float:
    return aurc(log_odds(logits), logits.argmax(1) == labels)


def _mean_temperature(predictions: Predictions) -> float:
    """The geometric mean of the two of a cross-fit."""
    odd, even = cross_fit_temperature(predictions["logits"], predictions["labels"]).temperatures
    return math.sqrt(odd * even)


def _accuracy(meaning: str, compute: Callable[[Predictions], float]) -> Metric:
    return Metric("accuracy", "accuracy", "points", meaning, 100, 2, 0.1, True, compute)


def _nll(meaning: str, compute: Callable[[Predictions], float]) -> Metric:
    return Metric("nll", "NLL", "nats", meaning, 1, 4, 0.01, False, compute)


def _ece(compute: Callable[[Predictions], float]) -> Metric:
    meaning = (
        "Expected calibration error: the mean distance between confidence and accuracy over 15 bins of confidence."
    )
    return Metric("ece", "ECE", "", meaning, 1, 4, 0.005, False, compute)


CLASSIFICATION = TaskReport(
    "examples",
    (
        _accuracy("The part of the examples whose most probable class is the label.", _of_logits(accuracy)),
        _nll("Mean negative log probability of the label.", _of_logits(negative_log_likelihood)),
        Metric(
            "brier", "Brier score", "",
            "Mean squared distance between the probabilities and the one-hot label, from 0 to 2.",
            1, 4, 0.005, False, _of_logits(brier_score),
        ),
        _ece(_of_logits(expected_calibration_error)),
        Metric(
            "ece_scaled", "ECE, scaled", "",
            "The same after temperature scaling. No example is scaled by a temperature that saw its label: the examples "
            "are dealt into two halves in turn, and each half gets the temperature with the least NLL on the other.",
            1, 4, 0.005, False, _of_logits(_scaled_calibration_error),
        ),
        Metric(
            "aurc", "AURC", "",
            "Area under the risk-coverage curve: the mean error rate when only the most confident part of the examples is "
            "answered, over all sizes of that part.",
            1, 5, 0.0005, False, _of_logits(_aurc),
        ),
    ),
    (
        Curve("metrics/train/CrossEntropy", "training loss", "nats", logarithmic=True),
        Curve("metrics/{part}/CrossEntropy", "{part} NLL", "nats"),
        Curve("metrics/{part}/MulticlassAccuracy", "{part} accuracy"),
    ),
    lambda predictions: reliability_bins(predictions["logits"], predictions["labels"]),
    _mean_temperature,
)  # fmt: skip

SEGMENTATION = TaskReport(
    "pixels",
    (
        Metric(
            "mean_iou", "mIoU", "points",
            "Intersection over union of each class in all test images together, mean over the classes that occur.",
            100, 2, 0.5, True, _of_pixels(mean_iou),
        ),
        _accuracy("The part of the test pixels whose most probable class is the label.", _of_pixels(pixel_accuracy)),
        _nll("Mean negative log probability of the pixels' labels.", _of_pixels(pixel_nll)),
        _ece(_of_pixels(pixel_calibration_error)),
    ),
    (Curve("metrics/{part}/MulticlassJaccardIndex", "{part} mIoU"),),
    lambda predictions: pixel_bins(PixelCounts(**predictions)),
)  # fmt: skip

TRANSLATION = TaskReport(
    "subwords",
    (
        Metric(
            "bleu", "BLEU", "", "BLEU of the first test set's translations by beam search, as the runs measured it.",
            1, 2, 0.5, True,
        ),
        _accuracy(
            "The part of the subwords of the test references that were the most probable, given those before.",
            _of_tokens(token_accuracy),
        ),
        _nll("Mean negative log probability of the subwords of the test references.", _of_tokens(token_nll)),
        _ece(_of_tokens(token_calibration_error)),
    ),
    (
        Curve("metrics/{part}/CrossEntropy", "{part} NLL", "nats", logarithmic=True),
        Curve("metrics/{part}/TokenAccuracy", "{part} accuracy of subwords"),
    ),
    lambda predictions: token_bins(TokenScores(**predictions)),
)  # fmt: skip

TASK_REPORTS: Mapping[str, TaskReport] = {
    "classification": CLASSIFICATION,
    "segmentation": SEGMENTATION,
    "translation": TRANSLATION,
}
"""By :attr:`~composer_ls.lab.recipe.recipe.Recipe.task`."""
