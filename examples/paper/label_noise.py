"""Smoothing with noisy training labels, after Lukasik et al. (2020).

    python examples/paper/label_noise.py --quick
    python examples/paper/label_noise.py data.download=true

Training labels are changed at random, to any other class or to a similar one; the test labels are right.
"""

from matplotlib import pyplot as plt
from support import BLACK, BLUE, ORANGE, brief, mean, options, run_all, save, shown

FACTORS = {
    0.0: ("hard labels", BLACK, "o", "--"),
    0.1: ("smoothing 0.1", BLUE, "s", "-"),
    0.4: ("smoothing 0.4", ORANGE, "D", "-"),
}
RATES = {"any other class": (0.0, 0.2, 0.4, 0.6), "a similar class": (0.0, 0.2, 0.4)}


def main():
    """Train on noisy labels, and draw accuracy over the noise rate."""
    opts = options(__file__, __doc__)
    if opts.quick:
        recipe = brief("digits-mlp", epochs=25)
        pairs = "{1: 8, 8: 1, 3: 9, 9: 3, 4: 7, 7: 4}"
    else:
        recipe = ("cifar10-resnet20-fast",)
        pairs = "{3: 5, 5: 3, 9: 1, 2: 0, 4: 7}"  # cat and dog; truck, bird and deer for automobile, airplane and horse
    settings = {}
    for kind, rates in RATES.items():
        for rate in rates:
            noise = f"{{rate: {rate}, pairs: {'null' if kind == 'any other class' else pairs}}}"
            for smoothing in FACTORS:
                for seed in opts.seeds:
                    settings[kind.replace(" ", "_"), rate, smoothing, seed] = (
                        *recipe,
                        f"seed={seed}",
                        f"algorithms.label_smoothing.smoothing={smoothing}",
                        f"data.label_noise={noise}",
                    )
    runs = run_all(opts, settings)
    numbers = {}
    for kind, rates in RATES.items():
        for rate in rates:
            mine = {s: [runs[kind.replace(" ", "_"), rate, s, seed].result for seed in opts.seeds] for s in FACTORS}
            accuracies = {s: [100 * result["metrics"]["accuracy"] for result in results] for s, results in mine.items()}
            numbers[f"{kind}, rate {rate:g}"] = {
                "wrong labels": mine[0.0][0]["wrong_labels"],
                **{FACTORS[s][0]: mean(values) for s, values in accuracies.items()},
                **{
                    f"{FACTORS[s][0]} minus hard": mean(
                        [a - b for a, b in zip(accuracies[s], accuracies[0.0], strict=True)]
                    )
                    for s in FACTORS
                    if s
                },
            }
    save(opts, draw(numbers), numbers)
    for name, values in numbers.items():
        print(f"{name}: {', '.join(f'{key} {shown(v, 2)}' for key, v in values.items() if key != 'wrong labels')}")


def draw(numbers):
    """One panel per kind of noise: accuracy over the actual rate of wrong labels."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    for axes, (kind, rates) in zip(panels, RATES.items(), strict=True):
        for place, (name, color, marker, line) in enumerate(FACTORS.values()):
            points = [numbers[f"{kind}, rate {rate:g}"] for rate in rates]
            wrong = [point["wrong labels"] + 0.004 * (place - 1) for point in points]
            means = [point[name]["mean"] for point in points]
            errors = [(point[name]["high"] - point[name]["low"]) / 2 for point in points]
            axes.errorbar(wrong, means, errors, color=color, marker=marker, linestyle=line, capsize=3, label=name)
        axes.set(xlabel="part of the training labels that is wrong", title=f"mistaken for {kind}")
    figure.suptitle("Trained on wrong labels: smoothing helps while they are few", fontweight="bold")
    panels[0].set_ylabel("test accuracy (%), mean and 95 % interval")
    panels[0].legend()
    return figure


if __name__ == "__main__":
    main()
