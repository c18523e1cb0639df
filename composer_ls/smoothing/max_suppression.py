"""MaxSup: the largest logit is penalised instead of the label's."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from composer_ls.smoothing.labels import classes_and_weights, smooth_labels
from composer_ls.targets import SoftTargets
from composer_ls.targets.compiling import in_graph, know_in_graph
from composer_ls.targets.fields import class_dim, expand_field, host_number, is_sharded, wide_dtype
from composer_ls.targets.soft_targets import make

__all__ = ["check_strength", "largest_class", "max_suppression"]

BLOCK = 128
"""Number of classes whose maximum is taken at once. The CPU finds maxima three times as fast as their positions."""


def max_suppression(
    logits: Tensor,
    target: Tensor,
    strength: float = 0.1,
    *,
    ignore_index: int | None = -100,
    validate: bool | None = None,
) -> Tensor:
    r"""The target whose cross entropy is the MaxSup loss, :math:`\mathrm{CE}(x, y) + \alpha\,(\max_k x_k - \mathrm{mean}_k\,x_k)`.

    Label smoothing with α is :math:`\mathrm{CE}(x, y) + \alpha\,(x_{label} - \mathrm{mean}_k\,x_k)`. Where the network is
    right, the two are the same. Where it is wrong, smoothing pulls the label's logit down although it is too low already,
    and MaxSup pulls down the logit that is too high.

    As a target this is :math:`y' = y + \alpha\,m\,(1/K - \mathrm{onehot}(\arg\max x))`, where m is the mass of y. It
    adds up to m, and its entry at the largest logit may be negative. The penalty does not depend on the label, so it
    commutes with mixing: rows that are mixed by MixUp or CutMix get the penalty once. Ignored rows (m = 0) get none. If
    several logits are the largest, one of them is penalised.

    Args:
        logits: Predictions ``(N, K, *spatial)`` or ``(K,)``. Their values are read, but no gradient flows through this
            function; that of the loss is exact.
        target: Labels, integer ``(N, *spatial)``; dense rows ``(N, K, *spatial)``; or SoftTargets.
        strength: α in [0, 1). From 1 on, a correct prediction would not be rewarded.
        ignore_index: Positions with this label get a row of zeros; ``None`` to ignore no label.
        validate: Whether to check values of the target; ``None``: on the CPU only.

    Returns:
        SoftTargets for labels and for SoftTargets that are not smoothed; otherwise a dense tensor.

    Raises:
        TypeError: ``strength`` is not a number.
        ValueError: ``strength`` is outside [0, 1) or NaN; the logits are a DTensor; or as in
            :func:`~composer_ls.smooth_labels`.

    Note:
        Under class weights, the row above is weighted as PyTorch weights probabilities, and the mean is over
        ``weight[label] + α·weight[argmax]``, divided by ``1 + α``, of each row.

    Example:
        >>> import torch
        >>> from composer_ls import cross_entropy
        >>> from composer_ls.smoothing import max_suppression
        >>> logits, labels = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([1])
        >>> max_suppression(logits, labels, 0.3).dense()
        tensor([[-0.2000,  1.1000,  0.1000]])
        >>> cross_entropy(logits, max_suppression(logits, labels, 0.3))  # 2.4076 + 0.3 * (3 - 2)
        tensor(2.7076)

    References:
        Zhou et al., 2025, https://arxiv.org/abs/2502.15798 (section 3.2; their ImageNet runs raise α from 0.1 to 0.2).

    """
    if torch.compiler.is_compiling():
        know_in_graph()
    return _max_suppression(logits, target, strength, ignore_index, validate)


@in_graph
def _max_suppression(
    logits: Tensor, target: Tensor, strength: float, ignore_index: int | None, validate: bool | None
) -> Tensor:
    amount = check_strength(strength)
    if is_sharded(logits):
        raise ValueError(
            "max_suppression needs the largest logit of each row, but logits is a DTensor: use full_tensor()"
        )
    dim = class_dim(logits)
    labels = classes_and_weights(logits, target, ignore_index, validate) if amount else None
    if labels is None:
        rows = smooth_labels(logits, target, 0.0, ignore_index=ignore_index, validate=validate)
        if amount == 0:
            return rows
        if isinstance(rows, SoftTargets) and rows.prior is None and host_number(rows.smoothing) == 0:
            labels = rows.classes, rows.weights
    largest = largest_class(logits.detach()).unsqueeze(dim)
    if labels is not None:
        dtype = target.dtype if isinstance(target, SoftTargets) else logits.dtype
        classes, weights = labels
        weights = _suppressed(weights, classes, amount, dim, wide_dtype(dtype))
        smoothing = torch.scalar_tensor(amount, dtype=torch.float64)
        return make(torch.cat([classes, largest], dim), logits.shape[dim], weights, smoothing, None, dtype)
    dense = rows.dense() if isinstance(rows, SoftTargets) else rows
    moved = dense.sum(dim, keepdim=True) * amount
    return (dense + moved / dense.shape[dim]).scatter_add(dim, largest, -moved)


def check_strength(strength: Any) -> float:
    """The checked strength of :func:`max_suppression`."""
    symbolic = isinstance(strength, torch.SymFloat)  # has no value yet: code is being compiled
    if isinstance(strength, bool) or not (symbolic or isinstance(strength, numbers.Real)):
        raise TypeError(f"strength must be a number in [0, 1), but is {strength!r} ({type(strength).__name__})")
    if not symbolic and (math.isnan(strength) or not 0 <= strength < 1):
        raise ValueError(f"strength must be in [0, 1), but is {strength}; 0.1 is usual")
    return strength if symbolic else float(strength)


def _suppressed(weights: Tensor, classes: Tensor, amount: float, dim: int, dtype: torch.dtype) -> Tensor:
    """The weights with one more component: ``(y - α m onehot(largest)) / (1 - α)``.

    Smoothed by α, which is a number as in label smoothing, this is the target.
    """
    components = classes.shape[dim]
    if classes.device.type == "cpu" and (number := host_number(weights)) is not None:
        each = [number / (1 - amount)] * components + [number * components * (-amount / (1 - amount))]
        shape = [1] * classes.ndim
        shape[dim] = len(each)
        return torch.tensor(each, dtype=dtype, device=classes.device).view(shape)
    full = expand_field(weights, weights.shape or [1] * classes.ndim, classes.device, dtype)
    if full.shape[dim] != components:
        full = full.expand(*full.shape[:dim], components, *full.shape[dim + 1 :])
    return torch.cat([full / (1 - amount), full.sum(dim, keepdim=True) * (-amount / (1 - amount))], dim)


def largest_class(logits: Tensor) -> Tensor:
    """The class with the largest logit of each row, int64 ``(N, *spatial)``."""
    dim = class_dim(logits)
    classes = logits.shape[dim]
    if logits.device.type != "cpu" or logits.ndim != 2 or classes < 8 * BLOCK or not logits.is_contiguous():
        return logits.argmax(dim)
    whole = classes // BLOCK * BLOCK
    blocks = logits[:, :whole].unflatten(1, (-1, BLOCK))
    best = blocks.amax(2).argmax(1)
    place = best * BLOCK + blocks[torch.arange(len(logits)), best].argmax(1)
    if whole == classes:
        return place
    rest = whole + logits[:, whole:].argmax(1)
    values = logits.gather(1, torch.stack([place, rest], 1))
    return torch.where(values.argmax(1) == 0, place, rest)
