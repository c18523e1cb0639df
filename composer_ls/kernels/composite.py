"""The cross entropy as a formula that PyTorch differentiates any number of times, forward too, vectorises and compiles."""

from __future__ import annotations

import torch
from torch import Tensor

from composer_ls.kernels import RowTargets, compute_dtype

__all__ = ["differentiable_rows", "loss_rows"]


def loss_rows(logits: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float | None) -> Tensor:
    """A :data:`composer_ls.kernels.Kernel`: right, and slow."""
    if grad is None or scale is None:
        return differentiable_rows(logits, target)
    with torch.enable_grad():
        x = logits.detach().requires_grad_()
        losses = differentiable_rows(x, target)
        upstream = torch.as_tensor(scale, dtype=losses.dtype, device=losses.device).expand_as(losses)
        grad.copy_(torch.autograd.grad(losses, x, upstream)[0])
    return losses.detach()


def differentiable_rows(logits: Tensor, target: RowTargets) -> Tensor:
    """The loss of every row, ``(N, 1)`` or ``(N, 1, S)``, by operations whose values are never read."""
    x = logits.to(compute_dtype(logits.dtype))
    if target.ignored is not None:
        x = torch.where(target.ignored, 0, x)
    x = x - x.detach().amax(1, keepdim=True)  # so that the loss keeps its digits at any maximum
    taken = _times(target.hard, x.gather(1, target.classes)).sum(1, keepdim=True)
    if target.soft is not None:
        taken = taken + _times(target.soft, _prior_logits(x, target)).sum(1, keepdim=True)
    losses = _times(target.mass, x.exp().sum(1, keepdim=True).log()) - taken
    return losses if target.ignored is None else torch.where(target.ignored, 0, losses)


def _prior_logits(x: Tensor, target: RowTargets) -> Tensor:
    """``<q, x>``: ``(N, 1, S)``, or ``(N, J, S)`` with a row for each class."""
    if target.prior is None:
        return x.mean(1, keepdim=True)
    if target.prior.ndim == 1:
        return _times(target.prior.view(1, -1, *[1] * (x.ndim - 2)), x).sum(1, keepdim=True)
    return _times(target.prior[target.classes].movedim(-1, 2), x.unsqueeze(1)).sum(2)


def _times(weight: Tensor | float, value: Tensor) -> Tensor:
    """``weight · value`` in which nothing weighs nothing, even infinity; differentiable by both at 0 too."""
    if not isinstance(weight, Tensor):
        return value * weight if weight else torch.zeros_like(value)
    return weight * torch.where((weight == 0) & value.isinf(), 0, value)
