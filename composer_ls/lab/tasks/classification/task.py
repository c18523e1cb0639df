"""Image classification: one label per image."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from composer import Trainer
from composer.core import Algorithm, Callback
from composer.models import ComposerClassifier, ComposerModel
from composer.utils import dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from composer_ls.errors import RecipeError
from composer_ls.lab.images.loaders import evaluation_loader, labels_of, training_loader
from composer_ls.lab.images.memory_images import MemoryImages
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.files import crc32
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.network import (
    FrozenStatistics,
    backbone_parameters,
    build_network,
    expected_preprocessing,
    load_weights,
)
from composer_ls.lab.tasks.classification.own_data import OwnExamples
from composer_ls.lab.tasks.classification.report import REPORT, best_temperature
from composer_ls.lab.tasks.classification.schema import ClassificationData, ClassificationModel, Diagnostics
from composer_ls.lab.tasks.classification.training_curve import TrainingCurve
from composer_ls.lab.tasks.classification.watching import build_diagnostics, kept_features
from composer_ls.lab.tasks.classification.weights import weights_metadata
from composer_ls.lab.tasks.collecting import EvaluatedWeights, collect_predictions
from composer_ls.lab.tasks.no_better import no_better_than_nothing
from composer_ls.lab.tasks.task import Measured, Task
from composer_ls.losses import cross_entropy

__all__ = ["TASK", "Classification"]


class Classification(Task):
    """The classification task, trained with cross entropy.

    Data comes from :func:`~composer_ls.lab.tasks.classification.data.load_splits`, networks from
    :func:`~composer_ls.lab.tasks.classification.network.build_network`. The predictions of a run are ``logits`` (N, K)
    and ``labels`` (N,) of the test images; if some training images were held out, also ``validation.logits`` and
    ``validation.labels``.
    """

    def __init__(self, recipe: Recipe, device: torch.device | str) -> None:
        assert isinstance(recipe.data, ClassificationData)
        assert isinstance(recipe.model, ClassificationModel)
        self._seed, self._data, self._model = recipe.seed, recipe.data, recipe.model
        self._splits = splits = load_splits(recipe.data, device, expected_preprocessing(recipe.model))
        self._weights: dict[str, Any] | None = None
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
            "preprocessing": None if splits.preprocessing is None else splits.preprocessing.as_dict(),
        }

    def check(self, algorithms: Sequence[Algorithm]) -> None:
        """Do nothing: every algorithm of Composer and of this package supports classification."""

    @classmethod
    def teacher(cls, recipe: Recipe, facts: Mapping[str, Any]) -> nn.Module:
        """The network named in the recipe, for the run's images and classes."""
        assert isinstance(recipe.model, ClassificationModel)
        if recipe.algorithms.get("stochastic_depth") is not None:
            raise RecipeError(
                "algorithms.stochastic_depth changes what a network computes from its weights, also after training, so the run's "
                "network cannot be made from them: train without it to use the network"
            )
        return build_network(recipe.model, tuple(facts["image_shape"]), len(facts["classes"]), bare=True)

    def known_of_the_data(self) -> dict[str, Any]:
        """The classes, the numbers of examples, and checksums of the labels that can be read without reading examples."""
        parts = {"train": self._splits.train, "validation": self._splits.validation, "test": self._splits.test}
        known = super().known_of_the_data()
        for name, part in parts.items():
            given = part.dataset if isinstance(part, OwnExamples) else part
            labels = given.labels if isinstance(given, MemoryImages) else getattr(given, "targets", None)
            with contextlib.suppress(TypeError, ValueError):  # data of the user's may have targets of any kind
                known |= {} if labels is None else {f"{name} labels": crc32(torch.as_tensor(labels).long())}
        return known

    def label_counts(self) -> Tensor:
        """The number of training labels of each class, ``(K,)``."""
        return torch.bincount(labels_of(self._splits.train), minlength=self.num_classes)

    def model(self) -> ComposerClassifier:
        """The network named in the recipe, with the weights that it begins with, and cross entropy."""
        network = build_network(self._model, self._splits.image_shape, self.num_classes)
        self._weights = load_weights(network, self._model, self._splits.classes)
        if self._weights is not None and dist.get_global_rank() == 0:
            for sentence in self._weights["left_out"]:
                print(sentence, file=sys.stderr, flush=True)
        if self._model.freeze == "backbone":
            for parameter in backbone_parameters(network, self._model, self.num_classes):
                parameter.requires_grad_(False)
        model = ComposerClassifier(
            network,
            num_classes=self.num_classes,
            loss_fn=cross_entropy,
            train_metrics=MetricCollection([]),  # Composer would update these in every step; see TrainingCurve
        )
        return model.to(memory_format=torch.channels_last) if self._model.channels_last else model

    def backbone(self, model: ComposerModel) -> list[nn.Parameter]:
        """The parameters of all layers but the last one."""
        return backbone_parameters(model.module, self._model, self.num_classes)

    def training_loader(self) -> DataLoader[Any]:
        """Shuffled batches of images and labels."""
        return training_loader(self._splits, self._data, self._seed)

    def evaluation_loader(self) -> DataLoader[Any]:
        """Batches of images and labels of the watched part, in order."""
        return evaluation_loader(self._splits, self._data, self.watched)

    def callbacks(self) -> list[Callback]:
        """The training curve, and the diagnostics and a frozen backbone if the recipe asks for them."""
        frozen = [FrozenStatistics()] if self._model.freeze == "backbone" else []
        return [TrainingCurve(), *frozen, *([self._watcher] if self._watcher else [])]

    def measure(self, trainer: Trainer) -> Measured:
        """Accuracy and calibration."""
        evaluated = EvaluatedWeights()
        trainer.state.callbacks.append(evaluated)
        logits, labels = self._predictions(trainer, "test")
        trainer.state.callbacks.remove(evaluated)
        predictions = {"logits": logits, "labels": labels}
        watcher, features = self._watcher, None
        facts: dict[str, Any] = {} if self._weights is None else {"weights": self._weights}
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
        prefix = "" if self._splits.validation is None else "validation."
        best = best_temperature(predictions[f"{prefix}logits"], predictions[f"{prefix}labels"])
        facts["temperature"] = {"value": best, "fitted_on": self.watched}
        return Measured(
            metrics=metrics,
            units=REPORT.units,
            predictions=predictions,
            features=features,
            weights=evaluated.weights,
            weights_metadata=weights_metadata(
                self.facts["classes"], self.facts["preprocessing"], network=self._model.called
            ),
            facts=facts,
            warnings=[
                *no_better_than_nothing(metrics, labels.bincount(minlength=self.num_classes), self.facts["classes"]),
                *self._splits.cautions,
                *(self._weights or {}).get("left_out", []),
            ],
        )

    def _predictions(self, trainer: Trainer, part: Literal["test", "validation"]) -> tuple[Tensor, ...]:
        loader = evaluation_loader(self._splits, self._data, part)
        return collect_predictions(trainer, loader, self.facts["examples"][part])


TASK = Classification
