"""Run folders as training writes them, without training."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from composer_ls.diagnostics.pixels import count_pixels
from composer_ls.diagnostics.tokens import token_scores
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.files import write_text
from composer_ls.lab.run_folder.folder import RunFolder

EXAMPLES, CLASSES = 240, 5


def make_run(
    folder: Path,
    smoothing: float = 0.0,
    seed: int = 0,
    *overrides: str,
    better: float = 0.0,
    sharper: float = 1.0,
    recipe: str = "digits-mlp",
    held_out: float | None = None,
) -> Path:
    """A finished run.

    Args:
        folder: Where.
        smoothing: Of its recipe.
        seed: Of its recipe, and of its predictions, which other runs with the same seed share.
        overrides: Of its recipe.
        better: What is added to the logits of the labels.
        sharper: What the logits are then multiplied by.
        recipe: A shipped one's name.
        held_out: The run held a validation part out, which is like the test part but for ``better``, which is this.

    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(EXAMPLES) % CLASSES
    noise, onehot = torch.randn(EXAMPLES, CLASSES, generator=generator), torch.nn.functional.one_hot(labels, CLASSES)
    logits = noise + onehot * (2 + better)
    overrides = (f"algorithms.label_smoothing.smoothing={smoothing}", f"seed={seed}", *overrides)
    loaded = load_recipe(recipe, overrides)
    run = RunFolder(folder, loaded)
    folder.mkdir(parents=True, exist_ok=True)
    run.write_recipe()
    predictions = predictions_of(loaded.task, logits * sharper, labels)
    if held_out is not None:
        validation = predictions_of(loaded.task, (noise + onehot * (2 + held_out)) * sharper, labels.clone())
        predictions |= {f"validation.{name}": tensor for name, tensor in validation.items()}
    run.write_predictions(predictions)
    lines = [
        {
            "epoch": epoch, "batch": 22 * epoch, "loss/train/total": 2 / epoch + smoothing,
            "metrics/train/CrossEntropy": 2 / epoch + 0.01 * seed, "metrics/validation/CrossEntropy": 2 / epoch + 0.2,
            "metrics/test/CrossEntropy": 2 / epoch + 0.1,
            "metrics/test/MulticlassAccuracy": 1 - 0.5 / epoch, "metrics/test/MulticlassJaccardIndex": 1 - 0.6 / epoch,
            "metrics/test/LanguageCrossEntropy": 2 / epoch + 0.1,
            "metrics/test/MaskedAccuracy": 1 - 0.7 / epoch,
        }
        for epoch in range(1, 31)
    ]  # fmt: skip
    write_text(run.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))
    run.write_result(
        {
            "name": loaded.name, "smoothing": smoothing, "seed": seed, "examples": {"train": 1437, "test": EXAMPLES},
            "metrics": {"bleu": 30.0 + better}, "validation": {"bleu": 30.0 + (held_out or 0)}, "epochs": 30, "steps": 660, "train_seconds": 9.9 + 0.1 * seed, "finished": "2026-01-02T03:04:05+00:00",
            "versions": {"composer_ls": "0.1.0", "torch": "2.7.0"},
            "hardware": {"processor": "x86_64", "cores": 2, "gpu": None, "processes": 1},
            "command": f"composer-ls train digits-mlp seed={seed}",
        }
    )  # fmt: skip
    return folder


def predictions_of(task: str, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a run of a task keeps of logits ``(N, K)``, taken for images of 10 pixels or for sentences of 10 subwords."""
    if task == "classification":
        return {"logits": logits, "labels": labels}
    logits, labels = logits.view(-1, 10, CLASSES).movedim(-1, 1), labels.view(-1, 10)
    return (count_pixels(logits, labels) if task == "segmentation" else token_scores([(logits, labels)])[0])._asdict()


def make_comparison(folder: Path, factors=(0.0, 0.1), seeds=3, settings=((),), recipe="digits-mlp") -> Path:
    """Runs of every setting (a tuple of overrides), factor and seed; smoothing makes them better and less sharp."""
    for index, overrides in enumerate(settings):
        for smoothing in factors:
            for seed in range(seeds):
                wobble = 0.05 * ((7 * seed + 3 * index + round(100 * smoothing)) % 5)
                make_run(
                    folder / f"{index}-{smoothing}" / str(seed), smoothing, seed, *overrides,
                    better=3 * smoothing + wobble, sharper=1.5 - 4 * smoothing + 0.02 * seed, recipe=recipe,
                )  # fmt: skip
    return folder
