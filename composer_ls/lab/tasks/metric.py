"""A metric of a report: how it is computed, shown and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["STEP_TIME", "Metric", "Predictions"]

Predictions = Mapping[str, Tensor]
"""What a run's ``predictions.safetensors`` holds."""


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
        compute: From the predictions; ``None``: it is what the run says in ``result.json``.

    """

    key: str
    name: str
    unit: str
    meaning: str
    scale: float
    digits: int
    worth: float
    higher_is_better: bool
    compute: Callable[[Predictions], float] | None = None

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
    "step_time", "step", "ms",
    "Time of a training step, which several runs at once on one machine make longer. It gets no verdict, and is not in "
    "summary.csv: no two measurements of it agree.",
    1000, 2, 0.0, False,
)  # fmt: skip
