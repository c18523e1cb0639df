"""The cross entropy of small logits, as a product of log-probabilities and a dense target.

For few logits, calling an operation costs more than its arithmetic, and an autograd function written in Python costs as
much as ten operations. PyTorch's own derivative of a few operations is the fastest, and the dense target is small.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_ls.kernels import FEW, NO_LABEL, RowTargets, compute_dtype

__all__ = ["LIMIT", "fits", "small_loss"]

LIMIT = 1 << 16
"""The number of logits up to which this is faster than the other kernels on the CPU."""
VECTOR = 16
"""The number of classes below which ``log_softmax`` over the last dimension leaves vector registers half empty."""


def fits(logits: Tensor, target: RowTargets) -> bool:
    """Whether :func:`small_loss` takes this: small logits on the CPU, and a target without zeros, or hard labels."""
    if logits.numel() > LIMIT or logits.device.type != "cpu" or target.ignored is not None:
        return False
    soft, prior, hard = target.soft, target.prior, target.hard
    if prior is not None and (prior.numel() > LIMIT or target.classes.shape[1] > FEW):
        return False
    if prior is not None or isinstance(soft, Tensor):
        return soft is not None and _is_positive(soft) and (prior is None or _is_positive(prior))
    if isinstance(target.mass, Tensor):
        return False
    if soft:
        return _is_positive(soft)
    return hard != 0 if not isinstance(hard, Tensor) else hard.numel() <= FEW and 0 not in hard.flatten().tolist()


def _is_positive(amount: Tensor | float) -> bool:
    """Whether no entry of the dense target will be 0, so that 0 · inf cannot occur. False if there are no rows."""
    if isinstance(amount, Tensor):
        return amount.numel() > 0 and amount.min().item() > 0
    return amount > 0


def small_loss(logits: Tensor, target: RowTargets, scale: float, by_row: bool) -> Tensor:
    """``scale`` times the sum of the losses, or times the loss of every row, in some shape. Differentiable."""
    x, classes = logits.to(compute_dtype(logits.dtype)), target.classes
    hard = target.hard * -scale
    if classes.shape[1] == 1 and not isinstance(hard, Tensor) and not target.soft:
        reduction = "none" if by_row else "sum"  # with NO_LABEL, a class of -100 is an error here too
        return F.cross_entropy(x, classes.squeeze(1), ignore_index=NO_LABEL, reduction=reduction) * -hard
    rows = _by_row(x, target, -scale)
    dim = 1
    if x.ndim == 2 and x.shape[1] < VECTOR:  # neighbours in memory are then the same class of different rows
        dim, x, classes = 0, x.t(), classes.t()
        hard = hard.t() if isinstance(hard, Tensor) else hard
        rows = None if rows is None else rows.t()
    log_probabilities = torch.log_softmax(x, dim)
    if rows is None and target.soft:
        rows = torch.full(x.shape, -scale * float(target.soft) / x.shape[dim], dtype=x.dtype)
    if rows is None:
        products = log_probabilities.gather(dim, classes) * hard
    else:
        labels = hard if isinstance(hard, Tensor) else torch.scalar_tensor(hard, dtype=x.dtype)
        products = log_probabilities * rows.scatter_add_(dim, classes, labels.expand_as(classes))
    return products.sum(dim) if by_row else products.sum()


def _by_row(x: Tensor, target: RowTargets, scale: float) -> Tensor | None:
    """``scale`` times the mass that is moved to every class of every row, in new memory; ``None`` if all of it is the same."""
    prior, soft = target.prior, target.soft
    if soft is None:
        return None
    soft = soft * scale
    if prior is None:
        return (soft / x.shape[1]).expand(x.shape).clone() if isinstance(soft, Tensor) else None
    if prior.ndim == 1:
        return (prior.view(1, -1, *[1] * (x.ndim - 2)) * soft).expand(x.shape).clone()
    each = prior[target.classes] * (soft.unsqueeze(-1) if isinstance(soft, Tensor) else soft)  # (N, J, S, K)
    rows = each.squeeze(1) if each.shape[1] == 1 else each.sum(1)
    return rows if x.ndim == 2 else rows.movedim(-1, 1)
