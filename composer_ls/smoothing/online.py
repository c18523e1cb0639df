"""Online label smoothing: the prior of each class is what the network predicts for it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from composer_ls.smoothing.max_suppression import largest_class
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import class_dim

__all__ = ["online_prior", "right_predictions"]

CHUNK = 1 << 20
"""Number of logits whose probabilities are held at once, and of entries of the prior that are computed at once."""
FEW = 1 << 14
"""Number of logits up to which the CPU computes the probabilities of wrong predictions too, which takes less time than leaving them out."""


def right_predictions(
    logits: Tensor, target: Tensor | Sequence[Tensor], *, ignore_index: int | None = -100, into: Tensor | None = None
) -> Tensor:
    r"""The predictions of the examples that the network has right, summed by class: :math:`S_{c} = \sum_{n:\ \arg\max x_n = c = y_n} \mathrm{softmax}(x_n)`.

    An example that is mixed of several labels is right if its prediction is one of them; it counts once, for that label.
    An example with NaN or infinity as its largest logit is not right.

    Args:
        logits: ``(N, K, *spatial)``. Every position is an example.
        target: Labels ``(N, *spatial)``; dense rows that are not smoothed; SoftTargets, whose labels with a weight count;
            or several of these, if an example has labels in more than one place.
        ignore_index: A label that does not count.
        into: Sums ``(K, K)`` of earlier batches, to which these are added in place. Default: zeros, in float64, so that
            small probabilities still count after many millions.

    Returns:
        The sums ``(K, K)``, where row c is that of class c.

    Example:
        >>> import torch
        >>> from composer_ls.smoothing import online_prior, right_predictions
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
        >>> sums = right_predictions(logits, torch.tensor([0, 0, 0]))  # the third is wrong
        >>> online_prior(sums)
        tensor([[0.6904, 0.3096],
                [0.5000, 0.5000]])

    References:
        Zhang et al., 2021, https://arxiv.org/abs/2011.12562 (equations 5 and 6).

    """
    dim = class_dim(logits)
    classes = logits.shape[dim]
    if into is None:
        into = logits.new_zeros((classes, classes), dtype=torch.float64)
    x = logits.detach()
    if x.ndim == 1:
        x = x.unsqueeze(0)
    predicted = largest_class(logits.detach()).reshape(x.shape[0], *x.shape[2:])
    right = x.gather(1, predicted.unsqueeze(1)).squeeze(1).isfinite()  # one NaN would stay in the sums
    targets = target if isinstance(target, Sequence) else [target]
    each = (_are_right(predicted, labels, logits, ignore_index) for labels in targets)
    right &= reduce(operator.or_, each, torch.zeros_like(right))
    for rows, found, counts in _chunks(x, predicted, right):
        if rows.device.type == "cpu" and rows.numel() > FEW:
            some = counts.nonzero().squeeze(1)
            probabilities, found = rows[some].float().softmax(1), found[some]
        else:
            probabilities = torch.where(counts.unsqueeze(1), rows.float().softmax(1), 0)
        if into.device.type == "cuda":  # index_add_() would add in an order that differs from run to run
            into.index_put_((found,), probabilities.to(into.dtype), accumulate=True)
        else:
            into.index_add_(0, found, probabilities.to(into.dtype))
    return into


def online_prior(sums: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The prior of each class, ``(K, K)``: the mean of its right predictions, or uniform if there are none.

    Args:
        sums: From :func:`right_predictions`, over an epoch. Summed over processes if there are several.
        dtype: The dtype of the result.

    References:
        Zhang et al., 2021, https://arxiv.org/abs/2011.12562 (equation 7); the authors' code for a class without any right
        prediction.

    """
    prior = torch.empty_like(sums, dtype=dtype)
    step = max(1, CHUNK // max(1, sums.shape[1]))  # for many classes, each (K, K) takes gigabytes
    for first in range(0, len(sums), step):
        some = sums[first : first + step]
        counts = some.sum(1, keepdim=True)  # a prediction sums to 1
        prior[first : first + step] = torch.where(
            counts == 0, 1 / sums.shape[1], some / torch.where(counts == 0, 1, counts)
        )
    return prior


def _are_right(predicted: Tensor, target: Tensor, logits: Tensor, ignore_index: int | None) -> Tensor:
    dim = class_dim(logits)
    if isinstance(target, SoftTargets):
        same = (target.classes == predicted.reshape(target.classes.narrow(dim, 0, 1).shape)) & (target.weights != 0)
        return same.any(dim).reshape(predicted.shape)
    if target.shape == logits.shape:
        return (target.gather(dim, predicted.reshape(target.narrow(dim, 0, 1).shape)) > 0).reshape(predicted.shape)
    labels = target.reshape(predicted.shape)
    right = predicted == labels
    never_predicted = ignore_index is None or not 0 <= ignore_index < logits.shape[dim]
    return right if never_predicted else right & (labels != ignore_index)


def _chunks(x: Tensor, *by_row: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Logits ``(n, K)`` and what belongs to each row, in parts that fit :data:`CHUNK`."""
    classes, positions = x.shape[1], x.shape[2:].numel()
    step, width = max(1, CHUNK // max(1, classes * positions)), max(1, CHUNK // classes)
    for first in range(0, len(x), step):
        some = x[first : first + step]
        some = some if x.ndim == 2 else some.flatten(2)  # (n, K, S)
        fields = [field[first : first + step].reshape(-1) for field in by_row]
        if x.ndim == 2 or positions <= width:
            yield (some.movedim(1, -1).reshape(-1, classes), *fields)
            continue
        for left in range(0, positions, width):
            yield (some[0, :, left : left + width].T, *(field[left : left + width] for field in fields))
