"""Cross entropy against labels, dense rows or SoftTargets, with the signature and the meaning of PyTorch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.kernels import RowTargets, eager
from composer_ls.smoothing import smooth_labels
from composer_ls.targets import SoftTargets, _class_dim, _expand, _wide

__all__ = ["CrossEntropyLoss", "cross_entropy"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross entropy (in nats) of logits against labels, dense rows or :class:`~composer_ls.SoftTargets`.

    It is :func:`torch.nn.functional.cross_entropy` with one more kind of target. Against SoftTargets it costs
    :math:`\mathrm{lse}(x) - (1-\alpha)\sum_j w_j x[c_j] - \alpha\langle q, x\rangle` a row and never makes the dense
    ``(N, K)`` target.

    ``reduction="mean"`` is over the mass that counts: :math:`\sum_n\sum_j w_{nj}\,\mathrm{weight}[c_{nj}]` for
    SoftTargets, which is PyTorch's mean for the labels they were made from, and the sum of all entries for dense rows,
    which is PyTorch's mean when each row sums to one. When all of SoftTargets is ignored the loss is 0 with zero
    gradient, where PyTorch gives NaN for labels.

    Args:
        input: Logits ``(K,)``, ``(N, K)`` or ``(N, K, *spatial)``, any floating dtype and strides.
        target: Labels ``(N, *spatial)``, dense rows of the logits' shape, or SoftTargets of the logits' shape.
        weight: A factor for each class, ``(K,)``. It multiplies the smoothed mass of class k too, as in PyTorch.
        size_average: Deprecated in PyTorch; see ``reduction``.
        ignore_index: A label that contributes no loss and no gradient.
        reduce: Deprecated in PyTorch; see ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss a row, ``(N, *spatial)``).
        label_smoothing: Smoothing by the loss itself, in [0, 1], on top of any that the target already carries.

    Returns:
        A 0-dim tensor, or ``(N, *spatial)`` with ``reduction="none"``, in the dtype of the logits, or float32 under
        autocast.

    Raises:
        ValueError: Shapes that do not fit, or an unknown ``reduction``.

    Example:
        >>> import torch
        >>> from composer_ls import cross_entropy, smooth_labels
        >>> logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
        >>> cross_entropy(logits, smooth_labels(logits, labels, smoothing=0.1))
        tensor(0.3365)
        >>> torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        tensor(0.3365)

    References:
        Szegedy et al., 2016, https://arxiv.org/abs/1512.00567 (the loss of smoothed labels).

    """
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    if isinstance(target, SoftTargets) and label_smoothing:
        target = smooth_labels(input, target, label_smoothing)
        label_smoothing = 0.0
    if isinstance(target, SoftTargets):
        return _soft_cross_entropy(input, target, weight, ignore_index, reduction)
    if target.shape != input.shape:
        return F.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
    if not target.is_floating_point():
        target = target.to(input.dtype)
    loss = F.cross_entropy(
        input,
        target,
        weight,
        reduction="sum" if reduction == "mean" else reduction,
        label_smoothing=label_smoothing,
    )
    return loss * _inverse(target.sum(dtype=loss.dtype)) if reduction == "mean" else loss


class CrossEntropyLoss(nn.Module):
    """:func:`cross_entropy` as a module, with the arguments of :class:`torch.nn.CrossEntropyLoss`.

    Args:
        weight: A factor for each class, ``(K,)``.
        size_average: Deprecated in PyTorch; see ``reduction``.
        ignore_index: A label that contributes no loss and no gradient.
        reduce: Deprecated in PyTorch; see ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: Smoothing by the loss itself, in [0, 1].

    Example:
        >>> import torch
        >>> from composer_ls import CrossEntropyLoss, smooth_labels
        >>> logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
        >>> CrossEntropyLoss(reduction="none")(logits, smooth_labels(logits, labels, smoothing=0.1))
        tensor([0.3365])

    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if size_average is not None or reduce is not None:
            reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``(N, K, *spatial)`` against a target that :func:`cross_entropy` takes."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"


def _soft_cross_entropy(
    logits: Tensor,
    target: SoftTargets,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    if logits.shape != target.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, but SoftTargets {tuple(target.shape)}: make them equal"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', but is {reduction!r}")
    if weight is not None and weight.shape != (target.num_classes,):
        raise ValueError(f"weight has shape {tuple(weight.shape)}, but must be ({target.num_classes},)")
    compute = _wide(logits.dtype)
    rows, counted = _row_targets(target, weight, ignore_index, compute)
    x = logits.unsqueeze(0) if logits.ndim == 1 else logits
    x = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    out_dtype = torch.float32 if compute != torch.float64 and _autocast(logits) else logits.dtype
    if not torch.is_grad_enabled():
        x = x.detach()  # or the gradient would be made in vain
    if reduction == "none":
        dim = _class_dim(logits)
        return _RowLosses.apply(x, rows).view(logits.shape[:dim] + logits.shape[dim + 1 :]).to(out_dtype)
    scale = _inverse(counted.sum()) if reduction == "mean" else counted.new_ones(())
    if x.dtype == torch.float16:  # its gradient would vanish if it were rounded before a GradScaler's factor is known
        return (_RowLosses.apply(x, rows).sum() * scale).to(out_dtype)
    return _TotalLoss.apply(x, rows, scale).to(out_dtype)


def _autocast(logits: Tensor) -> bool:
    return torch.is_autocast_enabled(logits.device.type)


def _inverse(total: Tensor) -> Tensor:
    """1/total, and 0 where there is nothing to average."""
    return torch.where(total == 0, 0, 1 / total)


def _row_targets(
    target: SoftTargets, weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[RowTargets, Tensor]:
    """What a kernel needs, and the mass that each label counts for in the mean, both ``(N, J, S)``."""
    dim, num_classes, device = _class_dim(target.classes), target.num_classes, target.device
    classes, prior = target.classes, target.prior
    counted = _expand(target.weights, classes.shape, device, dtype)
    smoothing = _expand(target.smoothing, classes.shape, device, dtype)
    if 0 <= ignore_index < num_classes:
        counted = counted.masked_fill(classes == ignore_index, 0)
    ignored = (counted == 0).all(dim)
    hard, soft = counted * (1 - smoothing), counted * smoothing
    if prior is not None:
        prior = prior.to(dtype)
    if weight is not None:
        weight = weight.detach().to(dtype)
        hard = hard * weight[classes]
        counted = counted * weight[classes]
        prior = weight / num_classes if prior is None else prior * weight
    moved = soft
    if prior is not None:
        moved = soft * (prior.sum() if prior.ndim == 1 else prior.sum(1)[classes])
    mass = (hard + moved).sum(dim)
    if prior is None or prior.ndim == 1:
        soft = soft.sum(dim, keepdim=True)

    def flat(field: Tensor) -> Tensor:
        field = field.unsqueeze(0) if dim == 0 else field
        return field.flatten(2) if field.ndim > 2 else field.unsqueeze(2)

    smooths = target.smoothing.ndim > 0 or target.smoothing.device.type != "cpu" or target.smoothing.item() != 0
    mass, ignored = (flat(field.unsqueeze(dim)).squeeze(1) for field in (mass, ignored))
    return RowTargets(flat(classes), flat(hard), flat(soft) if smooths else None, prior, mass, ignored), counted


class _TotalLoss(torch.autograd.Function):
    """``scale · Σ_n loss_n``. The gradient is made in the forward pass: the exponentials are at hand there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: RowTargets, scale: Tensor) -> Tensor:
        grad = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        losses = eager.loss_rows(x, target, grad, scale)
        ctx.target, ctx.taken = target, False
        ctx.save_for_backward(x, grad, scale)
        return losses.sum() * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None]:
        x, grad, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the composite formula can be differentiated again
            return _composite_gradient(x, ctx.target) * (grad_output * scale), None, None
        if ctx.taken:  # a retained graph: the first backward pass gave its gradient away, and it may have changed since
            grad = torch.empty_like(x)
            eager.loss_rows(x, ctx.target, grad, scale * grad_output)
            return grad, None, None
        if grad_output.device.type == "cpu" and grad_output.item() == 1:
            ctx.taken = True
            return grad.data, None, None  # with a version counter of its own
        return (grad * grad_output).to(grad.dtype), None, None


class _RowLosses(torch.autograd.Function):
    """The loss of every row, ``(N, S)``. The gradient waits for the backward pass, which brings each row's factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: RowTargets) -> Tensor:
        ctx.target = target
        ctx.save_for_backward(x)
        return eager.loss_rows(x, target, None, None)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _composite_gradient(x, ctx.target) * grad_output.unsqueeze(1), None
        grad = torch.empty_like(x)
        eager.loss_rows(x, ctx.target, grad, grad_output)
        return grad, None


def _composite_gradient(x: Tensor, target: RowTargets) -> Tensor:
    """dloss/dx from the dense target, out of operations that autograd can differentiate."""
    alive = ~target.ignored.unsqueeze(1)
    rows = torch.zeros_like(x, dtype=target.mass.dtype).scatter_add_(1, target.classes, target.hard)
    if target.soft is not None:
        eager.subtract_prior(rows, target, -target.soft)
    softmax = torch.where(alive, x, 0).to(target.mass.dtype).softmax(1)
    return torch.where(alive, target.mass.unsqueeze(1) * softmax - rows, 0).to(x.dtype)
