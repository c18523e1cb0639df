"""The fused cross entropy in plain PyTorch, for any device: a few rows at a time, so that they stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from composer_ls.kernels import RowTargets

CHUNK = 1 << 18
"""Logits handled at once: 1 MiB of float32."""


def loss_rows(logits: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | None) -> Tensor:
    """The loss of every row, ``(N, S)``; and its gradient times ``scale``, written to ``grad`` if given.

    Args:
        logits: ``(N, K, S)``, any floating dtype, any strides.
        target: What to compare with.
        grad: Receives the gradient; shaped like ``logits``, in their dtype.
        scale: What the gradient is multiplied by, broadcastable to ``(N, S)``.

    """
    losses = torch.empty_like(target.mass)
    for examples, positions in _chunks(logits):
        part = target.rows(examples, positions)
        x = logits[examples, :, positions]
        out = None if grad is None else grad[examples, :, positions]
        chunk_scale = None if scale is None else scale.expand_as(target.mass)[examples, positions]
        losses[examples, positions] = _chunk_loss(x, part, out, chunk_scale)
    return losses


def _chunks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    examples, classes, positions = logits.shape
    if classes * positions <= CHUNK:
        step, width = max(1, CHUNK // max(1, classes * positions)), positions
    else:
        step, width = 1, max(1, CHUNK // classes)
    for first in range(0, examples, step):
        for left in range(0, positions, max(1, width)):
            yield slice(first, first + step), slice(left, left + width)


def _chunk_loss(x: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | None) -> Tensor:
    compute = target.mass.dtype
    if x.dtype != compute:
        x = x.to(compute)
    in_place = grad is not None and grad.dtype == compute
    peak = x.amax(1, keepdim=True)
    work = torch.sub(x, peak, out=grad if in_place else None)  # the loss from these keeps its digits at any peak
    wanted = _times(target.hard, work.gather(1, target.classes)).sum(1)
    if target.soft is not None:
        wanted += _times(target.soft, _prior_logits(work, target)).sum(1)
    total = work.exp_().sum(1, keepdim=True)
    loss = _times(target.mass, total.log().squeeze(1)) - wanted
    if grad is None or scale is None:
        return loss
    work.mul_((target.mass * scale).unsqueeze(1) / total)
    scale = scale.unsqueeze(1)
    if target.soft is not None:
        subtract_prior(work, target, target.soft * scale)
    work.scatter_add_(1, target.classes, target.hard * -scale)
    if x.device.type != "cpu" or bool(target.ignored.any()):  # the check costs a wait on other devices
        work.masked_fill_(target.ignored.unsqueeze(1), 0)
    if not in_place:
        grad.copy_(work)
    return loss


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """``weight · value`` in which nothing weighs nothing, even infinity."""
    return torch.where(weight == 0, 0, weight * value)


def _prior_logits(x: Tensor, target: RowTargets) -> Tensor:
    """``<q, x>``: ``(N, 1, S)``, or ``(N, J, S)`` with a row per class."""
    if target.prior is None:
        return x.mean(1, keepdim=True)
    if target.prior.ndim == 1:
        row = target.prior.view(1, -1, 1)
        return _times(row, x).sum(1, keepdim=True)
    rows = target.prior[target.classes].movedim(-1, 2)  # (N, J, K, S)
    return _times(rows, x.unsqueeze(1)).sum(2)


def subtract_prior(work: Tensor, target: RowTargets, amount: Tensor) -> None:
    """Subtract ``amount``, shaped like ``target.soft``, times the prior from ``work`` ``(N, K, S)``, in place."""
    if target.prior is None:
        work.sub_(amount / work.shape[1])
    elif target.prior.ndim == 1:
        work.sub_(amount * target.prior.view(1, -1, 1))
    else:
        rows = target.prior[target.classes].movedim(-1, 2)
        work.sub_((rows * amount.unsqueeze(2)).sum(1))
