"""The interface of a task: everything that training needs and that differs between tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from composer import Trainer
from composer.core import Algorithm, Callback, DataSpec
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.recipe import Recipe

__all__ = ["Measured", "Task"]


@dataclass(frozen=True)
class Measured:
    """The results of a trained network on the test split.

    Attributes:
        metrics: The metrics for ``result.json``.
        units: The unit of each metric.
        predictions: The contents of ``predictions.safetensors``, from which the metrics can be computed again.
        features: The contents of ``features.safetensors``; ``None`` for no such file.
        weights: The contents of ``weights.safetensors``; ``None`` for no such file.
        weights_metadata: What that file says about itself.
        facts: Additional entries for ``result.json``.
        files: Additional files for the run folder, by name: text, or a function that writes a folder and is
            given its path.
        warnings: What to be careful about, in sentences.

    """

    metrics: Mapping[str, float]
    units: Mapping[str, str]
    predictions: Mapping[str, Tensor]
    features: Mapping[str, Tensor] | None = None
    weights: Mapping[str, Tensor] | None = None
    weights_metadata: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str | Callable[[Path], None]] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class Task(ABC):
    """A kind of problem, with the data of one recipe. The network is created by :meth:`model`.

    Attributes:
        num_classes: K, the number of classes of a target.
        facts: The entries of ``result.json`` about the data.
        watched: The part of the data that is evaluated during training.

    """

    num_classes: int
    facts: Mapping[str, Any]
    watched: Literal["test", "validation"] = "test"

    @abstractmethod
    def __init__(self, recipe: Recipe, device: torch.device | str) -> None:
        """Open the data of a recipe of this task. Data held in memory goes to ``device``.

        Raises:
            DataNotFoundError: The data does not exist.
            RecipeError: The recipe asks for something that the data or the task does not have.

        """

    @classmethod
    def teacher(cls, recipe: Recipe, facts: Mapping[str, Any]) -> nn.Module | None:
        """The network of a finished run, for use as a teacher; the caller loads its weights.

        Args:
            recipe: The run's recipe.
            facts: The run's ``result.json``.

        Returns:
            The network with fresh weights, or ``None`` if networks of this task cannot be teachers.

        """
        return None

    @abstractmethod
    def check(self, algorithms: Sequence[Algorithm]) -> None:
        """Raise an InputError if an algorithm does not fit the data."""

    @abstractmethod
    def label_counts(self) -> Tensor:
        """The number of training labels of each class, ``(K,)``."""

    def known_of_the_data(self) -> dict[str, Any]:
        """Numbers and text that tell this data from other data, by names in words; cheap to find out."""
        return {"classes": self.facts.get("classes"), "numbers of examples": self.facts.get("examples")}

    @abstractmethod
    def model(self) -> ComposerModel:
        """The network with fresh weights, and its loss."""

    def backbone(self, model: ComposerModel) -> list[nn.Parameter]:
        """The parameters of the network's layers but the last one, for ``optimizer.backbone_scale``.

        Raises:
            RecipeError: The task does not know them.

        """
        raise RecipeError("optimizer.backbone_scale is for classification: leave it out")

    @abstractmethod
    def training_loader(self) -> DataLoader[Any] | DataSpec:
        """Shuffled batches of this process's share. The order depends on the recipe's seed and the epoch only."""

    @abstractmethod
    def evaluation_loader(self) -> DataLoader[Any] | DataSpec:
        """A new loader of this process's share of the watched part, in order."""

    def callbacks(self) -> list[Callback]:
        """Callbacks of this task, in addition to those of every run."""
        return []

    @abstractmethod
    def measure(self, trainer: Trainer) -> Measured:
        """Evaluate the trained network on the whole test split, and on the validation part if there is one.

        Every process gets the same result.
        """
