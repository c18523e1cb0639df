"""The page that compares what smoothing did in a few runs: projections, reliability, mutual information and risk."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from composer_ls.diagnostics.calibration import (
    accuracy,
    expected_calibration_error,
    reliability_bins,
)
from composer_ls.diagnostics.checks import check_logits
from composer_ls.diagnostics.geometry import class_means, project, relative_spread, template_plane
from composer_ls.diagnostics.normalisation import normalised_confidence
from composer_ls.diagnostics.selective import aurc, log_odds, risk_coverage
from composer_ls.diagnostics.summary import summarise
from composer_ls.lab.compare.setup import cautions, name_of_setup, setup_in_words
from composer_ls.lab.report.calibration_words import calibration_in_words
from composer_ls.lab.report.diagnosed_runs import Diagnosed, read_all
from composer_ls.lab.report.page import (
    BASELINE,
    FEW,
    MUTED,
    Look,
    Panel,
    axis_of_counts,
    legend_below,
    look,
    render,
    svg,
    write,
)
from composer_ls.lab.tasks.classification.report import METRICS, cross_fitted
from composer_ls.lab.tasks.classification.schema import Diagnostics

__all__ = ["diagnose", "html"]

SHOWN = 100
"""The number of examples per class in a projection, as in Müller et al., 2019."""
SPLITS = {"train": "training", "test": "test"}

Drawn = tuple[Markup, str]
Score = Callable[[Tensor], Tensor]


def diagnose(folders: Sequence[Path], page: Path, classes: Sequence[int] | None = None) -> list[Diagnosed]:
    """Read run folders and write their page.

    Args:
        folders: Of finished runs on the same classes.
        page: Where to write it.
        classes: The three that are projected, or two. ``None``: those of each run's recipe.

    Raises:
        InputError: A folder holds no finished run, the runs are of different classes, or the page cannot be written.

    """
    runs = read_all(folders)
    write(page, html(runs, classes))
    return runs


def html(runs: Sequence[Diagnosed], classes: Sequence[int] | None = None) -> str:
    """The HTML of the page. A figure that cannot be drawn is replaced by the reason."""
    kinds = {name_of_setup(run.recipe) for run in runs}
    looks = _looks(runs)
    return render(
        "diagnose.html",
        title="What smoothing did" + (f": {kinds.pop()}" if len(kinds) == 1 else ""),
        setups=list(dict.fromkeys(setup_in_words(run.recipe, run.result) for run in runs)),
        cautions=cautions([run.result for run in runs]),
        conclusions=_conclusions(runs),
        explained={metric.name: metric.meaning for metric in METRICS if metric.key in {"ece", "ece_scaled"}},
        runs=runs,
        headings=list(_COLUMNS),
        rows=[(run.name, [_cell(run, name) for name in _COLUMNS]) for run in runs],
        projections={
            words: [_panel(run.name, partial(_projection, run, split, classes)) for run in runs]
            for split, words in SPLITS.items()
        },
        reliability=[_panel(run.name, partial(_reliability, run)) for run in runs],
        information=_panel("Mutual information", partial(_information, runs, looks)),
        selective=[
            _panel("Ranked by probability", partial(_risks, runs, looks, log_odds)),
            _panel("Ranked by normalised logits", partial(_risks, runs, looks, normalised_confidence)),
        ],
        shown=SHOWN,
        few=FEW,
    )


def _conclusions(runs: Sequence[Diagnosed]) -> list[str]:
    """What the numbers say of each run, against the first without smoothing where there is one."""
    hard = next((run for run in runs if not run.recipe.smoothing), None)
    found = []
    for run in runs:
        try:
            bins = reliability_bins(run.logits, run.labels)
            words = calibration_in_words(bins, "test images", whose=f"The network with {run.name}")
            found.append(words + (_against(run, hard) if hard is not None and run is not hard else ""))
        except ValueError as error:
            found.append(f"Nothing can be said of {run.name}: {error}.")
    return found


def _against(run: Diagnosed, hard: Diagnosed) -> str:
    """How a run differs from one without smoothing, in a sentence."""
    points = 100 * (accuracy(run.logits, run.labels) - accuracy(hard.logits, hard.labels))
    words = f" Against {hard.name}, its accuracy is {points:+.2f} points"
    try:
        mine, other = (_of_summary("train", "nc1", one) for one in (run, hard))
    except (ValueError, KeyError):  # no features
        return words + "."
    kind = "tighter" if mine < other else "broader"
    return f"{words}, and the clusters of its training images are {kind} (NC1 {mine:.4f} instead of {other:.4f})."


def _looks(runs: Sequence[Diagnosed]) -> list[Look]:
    """The look of each run: that of the baseline for the first run without smoothing, different ones for the others."""
    hard = next((index for index, run in enumerate(runs) if not run.recipe.smoothing), None)
    others = [index for index in range(len(runs)) if index != hard]
    return [BASELINE if index == hard else look(others.index(index)) for index in range(len(runs))]


def _panel(title: str, make: Callable[[], Drawn]) -> Panel:
    try:
        return Panel(title, *make())
    except ValueError as error:  # raised by every diagnostic that cannot be computed
        return Panel(title, None, f"Left out: {error}.")


def _projection(run: Diagnosed, split: str, classes: Sequence[int] | None) -> Drawn:
    """Examples of some classes in the plane of their templates, with the same axes for both splits of a run."""
    chosen = list(classes or (run.diagnostics or Diagnostics()).classes_of(len(run.head[0])))
    taken = run.taken("train")
    of_chosen = torch.isin(taken.labels, torch.tensor(chosen))
    plane = template_plane(*run.head, chosen, taken.features[of_chosen] if len(chosen) == 2 else None)

    def points_of(part: str) -> list[Tensor]:
        taken = run.taken(part)
        return [project(taken.features[taken.labels == label][:SHOWN], plane) for label in chosen]

    points = points_of(split)
    extent = 1.08 * max(float(some.abs().max()) for part in SPLITS for some in points_of(part) if len(some))
    joined, labels = (
        torch.cat(points),
        torch.arange(len(points)).repeat_interleave(torch.tensor([len(some) for some in points])),
    )
    spread, means = relative_spread(joined, labels), class_means(joined, labels)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.fill(*means.T.numpy(), facecolor="none", edgecolor=MUTED, linewidth=1)
        for index, some in enumerate(points):
            style = look(index)
            axes.plot(
                *some.T.numpy(), style.marker, color=style.color, markersize=3.5, markeredgewidth=0, alpha=0.6,
                label=run.class_name(chosen[index]),
            )  # fmt: skip
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=1.8)

    caption = f"spread within a class over the distance between classes: {spread:.3f}"
    return svg(draw, f"projection of {SPLITS[split]} examples, {run.name}", height=350), caption


def _reliability(run: Diagnosed) -> Drawn:
    """Accuracy against confidence, before and after temperature scaling."""
    scaled_error, scaled, temperatures = _scaled(run)
    before, after = (reliability_bins(logits, run.labels) for logits in (run.logits, scaled))
    errors = expected_calibration_error(run.logits, run.labels), scaled_error

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=MUTED, linewidth=1)
        edges = torch.linspace(0, 1, len(before.counts) + 1)[:-1]
        for index, (bins, name) in enumerate(((before, "as it is"), (after, "scaled"))):
            style, many = look(index), bins.counts >= FEW
            above.plot(
                bins.confidence[many].numpy(), bins.accuracy[many].numpy(), color=style.color, marker=style.marker,
                linestyle=style.linestyle, label=name,
            )  # fmt: skip
            above.plot(
                bins.confidence[~many].numpy(), bins.accuracy[~many].numpy(), style.marker, color=style.color,
                markerfacecolor="none", markersize=4,
            )  # fmt: skip
            left = edges + (0.04 + 0.46 * index) / len(edges)
            below.bar(left.numpy(), bins.counts.numpy(), width=0.46 / len(edges), align="edge", color=style.color)
        above.set(ylim=(-0.03, 1.03), ylabel="accuracy")
        above.legend(loc="lower right")
        axis_of_counts(below, float(before.counts.max().maximum(after.counts.max())), "examples")

    temperature = math.sqrt(temperatures[0] * temperatures[1])
    caption = f"ECE {errors[0]:.4f}, scaled by temperature {temperature:.3g}: {errors[1]:.4f}"
    return svg(draw, f"reliability, {run.name}", height=300), caption


def _information(runs: Sequence[Diagnosed], looks: Sequence[Look]) -> Drawn:
    recorded = [(run, style) for run, style in zip(runs, looks, strict=True) if "mutual_information" in run.features]
    if not recorded:
        raise ValueError(
            "no run recorded mutual information; to record it, train with diagnostics.mutual_information={}"
        )

    pairs = [_informed_classes(run) for run, _ in recorded]
    same = len(set(pairs)) == 1

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(math.log(2), color=MUTED, linewidth=1)
        axes.annotate("log 2", (1, math.log(2)), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        for (run, style), pair in zip(recorded, pairs, strict=True):
            steps, nats = run.features["mutual_information"].T.numpy()
            name = _wrapped(run.name if same else f"{run.name}, {pair}")
            axes.plot(steps, nats, color=style.color, marker=style.marker, linestyle=style.linestyle, label=name)
        axes.set(xlabel="step", ylabel="nats", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend_below(figure, axes)

    others = [run.name for run in runs if "mutual_information" not in run.features]
    missing = f"; not recorded: {', '.join(others)}" if others else ""
    between = f" of {pairs[0]}" if same and pairs[0] else ""
    caption = f"between the index of a training image{between} and the difference of their logits{missing}"
    return svg(
        draw, "mutual information over training", height=250 + _legend_height(run.name for run, _ in recorded)
    ), caption


def _informed_classes(run: Diagnosed) -> str:
    """The two classes of a run's mutual information, in words; "" if they are not known."""
    settings = run.diagnostics
    pair = settings.mutual_information.classes if settings and settings.mutual_information else []
    return " and ".join(map(run.class_name, pair))


def _risks(runs: Sequence[Diagnosed], looks: Sequence[Look], score: Score) -> Drawn:
    curves = []
    for run in runs:
        check_logits(run.logits, run.labels)
        right = run.logits.argmax(1) == run.labels
        curves.append((risk_coverage(score(run.logits), right), aurc(score(run.logits), right)))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for run, style, (curve, area) in zip(runs, looks, curves, strict=True):
            axes.plot(
                curve.coverage.numpy(), curve.risk.numpy(), color=style.color, linestyle=style.linestyle,
                label=_wrapped(f"{run.name}: {area:.2g}"),
            )  # fmt: skip
        axes.set(
            xlabel="part of the test examples that is answered", ylabel="wrong answers", xlim=(0, 1), ylim=(0, None)
        )
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        legend_below(figure, axes)

    return svg(
        draw, "risk against coverage", height=250 + _legend_height(run.name + ": 0.000" for run in runs)
    ), "with the area under each curve"


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 46)


def _legend_height(names: Iterable[str]) -> int:
    return 17 * sum(_wrapped(name).count("\n") + 1 for name in names)


def _scaled(run: Diagnosed) -> tuple[float, Tensor, tuple[float, float]]:
    """The ECE after temperature scaling, the scaled logits, and the temperatures of the two halves."""
    (scaled, temperatures), _ = cross_fitted(run.logits, run.labels)
    return expected_calibration_error(scaled, run.labels), scaled, temperatures


def _of_summary(split: str, key: str, run: Diagnosed) -> float:
    numbers, _ = summarise(run.taken(split), *run.head)
    return numbers[key]


def _of_predictions(compute: Callable[[Tensor, Tensor], float], run: Diagnosed) -> float:
    check_logits(run.logits, run.labels)
    return compute(run.logits, run.labels)


_COLUMNS: dict[str, Callable[[Diagnosed], float]] = {
    "accuracy (%)": lambda run: 100 * _of_predictions(accuracy, run),
    "ECE": partial(_of_predictions, expected_calibration_error),
    "ECE, scaled": lambda run: _scaled(run)[0],
    "NC1, training": partial(_of_summary, "train", "nc1"),
    "NC1, test": partial(_of_summary, "test", "nc1"),
    "simplex deviation": partial(_of_summary, "train", "simplex_deviation"),
    "equivalent smoothing": partial(_of_summary, "train", "equivalent_smoothing"),
}


def _cell(run: Diagnosed, name: str) -> str:
    try:
        return f"{_COLUMNS[name](run):.{2 if name.endswith('(%)') else 4}f}"
    except (ValueError, KeyError):  # the figures say why
        return "–"
