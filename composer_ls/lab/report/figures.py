"""The figures of a comparison's report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from composer_ls.lab.compare.comparison import Comparison
from composer_ls.lab.compare.measured_runs import Run
from composer_ls.lab.recipe.methods import METHODS
from composer_ls.lab.report.page import (
    BASELINE,
    FEW,
    MUTED,
    SERIES,
    Look,
    Panel,
    axis_of_counts,
    legend_below,
    look,
    svg,
)
from composer_ls.lab.tasks.metric import Metric
from composer_ls.lab.tasks.task_report import Curve

__all__ = ["confidence_panels", "curve_panels", "metric_panels", "reliability_panels"]

Array = NDArray[np.float64]
WIDTH, HEIGHT = 340, 240
FACTORS_A_ROW = 3  # in a legend


def metric_panels(comparison: Comparison) -> list[Panel]:
    """One panel per metric against smoothing, with one series per setting."""
    return [_metric_panel(comparison, metric) for metric in comparison.columns]


def _metric_panel(comparison: Comparison, metric: Metric) -> Panel:
    settings = list(comparison.runs)
    factors = sorted({smoothing for _, smoothing, _ in comparison})

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        step = 0.012 * (_place(max(factors)) - _place(min(factors)))
        for index, setting in enumerate(settings):
            style = look(index)
            shift = step * (index - (len(settings) - 1) / 2)
            mine = list(comparison.runs[setting])
            means = [comparison.mean(metric, setting, smoothing) for smoothing in mine]
            for smoothing, runs in comparison.runs[setting].items():
                values = [metric.scale * run.values[metric.key] for run in runs.values()]
                axes.plot(
                    [_place(smoothing) + shift] * len(values), values, ".", color=style.color, alpha=0.35, markersize=4
                )
            axes.errorbar(
                [_place(smoothing) + shift for smoothing in mine],
                [mean.mean for mean in means],
                yerr=np.nan_to_num([[m.mean - m.low for m in means], [m.high - m.mean for m in means]]),
                color=style.color,
                marker=style.marker,
                linestyle=style.linestyle,
                capsize=3,
                label=setting,
            )
        axes.set_xlabel("smoothing (square-root scale)")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        told = _far_apart(factors)
        axes.set_xticks([_place(factor) for factor in told], [f"{factor:g}" for factor in told])
        if len(settings) > 1:
            legend_below(figure, axes, columns=1 if max(map(len, settings)) > 18 else 2)

    rows = 0 if len(settings) == 1 else math.ceil(len(settings) / (1 if max(map(len, settings)) > 18 else 2))
    return Panel(
        metric.heading,
        svg(draw, f"{metric.name} against smoothing", width=WIDTH, height=HEIGHT + 17 * rows),
        "higher is better" if metric.higher_is_better else "lower is better",
    )


def _place(smoothing: float) -> float:
    """The position of a factor on the axis, on a square-root scale, because most factors are small."""
    return math.sqrt(smoothing)


def _far_apart(factors: Sequence[float]) -> list[float]:
    """The sorted factors whose labels have room on the axis."""
    gap = 0.09 * (_place(factors[-1]) - _place(factors[0]))
    told = [factors[-1]]
    for factor in reversed(factors[:-1]):
        if _place(told[-1]) - _place(factor) >= gap:
            told.append(factor)
    return told[::-1]


def reliability_panels(comparison: Comparison) -> list[Panel]:
    """One reliability diagram with counts per setting and smoothing, pooled over seeds."""
    panels = []
    for setting, smoothing, runs in comparison:
        title = f"smoothing {smoothing:g}" + (f", {setting}" if setting else "")
        draw = partial(_reliability, runs=runs.values(), counted=comparison.task.counted)
        told = [
            f"{metric.name} {comparison.mean(metric, setting, smoothing).mean:.4f}"
            for metric in comparison.columns
            if metric.key == "ece"  # not every task measures it
        ]
        temperatures = [run.temperature for run in runs.values() if run.temperature is not None]
        if temperatures:
            told.append(f"best temperature {math.exp(np.mean(np.log(temperatures))):.3g}")
        caption = "; ".join(told)
        panels.append(Panel(title, svg(draw, f"reliability diagram, {title}", height=290), caption))
    return panels


def _reliability(figure: Figure, runs: Iterable[Run], counted: str) -> None:
    counts, confidence, right = _pooled(runs)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = confidence / counts, right / counts
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=MUTED, linewidth=1)
    many = counts >= FEW
    above.plot(confidence[many], accuracy[many], color=SERIES[0], linewidth=1.2, zorder=2)
    for chosen, face in ((many, SERIES[0]), ((counts > 0) & ~many, "none")):
        above.plot(
            confidence[chosen], accuracy[chosen], "o", color=SERIES[0], markerfacecolor=face, markersize=5.5, zorder=3
        )
    above.vlines(confidence, confidence, accuracy, color=SERIES[1], linewidth=2.2, zorder=1)
    above.set(ylim=(-0.03, 1.03), ylabel="accuracy")
    edges = np.linspace(0, 1, len(counts) + 1)
    below.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color=SERIES[0])
    axis_of_counts(below, counts.max(), counted)


def _pooled(runs: Iterable[Run]) -> tuple[Array, Array, Array]:
    """For each bin, pooled over runs: the number of examples, their summed confidence, and how many are right."""
    counts, confidence, right = (np.zeros(1) for _ in range(3))
    for run in runs:
        count = run.bins.counts.numpy()
        counts = counts + count
        confidence = confidence + np.nan_to_num(run.bins.confidence.numpy()) * count
        right = right + np.nan_to_num(run.bins.accuracy.numpy()) * count
    return counts, confidence, right


def confidence_panels(comparison: Comparison) -> list[Panel]:
    """Histograms of the confidence of right and wrong answers: two panels per setting, one line per smoothing."""
    panels = []
    for setting, factors in comparison.runs.items():
        pooled = {smoothing: _pooled(runs.values()) for smoothing, runs in factors.items()}
        for answers in ("right", "wrong"):

            def draw(figure: Figure, pooled: Mapping[float, tuple[Array, ...]] = pooled, kind: str = answers) -> None:
                axes = figure.subplots()
                for smoothing, style in _looks(pooled).items():
                    counts, _, right = pooled[smoothing]
                    number = right if kind == "right" else counts - right
                    edges = np.linspace(0, 1, len(counts) + 1)
                    axes.stairs(
                        number / max(number.sum(), 1), edges, color=style.color, linestyle=style.linestyle,
                        linewidth=1.8, label=f"{smoothing:g}",
                    )  # fmt: skip
                axes.set(xlim=(0, 1.02), xlabel="confidence", ylim=(0, None))
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
                legend_below(figure, axes, columns=FACTORS_A_ROW, title="smoothing")

            title = f"confidence of {answers} answers" + (f", {setting}" if setting else "")
            picture = svg(draw, title, width=WIDTH, height=_height(len(factors)))
            panels.append(Panel(title, picture, f"part of the {answers} answers in each bin"))
    return panels


def curve_panels(comparison: Comparison) -> list[Panel]:
    """Training curves with one line per smoothing: mean and range over seeds. Losses are against the hard labels.

    With a schedule, the factor in use is drawn too.
    """
    panels = []
    for setting, factors in comparison.runs.items():
        own = [curve.of(comparison.part) for curve in comparison.task.curves]
        for curve in [*own, *_varying(run for runs in factors.values() for run in runs.values())]:
            title = curve.heading + (f", {setting}" if setting else "")
            curves = {smoothing: _curve(runs.values(), curve.key) for smoothing, runs in factors.items()}
            curves = {smoothing: points for smoothing, points in curves.items() if points}
            if not curves:
                panels.append(Panel(title, None, f"no run's metrics.jsonl has {curve.key} for a complete epoch"))
                continue

            def draw(
                figure: Figure,
                curves: Mapping[float, Mapping[float, Sequence[float]]] = curves,
                log: bool = curve.logarithmic,
            ) -> None:
                axes = figure.subplots()
                for smoothing, style in _looks(curves).items():
                    _draw_curve(axes, curves[smoothing], style, f"{smoothing:g}")
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
                if log:
                    axes.set_yscale("log")
                    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
                    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                    axes.minorticks_off()
                legend_below(figure, axes, columns=FACTORS_A_ROW, title="smoothing")

            picture = svg(draw, title, width=WIDTH, height=_height(len(curves)))
            panels.append(Panel(title, picture, "mean over seeds, and their range"))
    return panels


def _varying(runs: Iterable[Run]) -> list[Curve]:
    """The curves of factors that change during training."""
    keys = {f"{method}/{argument}": argument for method, (argument, _) in METHODS.items()}
    values: dict[str, set[float]] = defaultdict(set)
    for run in runs:
        for key in keys:
            values[key] |= {line[key] for line in run.lines if key in line}
    return [Curve(key, f"{argument} in use") for key, argument in keys.items() if len(values[key]) > 1]


def _curve(runs: Iterable[Run], key: str) -> dict[float, list[float]]:
    """The values of all runs at each epoch for which any run has one."""
    points: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        whole = next((line for line in run.lines if line.get("epoch")), None)
        if whole is None:
            continue
        batches = whole["batch"] / whole["epoch"]
        for line in run.lines:
            if math.isfinite(line.get(key, math.nan)):
                points[round(line["batch"] / batches, 2)].append(line[key])
    return dict(sorted(points.items()))


def _draw_curve(axes: Axes, curve: Mapping[float, Sequence[float]], style: Look, label: str) -> None:
    every = max(1, len(curve) // 200)
    epochs = list(curve)[::-1][::every][::-1]  # includes the last
    values = [curve[epoch] for epoch in epochs]
    axes.plot(
        epochs, [np.mean(some) for some in values], color=style.color, marker=style.marker, linestyle=style.linestyle,
        markevery=max(1, len(epochs) // 6), markersize=4.5, label=label,
    )  # fmt: skip
    axes.fill_between(
        epochs, list(map(min, values)), list(map(max, values)), color=style.color, alpha=0.15, linewidth=0
    )


def _looks(factors: Iterable[float]) -> dict[float, Look]:
    """The look of each smoothing factor. No smoothing is the baseline."""
    smoothed = [smoothing for smoothing in factors if smoothing != 0]
    return {smoothing: BASELINE if smoothing == 0 else look(smoothed.index(smoothing)) for smoothing in factors}


def _height(factors: int) -> int:
    """The height of a panel with a legend of factors below it."""
    return HEIGHT + 18 * (1 + math.ceil(factors / FACTORS_A_ROW))
