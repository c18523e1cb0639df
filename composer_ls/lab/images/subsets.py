"""Splits the training images into a part to train on and a part held out for validation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from composer_ls.errors import RecipeError
from composer_ls.lab.images.memory_images import MemoryImages

__all__ = ["divide", "subset"]


def divide(
    labels: Tensor, num_classes: int, validation: float | None = None, examples: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The indices of the held-out examples and of the examples to train on, each in ascending order.

    The choice depends on the labels and the seed only. With the same seed, a larger part contains the smaller one, and
    neither part depends on the size of the other, unless they use up all examples.

    Args:
        labels: int64 ``(N,)``.
        num_classes: K.
        validation: How many examples to hold out (an int) or which fraction (a float): the same fraction of every
            class, up to rounding. ``None``: none.
        examples: How many of the others to train on: the same number for every class, up to one, or all that a class
            has. ``None``: all of them.
        seed: The seed of the choice.

    Raises:
        RecipeError: There are fewer examples than that, or too few for every class to have one.

    Example:
        >>> import torch
        >>> from composer_ls.lab.images.subsets import divide
        >>> labels = torch.tensor([0, 1] * 10)
        >>> held_out, kept = divide(labels, num_classes=2, validation=0.2, examples=6)
        >>> labels[held_out].bincount().tolist(), labels[kept].bincount().tolist()
        ([2, 2], [3, 3])

    """
    counts = labels.bincount(minlength=num_classes)
    size = len(labels)
    wanted = 0 if validation is None else validation if isinstance(validation, int) else round(validation * size)
    held_out = _proportional(counts, wanted)
    left = size - wanted
    if validation is not None and (left < num_classes or int(held_out.min()) == 0 < int(counts.min())):
        raise RecipeError(
            f"data.validation={validation} holds out {wanted:,} of {size:,} training images, but each of the "
            f"{num_classes} classes needs some to validate on and some to train on: use a number in between"
        )
    if examples is not None and not num_classes <= examples <= left:
        raise RecipeError(
            f"data.examples is {examples:,}, but must be from {num_classes}, one per class, to {left:,}, the number of "
            f"training images there are{' besides those that data.validation holds out' if wanted else ''}"
        )
    kept = counts - held_out if examples is None else _even(counts - held_out, examples)
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for label in range(num_classes):
        of_class = (labels == label).nonzero().flatten()
        shuffled = of_class[torch.randperm(len(of_class), generator=generator)]
        parts[0].append(shuffled[: int(held_out[label])])
        parts[1].append(shuffled[len(shuffled) - int(kept[label]) :])
    first, second = (torch.cat(part).sort().values for part in parts)
    return first, second


def _proportional(counts: Tensor, total: int) -> Tensor:
    """``total`` split in proportion to ``counts``; remainders go to the shares that lost most by rounding down."""
    exact = counts.double() * total / max(int(counts.sum()), 1)
    shares = exact.floor().long()
    order = (shares - exact).argsort(stable=True)
    shares[order[: total - int(shares.sum())]] += 1
    return shares


def _even(counts: Tensor, total: int) -> Tensor:
    """``total`` split evenly, with no share above its entry in ``counts``."""
    shares = torch.zeros_like(counts)
    while left := total - int(shares.sum()):
        open_ = (shares < counts).nonzero().flatten()
        each = max(left // len(open_), 1)
        some = open_ if left >= len(open_) else open_[:left]
        shares[some] = torch.minimum(shares[some] + each, counts[some])
    return shares


def subset(images: Dataset[Any], indices: Tensor) -> Dataset[Any]:
    """Some examples of a data set, as a data set of the same kind that does not keep the rest in memory."""
    part: Any = copy.copy(images)
    if isinstance(part, MemoryImages):
        at = indices.to(part.labels.device)
        part.images, part.labels = part.images[at], part.labels[at]
        return part
    chosen = indices.tolist()
    part.targets = [part.targets[index] for index in chosen]
    if hasattr(part, "samples"):  # a folder of images
        part.samples = part.imgs = [part.samples[index] for index in chosen]
    else:
        part.data = part.data[chosen]
    return part
