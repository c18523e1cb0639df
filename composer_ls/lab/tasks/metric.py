"""The metrics of a report: how each is computed, displayed and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["ACCURACY", "ECE", "NLL", "STEP_TIME", "Metric", "Predictions"]

Predictions = Mapping[str, Tensor]
"""The contents of a run's ``predictions.safetensors``."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        key: Its name in files.
        name: Its display name.
        meaning: An explanation for the report.
        higher_is_better: Whether higher values are better.
        worth: The smallest difference of interest, in displayed units. Reports say how many seeds would show it.
        unit: The unit of a difference, "" if it has none.
        scale: The factor from values to displayed values.
        digits: The number of decimals displayed.
        highest: The upper bound of values (the lower bound is 0), before multiplication by ``scale``.
        compute: Computes it from the predictions. ``None``: it is measured by the run and read from ``result.json``.
        result_unit: The unit in ``result.json``, where values are not multiplied by ``scale``.
        in_result: Whether it is in ``result.json``. If not, it appears in comparisons only.

    """

    key: str
    name: str
    meaning: str
    higher_is_better: bool
    worth: float
    unit: str = ""
    scale: float = 1
    digits: int = 4
    highest: float = math.inf
    compute: Callable[[Predictions], float] | None = None
    result_unit: str = ""
    in_result: bool = True

    @property
    def heading(self) -> str:
        """The display name with the unit of its values."""
        unit = "%" if self.unit == "points" else self.unit
        return f"{self.name} ({unit})" if unit else self.name

    def shown(self, value: float, sign: bool = False) -> str:
        """A number in displayed units, as text."""
        text = f"{value:{'+' if sign else ''}.{self.digits}f}"
        return text.replace("-", "+" if sign else "") if float(text) == 0 else text


ACCURACY = Metric(
    key="accuracy",
    name="accuracy",
    meaning="The fraction of predictions whose most probable class is the label.",
    higher_is_better=True,
    worth=0.1,
    unit="points",
    scale=100,
    digits=2,
    highest=1,
    result_unit="fraction",
)
NLL = Metric(
    key="nll",
    name="NLL",
    meaning="Mean negative log probability of the label.",
    higher_is_better=False,
    worth=0.01,
    unit="nats",
    result_unit="nats",
)
ECE = Metric(
    key="ece",
    name="ECE",
    meaning="Expected calibration error: the mean distance between confidence and accuracy over 15 bins of confidence.",
    higher_is_better=False,
    worth=0.005,
    highest=1,
    result_unit="fraction, 15 bins",
)
"""What several tasks measure: each adds how it computes it, and its own words and unit where they differ."""

STEP_TIME = Metric(
    key="step_time",
    name="step",
    meaning="Time of a training step. It is longer if several runs share a machine, and no two measurements agree, so "
    "it gets no verdict and is not in summary.csv.",
    higher_is_better=False,
    worth=0.0,
    unit="ms",
    scale=1000,
    digits=2,
    in_result=False,
)
