"""Plot the effect of smoothing in the comparisons of this folder, from their summary.csv.

    python examples/benchmarks/does_it_help.py        # writes does-it-help.png next to this file

Each point is the mean difference from no smoothing over paired seeds, with its 95 % interval.
"""

import csv
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COMPARISONS = {
    "cifar10-small-data": ("ResNet-20, 4,500 images of CIFAR-10, over-confident (3 seeds)", "#009e73", "D", 1),
    "cifar10-all-data": ("ResNet-20, 45,000 images of CIFAR-10, nearly calibrated (3 seeds)", "#a64d86", "^", -4),
    "digits-mlp": ("digits, perceptron, calibrated (10 seeds)", "#0072b2", "o", -2),
    "digits-cnn": ("digits, convolutions, calibrated (10 seeds)", "#d55e00", "s", 0),
}
PANELS = {
    "accuracy": ("accuracy", "points", 100),
    "ece": ("calibration error", "ECE", 1),
    "ece_scaled": ("the same after temperature scaling", "ECE", 1),
    "nll": ("negative log likelihood", "nats", 1),
    "aurc": ("risk over coverage", "AURC", 1),
}


def differences(folder, metric):
    """Smoothing, difference and its interval, one tuple per factor."""
    with (folder / "summary.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == metric and row["difference"]]
    rows = [row for row in rows if row["part"] == "test" and row["setting"] in ("", "label_smoothing")]
    keys = ("smoothing", "difference", "difference_low", "difference_high")
    return sorted(tuple(float(row[key]) for key in keys) for row in rows)


def main():
    """Draw one panel per metric."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, len(PANELS), figsize=(15, 3.8), layout="constrained")
    for axes, (metric, (title, unit, scale)) in zip(panels, PANELS.items(), strict=True):
        axes.axhline(0, color="#999999", linewidth=1)
        better = "higher" if metric == "accuracy" else "lower"
        axes.set(title=title, xlabel="smoothing", ylabel=f"change ({unit}); {better} is better")
        for name, (label, color, marker, shift) in COMPARISONS.items():
            if not (HERE / name).is_dir():
                continue
            points = differences(HERE / name, metric)
            x = [factor * 1.04**shift for factor, *_ in points]
            y, low, high = ([scale * point[index] for point in points] for index in (1, 2, 3))
            size = 5 if len(points) > 1 else 8
            axes.plot(x, y, color=color, marker=marker, markersize=size, linewidth=1.5, label=label)
            axes.vlines(x, low, high, color=color, linewidth=1.5)
        axes.set_xscale("log")
        axes.set_xticks([0.02, 0.05, 0.1, 0.2, 0.4], ["0.02", "0.05", "0.1", "0.2", "0.4"])
        axes.minorticks_off()
        axes.grid(axis="y", color="#e3e6ea")
        axes.set_axisbelow(True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(HERE / "does-it-help.png", dpi=110)


if __name__ == "__main__":
    main()
