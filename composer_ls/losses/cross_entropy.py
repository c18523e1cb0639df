"""Cross entropy against labels, dense rows or SoftTargets, with the signature and semantics of PyTorch's function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.kernels import compute_dtype
from composer_ls.losses.in_one_piece import losses_of
from composer_ls.losses.row_targets import inverse, may_learn
from composer_ls.losses.soft_losses import soft_nll_losses
from composer_ls.smoothing import smooth_labels
from composer_ls.smoothing.labels import smoothed_parts
from composer_ls.targets import SoftTargets
from composer_ls.targets.compiling import in_graph, know_in_graph
from composer_ls.targets.dispatch import implements
from composer_ls.targets.fields import class_dim, is_sharded, transformed

__all__ = ["CrossEntropyLoss", "cross_entropy", "soft_nll_loss"]


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

    This is :func:`torch.nn.functional.cross_entropy` with one more kind of target. For SoftTargets the loss of a row is
    :math:`\mathrm{lse}(x) - (1-\alpha)\sum_j w_j x[c_j] - \alpha\langle q, x\rangle`, computed without the dense
    ``(N, K)`` target.

    ``reduction="mean"`` divides by the number of rows that are not ignored, whatever their mass, so SoftTargets and
    their dense tensor have the same mean, here and in PyTorch. Ignored rows are rows of SoftTargets without weight and
    dense rows of zeros; PyTorch's own function counts the latter. With class weights, a row of SoftTargets counts as
    the weight of its labels, as in PyTorch for labels, and a dense row counts as 1, as in PyTorch for probabilities.
    If everything is ignored, the loss is 0 with zero gradient. Labels without smoothing are PyTorch's own function,
    which gives NaN then, and where the logits of an ignored label are NaN; ``smooth_labels(input, target, 0)`` does not.

    Second derivatives, forward mode and :mod:`torch.func` are supported, as are gradients for ``weight`` and for the
    weights, smoothing and prior of SoftTargets. All of these need temporary tensors as large as the logits. The gradient
    of a row's weight is the loss of that row, also at a weight of 0, but such a row does not count in the mean.

    Logits may be a DTensor, sharded over the classes, the batch, or both. Labels and SoftTargets are then those of the whole
    batch, as plain tensors that every process has or as DTensors on the same mesh. Per row and mesh dimension over classes,
    three numbers are reduced; logits are never gathered. The loss is a DTensor too.

    Args:
        input: Logits ``(K,)``, ``(N, K)`` or ``(N, K, *spatial)``, any floating dtype and strides.
        target: Labels ``(N, *spatial)``, dense rows of the logits' shape, or SoftTargets of the logits' shape.
        weight: A factor for each class, ``(K,)``. It multiplies the smoothed mass of class k too, as in PyTorch.
        size_average: Deprecated in PyTorch; see ``reduction``.
        ignore_index: A label that contributes no loss and no gradient, even if the incoming gradient is NaN.
        reduce: Deprecated in PyTorch; see ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss for each row, ``(N, *spatial)``).
        label_smoothing: Smoothing done by the loss, in [0, 1], on top of any that is already in the target.

    Returns:
        A 0-dim tensor, or ``(N, *spatial)`` with ``reduction="none"``, in the dtype of the logits, or float32 under
        autocast.

    Raises:
        TypeError: The logits are not floating.
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
    if torch.compiler.is_compiling():
        know_in_graph()
    return _cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


@in_graph
def _cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> Tensor:
    if not input.is_floating_point():
        raise TypeError(f"logits must be floating, but their dtype is {input.dtype}: use input.float()")
    if isinstance(target, SoftTargets):
        parts = smoothed_parts(input, target, label_smoothing) if label_smoothing else [(1.0, target)]
        return sum_of_parts(parts or [], lambda part: _soft_cross_entropy(input, part, weight, ignore_index, reduction))
    if is_sharded(input):
        if target.shape == input.shape:
            raise ValueError(
                f"input is a DTensor, sharded logits, and target dense rows {tuple(target.shape)}: give labels, or SoftTargets "
                f"made by smooth_labels"
            )
        target = smooth_labels(input, target, label_smoothing, ignore_index=ignore_index)
        return _soft_cross_entropy(input, target, weight, -100, reduction)  # type: ignore[arg-type]
    if is_sharded(target):
        raise ValueError("target is a DTensor, but input is not: give target.full_tensor(), or sharded logits")
    if target.shape == input.shape:
        return _dense_cross_entropy(input, target, weight, reduction, label_smoothing)
    if not target.is_floating_point():
        target = target.long()  # PyTorch does not take int32 labels
    return F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def soft_nll_loss(
    input: Tensor,
    target: SoftTargets,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""What :func:`torch.nn.functional.nll_loss` is for labels, for SoftTargets.

    The loss of a row is :math:`-\sum_k y_k\,\mathrm{weight}[k]\,x_k`, as the loss of labels is its value at their one-hot
    rows. For log-probabilities it is :func:`cross_entropy`; for other scores, such as log-probabilities times a focal factor,
    it is not. Means are as there.

    Args:
        input: Scores ``(N, K)`` or ``(N, K, *spatial)``, usually log-probabilities.
        target: SoftTargets of the same shape.
        weight: As for :func:`cross_entropy`, as are the others.
        size_average: Deprecated in PyTorch.
        ignore_index: A label that contributes nothing.
        reduce: Deprecated in PyTorch.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: Shapes that do not fit, or an unknown ``reduction``.

    """
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    if torch.compiler.is_compiling():
        know_in_graph()
    return _soft_nll_loss(input, target, weight, ignore_index, reduction)


@in_graph
def _soft_nll_loss(
    scores: Tensor, target: SoftTargets, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    if is_sharded(scores):
        raise ValueError("the input of nll_loss is a DTensor: take composer_ls.cross_entropy of the logits")
    return _of_soft_targets(soft_nll_losses, scores, target, weight, ignore_index, reduction)


def sum_of_parts(parts: Sequence[tuple[float, Any]], loss_of: Callable[[Any], Tensor]) -> Tensor:
    """The sum of the losses of targets, each times its factor."""
    losses = [loss_of(part) if factor == 1 else factor * loss_of(part) for factor, part in parts]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(0)


class CrossEntropyLoss(nn.Module):
    """:func:`cross_entropy` as a module, with the arguments of :class:`torch.nn.CrossEntropyLoss`.

    Args:
        weight: A factor for each class, ``(K,)``.
        size_average: Deprecated in PyTorch; see ``reduction``.
        ignore_index: A label that contributes no loss and no gradient.
        reduce: Deprecated in PyTorch; see ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: Smoothing done by the loss, in [0, 1].

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
        """The loss of logits ``(N, K, *spatial)`` against any target that :func:`cross_entropy` takes."""
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


@implements(F.cross_entropy)
def _torch_cross_entropy(input: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(input, SoftTargets) or not isinstance(target, SoftTargets):
        return NotImplemented
    return cross_entropy(input, target, *args, **kwargs)


@implements(torch._C._nn.cross_entropy_loss)  # type: ignore[attr-defined]
def _inner_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    """Handles the inner call of PyTorch's function, which is what torch.compile sees after tracing its Python code."""
    if isinstance(input, SoftTargets) or not isinstance(target, SoftTargets):
        return NotImplemented
    return _cross_entropy(input, target, weight, ignore_index, ("none", "mean", "sum")[reduction], label_smoothing)


def _dense_cross_entropy(
    logits: Tensor, rows: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> Tensor:
    dim = class_dim(logits)
    if not rows.is_floating_point():
        rows = rows.to(logits.dtype)
    counts = torch.linalg.vector_norm(rows.detach(), torch.inf, dim) != 0
    if transformed(logits, rows) or counts.device.type != "cpu" or not bool(counts.all()):
        masked = ~counts.unsqueeze(dim)
        if may_learn(rows):  # from the losses of these rows, unless they are NaN, as 0 · -inf is in PyTorch's function
            masked = masked & ~logits.isfinite().all(dim, keepdim=True)
        logits = logits.masked_fill(masked, 0)  # a gradient of 0 even where the logits are NaN
    if label_smoothing:
        rows = smooth_labels(logits, rows, label_smoothing, validate=False)  # ignored rows stay 0
    loss = F.cross_entropy(logits, rows, weight, reduction="sum" if reduction == "mean" else reduction)
    if reduction != "mean":
        return loss
    wide = compute_dtype(loss.dtype)  # float16 has no number above 65,504
    return (loss.to(wide) * inverse(counts.sum().to(wide))).to(loss.dtype)


def _soft_cross_entropy(
    logits: Tensor, target: SoftTargets, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    if not is_sharded(logits):
        return _of_soft_targets(losses_of, logits, target, weight, ignore_index, reduction)
    from composer_ls.losses.sharded import sharded_losses  # DTensors take time to import

    return _of_soft_targets(sharded_losses, logits, target, weight, ignore_index, reduction)


def _of_soft_targets(
    losses: Callable[..., Tensor],
    logits: Tensor,
    target: SoftTargets,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', but is {reduction!r}")
    if weight is not None and weight.shape != (target.num_classes,):
        raise ValueError(f"weight has shape {tuple(weight.shape)}, but must be ({target.num_classes},)")
    with torch._C.DisableTorchFunctionSubclass():  # __torch_function__ per field would cost more than a small kernel
        shape = logits.shape
        if shape != target.shape:
            raise ValueError(
                f"logits have shape {tuple(shape)}, but SoftTargets {tuple(target.shape)}: make them equal"
            )
        loss: Tensor = losses(logits, target, weight, ignore_index, reduction)
        if reduction == "none" and not is_sharded(logits):
            dim = class_dim(logits)
            loss = loss.reshape(shape[:dim] + shape[dim + 1 :])
        return loss if loss.dtype == logits.dtype or _under_autocast(loss) else loss.to(logits.dtype)


def _under_autocast(loss: Tensor) -> bool:
    device = loss.device.type
    available = loss.dtype == torch.float32 and torch.amp.is_autocast_available(device)  # type: ignore[attr-defined]
    return available and torch.is_autocast_enabled(device)
