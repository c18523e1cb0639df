"""Semantic segmentation: one label per pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm
from composer.models import ComposerClassifier
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from composer_ls.diagnostics.pixels import PixelCounts, count_pixels
from composer_ls.distillation import Distillation
from composer_ls.errors import RecipeError
from composer_ls.lab.images.loaders import evaluation_loader, training_loader
from composer_ls.lab.images.memory_images import MemoryLabelMaps
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.files import crc32
from composer_ls.lab.tasks.collecting import collect_predictions
from composer_ls.lab.tasks.no_better import no_better_than_nothing
from composer_ls.lab.tasks.segmentation.data import load_label_maps
from composer_ls.lab.tasks.segmentation.networks import UNet
from composer_ls.lab.tasks.segmentation.report import REPORT
from composer_ls.lab.tasks.segmentation.schema import SegmentationData, SegmentationModel
from composer_ls.lab.tasks.task import Measured, Task
from composer_ls.losses import cross_entropy, dice_loss

__all__ = ["TASK", "Segmentation"]


def cross_entropy_and_dice(input: Tensor, target: Tensor) -> Tensor:
    """The sum of :func:`~composer_ls.cross_entropy` and :func:`~composer_ls.dice_loss`."""
    return cross_entropy(input, target) + dice_loss(input, target)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice_loss,
    "cross_entropy+dice": cross_entropy_and_dice,
}


class Segmentation(Task):
    """The segmentation task: a U-Net trained with cross entropy, Dice loss or both.

    Data comes from :func:`~composer_ls.lab.tasks.segmentation.data.load_label_maps`. Pixels without a class have label
    -100. The predictions of a run are the counts of :class:`~composer_ls.diagnostics.pixels.PixelCounts` for each test
    image.
    """

    def __init__(self, recipe: Recipe, device: torch.device | str) -> None:
        assert isinstance(recipe.data, SegmentationData)
        assert isinstance(recipe.model, SegmentationModel)
        self._seed, self._data, self._model = recipe.seed, recipe.data, recipe.model
        self._loss = LOSSES[recipe.loss]
        self._splits = splits = load_label_maps(recipe.data, device)
        self.num_classes = splits.num_classes
        self.facts = {
            "classes": list(splits.classes),
            "image_shape": list(splits.image_shape),
            "examples": {"train": len(splits.train), "test": len(splits.test)},  # type: ignore[arg-type]
        }

    def check(self, algorithms: Sequence[Algorithm]) -> None:
        """Raise a RecipeError if there is a teacher, because all teachers that a recipe can name are classifiers."""
        if any(isinstance(algorithm, Distillation) for algorithm in algorithms):
            raise RecipeError("algorithms.distillation is for classification: leave it out")

    def known_of_the_data(self) -> dict[str, Any]:
        """The classes, the numbers of images, and checksums of the images with their label maps."""
        parts = {"train": self._splits.train, "test": self._splits.test}
        maps = {f"{name} masks": crc32(one.images) for name, one in parts.items() if isinstance(one, MemoryLabelMaps)}
        return super().known_of_the_data() | maps

    def label_counts(self) -> Tensor:
        """The number of training pixels of each class, ``(K,)``."""
        assert isinstance(self._splits.train, MemoryLabelMaps)
        return self._splits.train.label_counts(self.num_classes)

    def model(self) -> ComposerClassifier:
        """The U-Net with the loss of the recipe."""
        overlap = MulticlassJaccardIndex(self.num_classes, ignore_index=-100)
        model = ComposerClassifier(
            UNet(self._splits.image_shape[0], self.num_classes, self._model.width),
            num_classes=self.num_classes,
            loss_fn=self._loss,
            train_metrics=MetricCollection([]),
            val_metrics=MetricCollection([overlap]),
        )
        return model.to(memory_format=torch.channels_last) if self._model.channels_last else model

    def training_loader(self) -> DataLoader[Any]:
        """Shuffled batches of images and label maps."""
        return training_loader(self._splits, self._data, self._seed)

    def evaluation_loader(self) -> DataLoader[Any]:
        """Batches of test images and label maps, in order."""
        return evaluation_loader(self._splits, self._data)

    def measure(self, trainer: Trainer) -> Measured:
        """Overlap, accuracy and calibration of pixels, and the counts of each image from which they are computed."""
        examples = self.facts["examples"]["test"]
        counts = PixelCounts(*collect_predictions(trainer, self.evaluation_loader(), examples, count_pixels))
        predictions = counts._asdict()
        metrics = REPORT.measure(predictions)
        return Measured(
            metrics=metrics,
            units=REPORT.units,
            predictions=predictions,
            warnings=no_better_than_nothing(metrics, counts.confusion.sum((0, 2)), self.facts["classes"]),
        )


TASK = Segmentation
