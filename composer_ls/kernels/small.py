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
    """Whether :func:`small_loss` takes this: small logits on the CPU, and rows that differ only in their labels."""
    if logits.numel() > LIMIT or logits.device.type != "cpu" or target.prior is not None or target.ignored is not None:
        return False
    if isinstance(target.soft, Tensor) or isinstance(target.mass, Tensor):
        return False
    if target.soft:
        return target.soft > 0  # so that no entry of the dense target is 0, and 0 · inf cannot occur
    hard = target.hard
    return hard != 0 if not isinstance(hard, Tensor) else hard.numel() <= FEW and 0 not in hard.flatten().tolist()


def small_loss(logits: Tensor, target: RowTargets, scale: float, by_row: bool) -> Tensor:
    """``scale`` times the sum of the losses, or times the loss of every row, in some shape. Differentiable."""
    x, classes = logits.to(compute_dtype(logits.dtype)), target.classes
    hard = target.hard * -scale
    if not target.soft and classes.shape[1] == 1 and not isinstance(hard, Tensor):
        reduction = "none" if by_row else "sum"  # with NO_LABEL, a class of -100 is an error here too
        return F.cross_entropy(x, classes.squeeze(1), ignore_index=NO_LABEL, reduction=reduction) * -hard
    dim = 1
    if x.ndim == 2 and x.shape[1] < VECTOR:  # neighbours in memory are then the same class of different rows
        dim, x, classes = 0, x.t(), classes.t()
        hard = hard.t() if isinstance(hard, Tensor) else hard
    log_probabilities = torch.log_softmax(x, dim)
    if target.soft:
        rows = torch.full(x.shape, -scale * float(target.soft) / x.shape[dim], dtype=x.dtype)
        labels = hard if isinstance(hard, Tensor) else torch.scalar_tensor(hard, dtype=x.dtype)
        products = log_probabilities * rows.scatter_add_(dim, classes, labels.expand_as(classes))
    else:
        products = log_probabilities.gather(dim, classes) * hard
    return products.sum(dim) if by_row else products.sum()
