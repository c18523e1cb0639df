"""Priors, the distributions that receive the smoothed mass: checking one, and making one from class frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["as_prior", "unigram_prior"]

_CHECKED: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Priors ``(K, K)`` whose rows are known to be distributions, and the version and address of each that was checked."""


def as_prior(prior: Tensor | Sequence[Any] | None, num_classes: int | None = None) -> Tensor | None:
    """A checked prior as a float tensor, or ``None`` for the uniform one.

    Args:
        prior: ``None``, one row ``(K,)``, or one row per class ``(K, K)`` whose row c receives the smoothed mass of
            label c. Entries are not negative, and every row sums to 1 (within 1e-4).
        num_classes: K, if it is already known.

    Raises:
        ValueError: A wrong shape, a negative or non-finite entry, or a row that does not sum to 1.

    Example:
        >>> from composer_ls.smoothing import as_prior
        >>> as_prior([0.5, 0.25, 0.25], num_classes=3)
        tensor([0.5000, 0.2500, 0.2500])

    """
    if prior is None:
        return None
    rows = torch.as_tensor(prior)
    if not rows.is_floating_point():
        rows = rows.float()
    classes = rows.shape[-1] if num_classes is None and rows.ndim else num_classes
    if tuple(rows.shape) not in {(classes,), (classes, classes)}:
        raise ValueError(
            f"prior has shape {tuple(rows.shape)}, but the logits have K = {num_classes} classes: give a row of shape "
            f"(K,), one row per class of shape (K, K), or None for the uniform prior"
            if num_classes is not None
            else f"prior has shape {tuple(rows.shape)}, but must be a row (K,) or one row per class (K, K)"
        )
    check_prior_values(rows)
    return rows


def check_prior_values(rows: Tensor) -> None:
    """Raise a ValueError unless every row is a distribution. Reads the values, which makes a GPU synchronise.

    A prior is the same at every step, and reading ``(K, K)`` values would cost more than the loss, so of a tensor that was
    checked only the first row is read again until PyTorch knows that it was changed. It does not know of changes through
    NumPy, ``.data`` or :func:`torch.distributed.all_reduce`.
    """
    state = None if rows.ndim == 1 or rows.is_inference() else (rows._version, rows.data_ptr())
    known = state is not None and _CHECKED.get(rows) == state
    _check_values(rows.detach()[:1] if known else rows.detach())
    if state is not None:
        _CHECKED[rows] = state


def _check_values(rows: Tensor) -> None:
    lowest = rows.min().item()
    if not lowest >= 0:
        raise ValueError(f"prior has an entry {lowest:g}, but a probability is never negative or NaN")
    sums = rows.double().sum(-1).reshape(-1)
    worst = int((sums - 1).abs().argmax())
    if not abs(sums[worst].item() - 1) <= 1e-4:
        where = f"row {worst} of prior" if rows.ndim == 2 else "prior"
        raise ValueError(f"{where} sums to {sums[worst].item():g}, but must sum to 1: divide it by its sum")


def unigram_prior(labels: Tensor, num_classes: int, ignore_index: int = -100) -> Tensor:
    """The frequency of each class among ``labels``, ``(K,)``: a prior common in speech and translation.

    Args:
        labels: Integer labels of any shape.
        num_classes: K.
        ignore_index: A label that is not counted.

    Raises:
        TypeError: The labels are not integers.
        ValueError: There is nothing to count, or a label lies outside ``[0, K)``.

    Example:
        >>> import torch
        >>> from composer_ls.smoothing import unigram_prior
        >>> unigram_prior(torch.tensor([0, 0, 1, -100, 2]), num_classes=4)
        tensor([0.5000, 0.2500, 0.2500, 0.0000])

    References:
        Pereyra et al., 2017, https://arxiv.org/abs/1701.06548 (section 3.1, unigram label smoothing).

    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels must be integers, but their dtype is {labels.dtype}: give classes, as rows.argmax(1) of rows"
        )
    labels = labels.long()  # in uint8, 156 would equal an ignore_index of -100
    counted = labels[labels != ignore_index].reshape(-1)
    if counted.numel() == 0:
        raise ValueError(
            f"labels hold nothing to count: all {labels.numel()} of them equal ignore_index={ignore_index}"
        )
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels hold {low if low < 0 else high}, but num_classes={num_classes} allows 0 to {num_classes - 1}"
        )
    return (torch.bincount(counted, minlength=num_classes).double() / counted.numel()).float()
