"""How runs of a task are evaluated and displayed: metrics, reliability diagram and training curves."""

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
    """A training curve. ``{part}`` in its key and name stands for the part of the data on which runs are evaluated.

    Attributes:
        key: The key of its values in ``metrics.jsonl``.
        name: The display name.
        unit: The unit of its values, "nats" for losses and "" for fractions.
        logarithmic: Whether to use a logarithmic axis.
        metric: The key of the report's metric that the curve shows, if it shows one.

    """

    key: str
    name: str
    unit: str = ""
    logarithmic: bool = False
    metric: str | None = None

    @property
    def heading(self) -> str:
        """The name with the unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def of(self, part: str) -> Curve:
        """The curve for one part of the data."""
        return replace(self, key=self.key.format(part=part), name=self.name.format(part=part))


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """How runs of one task are evaluated and displayed.

    Attributes:
        counted: The things that predictions are for, in the plural, such as "pixels".
        metrics: The metrics in display order, the most important one first.
        not_compared: Metrics that are in ``result.json`` only.
        curves: The training curves in display order.
        bins: Computes the bins of the reliability diagram.
        temperature: Computes the temperature that fits the examples best; ``None`` if logits are not kept.
        labels: What is known about the labels of each example, ``(N, ...)``. Runs are compared only if these are equal.
            ``None``: nothing is known.
        has_learnt: Whether predictions are better than always answering with the largest class; ``None`` if unknown.
        next_command: A command to suggest for a finished run, with ``{run}`` for its folder, or ``None``.

    """

    counted: str
    metrics: tuple[Metric, ...]
    not_compared: tuple[Metric, ...] = ()
    curves: tuple[Curve, ...]
    bins: Callable[[Predictions], ReliabilityBins]
    temperature: Callable[[Predictions], float | None] | None = None
    labels: Callable[[Predictions], Tensor] | None = None
    has_learnt: Callable[[Predictions], bool] | None = None
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
        """The metrics of ``result.json`` by key, computed from predictions or taken from ``known``."""
        return {
            metric.key: known[metric.key] if metric.compute is None else metric.compute(predictions)
            for metric in self.in_result
        }

    def metric(self, key: str | None) -> Metric:
        """The metric with this key; ``None`` gives the first metric.

        Raises:
            InputError: There is no such metric.

        """
        by_key = {metric.key: metric for metric in self.metrics}
        if key is not None and key not in by_key:
            raise InputError(f"--for is {key!r}, but must be {', '.join(list(by_key)[:-1])} or {list(by_key)[-1]}")
        return self.metrics[0] if key is None else by_key[key]
