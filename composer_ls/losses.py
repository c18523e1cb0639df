"""Cross entropy against labels, dense rows or SoftTargets, with the signature and the meaning of PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.kernels import FEW, Kernel, RowTargets, choose, composite
from composer_ls.kernels.gradient import empty_gradient, scale_gradient
from composer_ls.smoothing import smooth_labels
from composer_ls.targets import SoftTargets, _class_dim, _wide

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
    fused = _fused if not torch.compiler.is_compiling() else torch.compiler.disable(_fused)  # one break, not a dozen
    return fused(logits, target, weight, ignore_index, reduction)


def _fused(logits: Tensor, target: SoftTargets, weight: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():  # which costs more for every field than a small kernel does
        rows, factor, total = _row_targets(target, weight, ignore_index, _wide(logits.dtype))
        x, rows, factor = _as_rows(logits, rows, factor)
        loss = _reduced(x, rows, factor, total, reduction)
        if reduction == "none":
            dim = _class_dim(logits)
            loss = loss.reshape(logits.shape[:dim] + logits.shape[dim + 1 :])
        under_autocast = loss.dtype == torch.float32 and torch.is_autocast_enabled(logits.device.type)
        return loss if under_autocast else loss.to(logits.dtype)


def _row_targets(
    target: SoftTargets, weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[RowTargets, Tensor | None, Tensor | float]:
    """What a kernel needs, with the dimensions of the target's classes; a factor for each row's loss, if it is not 1
    everywhere; and the mass that the mean is over.
    """
    classes, prior, dim = target.classes, target.prior, _class_dim(target.classes)
    if weight is None and prior is None and not 0 <= ignore_index < target.num_classes:
        alike = _alike_rows(target, dtype)
        if alike is not None:
            return alike[0], None, alike[1]
    counted, smoothing = (_number_or_rows(field, classes, dtype) for field in (target.weights, target.smoothing))
    if 0 <= ignore_index < target.num_classes:
        counted = (classes != ignore_index).to(dtype) * counted
    elif not isinstance(counted, Tensor) and counted == 0:
        counted = torch.zeros([1] * classes.ndim, dtype=dtype, device=classes.device)
    factor, ignored = None, None
    if isinstance(counted, Tensor):
        ignored = _ignored(counted, dim)
        if classes.shape[dim] == 1:  # one label a row, maybe ignored: what the kernel is given stays numbers
            factor, counted = counted, 1.0
    hard = counted * (1 - smoothing)
    soft = None if isinstance(smoothing, float) and smoothing == 0 else counted * smoothing
    mass = counted
    if weight is not None:
        weight = weight.detach().to(dtype)
        hard, counted = hard * weight[classes], counted * weight[classes]
        prior = weight / target.num_classes if prior is None else prior * weight
        mass = hard
    if prior is not None and soft is not None:
        prior = prior.to(dtype)
        sums = prior.sum().view([1] * classes.ndim) if prior.ndim == 1 else prior.sum(1)[classes]
        mass = hard + soft * sums
    if soft is not None and (prior is None or prior.ndim == 1):
        soft = _known(_sum_components(soft, classes))
    mass = _known(_sum_components(mass, classes))
    total = _total(counted if factor is None else counted * factor, classes)
    return RowTargets(classes, hard, soft, prior, mass, ignored), factor, _known(total)


def _alike_rows(target: SoftTargets, dtype: torch.dtype) -> tuple[RowTargets, float] | None:
    """The same for rows that differ in their classes only, as MixUp's do: numbers, which take no operations."""
    classes, field, dim = target.classes, target.weights, _class_dim(target.classes)
    components = classes.shape[dim]
    if target.smoothing.ndim or target.smoothing.device.type != "cpu" or field.device.type != "cpu":
        return None
    if field.ndim and (field.numel() > FEW or field.shape[dim] != field.numel()):
        return None
    weights, smoothing = field.flatten().tolist() if field.ndim else [field.item()], target.smoothing.item()
    total = sum(weights) * components / len(weights)
    if not any(weights):
        return None
    hard = weights[0] * (1 - smoothing) if len(weights) == 1 else field.to(dtype) * (1 - smoothing)
    rows = RowTargets(classes, hard, total * smoothing if smoothing else None, None, total, None)
    return rows, total * (classes.numel() / components)


def _ignored(counted: Tensor, dim: int) -> Tensor | None:
    same_everywhere = counted.numel() == counted.shape[dim]
    if counted.device.type == "cpu" and same_everywhere and bool(counted.any()):
        return None
    if counted.shape[dim] > 1:
        counted = counted.abs().amax(dim, keepdim=True)
    if counted.device.type == "cpu" and bool(counted.all()):  # elsewhere, to look would be to wait
        return None
    return counted == 0


def _number_or_rows(field: Tensor, classes: Tensor, dtype: torch.dtype) -> Tensor | float:
    """A field of SoftTargets as a number, if the host knows it, else with the dimensions of ``classes``."""
    if field.ndim:
        return field.to(dtype)
    if field.device.type == "cpu":
        return float(field)
    return field.to(dtype).view([1] * classes.ndim)


def _known(value: Tensor | float) -> Tensor | float:
    """A single number as such, if the host knows it."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu" else value


def _sum_components(field: Tensor | float, classes: Tensor) -> Tensor | float:
    dim = _class_dim(classes)
    components = classes.shape[dim]
    if components == 1:
        return field
    if not isinstance(field, Tensor) or field.shape[dim] == 1:
        return field * components
    return field.sum(dim, keepdim=True)


def _total(counted: Tensor | float, classes: Tensor) -> Tensor | float:
    """The sum over all labels of a field that may be the same for many of them."""
    if not isinstance(counted, Tensor):
        return counted * classes.numel()
    total = counted.sum()
    return total if counted.shape == classes.shape else total * (classes.numel() / max(1, counted.numel()))


def _as_rows(logits: Tensor, rows: RowTargets, factor: Tensor | None) -> tuple[Tensor, RowTargets, Tensor | None]:
    """The logits as ``(N, K)`` or ``(N, K, S)``, and the rest likewise, by views of the logits where there is one."""
    if logits.ndim == 2:
        return logits, rows, factor
    if logits.ndim == 1:
        return logits.unsqueeze(0), rows.map(lambda field: field.unsqueeze(0)), factor
    classes_last = logits.movedim(1, -1)
    flatten: Callable[[Tensor], Tensor] = lambda field: field.flatten(2)  # noqa: E731
    if classes_last.is_contiguous():
        flatten = lambda field: field.movedim(1, -1).flatten(0, -2)  # noqa: E731

    def flattened(field: Tensor) -> Tensor:
        same_everywhere = field.shape[0] == field.shape[2:].numel() == 1
        return flatten(field if same_everywhere else field.expand(len(logits), -1, *logits.shape[2:]))

    return flatten(logits), rows.map(flattened), None if factor is None else flattened(factor)


def _reduced(x: Tensor, rows: RowTargets, factor: Tensor | None, total: Tensor | float, reduction: str) -> Tensor:
    kernel = choose(x, rows.classes.shape[1])
    scale = _inverse(total) if reduction == "mean" else 1.0
    if kernel is composite.loss_rows:
        losses = composite.differentiable_rows(x, rows)
    elif not (torch.is_grad_enabled() and x.requires_grad):
        losses = kernel(x.detach(), rows, None, None)
    elif reduction == "none":
        losses = _RowLosses.apply(x, rows, kernel)
    else:
        return _TotalLoss.apply(x, rows, factor, scale, kernel)
    if factor is not None:
        losses = losses * factor
    return losses if reduction == "none" else losses.sum() * scale


def _inverse(total: Tensor | float) -> Tensor | float:
    """1/total, and 0 where there is nothing to average."""
    if not isinstance(total, Tensor):
        return 1 / total if total else 0.0
    return torch.where(total == 0, 0, 1 / total)


class _TotalLoss(torch.autograd.Function):
    """``scale · Σ_n factor_n · loss_n``. The gradient is made in the forward pass: the exponentials are at hand there."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, target: RowTargets, factor: Tensor | None, scale: Tensor | float, kernel: Kernel
    ) -> Tensor:
        ctx.target, ctx.kernel = target, kernel
        ctx.scale = scale if factor is None else factor * scale
        # A float16 gradient would vanish if it were rounded before the factor of a GradScaler is known.
        ctx.grad = empty_gradient(x) if x.dtype != torch.float16 else None
        losses = kernel(x, target, ctx.grad, ctx.scale)
        ctx.save_for_backward(x)
        return (losses if factor is None else losses * factor).sum() * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        grad, ctx.grad = ctx.grad, None  # given away: it is the receiver's to change
        if torch.is_grad_enabled():  # create_graph=True: the composite formula can be differentiated again
            (x,) = ctx.saved_tensors
            grad = composite.gradient(x, ctx.target) * (grad_output * ctx.scale)
        elif grad is None:  # a retained graph, or float16
            (x,) = ctx.saved_tensors
            grad = empty_gradient(x)
            ctx.kernel(x, ctx.target, grad, grad_output * ctx.scale)
        else:
            scale_gradient(grad, grad_output)
        return grad, None, None, None, None


class _RowLosses(torch.autograd.Function):
    """The loss of every row. The gradient waits for the backward pass, which brings each row's factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: RowTargets, kernel: Kernel) -> Tensor:
        ctx.target, ctx.kernel = target, kernel
        ctx.save_for_backward(x)
        return kernel(x, target, None, None)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return composite.gradient(x, ctx.target) * grad_output, None, None
        grad = empty_gradient(x)
        ctx.kernel(x, ctx.target, grad, grad_output)
        return grad, None, None
