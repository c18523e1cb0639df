"""How runs of a task are judged and shown: their metrics, reliability and curves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from composer_ls.diagnostics.calibration import ReliabilityBins
from composer_ls.errors import InputError
from composer_ls.lab.tasks.metric import Metric, Predictions

__all__ = ["Curve", "TaskReport"]


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


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """How runs of one task are judged and shown.

    Attributes:
        counted: What predictions are of, in the plural.
        metrics: In the order in which they are shown; the first is the one that matters most.
        not_compared: Metrics that only ``result.json`` has.
        curves: Training curves, in the order in which they are shown.
        bins: The reliability diagram.
        temperature: The one that suits the examples best; ``None`` where logits are not kept.
        labels: What is known of the labels, example by example, ``(N, ...)``: runs are compared only if these are equal. ``None``:
            nothing is known.
        next_command: A command that makes use of a finished run, with ``{run}`` for its folder; ``None``: there is none.

    """

    counted: str
    metrics: tuple[Metric, ...]
    not_compared: tuple[Metric, ...] = ()
    curves: tuple[Curve, ...]
    bins: Callable[[Predictions], ReliabilityBins]
    temperature: Callable[[Predictions], float] | None = None
    labels: Callable[[Predictions], Tensor] | None = None
    next_command: str | None = None

    @property
    def in_result(self) -> tuple[Metric, ...]:
        """The metrics of ``result.json``."""
        return tuple(metric for metric in (*self.metrics, *self.not_compared) if metric.in_result)

    @property
    def units(self) -> dict[str, str]:
        """The unit of each metric of ``result.json``, by its key."""
        return {metric.key: metric.result_unit for metric in self.in_result}

    def measure(self, predictions: Predictions, **known: float) -> dict[str, float]:
        """The metrics of ``result.json`` by key, from predictions, but for those that are known."""
        return {
            metric.key: known[metric.key] if metric.compute is None else metric.compute(predictions)
            for metric in self.in_result
        }

    def metric(self, key: str | None) -> Metric:
        """The metric of this key, by default the first.

        Raises:
            InputError: There is none.

        """
        by_key = {metric.key: metric for metric in self.metrics}
        if key is not None and key not in by_key:
            raise InputError(f"--for is {key!r}, but must be {', '.join(list(by_key)[:-1])} or {list(by_key)[-1]}")
        return self.metrics[0] if key is None else by_key[key]
