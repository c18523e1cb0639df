"""Reads run folders for a page of diagnostics: predictions, and features if a run kept them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from composer_ls.diagnostics.inspection import Penultimate
from composer_ls.errors import DiagnosticsError, InputError, RunFolderError
from composer_ls.lab.compare.settings import names_of_settings
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.files import read_tensors
from composer_ls.lab.run_folder.folder import RunFolder, read_recipe
from composer_ls.lab.tasks.classification.schema import Diagnostics

__all__ = ["Diagnosed", "read_all"]


@dataclass(frozen=True)
class Diagnosed:
    """A finished run to diagnose.

    Attributes:
        folder: The run folder.
        recipe: The run's recipe.
        result: Its ``result.json``.
        logits: The logits of the test examples, ``(N, K)``.
        labels: The labels of the test examples, ``(N,)``.
        features: Its ``features.safetensors``; empty if it kept none.
        name: Its display name, which distinguishes it from other runs on the page.

    """

    folder: Path
    recipe: Recipe
    result: Mapping[str, Any]
    logits: Tensor
    labels: Tensor
    features: Mapping[str, Tensor]
    name: str = ""

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """The last layer's weight ``(K, D)`` and bias ``(K,)``.

        Raises:
            DiagnosticsError: The run kept no features.

        """
        if "weight" not in self.features:
            raise DiagnosticsError(
                f"{self.folder} has no features.safetensors; to keep features, train it again with diagnostics={{}}"
            )
        return self.features["weight"], self.features.get("bias")

    @property
    def diagnostics(self) -> Diagnostics | None:
        """The diagnostics section of its recipe."""
        assert self.recipe.diagnostics is None or isinstance(self.recipe.diagnostics, Diagnostics)
        return self.recipe.diagnostics

    def taken(self, split: str) -> Penultimate:
        """The features, logits and labels of ``train`` or ``test``.

        Raises:
            DiagnosticsError: The run kept no features, or they do not fit its last layer.

        """
        weight, _ = self.head
        try:
            features, logits, labels = (self.features[f"{split}.{name}"] for name in ("features", "logits", "labels"))
            if features.shape != (len(labels), weight.shape[1]) or len(logits) != len(labels):
                raise KeyError(f"shapes {tuple(features.shape)}, {tuple(logits.shape)} and {tuple(labels.shape)}")
            return Penultimate(features, logits, labels)
        except KeyError as error:
            raise DiagnosticsError(
                f"features.safetensors in {self.folder} is not as a run writes it ({' '.join(str(error).split())}): train "
                f"it again with --overwrite"
            ) from error

    def class_name(self, label: int) -> str:
        """The name of a class."""
        names = self.result.get("classes") or []
        return str(names[label]) if label < len(names) else str(label)


def read_all(folders: Sequence[Path]) -> list[Diagnosed]:
    """Finished runs with names that distinguish them. A folder that is given twice counts once.

    Raises:
        RunFolderError: A folder contains no run, or one that is unfinished or damaged.
        InputError: The runs have different classes or test labels, or are not for classification.

    """
    runs = [_read(folder) for folder in dict.fromkeys(folders)]
    first = runs[0]
    for run in runs:
        if run.result.get("classes") != first.result.get("classes"):
            raise InputError(
                f"{run.folder} and {first.folder} were trained on different classes, which cannot be shown side by side: "
                f"diagnose them separately"
            )
        if not torch.equal(run.labels, first.labels):
            raise InputError(
                f"{run.folder} and {first.folder} were tested on different examples, which cannot be shown side by side: "
                f"diagnose them separately"
            )
    return [replace(run, name=name) for run, name in zip(runs, _names(runs), strict=True)]


def _read(folder: Path) -> Diagnosed:
    recipe = read_recipe(folder)
    if recipe is None:
        raise RunFolderError(f"{folder.absolute()} is not a run folder: it has no recipe.yaml written by a run")
    if recipe.task != "classification":
        raise InputError(
            f"the run in {folder} is for {recipe.task}, but diagnose is for classification: its metrics are in "
            f"{folder / 'result.json'}"
        )
    files = RunFolder(folder, recipe)
    result = files.result() if files.predictions_file.is_file() else files.trained_result()
    if result is None:
        raise RunFolderError(
            f"the run in {folder} is not finished: composer-ls train {files.recipe_file} --out {folder} continues it"
        )
    try:
        predictions = read_tensors(files.predictions_file)
        features = read_tensors(files.features_file) if files.features_file.is_file() else {}
        return Diagnosed(folder, recipe, result, predictions["logits"], predictions["labels"], features)
    except (OSError, SafetensorError, KeyError) as error:
        raise RunFolderError(
            f"the files of the run in {folder} cannot be read ({' '.join(str(error).split())}): run it again with --overwrite"
        ) from error


def _names(runs: Sequence[Diagnosed]) -> list[str]:
    """The smoothing of each run, plus other differences as far as they are needed to distinguish runs."""
    others = names_of_settings([run.recipe for run in runs])
    names = [f"smoothing {run.recipe.smoothing:g}" for run in runs]
    names = [f"{name}, {other}" if other else name for name, other in zip(names, others, strict=True)]
    for suffixes in ([f"seed {run.recipe.seed}" for run in runs], [str(run.folder) for run in runs]):
        counts = Counter(names)
        names = [f"{name}, {more}" if counts[name] > 1 else name for name, more in zip(names, suffixes, strict=True)]
    return names
