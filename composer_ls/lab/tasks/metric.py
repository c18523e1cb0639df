"""A metric of a report: how it is computed, shown and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["STEP_TIME", "Metric", "Predictions"]

Predictions = Mapping[str, Tensor]
"""What a run's ``predictions.safetensors`` holds."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        key: Its name in files.
        name: Its name for people.
        meaning: What it is, for the page.
        higher_is_better: Which way is better.
        worth: The difference worth seeing, in shown units: how many seeds it would take is told.
        unit: What a difference is measured in, "" for a bare number.
        scale: What a value is multiplied by to be shown.
        digits: Decimals that are shown.
        highest: No value is above this, as none is below 0; not multiplied by ``scale``.
        compute: From the predictions; ``None``: a run measures it, and it is read from ``result.json``.
        result_unit: The unit in ``result.json``, where values are not multiplied by ``scale``.
        in_result: Whether ``result.json`` has it. What is not there is only in comparisons.

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
        """The name with the unit of the values."""
        unit = "%" if self.unit == "points" else self.unit
        return f"{self.name} ({unit})" if unit else self.name

    def shown(self, value: float, sign: bool = False) -> str:
        """A number in shown units."""
        text = f"{value:{'+' if sign else ''}.{self.digits}f}"
        return text.replace("-", "+" if sign else "") if float(text) == 0 else text


STEP_TIME = Metric(
    key="step_time",
    name="step",
    meaning="Time of a training step, which several runs at once on one machine make longer. It gets no verdict, and is not in "
    "summary.csv: no two measurements of it agree.",
    higher_is_better=False,
    worth=0.0,
    unit="ms",
    scale=1000,
    digits=2,
    in_result=False,
)
