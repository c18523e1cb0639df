"""The cross entropy as a formula over dense rows, which autograd differentiates any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from composer_ls.kernels import RowTargets, compute_dtype
from composer_ls.kernels.eager import add_labels, subtract_prior

__all__ = ["differentiable_rows", "gradient", "loss_rows"]


def loss_rows(logits: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float | None) -> Tensor:
    """A :data:`composer_ls.kernels.Kernel`: right, and slow."""
    if grad is not None and scale is not None:
        grad.copy_(gradient(logits, target) * scale)
    return differentiable_rows(logits, target)


def differentiable_rows(logits: Tensor, target: RowTargets) -> Tensor:
    """The loss of every row, ``(N, 1)`` or ``(N, 1, S)``."""
    x = _counted(logits, target).to(compute_dtype(logits.dtype))
    rows = _dense(x, target)
    terms = torch.where(rows == 0, 0, rows * x.log_softmax(1))  # nothing weighs nothing, even infinity
    return -terms.sum(1, keepdim=True)


def gradient(logits: Tensor, target: RowTargets) -> Tensor:
    """dloss/dx, in the dtype of the logits, out of operations that autograd can differentiate."""
    x = _counted(logits, target).to(compute_dtype(logits.dtype))
    return _counted(target.mass * x.softmax(1) - _dense(x, target), target).to(logits.dtype)


def _counted(x: Tensor, target: RowTargets) -> Tensor:
    return x if target.ignored is None else torch.where(target.ignored, 0, x)


def _dense(x: Tensor, target: RowTargets) -> Tensor:
    rows = torch.zeros_like(x)
    if target.soft is not None:
        subtract_prior(rows, target, -target.soft)
    return add_labels(rows, target, target.hard)
