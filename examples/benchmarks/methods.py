r"""What each method of smoothing does to features and to wrong predictions, from the runs of one comparison.

    composer-ls compare digits-mlp 'diagnostics={}' --methods none,label_smoothing,max_sup,online_label_smoothing \
        --smoothing 0.1 --seeds 10 --out runs/methods
    python examples/benchmarks/methods.py runs/methods --out examples/benchmarks/digits-mlp-methods

Prints a Markdown table and writes features.json and features.png. Differences are paired by seed, with 95 % t-intervals; a
difference counts as shown if Holm's correction over all of them leaves its p-value below 0.05.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
from safetensors.torch import load_file

from composer_ls.lab.compare.measured_runs import read_runs
from composer_ls.lab.compare.statistics import holm, interval_of_mean, paired_p_value
from composer_ls.lab.recipe.methods import amount_of

MEASURES = {
    "train/relative_spread": "spread within classes, over the distance between them",
    "train/nc1": "neural collapse (NC1; 0 is collapsed)",
    "train/simplex_deviation": "deviation from a regular simplex",
    "train/equivalent_smoothing": "equivalent smoothing, training",
    "test/relative_spread": "spread within classes, test",
    "wrong": "confidence of wrong predictions, test",
    "right": "confidence of right predictions, test",
    "auroc": "right above wrong in confidence (AUROC), test",
}
METHODS = {
    "none": ("none", "#666666"),
    "label_smoothing": ("label smoothing", "#0072b2"),
    "max_sup": ("MaxSup", "#d55e00"),
    "online_label_smoothing": ("online", "#009e73"),
}
PAIRS = [
    ("label_smoothing", "none"),
    ("max_sup", "none"),
    ("online_label_smoothing", "none"),
    ("max_sup", "label_smoothing"),
    ("online_label_smoothing", "label_smoothing"),
]


def measured(run):
    """The measures of one run: its last diagnostics, and its predictions on the test set."""
    lines = [line for line in run.lines if "diagnostics/train/nc1" in line]
    if not lines:
        raise SystemExit(f"{run.folder} has no diagnostics: compare with 'diagnostics={{}}'")
    found = {name: lines[-1][f"diagnostics/{name}"] for name in MEASURES if "/" in name}
    predictions = load_file(run.folder / "predictions.safetensors")
    confidence, answer = predictions["logits"].double().softmax(1).max(1)
    right = answer == predictions["labels"]
    good, bad = confidence[right], confidence[~right]
    higher = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad).double()
    return found | {"wrong": bad.mean().item(), "right": good.mean().item(), "auroc": higher.mean().item()}


def main():
    """Read the runs, and print and plot what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--amount", type=float, default=0.1, help="factor or strength of every method (default: 0.1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits-mlp-methods")
    arguments = parser.parse_args()
    runs, _ = read_runs(arguments.runs)
    values = {method: {} for method in METHODS}
    for run in runs:
        method = run.recipe.method
        if method is None or amount_of(method, run.recipe.algorithms[method]) == arguments.amount:
            values[method or "none"][run.recipe.seed] = measured(run)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    means, differences = {}, {}
    for measure in MEASURES:
        for method in METHODS:
            means[measure, method] = interval_of_mean([values[method][seed][measure] for seed in seeds])
        for method, other in PAIRS:
            pairs = [values[method][seed][measure] - values[other][seed][measure] for seed in seeds]
            found = interval_of_mean(pairs)
            differences[measure, method, other] = found, paired_p_value(found)
    corrected = dict(zip(differences, holm([p for _, p in differences.values()]), strict=True))
    write_json(arguments.out / "features.json", seeds, means, differences, corrected)
    print_table(means, differences, corrected)
    draw(arguments.out / "features.png", means)


def write_json(file, seeds, means, differences, corrected):
    """Every mean and difference with its interval."""
    of_mean = {f"{measure} of {method}": found[:3] for (measure, method), found in means.items()}
    of_difference = {
        f"{measure}: {method} minus {other}": {"interval": found[:3], "corrected_p": corrected[measure, method, other]}
        for (measure, method, other), (found, _) in differences.items()
    }
    file.write_text(json.dumps({"seeds": seeds, "means": of_mean, "differences": of_difference}, indent=1) + "\n")


def print_table(means, differences, corrected):
    """One row per measure; bold where a difference is shown."""
    titles = [f"{METHODS[a][0]} − {METHODS[b][0]}" for a, b in PAIRS]
    print("|", " | ".join(["measure", *(name for name, _ in METHODS.values()), *titles]), "|")
    print("|", " | ".join(["---"] * (1 + len(METHODS) + len(PAIRS))), "|")
    for measure, name in MEASURES.items():
        cells = [f"{means[measure, method].mean:.3f}" for method in METHODS]
        for pair in PAIRS:
            (mean, low, high, *_), shown = differences[(measure, *pair)][0], corrected[(measure, *pair)] < 0.05
            text = f"{mean:+.3f} [{low:.3f}, {high:.3f}]"
            cells.append(f"**{text}**" if shown else text)
        print("|", " | ".join([name, *cells]), "|")


def draw(file, means):
    """One panel per measure, one point per method with its interval."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(2, 4, figsize=(13, 5), layout="constrained")
    for axes, (measure, name) in zip(panels.flat, MEASURES.items(), strict=True):
        for place, (method, (_, color)) in enumerate(METHODS.items()):
            mean, low, high, *_ = means[measure, method]
            axes.plot([place], [mean], "o", color=color, markersize=6)
            axes.vlines(place, low, high, color=color, linewidth=2)
        axes.set_xticks(range(len(METHODS)), [label.replace(" ", "\n") for label, _ in METHODS.values()])
        axes.set_title(name.replace(", ", ",\n").replace(" (", "\n("), fontsize=9)
        axes.set_xlim(-0.5, len(METHODS) - 0.5)
        axes.grid(axis="y", color="#e3e6ea")
        axes.set_axisbelow(True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
