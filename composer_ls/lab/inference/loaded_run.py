"""Opens a finished run of classification, to use its network. The training data is not needed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from composer_ls.errors import RunFolderError
from composer_ls.lab.images.preprocessing import Preprocessing
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.files import read_tensors
from composer_ls.lab.run_folder.folder import RunFolder, read_recipe
from composer_ls.lab.tasks.classification.report import best_temperature
from composer_ls.lab.tasks.registry import task_class

__all__ = ["LoadedRun", "load_run"]


@dataclass(frozen=True)
class LoadedRun:
    """A trained network with what is needed to use it.

    Attributes:
        folder: The run folder.
        recipe: The run's recipe.
        result: The contents of ``result.json``.
        network: Maps images ``(N, C, H, W)`` to logits ``(N, K)``; in evaluation mode.
        preprocessing: Called with the path of an image, or an image of Pillow, returns the network's input ``(C, H, W)``.
        classes: The names of the K classes, in the order of the logits.

    """

    folder: Path
    recipe: Recipe
    result: Mapping[str, Any]
    network: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]

    @cached_property
    def temperature(self) -> float | None:
        """The temperature T for which ``softmax(logits / T)`` fits held-out images best.

        It is fitted on the validation images if the run has some, and else on the test images. ``None`` if no temperature is
        best, as where every image is right.
        """
        if "temperature" in self.result:
            value = self.result["temperature"]["value"]
            return None if value is None else float(value)
        file = RunFolder(self.folder, self.recipe).predictions_file
        try:
            predictions = read_tensors(file)
        except (OSError, SafetensorError) as error:
            raise RunFolderError(
                f"the temperature of {self.folder} cannot be fitted, because {file.name} cannot be read ({error}): "
                f"{_train_again(self.folder)}"
            ) from error
        part = self.fitted_on if f"{self.fitted_on}.logits" in predictions else ""
        prefix = f"{part}." if part else ""
        return best_temperature(predictions[f"{prefix}logits"], predictions[f"{prefix}labels"])

    @property
    def fitted_on(self) -> str:
        """The part of the data that the temperature is fitted on: ``validation`` or ``test``."""
        return "validation" if "validation" in self.result.get("examples", {}) else "test"

    def calibrated_temperature(self) -> float:
        """The temperature, for one who cannot do without.

        Raises:
            RunFolderError: No temperature is best.

        """
        if self.temperature is None:
            raise RunFolderError(
                f"no temperature fits the {self.fitted_on} images of {self.folder} best: the network is right for all of "
                f"them, its logits say nothing about the labels, or it masks a label's class; leave out --calibrated, or hold "
                f"out more images with data.validation"
            )
        return self.temperature

    @torch.inference_mode()
    def probabilities(self, images: Tensor, temperature: float = 1.0) -> Tensor:
        """The probabilities of the classes.

        Args:
            images: Preprocessed images ``(N, C, H, W)``, on any device.
            temperature: T of ``softmax(logits / T)``; ``run.temperature`` calibrates.

        Returns:
            float32 ``(N, K)`` on the CPU.

        """
        device = next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))
        return (self.network(images.to(device)).float() / temperature).softmax(1).cpu()


def load_run(folder: str | Path, device: torch.device | str = "cpu") -> LoadedRun:
    """The trained network of a finished run of classification, its preprocessing, classes and temperature.

    If the recipe has a ``model.target``, its function is called, which runs its code.

    Args:
        folder: The run folder.
        device: Where the network goes.

    Raises:
        RunFolderError: It is no run folder, the run is not finished or not of classification, it diverged, or it did not keep
            what is needed.
        RecipeError: The network cannot be built, such as a ``model.target`` that cannot be imported here.

    Example:
        >>> import composer_ls
        >>> run = composer_ls.load_run("runs/my-run")  # doctest: +SKIP
        >>> run.probabilities(run.preprocessing("cat.jpg")[None], run.temperature)  # doctest: +SKIP

    """
    path = Path(folder).expanduser()
    recipe = read_recipe(path) if path.is_dir() else None
    if recipe is None:
        raise RunFolderError(
            f"{path.absolute()} is no run folder (there is no recipe.yaml of a run): give a folder that composer-ls train wrote"
        )
    files = RunFolder(path, recipe)
    result = files.trained_result()
    if result is None:
        raise RunFolderError(
            f"the run in {path} is not finished (there is no result.json): "
            f"composer-ls train {shlex.quote(str(files.recipe_file))} --out {shlex.quote(str(path))} finishes it"
        )
    if recipe.task != "classification":
        instead = "use composer-ls translate" if recipe.task == "translation" else "give a run of classification"
        raise RunFolderError(
            f"the run in {path} is of {recipe.task}, whose networks cannot be used like this: {instead}"
        )
    preprocessing = _preprocessing(path, recipe, result)
    weights = _weights(files)
    with torch.random.fork_rng([]):
        network = task_class(recipe.task).teacher(recipe, result)
    assert network is not None
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise RunFolderError(
            f"the weights in {path} do not fit the network {recipe.model.called} ({' '.join(str(error).split())[:300]}): "
            f"algorithms that rebuild a network, such as blurpool, cannot be in the recipe of a network that is used; a "
            f"model.target must make the same network as in training"
        ) from error
    network.eval().requires_grad_(False).to(device)
    return LoadedRun(path, recipe, result, network, preprocessing, tuple(result["classes"]))


def _preprocessing(path: Path, recipe: Recipe, result: Mapping[str, Any]) -> Preprocessing:
    if "preprocessing" not in result or "classes" not in result:
        raise RunFolderError(
            f"the run in {path} is of an older version of composer_ls, which did not keep the preprocessing of images: "
            f"{_train_again(path)}"
        )
    if result["preprocessing"] is None:
        raise RunFolderError(
            f"it is not known how image files become the input of the network in {path}, because {recipe.data.called} did not "
            f'return "preprocessing": let it return {{"size": [height, width], "mean": [...], "std": [...]}} too, and train '
            f"again"
        )
    try:
        return Preprocessing.from_dict(result["preprocessing"])
    except ValueError as error:
        raise RunFolderError(f"{path / 'result.json'} is damaged ({error}): {_train_again(path)}") from error


def _weights(files: RunFolder) -> dict[str, Tensor]:
    if files.weights_file.is_file():
        try:
            return read_tensors(files.weights_file)
        except (OSError, SafetensorError) as error:
            raise RunFolderError(
                f"{files.weights_file} cannot be read ({error}): {_train_again(files.path)}"
            ) from error
    raise RunFolderError(
        f"the run in {files.path} did not keep its weights (there is no {files.weights_file.name}), because it is of an older "
        f"version of composer_ls or its recipe has checkpoints.weights=false: {_train_again(files.path)}"
    )


def _train_again(path: Path) -> str:
    recipe, out = shlex.quote(str(path / "recipe.yaml")), shlex.quote(str(path))
    return f"train it again with composer-ls train {recipe} checkpoints.weights=true --out {out} --overwrite"
