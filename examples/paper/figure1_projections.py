"""Figure 1 of Müller et al. (2019): smoothing gathers each class in a tight cluster, at the corners of a regular triangle.

    python examples/paper/figure1_projections.py --quick
    python examples/paper/figure1_projections.py data.download=true
    python examples/paper/figure1_projections.py --runs DIR     # of cifar10-resnet20-small-data, by composer-ls compare

Three classes at a time, the inputs of the last layer are projected on the plane through the templates of these classes.
"""

import torch
from matplotlib import pyplot as plt
from support import BLUE, GREEN, ORANGE, brief, finished_runs, mean, options, run_all, save, shown

from composer_ls.diagnostics.geometry import (
    class_means,
    neural_collapse,
    project,
    relative_spread,
    simplex_deviation,
    template_plane,
)

SMOOTHING = (0.0, 0.1)
SPLITS = {"train": "training", "test": "test"}
PER_CLASS = 100


def main():
    """Train, project, measure, draw."""
    opts = options(__file__, __doc__)
    if opts.quick:
        recipe = brief("digits-mlp", epochs=60)
        triples = {"three that differ": (0, 2, 4), "two alike and one other": (1, 8, 0)}
        watch = "diagnostics={examples: 1437}"
    else:
        recipe = ("cifar10-alexnet",)
        triples = {"three that differ": (0, 1, 2), "two alike and one other": (3, 5, 0)}
        watch = "diagnostics={examples: 5000}"
    if opts.runs:
        runs = finished_runs(opts)
    else:
        runs = run_all(
            opts,
            {
                (smoothing, seed): (*recipe, f"seed={seed}", f"algorithms.label_smoothing.smoothing={smoothing}", watch)
                for smoothing in SMOOTHING
                for seed in opts.seeds
            },
        )
    projections = {
        (words, key, split): projected(runs[key], split, triple)
        for words, triple in triples.items()
        for key in runs
        for split in SPLITS
    }
    numbers = {"projections": {}, "all classes": {}}
    for smoothing in SMOOTHING:
        for split in SPLITS:
            mine = [runs[smoothing, seed].features for seed in opts.seeds]
            parts = [(kept[f"{split}.features"], kept[f"{split}.labels"]) for kept in mine]
            numbers["all classes"][f"smoothing {smoothing:g}, {split}"] = {
                "nc1": mean([neural_collapse(*part) for part in parts]),
                "simplex deviation": mean([simplex_deviation(class_means(*part)) for part in parts]),
            }
            for words in triples:
                points = [projections[words, (smoothing, seed), split] for seed in opts.seeds]
                numbers["projections"][f"{words}, smoothing {smoothing:g}, {split}"] = {
                    "spread": mean([relative_spread(*part) for part in points]),
                    "triangle deviation": mean([simplex_deviation(class_means(*part)) for part in points]),
                    "side": mean([torch.pdist(class_means(*part)).mean().item() for part in points]),
                }
    save(opts, draw(opts, runs, triples, projections, numbers), numbers)
    for name, values in {**numbers["projections"], **numbers["all classes"]}.items():
        print(f"{name}: {', '.join(f'{key} {shown(value)}' for key, value in values.items())}")


def projected(run, split, triple):
    """Points on the plane and labels 0, 1, 2 of up to 100 examples of each class."""
    kept = run.features
    plane = template_plane(kept["weight"], kept.get("bias"), triple)
    features, labels = kept[f"{split}.features"], kept[f"{split}.labels"]
    parts = [project(features[labels == label][:PER_CLASS], plane) for label in triple]
    return torch.cat(parts), torch.arange(3).repeat_interleave(torch.tensor([len(part) for part in parts]))


def draw(opts, runs, triples, projections, numbers):
    """A row a triple; training and test examples without smoothing, then with it."""
    figure, rows = plt.subplots(2, 4, figsize=(12, 6.8), layout="constrained")
    seed = opts.seeds[0]
    for row, (words, triple) in zip(rows.tolist(), triples.items(), strict=True):
        for column, (smoothing, split) in enumerate((s, p) for s in SMOOTHING for p in SPLITS):
            axes = row[column]
            both = [projections[words, (smoothing, seed), part][0] for part in SPLITS]
            points, labels = projections[words, (smoothing, seed), split]
            means = class_means(points, labels)
            axes.fill(*means.T.numpy(), facecolor="none", edgecolor="#999999", linewidth=1)
            for index, (color, marker) in enumerate(zip((BLUE, ORANGE, GREEN), "osD", strict=True)):
                name = runs[smoothing, seed].result["classes"][triple[index]]
                axes.plot(
                    *points[labels == index].T.numpy(), marker, color=color, markersize=4, alpha=0.6, markeredgewidth=0,
                    label=name,
                )  # fmt: skip
            extent = 1.08 * max(float(some.abs().max()) for some in both)
            axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
            axes.locator_params(nbins=5)
            spread = numbers["projections"][f"{words}, smoothing {smoothing:g}, {split}"]["spread"]
            heading = f"smoothing {smoothing:g}" if smoothing else "hard labels"
            axes.set_title(f"{heading}, {SPLITS[split]}\nspread over distance {shown(spread)}", fontsize=10.5)
        row[0].set_ylabel(words)
        row[0].legend(loc="lower right", ncols=3, fontsize=9, handletextpad=0.1, columnspacing=0.8, markerscale=1.4)
    figure.suptitle("Projections of the penultimate layer: smoothing makes clusters tight", fontweight="bold")
    return figure


if __name__ == "__main__":
    main()
