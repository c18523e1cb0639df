"""What a task is: everything that training needs to know and that is not the same for all runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from composer import Trainer
from composer.core import Algorithm, Callback, DataSpec
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from composer_ls.lab.recipe.recipe import Recipe

__all__ = ["Measured", "Task"]


@dataclass(frozen=True)
class Measured:
    """What a trained network does on the test split.

    Attributes:
        metrics: The numbers of ``result.json``.
        units: The unit of each.
        predictions: What ``predictions.safetensors`` holds, from which the metrics can be computed again.
        features: What ``features.safetensors`` holds; ``None``: there is no such file.
        facts: More entries of ``result.json``.
        files: More files of the run folder: text, or tensors for safetensors, by name.
        warnings: What to be careful about, in sentences.

    """

    metrics: Mapping[str, float]
    units: Mapping[str, str]
    predictions: Mapping[str, Tensor]
    features: Mapping[str, Tensor] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str | Mapping[str, Tensor]] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class Task(ABC):
    """One kind of problem, opened for one recipe: the data is there, the network is not made yet.

    Attributes:
        num_classes: K, over which targets are distributions.
        facts: What ``result.json`` says of the data.
        watched: The part of the data that is evaluated during training.

    """

    num_classes: int
    facts: Mapping[str, Any]
    watched: Literal["test", "validation"] = "test"

    @abstractmethod
    def __init__(self, recipe: Recipe, device: torch.device | str) -> None:
        """Open the data of a recipe of this task, on a device if it is held in memory.

        Raises:
            DataNotFoundError: The data is not there.
            RecipeError: The recipe asks for what the data or the task do not have.

        """

    @classmethod
    def teacher(cls, recipe: Recipe, facts: Mapping[str, Any]) -> nn.Module | None:
        """The network of a finished run with new weights, for a student to learn from, by its recipe and ``result.json``.

        ``None``: networks of this task do not teach.
        """
        return None

    @abstractmethod
    def check(self, algorithms: Sequence[Algorithm]) -> None:
        """Raise an InputError if an algorithm does not fit the data."""

    @abstractmethod
    def label_counts(self) -> Tensor:
        """How often each class is a training label, ``(K,)``."""

    @abstractmethod
    def model(self) -> ComposerModel:
        """A network with new weights, and its loss."""

    @abstractmethod
    def training_loader(self) -> DataLoader[Any] | DataSpec:
        """Shuffled batches of this process's share; the order follows from the recipe's seed and the epoch alone."""

    @abstractmethod
    def evaluation_loader(self) -> DataLoader[Any] | DataSpec:
        """A new loader of this process's share of the part that is watched, in order."""

    def callbacks(self) -> list[Callback]:
        """What watches the training, besides what watches every run."""
        return []

    @abstractmethod
    def measure(self, trainer: Trainer) -> Measured:
        """Try the trained network on the whole test split, and on the validation part if there is one.

        Every process gets the same answer.
        """
