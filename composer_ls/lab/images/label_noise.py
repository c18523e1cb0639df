"""Changes some training labels at random, to study how smoothing copes with wrong labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from composer_ls.errors import RecipeError
from composer_ls.lab.images.memory_images import MemoryImages

__all__ = ["noisy_labels", "relabel"]


def noisy_labels(
    labels: Tensor, num_classes: int, rate: float, pairs: Mapping[int, int] | None = None, seed: int = 0
) -> Tensor:
    """A copy of the labels with some changed at random.

    With the same seed, the labels changed at a higher rate include those changed at a lower one.

    Args:
        labels: int64 ``(N,)``.
        num_classes: K.
        rate: The probability that a label is changed, in [0, 1].
        pairs: A mapping from a class to the class that replaces it; labels of other classes stay. ``None``: a label
            changes to any other class with equal probability.
        seed: The seed of the choice.

    Raises:
        RecipeError: A pair maps a class to itself, or names a class that does not exist.

    Example:
        >>> import torch
        >>> from composer_ls.lab.images.label_noise import noisy_labels
        >>> labels = torch.zeros(1000, dtype=torch.int64)
        >>> wrong = noisy_labels(labels, num_classes=10, rate=0.4) != labels
        >>> round(wrong.float().mean().item(), 1)
        0.4

    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(labels), generator=generator) < rate
    steps = torch.randint(1, max(num_classes, 2), (len(labels),), generator=generator)
    if pairs is None:
        return torch.where(chosen, (labels + steps) % num_classes, labels)
    partner = torch.arange(num_classes)
    for source, target in pairs.items():
        if source == target or not (0 <= source < num_classes and 0 <= target < num_classes):
            raise RecipeError(
                f"data.label_noise.pairs has {source}: {target}, but must map a class to another one, both from 0 to "
                f"{num_classes - 1}"
            )
        partner[source] = target
    return torch.where(chosen, partner[labels], labels)


def relabel(split: Dataset[Any], labels: Tensor) -> None:
    """Replace the labels of a data set, int64 ``(N,)``, in place."""
    if isinstance(split, MemoryImages):
        split.labels = labels.to(split.labels.device)
        return
    split.targets = labels.tolist()  # type: ignore[attr-defined]
    if hasattr(split, "samples"):  # a folder of images reads its labels from here
        split.samples = [(file, label) for (file, _), label in zip(split.samples, labels.tolist(), strict=True)]
