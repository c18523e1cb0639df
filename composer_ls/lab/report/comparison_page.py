"""Writes ``summary.csv``, ``summary.json`` and ``report.html`` for a folder of runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from composer_ls.lab.compare.advice import RULE, advise
from composer_ls.lab.compare.comparison import FEWEST, Comparison, Difference, compare_runs, listed
from composer_ls.lab.compare.measured_runs import LeftOut, Run, read_runs
from composer_ls.lab.compare.settings import SMOOTHING, other_keys
from composer_ls.lab.compare.setup import cautions, count_of, failures, name_of_setup, setup_in_words
from composer_ls.lab.report.figures import confidence_panels, curve_panels, metric_panels, reliability_panels
from composer_ls.lab.report.page import FEW, render, write
from composer_ls.lab.tasks.metric import Metric

__all__ = ["COMMANDS", "FILES", "build_report", "html", "runs_of", "setups", "summary"]

FILES = ("summary.csv", "summary.json", "report.html")

COMMANDS = "commands.txt"
"""The file that lists a comparison's commands, one per line."""


def build_report(folder: Path, purpose: str | None = None) -> Comparison:
    """Read every run in a folder, write the ``FILES`` there, and return the comparison.

    Args:
        folder: A folder that contains run folders, at any depth.
        purpose: The key of the metric that the comparison is for. ``None``: the task's first metric.

    Raises:
        InputError: There are no finished runs, they are of several recipes or lack this metric, or the files cannot be
            written.

    """
    comparison = compare_runs(folder, *read_runs(folder), purpose)
    write(folder / "summary.csv", summary(comparison))
    write(folder / "summary.json", json.dumps(_advice(comparison), indent=2) + "\n")
    write(folder / "report.html", html(comparison))
    return comparison


def summary(comparison: Comparison) -> str:
    """The summary as CSV: one line per setting, smoothing, part and metric, in the metric's own units.

    Accuracy, for example, is a fraction. Values that differ between two runs of the same recipe, such as times, are not
    included. If runs are judged on a validation part, the lines for the test part have no outcome.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            "setting",
            "smoothing",
            "part",
            "metric",
            "better",
            "seeds",
            "mean",
            "low",
            "high",
            "paired_seeds",
            "difference",
            "difference_low",
            "difference_high",
            "corrected_p",
            "outcome",
        ]
    )
    for setting, smoothing, _ in comparison:
        for part in filter(None, (comparison, comparison.on_test)):
            for metric in comparison.task.metrics:
                writer.writerow(_row(part, setting, smoothing, metric, judged=part is comparison))
    return file.getvalue()


def _row(part: Comparison, setting: str, smoothing: float, metric: Metric, judged: bool) -> list[Any]:
    mean = part.mean(metric, setting, smoothing).scaled(1 / metric.scale)
    row: list[Any] = [setting, f"{smoothing:g}", part.part, metric.key]
    row += ["higher" if metric.higher_is_better else "lower", mean.size, *map(_number, mean[:3])]
    found = part.differences.get((setting, smoothing, metric.key))
    if found is None or found.interval is None:
        return [*row, "", "", "", "", "", found.outcome if found and judged else ""]
    interval = found.interval.scaled(1 / metric.scale)
    row += [interval.size, *map(_number, interval[:3])]
    return [*row, *((_number(found.corrected_p), found.outcome) if judged else ("", ""))]


def _advice(comparison: Comparison) -> dict[str, Any]:
    """The contents of ``summary.json``."""
    runs = runs_of(comparison)
    return {
        "recipe": runs[0].recipe.name,
        "task": runs[0].recipe.task,
        "setup": setups(runs),
        "warnings": cautions([run.result for run in runs]),
        "left_out": {_below(comparison.folder, one.folder): one.reason for one in comparison.left_out},
        "for": comparison.purpose.key,
        "part": comparison.part,
        "rule": RULE,
        "advice": [advise(comparison, setting).as_dict() for setting in comparison.runs],
    }


def runs_of(comparison: Comparison) -> list[Run]:
    """Every run, once: settings may share runs without smoothing."""
    return list({run.folder: run for _, _, by_seed in comparison for run in by_seed.values()}.values())


def setups(runs: Sequence[Run]) -> list[str]:
    """Sentences about what was trained on what, one per distinct setup."""
    return list(dict.fromkeys(setup_in_words(run.recipe, run.result) for run in runs))


def _number(value: float) -> str:
    return "" if value != value else f"{value:.8g}"


def html(comparison: Comparison) -> str:
    """The HTML of the report."""
    runs = runs_of(comparison)
    recipe = runs[0].recipe
    rows = list(_rows(comparison))
    return render(
        "report.html",
        title=f"Does label smoothing help? {name_of_setup(recipe)}",
        setups=setups(runs),
        recipe_yaml=recipe.to_yaml(),
        varied=[SMOOTHING, "seed", *other_keys([run.recipe for run in runs])],
        summary=_what_it_is(comparison, runs),
        cautions=cautions([run.result for run in runs]),
        failed=failures(
            [LeftOut(Path(_below(comparison.folder, one.folder)), one.reason) for one in comparison.left_out]
        ),
        advice=[advise(comparison, setting) for setting in comparison.runs],
        rule=RULE,
        purpose=comparison.purpose,
        part=comparison.part,
        judged_on=_judged_on(comparison, comparison.part, runs),
        tested_on=_judged_on(comparison, "test", runs),
        outcomes=_explained(comparison),
        several=len(comparison.runs) > 1,
        glance=len(comparison.differences) > len(comparison.task.metrics),
        verdicts=[
            {
                "heading": heading(comparison, setting),
                "warnings": comparison.warnings(setting),
                "verdicts": comparison.verdicts(setting),
                "nothing": nothing_to_compare(comparison, setting),
            }
            for setting in comparison.runs
        ],
        tests=comparison.tests,
        by_chance=f"{comparison.tests / 20:g}",
        columns=comparison.columns,
        rows=rows,
        test_rows=list(_rows(comparison.on_test, judged=False)) if comparison.on_test else [],
        metric_figures=metric_panels(comparison),
        reliability_figures=reliability_panels(comparison),
        confidence_figures=confidence_panels(comparison),
        losses=any(curve.unit == "nats" for curve in comparison.task.curves),
        curve_figures=curve_panels(comparison),
        counted=comparison.task.counted,
        few=FEW,
        fewest=FEWEST,
        left_out=[
            {"folder": _below(comparison.folder, one.folder), "reason": one.reason} for one in comparison.left_out
        ],
        machines=_machines(runs),
        commands=_commands(comparison.folder),
        run_commands=[run.result.get("command", "") for run in runs],
    )


def heading(comparison: Comparison, setting: str) -> str:
    """The heading of a setting's verdicts."""
    factors = [f"{smoothing:g}" for smoothing in comparison.runs[setting] if smoothing != 0]
    return f"Smoothing {listed(factors) or 0} against none" + (f", {setting}" if setting else "")


def nothing_to_compare(comparison: Comparison, setting: str) -> str:
    """The reason why a setting has no verdicts."""
    if 0.0 not in comparison.runs[setting]:
        return "There is nothing to compare with: no run without smoothing is finished. Add 0 to --smoothing."
    return "There is nothing to compare: no run with smoothing is finished."


def cell(comparison: Comparison, metric: Metric, setting: str, smoothing: float) -> tuple[str, str]:
    """A mean and its interval as text.

    The interval is half its width after ±, its two ends if it is clipped to possible values, or "" for too few seeds.
    """
    mean = comparison.mean(metric, setting, smoothing)
    if math.isnan(mean.low):
        return metric.shown(mean.mean), ""
    if mean.is_symmetrical:
        return metric.shown(mean.mean), f"± {metric.shown(mean.half)}"
    return metric.shown(mean.mean), f"[{metric.shown(mean.low)}, {metric.shown(mean.high)}]"


def _rows(comparison: Comparison, judged: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of the table of numbers, with outcomes if this is the judged part."""
    before = ""
    for setting, smoothing, runs in comparison:
        cells = []
        for metric in comparison.columns:
            mean, interval = cell(comparison, metric, setting, smoothing)
            found = comparison.differences.get((setting, smoothing, metric.key))
            outcome = found.outcome if found and judged else ""
            cells.append(
                {
                    "mean": f"{mean} {interval}".strip(),
                    "difference": _two_lines(found, judged) if found and found.interval else (),
                    "outcome": _WORDS.get(outcome, outcome),
                    "tone": {"helps": "good", "hurts": "bad"}.get(outcome, ""),
                }
            )
        yield {
            "heading": setting if setting != before else "",
            "smoothing": f"{smoothing:g}",
            "seeds": len(runs),
            "cells": cells,
        }
        before = setting


_WORDS = {"small": "no difference", "equal": "no difference", "few": "too few seeds", "constant": "no verdict"}
"""The table's words for some outcomes; others are shown as they are."""


def _explained(comparison: Comparison) -> list[tuple[str, str]]:
    """Explanations of the outcomes that occur in the table."""
    there = {one.outcome for one in comparison.differences.values()}
    worth = ", ".join(
        f"{metric.worth:g}{' ' if metric.unit else ''}{metric.unit} of {metric.name}"
        for metric in comparison.task.metrics
    )
    meanings = [
        (
            {"helps", "hurts"},
            "helps, hurts",
            "shown by the seeds, also after Holm's correction for the number of differences tested",
        ),
        (
            {"may help", "may hurt"},
            "may help, may hurt",
            "a hint: the 95 % interval excludes 0, but not after that correction",
        ),
        ({"small", "equal"}, "no difference", f"shown to be smaller than what is worth seeing ({worth})"),
        ({"unclear"}, "unclear", "the interval contains 0 and differences worth seeing: more seeds are needed"),
        ({"few"}, "too few seeds", f"a verdict needs at least {FEWEST} pairs"),
        ({"constant"}, "no verdict", "the same difference at every seed: no spread to judge by"),
        ({"no pair"}, "no pair", "no seed was run both with and without smoothing"),
    ]
    return [(words, meaning) for outcomes, words, meaning in meanings if outcomes & there]


def _judged_on(comparison: Comparison, part: str, runs: Sequence[Run]) -> str:
    """The number of examples of a part, such as ``360 test images``, as far as it is known."""
    sizes = {str(count_of(run.result, part)) for run in runs}
    known = sizes.pop() if len(sizes) == 1 else ""
    return known or f"{part} {comparison.task.counted}"


def _two_lines(difference: Difference, judged: bool) -> tuple[str, str]:
    """Two lines for a table cell: the difference with its outcome, and the interval."""
    number, bracket, interval = difference.numbers.replace(difference.metric.unit, "").partition("[")
    word = difference.outcome if judged and difference.outcome in {"helps", "hurts", "may help", "may hurt"} else ""
    return f"{number.strip()} {word}", bracket + interval


def _what_it_is(comparison: Comparison, runs: list[Run]) -> str:
    factors = sorted({smoothing for _, smoothing, _ in comparison})
    seeds = sorted({len(by_seed) for _, _, by_seed in comparison})
    number = f"{seeds[0]} seed{'' if seeds == [1] else 's'}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    settings = f", {len(comparison.runs)} settings" if len(comparison.runs) > 1 else ""
    last = max(str(run.result.get("finished", "")) for run in runs)[:10]
    factor_words = ", ".join(f"{factor:g}" for factor in factors)
    return f"{len(runs)} runs of the recipe {runs[0].recipe.name}: smoothing {factor_words}{settings}, {number} each; the last was finished on {last}."


def _machines(runs: list[Run]) -> list[str]:
    """Each combination of versions and hardware, with its number of runs."""
    lines: Counter[str] = Counter()
    for run in runs:
        hardware = dict(run.result.get("hardware", {}))
        where = [hardware.get("gpu") or f"{hardware.get('processor', '?')}, {hardware.get('cores', '?')} cores"]
        if hardware.get("processes", 1) != 1:
            where.append(f"{hardware['processes']} processes")
        versions = [f"{name} {version}" for name, version in run.result.get("versions", {}).items()]
        lines["; ".join([*where, ", ".join(versions)])] += 1
    return [f"{count} run{'' if count == 1 else 's'}: {line}" for line, count in lines.items()]


def _commands(folder: Path) -> list[str]:
    try:
        return (folder / COMMANDS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _below(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
