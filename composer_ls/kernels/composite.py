"""The cross entropy in ordinary operations: supports higher derivatives, forward mode, vmap and torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from composer_ls.kernels import RowTargets, compute_dtype

__all__ = ["differentiable_rows", "linear_rows", "loss_rows"]


def loss_rows(logits: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float | None) -> Tensor:
    """The composite :data:`composer_ls.kernels.Kernel`. Slower than the others."""
    if grad is None or scale is None:
        return differentiable_rows(logits, target)
    with torch.enable_grad():
        x = logits.detach().requires_grad_()
        losses = differentiable_rows(x, target)
        upstream = torch.as_tensor(scale, dtype=losses.dtype, device=losses.device).expand_as(losses)
        grad.copy_(torch.autograd.grad(losses, x, upstream)[0])
    return losses.detach()


def differentiable_rows(logits: Tensor, target: RowTargets) -> Tensor:
    """The loss of every row, ``(N, 1)`` or ``(N, 1, S)``, without reading any tensor's values on the host."""
    x = logits.to(compute_dtype(logits.dtype))
    if target.ignored is not None:
        x = torch.where(target.ignored, 0, x)
    x = x - x.detach().amax(1, keepdim=True)  # keeps the loss precise for logits of any size
    losses = _times(target.mass, x.exp().sum(1, keepdim=True).log()) - _products(x, target)
    return losses if target.ignored is None else torch.where(target.ignored, 0, losses)


def linear_rows(scores: Tensor, target: RowTargets) -> Tensor:
    """Minus the product of the scores and the target of every row: the loss without its ``logsumexp``."""
    x = scores.to(compute_dtype(scores.dtype))
    if target.ignored is None:
        return -_products(x, target)
    return torch.where(target.ignored, 0, -_products(torch.where(target.ignored, 0, x), target))


def _products(x: Tensor, target: RowTargets) -> Tensor:
    products = _times(target.hard, x.gather(1, target.classes)).sum(1, keepdim=True)
    if target.soft is None:
        return products
    return products + _times(target.soft, _prior_logits(x, target)).sum(1, keepdim=True)


def _prior_logits(x: Tensor, target: RowTargets) -> Tensor:
    """``<q, x>``: ``(N, 1, S)``, or ``(N, J, S)`` if the prior has one row per class."""
    if target.prior is None:
        return x.mean(1, keepdim=True)
    if target.prior.ndim == 1:
        return _times(target.prior.view(1, -1, *[1] * (x.ndim - 2)), x).sum(1, keepdim=True)
    return _times(target.prior[target.classes].movedim(-1, 2), x.unsqueeze(1)).sum(2)


def _times(weight: Tensor | float, value: Tensor) -> Tensor:
    """``weight · value``, where 0 · inf counts as 0. Differentiable in both arguments, also at a weight of 0."""
    if not isinstance(weight, Tensor):
        return value * weight if weight else torch.zeros_like(value)
    return weight * torch.where((weight == 0) & value.isinf(), 0, value)
