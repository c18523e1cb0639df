"""Figure 6 of Müller et al. (2019): smoothing erases what tells training images of a class apart.

    python examples/paper/figure6_mutual_information.py --quick
    python examples/paper/figure6_mutual_information.py data.download=true
    python examples/paper/figure6_mutual_information.py --runs DIR     # of cifar10-resnet20-small-data, by composer-ls compare

The mutual information between the index of a training image and the difference of two logits, over augmentations. At
log N the network tells N images apart; at log 2 it tells the two classes and no more.
"""

import math

import numpy as np
from matplotlib import pyplot as plt
from support import BLACK, BLUE, brief, finished_runs, mean, options, run_all, save, shown

SMOOTHING = {0.0: ("hard labels", BLACK, "o", "--"), 0.1: ("smoothing 0.1", BLUE, "s", "-")}


def main():
    """Train with the measurement on, draw it over steps."""
    opts = options(__file__, __doc__)
    if opts.quick:
        recipe = brief("digits-cnn", epochs=14, evaluate_every=1)
        measure = "{classes: [0, 1], examples: 280}"
    else:
        recipe = ("cifar10-resnet56", "eval_interval=5ep")
        measure = "{classes: [0, 5], examples: 600}"  # airplanes and dogs
    if opts.runs:
        runs = finished_runs(opts)
    else:
        runs = run_all(
            opts,
            {
                (smoothing, seed): (
                    *recipe,
                    f"seed={seed}",
                    f"algorithms.label_smoothing.smoothing={smoothing}",
                    "data.augmentation=crop_flip",
                    f"diagnostics={{examples: 300, mutual_information: {measure}}}",
                )
                for smoothing in SMOOTHING
                for seed in opts.seeds
            },
        )
    histories = {
        smoothing: np.stack([runs[smoothing, seed].features["mutual_information"].numpy() for seed in opts.seeds])
        for smoothing in SMOOTHING
    }
    numbers = {
        SMOOTHING[smoothing][0]: {
            "steps": history[0, :, 0].astype(int).tolist(),
            "nats": history[:, :, 1].mean(0).tolist(),
            "highest": mean(history[:, :, 1].max(1).tolist()),
            "last": mean(history[:, -1, 1].tolist()),
        }
        for smoothing, history in histories.items()
    }
    last = [histories[smoothing][:, -1, 1] for smoothing in SMOOTHING]
    numbers["last, smoothed minus hard"] = mean((last[1] - last[0]).tolist())
    save(opts, draw(histories), numbers)
    for smoothing in SMOOTHING:
        values = numbers[SMOOTHING[smoothing][0]]
        print(f"{SMOOTHING[smoothing][0]}: at most {shown(values['highest'])}, at the end {shown(values['last'])} nats")
    print(f"smoothed minus hard at the end: {shown(numbers['last, smoothed minus hard'])}; log 2 is {math.log(2):.3f}")


def draw(histories):
    """The mean over seeds with the range, over steps."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for smoothing, (name, color, marker, line) in SMOOTHING.items():
        steps, nats = histories[smoothing][0, :, 0], histories[smoothing][:, :, 1]
        axes.plot(steps, nats.mean(0), color=color, marker=marker, linestyle=line, label=name)
        axes.fill_between(steps, nats.min(0), nats.max(0), color=color, alpha=0.15, linewidth=0)
    axes.axhline(math.log(2), color="#777777", linewidth=1)
    axes.annotate(
        "log 2: the class alone", (0.995, math.log(2)), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    axes.set(xlabel="step", ylabel="mutual information (nats)", ylim=(0, None))
    axes.set_title("What two logits tell about the single training image (mean and range over seeds)")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
