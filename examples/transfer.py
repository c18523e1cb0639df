"""Do features of a smoothed network transfer worse? Five classes of CIFAR-10, then the other five with 200 images each.

A small network of timm is trained on five classes, and its weights begin the training on the other five: fine-tuned as a whole, or with
a frozen backbone. Both stages with smoothing 0 and 0.1. Prints a table and writes transfer.json.

    python examples/transfer.py --data cifar10-jpeg --out runs/transfer        # folders train/<class> and test/<class>
    python examples/transfer.py --data cifar10-jpeg --quick                    # to see that it runs
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.training.train import train

SMOOTHINGS = (0.0, 0.1)
WAYS = {"fine-tuned": "null", "backbone frozen": "backbone"}
COMMON = ["model.name=timm/test_resnet", "data.name=imagefolder", "data.image_size=32", "optimizer.name=adamw"]


def link_classes(data: Path, out: Path, names: list[str]) -> Path:
    """A folder with some of the classes, as links."""
    for split in ("train", "test"):
        for name in names:
            place = out / split / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink():
                place.symlink_to((data / split / name).resolve(), target_is_directory=True)
    return out


def accuracy(folder: Path, seed: int, smoothing: float, *overrides: str) -> float:
    """The test accuracy of a run, which is not run again if it is finished."""
    overrides = (f"seed={seed}", f"algorithms.label_smoothing.smoothing={smoothing}", "eval_interval=1dur", *overrides)
    recipe = load_recipe("cifar10-resnet20-fast", [*COMMON, *overrides])
    return train(recipe, RunFolder(folder, recipe), progress=False)["metrics"]["accuracy"]


def main() -> None:
    """Train both stages for some seeds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/<class> and test/<class>")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=5_000, help="images of the first stage, of five classes together")
    parser.add_argument("--epochs", type=int, nargs=2, default=[10, 20], help="of the two stages")
    parser.add_argument("--quick", action="store_true", help="one seed, and one epoch of 200 images in each stage")
    options = parser.parse_args()
    images, other_images = (200, 200) if options.quick else (options.images, 1000)
    if options.quick:
        options.seeds, options.epochs = [0], [1, 1]

    classes = sorted(place.name for place in (options.data / "train").iterdir())
    half = len(classes) // 2
    first = link_classes(options.data, options.out / "first-classes", classes[:half])
    other = link_classes(options.data, options.out / "other-classes", classes[half:])
    rows: dict[str, list[float]] = {}
    for seed in options.seeds:
        for before in SMOOTHINGS:
            source = options.out / f"first-{before:g}-{seed}"
            reached = accuracy(
                source, seed, before, f"data.root={first}", f"duration={options.epochs[0]}ep",
                f"data.examples={images}", "optimizer.learning_rate=0.003",
            )  # fmt: skip
            rows.setdefault(f"first classes, {before:g}", []).append(reached)
            for way, freeze in WAYS.items():
                for after in SMOOTHINGS:
                    reached = accuracy(
                        options.out / f"other-{before:g}-{after:g}-{freeze}-{seed}", seed, after, f"data.root={other}",
                        f"duration={options.epochs[1]}ep", f"data.examples={other_images}", "data.batch_size=64",
                        f"model.weights={source / 'weights.safetensors'}", f"model.freeze={freeze}",
                        "optimizer.learning_rate=0.001" if freeze == "null" else "optimizer.learning_rate=0.01",
                    )  # fmt: skip
                    rows.setdefault(f"{way}, {before:g} then {after:g}", []).append(reached)

    print(f"test accuracy in per cent, mean and standard deviation over the seeds {options.seeds}")
    for name, values in rows.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"| {name} | {100 * statistics.mean(values):.1f} ± {100 * spread:.1f} |")
    (options.out / "transfer.json").write_text(json.dumps({"seeds": options.seeds, "accuracy": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
