"""Table 3 and figure 2 of Müller et al. (2019): smoothing calibrates, about as temperature scaling does.

    python examples/paper/table3_calibration.py --quick
    python examples/paper/table3_calibration.py data.download=true
    python examples/paper/table3_calibration.py --runs DIR     # of cifar10-resnet20-small-data, by composer-ls compare

Temperatures are fitted on the validation part where runs have one, else on one half of the test set and used on the other. The
row of translation is taken from the numbers of figure 4, where temperatures are fitted on the split val: give their file with
--translation FILE.
"""

import json
import math
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from support import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, brief, finished_runs, mean, options, run_all, save, shown

from composer_ls.diagnostics.calibration import (
    cross_fit_temperature,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from composer_ls.lab.report.page import FEW


def main():
    """Train, scale, measure, draw."""
    words = "the JSON that figure4_beam_search.py wrote, for the row of translation"
    opts = options(__file__, __doc__, translation={"type": Path, "metavar": "FILE", "help": words})
    if opts.quick:
        recipe = brief("digits-mlp", epochs=40)
        factors = (0.0, 0.01, 0.05, 0.1)
    else:
        recipe = ("cifar100-resnet56",)
        factors = (0.0, 0.05, 0.1)
    if opts.runs:
        runs = finished_runs(opts, more=(0.05, 0.2))
        factors = sorted({smoothing for smoothing, _ in runs})
    else:
        runs = run_all(
            opts,
            {
                (smoothing, seed): (*recipe, f"seed={seed}", f"algorithms.label_smoothing.smoothing={smoothing}")
                for smoothing in factors
                for seed in opts.seeds
            },
        )
    table, pooled = {}, {}
    for smoothing in factors:
        predictions = [runs[smoothing, seed].predictions for seed in opts.seeds]
        scaled = [scale(runs[smoothing, seed]) for seed in opts.seeds]
        metrics = [runs[smoothing, seed].result["metrics"] for seed in opts.seeds]
        afterwards = [(logits, labels) for (logits, _), (_, labels) in zip(scaled, predictions, strict=True)]
        name = f"smoothing {smoothing:g}" if smoothing else "hard"
        table[name] = {key: mean([one[key] for one in metrics]) for key in ("accuracy", "ece", "nll")}
        table[f"{name}, scaled"] = {
            "ece": mean([expected_calibration_error(*one) for one in afterwards]),
            "temperature": mean([temperature for _, temperature in scaled]),
        }
        pooled[name], pooled[f"{name}, scaled"] = joined(predictions), joined(afterwards)
    rows = translation(opts.translation) if opts.translation else {}
    save(opts, draw(table, rows, pooled, factors), {"table": table, "translation": rows})
    table |= rows
    for name, values in table.items():
        print(f"{name}: {', '.join(f'{key} {shown(value, 4)}' for key, value in values.items())}")


def scale(run):
    """The test logits of a run at a temperature that has not seen their labels, and that temperature."""
    logits, labels = run.predictions
    if run.held_out:
        temperature = fit_temperature(*run.held_out)
        return logits / temperature, temperature
    scaled = cross_fit_temperature(logits, labels)
    return scaled.logits, math.sqrt(scaled.temperatures[0] * scaled.temperatures[1])


def translation(file):
    """The row of translation: networks of figure 4, as they are and at the temperature that suits their likelihood best."""
    numbers = json.loads(file.read_text(encoding="utf-8"))
    plain = numbers["temperatures"].index(1.0)
    rows = {}
    for name in ("hard", "smoothing 0.1"):
        rows[f"translation, {name}"] = {key: values[plain] for key, values in numbers["curves"][name].items()}
        rows[f"translation, {name}, scaled"] = numbers["fitted"][name]
    return rows


def joined(parts):
    """The logits and the labels of all seeds."""
    return torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])


def draw(table, rows, pooled, factors):
    """Reliability on the left, the calibration errors on the right."""
    names = [f"smoothing {smoothing:g}" for smoothing in factors[1:]]
    styles = {"hard": (BLACK, "o"), "hard, scaled": (GREY, "s")}
    styles |= dict(zip(names, ((BLUE, "D"), (ORANGE, "^"), (GREEN, "v"), (PURPLE, "P")), strict=False))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=(1, 1.25))
    left.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    for name, (color, marker) in styles.items():
        bins = reliability_bins(*pooled[name])
        many = bins.counts >= FEW
        left.plot(bins.confidence[many], bins.accuracy[many], color=color, marker=marker, label=name)
    left.set(xlabel="confidence", ylabel="accuracy", title="Reliability: above the line is under-confident")
    left.legend(loc="lower right")
    colors = {name: color for name, (color, _) in styles.items()}
    colors |= {name: GREY if "scaled" in name else colors[name.removeprefix("translation, ")] for name in rows}
    places = [place + 0.5 * (name in rows) for place, name in enumerate(colors)]
    errors = [(rows if name in rows else table)[name]["ece"] for name in colors]
    for place, error, color in zip(places, errors, colors.values(), strict=True):
        right.barh(place, error["mean"], color=color, height=0.6, alpha=0.85)
        right.plot([error["low"], error["high"]], [place, place], color="#444444", linewidth=1.2)
        right.text(max(error["high"], error["mean"]), place, f"  {error['mean']:.3f}", va="center")
    right.set_yticks(places, colors)
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    longest = max(max(error["mean"], error["high"]) for error in errors)  # with one seed, "high" is NaN
    right.set(xlabel="expected calibration error, 15 bins (mean and 95 % interval)", xlim=(0, 1.15 * longest))
    right.set_title("Calibration error: lower is better")
    return figure


if __name__ == "__main__":
    main()
