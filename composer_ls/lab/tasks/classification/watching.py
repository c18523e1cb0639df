"""Builds the diagnostics callback from the `diagnostics` section of a recipe, and the tensors that the run keeps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from composer.core import State
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from composer_ls.diagnostics.information import draw_logit_differences
from composer_ls.errors import RecipeError
from composer_ls.lab.images.loaders import Splits, labels_of, unaugmented
from composer_ls.lab.images.memory_images import MemoryImages, crop_flip
from composer_ls.lab.tasks.classification.schema import ClassificationData, Diagnostics, MutualInformation
from composer_ls.smoothing_diagnostics import SmoothingDiagnostics

__all__ = ["build_diagnostics", "kept_features"]

PROJECTED = 100
"""The number of examples of each projected class, as in Müller et al., 2019."""


def build_diagnostics(settings: Diagnostics, splits: Splits, data: ClassificationData) -> SmoothingDiagnostics:
    """The callback that measures diagnostics on training and test images, without augmentation.

    Raises:
        RecipeError: A class does not exist in the data, or mutual information is requested for images not in memory.

    """
    classes = settings.classes_of(splits.num_classes)
    _check_classes("diagnostics.classes", classes, splits)
    sets = {}
    for name, split in (("train", unaugmented(splits.train, splits.test)), ("test", splits.test)):
        chosen = choose_examples(labels_of(split), settings.examples, classes)
        evaluation = getattr(splits.test, "collate", None)  # which does not augment, as that of training may
        sets[name] = _loader(Subset(split, chosen.tolist()), data.batch_size, evaluation)
    draws = None
    if settings.mutual_information is not None:
        draws = _draws(settings.mutual_information, splits, data)
    return SmoothingDiagnostics(settings.interval, sets, settings.examples, settings.layer, draws=draws)


def kept_features(watcher: SmoothingDiagnostics, state: State) -> dict[str, Tensor]:
    """The tensors of the last measurement to keep; see :class:`~composer_ls.lab.run_folder.folder.RunFolder`."""
    weight, bias = watcher.head(state)
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    for name, taken in watcher.taken.items():
        tensors |= {f"{name}.{key}": getattr(taken, key) for key in ("features", "logits", "labels")}
    if watcher.mutual_information:
        tensors["mutual_information"] = torch.tensor(watcher.mutual_information, dtype=torch.float64)
    return tensors


def choose_examples(labels: Tensor, examples: int, classes: Sequence[int]) -> Tensor:
    """At most ``examples`` sorted indices: some of each of ``classes``, and others spread evenly over the data."""
    each = min(PROJECTED, examples // len(classes))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in classes:
        chosen[_spread((labels == label).nonzero().flatten(), each)] = True
    chosen[_spread((~chosen).nonzero().flatten(), examples - int(chosen.sum()))] = True
    return chosen.nonzero().flatten()


def _spread(indices: Tensor, count: int) -> Tensor:
    """``count`` of the indices, evenly spread, or all if there are fewer."""
    count = min(count, len(indices))
    return indices[torch.arange(count) * len(indices) // max(count, 1)]


def _loader(split: Subset[Any], batch_size: int, collate: Any) -> DataLoader[Any]:
    return DataLoader(
        split, batch_size, collate_fn=_whole_batch if isinstance(split.dataset, MemoryImages) else collate
    )


def _whole_batch(batch: Any) -> Any:
    return batch


def _draws(settings: MutualInformation, splits: Splits, data: ClassificationData) -> Any:
    train = splits.train
    if not isinstance(train, MemoryImages):
        raise RecipeError(
            "diagnostics.mutual_information needs images in memory: use data.in_memory=true, or "
            "diagnostics.mutual_information=null"
        )
    _check_classes("diagnostics.mutual_information.classes", settings.classes, splits)
    labels = labels_of(train)
    half = settings.examples // 2
    chosen = torch.cat([_spread((labels == label).nonzero().flatten(), half) for label in settings.classes])
    shift = splits.image_shape[1] // 8 if settings.shift is None else settings.shift
    mirror = data.name != "digits" if settings.mirror is None else settings.mirror

    def augment(images: Tensor) -> Tensor:
        tops, lefts = torch.randint(2 * shift + 1, (2, len(images)), device=images.device)
        flips = torch.rand(len(images), device=images.device) < (0.5 if mirror else 0)
        return train.normalised(crop_flip(images, tops, lefts, flips, shift))

    return functools.partial(
        draw_logit_differences,
        images=train.images[chosen.to(train.labels.device)],
        augment=augment,
        classes=(settings.classes[0], settings.classes[1]),
        draws=settings.draws,
    )


def _check_classes(key: str, classes: Sequence[int], splits: Splits) -> None:
    if len(set(classes)) < len(classes) or not all(0 <= label < splits.num_classes for label in classes):
        raise RecipeError(
            f"{key} is {classes}, but must be different classes from 0 to {splits.num_classes - 1}: "
            f"{', '.join(f'{index} {name}' for index, name in enumerate(splits.classes[:10]))}"
            f"{', ...' if splits.num_classes > 10 else ''}"
        )
