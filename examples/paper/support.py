"""What the scripts share: their options, runs of recipes side by side, means with intervals, and the figures' style."""

import argparse
import json
import logging
import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import yaml
from safetensors.torch import load_file

from composer_ls.lab.compare.statistics import interval_of_mean

BLACK, BLUE, ORANGE, GREEN, PURPLE, GREY = "#000000", "#0072b2", "#d55e00", "#009e73", "#a64d86", "#777777"

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "savefig.dpi": 110,
        "savefig.bbox": "tight",
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e3e6ea",
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "lines.markersize": 6,
    }
)


def options(script, description, **own):
    """Read the command line of a script.

    Args:
        script: Its file.
        description: Its docstring.
        own: Options of its own, each with the arguments of argparse's ``add_argument``.

    Returns:
        What was given, with ``seeds`` as a list, ``jobs`` as a number, ``name`` of the script, and ``stem``, after which files
        and the folder of runs are named: the name, with -full in the full mode, or with the recipe's name behind it with --runs.

    """
    name = Path(script).stem
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, in a minute or two on 2 cores")
    parser.add_argument(
        "--out", type=Path, default=Path(name), help=f"folder of figure, numbers and runs (default: {name})"
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="finished runs of composer-ls compare to look at, instead of training"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3; with --runs at most so many)")
    parser.add_argument("--jobs", type=int, help="runs at once; default: 1, or a core each with --quick")
    for option, settings in own.items():
        parser.add_argument(f"--{option}", **settings)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="for every recipe, as in data.download=true or data.root=DIR"
    )
    opts = parser.parse_args()
    opts.jobs = opts.jobs or (min(4, os.cpu_count() or 1) if opts.quick else 1)
    opts.most_seeds, opts.seeds = opts.seeds, list(range(1, opts.seeds + 1))
    opts.name, opts.stem = name, name if opts.quick else f"{name}-full"
    return opts


def finished_runs(opts, needed=(0.0, 0.1), more=()):
    """The runs in the folder that --runs names, by smoothing and seed; ``opts.seeds`` become those that have every factor.

    Args:
        opts: The options.
        needed: The factors without which there is nothing to show.
        more: Factors that are taken too, if every one of these seeds has them.

    Raises:
        SystemExit: No seed has the factors, or runs differ in more than smoothing and seed.

    """
    found, folders = {}, {}
    for file in sorted(opts.runs.rglob("result.json")):
        recipe = yaml.safe_load((file.parent / "recipe.yaml").read_text(encoding="utf-8"))
        algorithms, seed = recipe["algorithms"], recipe.pop("seed")
        arguments = algorithms.pop("label_smoothing", None)
        smoothing = 0.0 if arguments is None else arguments.pop("smoothing", 0.1)
        if "max_sup" in algorithms or "online_label_smoothing" in algorithms or not isinstance(smoothing, (int, float)):
            continue  # another method, in a comparison of several
        algorithms["label_smoothing"] = arguments or {}
        found[smoothing, seed] = Run(file.parent, json.loads(file.read_text(encoding="utf-8")))
        folders.setdefault(json.dumps(recipe, sort_keys=True), file.parent)
    if len(folders) > 1:
        first, second, *_ = folders.values()
        raise SystemExit(f"{first} and {second} differ in more than smoothing and seed: use another --runs")
    complete = sorted({seed for _, seed in found if all((factor, seed) in found for factor in needed)})
    opts.seeds = complete[: opts.most_seeds]
    if not opts.seeds:
        wanted = ", ".join(f"{factor:g}" for factor in needed)
        raise SystemExit(
            f"{opts.runs} holds no seed whose runs with smoothing {wanted} are finished: use another --runs"
        )
    opts.stem = f"{opts.name}-{found[needed[0], opts.seeds[0]].result['name']}"
    factors = sorted({*needed, *(factor for factor in more if all((factor, seed) in found for seed in opts.seeds))})
    return {(factor, seed): found[factor, seed] for factor in factors for seed in opts.seeds}


def brief(recipe, epochs, evaluate_every=None):
    """A recipe's name and overrides for small data: large batches, no checkpoints on the way, nor evaluations if not told."""
    intervals = (f"eval_interval={evaluate_every or epochs}ep", f"checkpoints.interval={epochs}ep")
    return (recipe, f"duration={epochs}ep", *intervals, "data.batch_size=128")


@dataclass(frozen=True)
class Run:
    """The files of a finished run."""

    folder: Path
    result: dict

    @property
    def predictions(self):
        """Logits and labels of the test set."""
        tensors = load_file(self.folder / "predictions.safetensors")
        return tensors["logits"], tensors["labels"]

    @property
    def held_out(self):
        """Logits and labels of the validation part, or nothing if there is none."""
        tensors = load_file(self.folder / "predictions.safetensors")
        return (tensors["validation.logits"], tensors["validation.labels"]) if "validation.logits" in tensors else ()

    @property
    def features(self):
        """The tensors of features.safetensors."""
        return load_file(self.folder / "features.safetensors")


def run_all(opts, settings):
    """Train every setting, a dict from a key to a recipe's name and overrides, and return a dict from the key to its run.

    Runs that are finished already are not run again.
    """
    tasks = []
    for key, (recipe, *overrides) in settings.items():
        folder = opts.out / "runs" / opts.stem / "-".join(map(str, key))
        tasks.append((recipe, [*overrides, *opts.overrides], folder))
    print(f"{opts.name}: {len(tasks)} runs, {opts.jobs} at once", flush=True)
    results = for_each(opts, _train, tasks)
    return {key: Run(task[2], result) for key, task, result in zip(settings, tasks, results, strict=True)}


def for_each(opts, function, items):
    """The results of a function for each item, computed by parallel jobs with one core each if there are several."""
    if opts.jobs == 1:
        return [function(item) for item in items]
    try:
        with ProcessPoolExecutor(opts.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            return list(pool.map(function, items))
    except BrokenProcessPool:
        raise SystemExit(
            "a job was killed, perhaps for lack of memory: try fewer --jobs; the same command continues, and finished runs are kept"
        ) from None


def _train(task):
    from composer_ls.lab.recipe.reading import load_recipe
    from composer_ls.lab.run_folder.folder import RunFolder
    from composer_ls.lab.training.train import train

    recipe, overrides, folder = task
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    loaded = load_recipe(recipe, overrides)
    return train(loaded, RunFolder(folder, loaded), progress=False)


def mean(values):
    """A mean with its 95 % interval over seeds, as JSON."""
    found = interval_of_mean(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "values": list(values)}


def shown(summary, digits=3):
    """A mean and half its interval as text; the mean alone if there is one seed."""
    text = f"{summary['mean']:.{digits}f}"
    return text if len(summary["values"]) == 1 else f"{text} ± {(summary['high'] - summary['low']) / 2:.{digits}f}"


def save(opts, figure, numbers):
    """Write the figure and the numbers as STEM.png and STEM.json."""
    opts.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(opts.out / f"{opts.stem}.png")
    text = json.dumps({"seeds": opts.seeds, **numbers}, indent=1)
    (opts.out / f"{opts.stem}.json").write_text(text + "\n", encoding="utf-8")
    print(f"wrote {opts.out / opts.stem}.png and .json")
