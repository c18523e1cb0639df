"""Figure 5 of Müller et al. (2019): a teacher trained with smoothing is better, and its students are not.

    python examples/paper/figure5_distillation.py --quick
    python examples/paper/figure5_distillation.py data.download=true
    python examples/paper/figure5_distillation.py --runs DIR     # of cifar10-resnet20-small-data, by composer-ls compare

With --runs, teachers and baselines are these runs themselves, and only students are trained, which have the same network and images.

Students learn from the teacher alone (weight 1) and are compared at equal smoothing of their targets: γ of a teacher's
targets, or the α of a student that was trained on smoothed labels.
"""

from matplotlib import pyplot as plt
from support import BLACK, BLUE, GREEN, GREY, brief, finished_runs, mean, options, run_all, save, shown

from composer_ls.diagnostics.teaching import equivalent_smoothing

FACTORS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)
FACTORS_OF_RUNS = (0.0, 0.05, 0.1, 0.2)
TEMPERATURES = (1, 2, 3, 4, 8, 12, 16)


def main():
    """Train teachers, then everyone who learns from labels or teachers; draw accuracy over γ."""
    opts = options(__file__, __doc__)
    if opts.quick:
        teacher = (*brief("digits-cnn", epochs=8), "diagnostics={examples: 1437}")
        student = brief("digits-mlp", epochs=12)
        temperatures = (1, 2, 4, 8, 16)
    else:
        teacher = ("cifar10-resnet56", "diagnostics={examples: 5000}")
        student = ("cifar10-alexnet",)
        temperatures = TEMPERATURES
    baselines, factors = {}, FACTORS
    if opts.runs:
        there, temperatures = finished_runs(opts, more=FACTORS_OF_RUNS), (1, 2, 4)
        factors = sorted({smoothing for smoothing, _ in there})
        teachers = {("teacher", *key): run for key, run in there.items()}
        baselines = {("baseline", smoothing, 0, seed): run for (smoothing, seed), run in there.items()}
        recipe = there[0.0, opts.seeds[0]].folder / "recipe.yaml"
        student = (recipe, "diagnostics=null", "checkpoints.keep=false")
    else:
        teachers = run_all(
            opts,
            {
                ("teacher", smoothing, seed): (*teacher, "checkpoints.keep=true", *smoothed(smoothing, seed))
                for smoothing in factors
                for seed in opts.seeds
            },
        )
    pupils = {}
    for seed in opts.seeds:
        for smoothing in factors:
            if not baselines:
                pupils["baseline", smoothing, 0, seed] = (*student, *smoothed(smoothing, seed))
            folder = teachers["teacher", smoothing, seed].folder
            for temperature in temperatures if smoothing == 0 else (1,):
                lesson = f"{{teacher: {folder}, temperature: {temperature}, student_temperature: 1, weight: 1}}"
                pupils["student", smoothing, temperature, seed] = (
                    *student,
                    *smoothed(0.0, seed),
                    f"algorithms.distillation={lesson}",
                )
    pupils = run_all(opts, pupils) | baselines

    def accuracies(runs, *key):
        return mean([100 * runs[(*key, seed)].result["metrics"]["accuracy"] for seed in opts.seeds])

    lines = {
        name: [] for name in ("teacher", "baseline", "students of a hard teacher", "students of smoothed teachers")
    }
    for smoothing in factors:
        lines["teacher"].append({"gamma": smoothing, **accuracies(teachers, "teacher", smoothing)})
        lines["baseline"].append({"gamma": smoothing, **accuracies(pupils, "baseline", smoothing, 0)})
        taught = [teachers["teacher", smoothing, seed] for seed in opts.seeds]
        for temperature in temperatures if smoothing == 0 else (1,):
            gamma = sum(gamma_of(run, temperature) for run in taught) / len(taught)
            point = {"gamma": gamma, **accuracies(pupils, "student", smoothing, temperature)}
            kind = "students of smoothed teachers" if smoothing else "students of a hard teacher"
            lines[kind].append({"temperature": temperature, "smoothing of the teacher": smoothing, **point})
    numbers = {"accuracy": lines, "paired": paired(opts, pupils, factors, temperatures)}
    save(opts, draw(lines), numbers)
    for name, points in lines.items():
        for point in points:
            print(f"{name}, γ {point['gamma']:.2f}: accuracy {shown(point, 2)} %")
    for name, difference in numbers["paired"].items():
        print(f"{name}: {shown(difference, 2)} points")


def smoothed(smoothing, seed):
    """Overrides for a seed and a smoothing of the labels."""
    return f"seed={seed}", f"algorithms.label_smoothing.smoothing={smoothing}"


def gamma_of(run, temperature):
    """The smoothing that a teacher's targets amount to, over the training examples that its run kept."""
    return equivalent_smoothing(run.features["train.logits"], run.features["train.labels"], temperature)


def paired(opts, pupils, factors, temperatures):
    """Accuracy of students of smoothed teachers minus that of baselines of the same smoothing, over all α above 0."""

    def accuracy(*key):
        return 100 * pupils[key].result["metrics"]["accuracy"]

    smoothed_teachers = [
        sum(accuracy("student", a, 1, seed) - accuracy("baseline", a, 0, seed) for a in factors[1:]) / len(factors[1:])
        for seed in opts.seeds
    ]
    hard_teacher = [
        max(accuracy("student", 0.0, t, seed) for t in temperatures)
        - max(accuracy("baseline", a, 0, seed) for a in factors)
        for seed in opts.seeds
    ]
    return {
        "students of smoothed teachers minus smoothed baselines": mean(smoothed_teachers),
        "best student of the hard teacher minus best baseline": mean(hard_teacher),
    }


def draw(lines):
    """Mean, least and most accuracy over γ."""
    figure, axes = plt.subplots(figsize=(8, 5.6), layout="constrained")
    styles = {
        "teacher": (GREY, "^", ":", "teachers, at their α"),
        "baseline": (BLACK, "o", "--", "students of labels smoothed by α (baseline)"),
        "students of a hard teacher": (BLUE, "s", "-", "students of the hard teacher, at γ of T = 1 and above"),
        "students of smoothed teachers": (GREEN, "D", "-", "students of smoothed teachers, at γ of T = 1"),
    }
    if lines["teacher"] == lines["baseline"]:  # with --runs these are the same networks
        del styles["teacher"]
        styles["baseline"] = (BLACK, "o", "--", "teachers: trained on labels smoothed by α (baseline)")
    for name, (color, marker, line, label) in styles.items():
        points = sorted(lines[name], key=lambda point: point["gamma"])
        gammas, means = ([point[key] for point in points] for key in ("gamma", "mean"))
        axes.plot(gammas, means, color=color, marker=marker, linestyle=line, label=label)
        low, high = ([pick(point["values"]) for point in points] for pick in (min, max))
        axes.fill_between(gammas, low, high, color=color, alpha=0.13, linewidth=0)
        if len(points) == 1:
            axes.vlines(gammas, low, high, color=color, alpha=0.3, linewidth=6)
    axes.set(xlabel="γ: smoothing of the targets, or what a teacher's targets amount to", ylabel="test accuracy (%)")
    axes.set_title("Distillation: who teaches well? (mean and range over seeds)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    main()
