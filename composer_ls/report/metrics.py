"""The metrics of a report: how each is computed, shown and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from composer_ls.diagnostics.calibration import (
    accuracy,
    brier_score,
    cross_fit_temperature,
    expected_calibration_error,
    negative_log_likelihood,
)
from composer_ls.diagnostics.selective import aurc, log_odds

__all__ = ["METRICS", "STEP_TIME", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        key: Its name in files.
        name: Its name for people.
        unit: What a difference is measured in, "" for a bare number.
        meaning: What it is, for the page.
        scale: What a value is multiplied by to be shown.
        digits: Decimals that are shown.
        worth: The difference worth seeing, in shown units: how many seeds it would take is told.
        higher_is_better: Which way is better.
        compute: From logits ``(N, K)`` and labels ``(N,)``.

    """

    key: str
    name: str
    unit: str
    meaning: str
    scale: float
    digits: int
    worth: float
    higher_is_better: bool
    compute: Callable[[Tensor, Tensor], float]

    @property
    def heading(self) -> str:
        """The name with the unit of the values."""
        unit = "%" if self.unit == "points" else self.unit
        return f"{self.name} ({unit})" if unit else self.name

    def shown(self, value: float, sign: bool = False) -> str:
        """A number in shown units."""
        text = f"{value:{'+' if sign else ''}.{self.digits}f}"
        return text.replace("-", "+" if sign else "") if float(text) == 0 else text


def _scaled_calibration_error(logits: Tensor, labels: Tensor) -> float:
    return expected_calibration_error(cross_fit_temperature(logits, labels).logits, labels)


def _aurc(logits: Tensor, labels: Tensor) -> float:
    return aurc(log_odds(logits), logits.argmax(1) == labels)


METRICS = (
    Metric(
        "accuracy", "accuracy", "points", "The part of the test examples whose most probable class is the label.",
        100, 2, 0.1, True, accuracy,
    ),
    Metric(
        "nll", "NLL", "nats", "Mean negative log probability of the label.",
        1, 4, 0.01, False, negative_log_likelihood,
    ),
    Metric(
        "brier", "Brier score", "",
        "Mean squared distance between the probabilities and the one-hot label, from 0 to 2.",
        1, 4, 0.005, False, brier_score,
    ),
    Metric(
        "ece", "ECE", "",
        "Expected calibration error: the mean distance between confidence and accuracy over 15 bins of confidence.",
        1, 4, 0.005, False, expected_calibration_error,
    ),
    Metric(
        "ece_scaled", "ECE, scaled", "",
        "The same after temperature scaling. No example is scaled by a temperature that saw its label: the test examples are "
        "dealt into two halves in turn, and each half gets the temperature with the least NLL on the other.",
        1, 4, 0.005, False, _scaled_calibration_error,
    ),
    Metric(
        "aurc", "AURC", "",
        "Area under the risk-coverage curve: the mean error rate when only the most confident part of the examples is "
        "answered, over all sizes of that part.",
        1, 5, 0.0005, False, _aurc,
    ),
)  # fmt: skip

STEP_TIME = Metric(
    "step_time", "step", "ms",
    "Time of a training step, which several runs at once on one machine make longer. It gets no verdict, and is not in "
    "summary.csv: no two measurements of it agree.",
    1000, 2, 0.0, False, lambda *_: float("nan"),
)  # fmt: skip
