"""The fused cross entropy in plain PyTorch, for any device. Its only large buffer is the gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from composer_ls.kernels import FEW, RowTargets, compute_dtype, sum_components

__all__ = ["loss_rows"]

CHUNK = 1 << 20
"""Number of logits per chunk when extra memory is needed. Operations on more may wait for cores that are busy."""
NEAR = 32.0
"""If the labels' logits are at most this far from 0, subtracting them from other logits loses no significant digits."""
LARGEST = 2.0**80
"""Sums of exponentials up to this can divide the gradient's scale without leaving float32's normal range."""


def loss_rows(logits: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float | None) -> Tensor:
    """The eager :data:`composer_ls.kernels.Kernel`."""
    dtype = compute_dtype(logits.dtype)
    in_place = grad is not None and _holds_work(grad, dtype) and target.prior is None
    if logits.numel() and (in_place or logits.numel() <= CHUNK):
        return _chunk_loss(logits, target, grad, scale)
    shape = (len(logits), 1, *logits.shape[2:])
    losses = logits.new_empty(shape, dtype=dtype)
    for part in _chunks(logits):
        some = target.map(lambda field, part=part: _part(field, shape, part))  # type: ignore[misc]
        some_scale = _part(scale, shape, part) if isinstance(scale, Tensor) else scale
        losses[part] = _chunk_loss(logits[part], some, None if grad is None else grad[part], some_scale)
    return losses


def _holds_work(grad: Tensor, dtype: torch.dtype) -> bool:
    return grad.dtype == dtype and grad.is_contiguous()


def _chunks(logits: Tensor) -> list[tuple[slice, ...]]:
    """Indices that cut the logits into chunks: whole examples if they fit, else ranges of positions of one example."""
    examples, positions = logits.shape[0], logits.shape[2:].numel()
    size = logits.shape[1] * positions
    if size <= CHUNK or logits.ndim == 2:
        step = max(1, CHUNK // max(1, size))
        return [(slice(first, first + step),) for first in range(0, examples, step)]
    width = max(1, CHUNK // logits.shape[1])
    return [
        (slice(first, first + 1), slice(None), slice(left, left + width))
        for first in range(examples)
        for left in range(0, positions, width)
    ]


def _part(field: Tensor, shape: tuple[int, ...], part: tuple[slice, ...]) -> Tensor:
    """``field[part]``, leaving alone the dimensions in which ``field`` is broadcast."""
    if field.ndim == 0:
        return field
    return field[tuple(slice(None) if field.shape[i] != shape[i] else index for i, index in enumerate(part))]


def _chunk_loss(x: Tensor, target: RowTargets, grad: Tensor | None, scale: Tensor | float | None) -> Tensor:
    own = x.dtype != compute_dtype(x.dtype)
    x = x.to(compute_dtype(x.dtype))
    if target.prior is not None and target.prior.ndim == 2:
        target = target._replace(prior=_rows_of_prior(x, target))  # once, for the loss and for the gradient
    if grad is not None and scale is not None and _holds_work(grad, x.dtype):
        work = grad
    else:
        work = x if own else torch.empty_like(x)
    losses, finite = _losses(x, target, work, None if grad is None else scale)
    if target.ignored is not None:
        losses.masked_fill_(target.ignored, 0)
        if grad is not None and not finite:
            work.masked_fill_(target.ignored, 0)  # a finite gradient is 0 there already, because the mass is 0
    if grad is not None and work.data_ptr() != grad.data_ptr():
        grad.copy_(work)
    return losses


def _losses(x: Tensor, target: RowTargets, work: Tensor, scale: Tensor | float | None) -> tuple[Tensor, bool]:
    """The loss of each row, and whether it is known to be finite. ``work`` receives the gradient times ``scale``."""
    finite = False
    if x.device.type == "cpu" and work.data_ptr() != x.data_ptr():
        label = x.gather(1, target.classes[:, :1])
        if bool(label.abs().max() <= NEAR):
            losses, left, finite = _as_they_are(x, label, target, work)
    if not finite:  # not finite, not tried, or the label's logit is too far from 0
        losses, left = _from_the_maximum(x, target, work)
    if scale is not None:
        _finish_gradient(work, left, target, scale)
    return losses, finite


def _as_they_are(x: Tensor, label: Tensor, target: RowTargets, work: Tensor) -> tuple[Tensor, Tensor | None, bool]:
    """The losses; the divisor that turns ``work`` into the softmax (None if it is); and whether all of it is finite.

    The labels' logits are near 0, so subtracting them loses no digits, and the pass for the maximum is saved.
    """
    taken = None if target.soft is None else _times(target.soft, _prior_logits(x, target, work))
    if work.ndim == 2:
        torch.softmax(x, 1, out=work)  # one pass; exp(), sum() and a division would take three
        left, inverse = None, work.gather(1, target.classes[:, :1]).reciprocal_()
        finite = math.isfinite(inverse.sum())
    else:  # softmax over a strided dimension is slower than the three
        left = torch.exp(x, out=work).sum(1, keepdim=True)
        inverse = (left / label.exp()).clamp_min_(1)  # log(left) - label would lose the digits of small losses
        finite = bool(left.amax() < LARGEST)  # False for NaN too
    losses = _times(target.mass, inverse.log_())
    if target.classes.shape[1] > 1:
        losses.sub_(_sum(_times(target.hard, x.gather(1, target.classes).sub_(label))))
    if taken is not None and target.soft is not None:
        moved = target.soft  # Σ_j soft_j · Σ_k q(c_j)_k
        if target.prior is not None:
            moved = target.mass - sum_components(target.hard, target.classes.shape[1])
        losses.sub_(_sum(taken).sub_(label * moved))
    return losses, left, finite


def _from_the_maximum(x: Tensor, target: RowTargets, work: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same with each row's maximum subtracted first, so that the losses are precise for logits of any size."""
    torch.sub(x, x.amax(1, keepdim=True), out=work)
    taken = _taken(work, target)
    if work.ndim == 2:
        torch.softmax(work, 1, out=work)
        total, left = work.amax(1, keepdim=True).reciprocal_(), None
    else:
        total = left = work.exp_().sum(1, keepdim=True)
    return _times(target.mass, total.log()).sub_(taken), left


def _taken(x: Tensor, target: RowTargets) -> Tensor:
    """``Σ_j hard_j · x[c_j] + Σ_j soft_j · <q(c_j), x>``."""
    labels = _sum(_times(target.hard, x.gather(1, target.classes)))
    return labels if target.soft is None else labels.add_(_sum(_times(target.soft, _prior_logits(x, target))))


def _finish_gradient(work: Tensor, total: Tensor | None, target: RowTargets, scale: Tensor | float) -> None:
    """``scale · (mass · work / total - target)``, in place."""
    factor = target.mass * scale
    if total is not None:
        factor = factor / total
    soft = None if target.soft is None else target.soft * scale
    if soft is None or target.prior is not None:
        work.mul_(factor)
        if soft is not None:
            subtract_prior(work, target, soft)
    elif not isinstance(factor, Tensor) and not isinstance(soft, Tensor):
        torch.add(work.new_full((), -soft / work.shape[1]), work, alpha=factor, out=work)
    elif work.ndim == 2:  # two fast passes, since addcmul() is slow when two of its arguments vary by row
        work.mul_(factor).sub_(soft / work.shape[1])
    else:
        level = torch.as_tensor(soft / -work.shape[1], dtype=work.dtype, device=work.device)
        torch.addcmul(level, work, torch.as_tensor(factor, dtype=work.dtype, device=work.device), out=work)
    add_labels(work, target, -(target.hard * scale))


def _sum(components: Tensor) -> Tensor:
    return components if components.shape[1] == 1 else components.sum(1, keepdim=True)


def _times(weight: Tensor | float, value: Tensor) -> Tensor:
    """``weight · value``, where 0 · inf counts as 0."""
    if not isinstance(weight, Tensor):
        return value if weight == 1 else weight * value if weight else torch.zeros_like(value)
    if weight.device.type == "cpu" and weight.numel() <= FEW and 0 not in weight.flatten().tolist():
        return weight * value
    return torch.where(weight == 0, 0, weight * value)


def _rows_of_prior(x: Tensor, target: RowTargets) -> Tensor:
    """The prior's row of each label, ``(N, J, K, S)``, which ``target`` may hold already; or ``(1, 1, K, 1)`` if they are one."""
    prior = target.prior
    assert prior is not None
    if prior.ndim == 1:
        return prior.view(1, 1, -1, *[1] * (x.ndim - 2))
    return prior[target.classes].movedim(-1, 2) if prior.ndim == 2 else prior


def _prior_logits(x: Tensor, target: RowTargets, work: Tensor | None = None) -> Tensor:
    """``<q, x>``: ``(N, 1, S)``, or ``(N, J, S)`` if the prior has one row per class. Leaves anything in ``work``."""
    if target.prior is None:
        return x.sum(1, keepdim=True).div_(x.shape[1])  # mean() is slower
    rows, x = _rows_of_prior(x, target), x.unsqueeze(1)
    if x.device.type == "cpu":  # reading from another device would synchronise it
        out = work.unsqueeze(1) if work is not None and rows.shape[1] == 1 else None
        sums = torch.mul(rows, x, out=out).sum(2)
        if math.isfinite(sums.sum()):
            return sums
    return _times(rows, x).sum(2)


def subtract_prior(work: Tensor, target: RowTargets, amount: Tensor | float) -> None:
    """``work - amount · q``, in place."""
    if target.prior is None:
        work.sub_(amount / work.shape[1])
    else:
        rows = _rows_of_prior(work, target)
        if not isinstance(amount, Tensor):
            work.sub_(rows.squeeze(1) if rows.shape[1] == 1 else rows.sum(1), alpha=amount)
        elif rows.shape[1] == 1:
            work.addcmul_(amount.to(work.dtype), rows.squeeze(1), value=-1)
        else:
            work.sub_((rows * (amount.unsqueeze(2) if amount.ndim > 1 else amount)).sum(1))


def add_labels(rows: Tensor, target: RowTargets, hard: Tensor | float) -> Tensor:
    """``rows + hard · onehot(c)``, in place."""
    hard = hard if isinstance(hard, Tensor) else rows.new_full((), hard)
    return rows.scatter_add_(1, target.classes, hard.expand_as(target.classes))
