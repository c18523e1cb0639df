"""Image classification: one label per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from composer import Trainer
from composer.core import Algorithm, Callback
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from composer_ls.lab.images.loaders import evaluation_loader, labels_of, training_loader
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.networks import build_model
from composer_ls.lab.tasks.classification.report import REPORT
from composer_ls.lab.tasks.classification.schema import ClassificationData, ClassificationModel, Diagnostics
from composer_ls.lab.tasks.classification.training_curve import TrainingCurve
from composer_ls.lab.tasks.classification.watching import build_diagnostics, kept_features
from composer_ls.lab.tasks.collecting import collect_predictions
from composer_ls.lab.tasks.no_better import no_better_than_nothing
from composer_ls.lab.tasks.task import Measured, Task
from composer_ls.losses import cross_entropy

__all__ = ["TASK", "Classification"]


class Classification(Task):
    """The classification task, trained with cross entropy.

    Data comes from :func:`~composer_ls.lab.tasks.classification.data.load_splits`, networks from
    :func:`~composer_ls.lab.tasks.classification.networks.build_model`. The predictions of a run are ``logits`` (N, K)
    and ``labels`` (N,) of the test images; if some training images were held out, also ``validation.logits`` and
    ``validation.labels``.
    """

    def __init__(self, recipe: Recipe, device: torch.device | str) -> None:
        assert isinstance(recipe.data, ClassificationData)
        assert isinstance(recipe.model, ClassificationModel)
        self._seed, self._data, self._model = recipe.seed, recipe.data, recipe.model
        self._splits = splits = load_splits(recipe.data, device)
        self._watcher = None
        if recipe.diagnostics is not None:
            assert isinstance(recipe.diagnostics, Diagnostics)
            self._watcher = build_diagnostics(recipe.diagnostics, splits, recipe.data)
        self.num_classes = splits.num_classes
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        self.watched = "test" if splits.validation is None else "validation"
        self.facts = {
            "classes": list(splits.classes),
            "image_shape": list(splits.image_shape),
            "examples": {name: len(part) for name, part in parts.items() if part is not None},  # type: ignore[arg-type]
            "wrong_labels": splits.wrong_labels,
        }

    def check(self, algorithms: Sequence[Algorithm]) -> None:
        """Do nothing: every algorithm of Composer and of this package supports classification."""

    @classmethod
    def teacher(cls, recipe: Recipe, facts: Mapping[str, Any]) -> nn.Module:
        """The network named in the recipe, for the run's images and classes."""
        channels, height, width = facts["image_shape"]
        return build_model(recipe.model.name, (channels, height, width), len(facts["classes"]))

    def label_counts(self) -> Tensor:
        """The number of training labels of each class, ``(K,)``."""
        return torch.bincount(labels_of(self._splits.train), minlength=self.num_classes)

    def model(self) -> ComposerClassifier:
        """The network named in the recipe, with cross entropy."""
        model = ComposerClassifier(
            build_model(self._model.name, self._splits.image_shape, self.num_classes),
            num_classes=self.num_classes,
            loss_fn=cross_entropy,
            train_metrics=MetricCollection([]),  # Composer would update these in every step; see TrainingCurve
        )
        return model.to(memory_format=torch.channels_last) if self._model.channels_last else model

    def training_loader(self) -> DataLoader[Any]:
        """Shuffled batches of images and labels."""
        return training_loader(self._splits, self._data, self._seed)

    def evaluation_loader(self) -> DataLoader[Any]:
        """Batches of images and labels of the watched part, in order."""
        return evaluation_loader(self._splits, self._data, self.watched)

    def callbacks(self) -> list[Callback]:
        """The training curve, and the diagnostics if the recipe asks for them."""
        return [TrainingCurve(), *([self._watcher] if self._watcher else [])]

    def measure(self, trainer: Trainer) -> Measured:
        """Accuracy and calibration."""
        logits, labels = self._predictions(trainer, "test")
        predictions = {"logits": logits, "labels": labels}
        watcher, features = self._watcher, None
        facts: dict[str, Any] = {}
        if self._splits.validation is not None:
            held_out = self._predictions(trainer, "validation")
            predictions |= {"validation.logits": held_out[0], "validation.labels": held_out[1]}
            facts["validation"] = REPORT.measure({"logits": held_out[0], "labels": held_out[1]})
        if watcher is not None:
            if watcher.interval is not None:  # otherwise it has measured just now, after the evaluation
                watcher.measure(trainer.state, trainer.logger)
            facts["diagnostics"] = {name.removeprefix("diagnostics/"): n for name, n in watcher.numbers.items()}
            features = kept_features(watcher, trainer.state)
        metrics = REPORT.measure(predictions)
        return Measured(
            metrics=metrics,
            units=REPORT.units,
            predictions=predictions,
            features=features,
            facts=facts,
            warnings=no_better_than_nothing(
                metrics, labels.bincount(minlength=self.num_classes), self.facts["classes"]
            ),
        )

    def _predictions(self, trainer: Trainer, part: Literal["test", "validation"]) -> tuple[Tensor, ...]:
        loader = evaluation_loader(self._splits, self._data, part)
        return collect_predictions(trainer, loader, self.facts["examples"][part])


TASK = Classification
