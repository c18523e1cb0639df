"""The loss of logits against SoftTargets, by the fastest kernel or by the formula."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from composer_ls.kernels import RowTargets, choose, composite, forced, small
from composer_ls.losses.fused import row_losses, total_loss
from composer_ls.losses.row_targets import inverse, masked_rows, row_targets
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import transformed, wide_dtype

__all__ = ["fields_learn", "soft_losses", "soft_nll_losses"]


def soft_losses(
    logits: Tensor, target: SoftTargets, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """The loss in the compute dtype. With ``reduction="none"`` it has one element per row, in some shape."""
    read = not _needs_formula(logits, target, weight)
    rows, factor, divisor = row_targets(target, weight, ignore_index, wide_dtype(logits.dtype), read)
    x, rows, factor = _as_rows(logits, rows, factor)
    rows = rows if read else _with_rows_that_learn(rows, target, x)
    scale = inverse(divisor) if reduction == "mean" else 1.0
    if read and factor is None and not isinstance(scale, Tensor) and small.fits(x, rows) and forced() is None:
        return small.small_loss(x, rows, scale, by_row=reduction == "none")
    kernel = choose(x, rows.classes.shape[1]) if read else composite.loss_rows
    if kernel is composite.loss_rows:
        losses = composite.differentiable_rows(x, rows)
    elif not (torch.is_grad_enabled() and x.requires_grad):
        losses = kernel(x.detach(), rows, None, None)
    elif reduction == "none":
        losses = row_losses(x, rows, kernel)
    else:
        return total_loss(x, rows, factor, scale, kernel)
    return _reduced(losses, factor, scale, reduction)


def soft_nll_losses(
    scores: Tensor, target: SoftTargets, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """As :func:`soft_losses`, for scores that a model passes to ``nll_loss``: they are taken as they are, without a softmax."""
    read = not _needs_formula(scores, target, weight)
    rows, factor, divisor = row_targets(target, weight, ignore_index, wide_dtype(scores.dtype), read)
    x, rows, factor = _as_rows(scores, rows, factor)
    rows = rows if read else _with_rows_that_learn(rows, target, x)
    scale = inverse(divisor) if reduction == "mean" else 1.0
    return _reduced(composite.linear_rows(x, rows), factor, scale, reduction)


def _with_rows_that_learn(rows: RowTargets, target: SoftTargets, x: Tensor) -> RowTargets:
    """The target without ignored rows from whose loss a weight may learn. They still do not count in the mean."""
    return rows if rows.ignored is None else rows._replace(ignored=masked_rows(rows.ignored, target.weights, x))


def _reduced(losses: Tensor, factor: Tensor | None, scale: Tensor | float, reduction: str) -> Tensor:
    losses = losses if factor is None else losses * factor
    return losses if reduction == "none" else losses.sum() * scale


def _needs_formula(logits: Tensor, target: SoftTargets, weight: Tensor | None) -> bool:
    """Whether more than the first derivative by the logits is needed, or values cannot be read."""
    return fields_learn(target, weight) or transformed(
        logits, target.classes, target.weights, target.smoothing, target.prior, weight
    )


def fields_learn(target: SoftTargets, weight: Tensor | None) -> bool:
    """Whether a weight, the smoothing, the prior or the class weights need a gradient."""
    if not torch.is_grad_enabled():
        return False
    weights, smoothing, prior = target.weights, target.smoothing, target.prior
    return (
        weights.requires_grad
        or smoothing.requires_grad
        or (prior is not None and prior.requires_grad)
        or (weight is not None and weight.requires_grad)
    )


def _as_rows(logits: Tensor, rows: RowTargets, factor: Tensor | None) -> tuple[Tensor, RowTargets, Tensor | None]:
    """The logits as ``(N, K)`` or ``(N, K, S)``, as a view where possible, and the other tensors to match."""
    if logits.ndim == 2:
        return logits, rows, factor
    if logits.ndim == 1:
        return (
            logits.unsqueeze(0),
            rows.map(lambda field: field.unsqueeze(0)),
            _mapped(factor, lambda f: f.unsqueeze(0)),
        )
    classes_last = logits.movedim(1, -1)
    flatten: Callable[[Tensor], Tensor] = lambda field: field.flatten(2)  # noqa: E731
    if classes_last.is_contiguous():
        flatten = lambda field: field.movedim(1, -1).flatten(0, -2)  # noqa: E731

    def flattened(field: Tensor) -> Tensor:
        same_everywhere = field.shape[0] == field.shape[2:].numel() == 1
        return flatten(field if same_everywhere else field.expand(len(logits), -1, *logits.shape[2:]))

    return flatten(logits), rows.map(flattened), _mapped(factor, flattened)


def _mapped(value: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if value is None else change(value)
