"""From a folder of images to a network in use: train, compare, tune, predict and export, in minutes on two cores.

The images are scikit-learn's digits, written as PNG files into one folder per class, to stand for yours; --images takes your own.

    pip install '.[export,timm,tune]' && python examples/your_own_images.py
    python examples/your_own_images.py --images my/images        # with train/<class> and test/<class>
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(root: Path) -> Path:
    """Real handwritten digits as image files: every fifth one is for testing."""
    for index, (pixels, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        folder = root / ("test" if index % 5 == 0 else "train") / f"digit-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels.reshape(8, 8) * 255 / 16).astype(np.uint8))
        image.resize((32, 32)).save(folder / f"{index}.png")
    return root


def composer_ls(*words: str | Path) -> None:
    """Run a command, after showing it."""
    command = [str(word) for word in words]
    print(f"\n$ {shlex.join(['composer-ls', *command])}", flush=True)
    subprocess.run([sys.executable, "-m", "composer_ls", *command], check=True)


def main() -> None:
    """The whole journey."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder with train/<class> and test/<class>; default: digits")
    parser.add_argument("--network", default="timm/test_resnet", help="any name of torchvision/, timm/ or a recipe's")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="one epoch and seed, and two trials, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/your-own-images"))
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.seeds, options.trials = 1, 1, 2

    images = options.images or write_digits(options.out / "images")
    recipe = [
        *("cifar10-resnet20-fast", "data.name=imagefolder", f"data.root={images}", "data.validation=0.2"),
        *(f"model.name={options.network}", f"duration={options.epochs}ep", "data.batch_size=64"),
        *("data.augmentation=none", "optimizer.name=adamw", "optimizer.learning_rate=0.005"),
    ]
    run, some = options.out / "run", next((images / "test").iterdir())
    composer_ls("train", *recipe, "--out", run)
    composer_ls("compare", *recipe, "--seeds", str(options.seeds), "--for", "nll", "--out", options.out / "compare")
    composer_ls(
        "tune", *recipe, "--for", "nll", "--trials", str(options.trials), "--seeds", "2", "--out", options.out / "tune"
    )
    composer_ls("predict", run, some, "--calibrated", "--top", "2", "--out", options.out / "predictions.csv")
    for kind in ("onnx", "pt2", "safetensors"):
        composer_ls("export", run, "--calibrated", "--to", options.out / f"model.{kind}")


if __name__ == "__main__":
    main()
