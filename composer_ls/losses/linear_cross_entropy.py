"""Cross entropy of a linear layer's output, computed in chunks: for the head of a model with many classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.kernels import FEW, RowTargets, choose, eager
from composer_ls.losses.cross_entropy import cross_entropy, sum_of_parts
from composer_ls.losses.linear_fused import DenseRows, Plan, linear_losses, linear_total
from composer_ls.losses.row_targets import inverse, row_targets
from composer_ls.smoothing import smooth_labels
from composer_ls.smoothing.labels import smoothed_parts
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import transformed, wide_dtype

__all__ = ["LinearCrossEntropyLoss", "linear_cross_entropy"]

BUDGET = 64 << 20
"""Default limit in bytes for the logits in memory at one time, unless the hidden states are larger."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    prior: Tensor | Sequence[Any] | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    r"""Cross entropy (in nats) of the logits ``hidden @ weight.T + bias``, with only a few rows of logits in memory.

    The result is that of :func:`composer_ls.cross_entropy` on ``F.linear(hidden, weight, bias)``, in a fraction of the
    memory. The forward pass goes over the rows in chunks: it computes the chunk's logits and loss, and adds its part of
    the gradients of ``hidden``, ``weight`` and ``bias``, accumulated in float32. With ``reduction="none"`` the backward
    pass computes the logits again.

    Forward mode, :mod:`torch.func`, :func:`torch.compile`, second derivatives, and targets, priors or class weights
    that require a gradient need all logits at once; for these the full logits are computed.

    Args:
        hidden: Inputs of the layer, ``(N, D)``, or ``(N, *positions, D)`` such as ``(N, T, D)``; any floating dtype.
        weight: The layer's weight, ``(K, D)``. It may be shared with an embedding.
        target: What :func:`~composer_ls.cross_entropy` takes for logits ``(N, K, *positions)``: labels
            ``(N, *positions)``, dense rows, or SoftTargets.
        bias: The layer's bias, ``(K,)``.
        class_weight: A factor for each class, ``(K,)``.
        ignore_index: A label that contributes no loss and no gradient. On the CPU, ignored rows are skipped.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss for each row, ``(N, *positions)``).
        label_smoothing: Smoothing done by the loss, in [0, 1], on top of any that is already in the target.
        prior: Where ``label_smoothing`` moves mass to, as in :func:`~composer_ls.smooth_labels`. ``None``: uniform.
        memory_budget: Bytes that the logits may take. ``None``: as many as ``hidden`` takes, but at least 64 MiB.

    Returns:
        A 0-dim tensor, or ``(N, *positions)`` with ``reduction="none"``, in the dtype of the logits, or float32 under
        autocast. If everything is ignored, the mean is 0 with zero gradient.

    Raises:
        TypeError: ``hidden`` is not floating, or ``weight`` or ``bias`` has another dtype outside autocast.
        ValueError: Shapes that do not fit, or an unknown ``reduction``.

    Example:
        >>> import torch
        >>> from composer_ls import linear_cross_entropy
        >>> hidden, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, -1.0]])
        >>> linear_cross_entropy(hidden, weight, torch.tensor([0]), label_smoothing=0.1)
        tensor(0.3365)

    References:
        Wijmans et al., 2024, https://arxiv.org/abs/2411.09009, and Hsu et al., 2024, https://arxiv.org/abs/2410.10989
        (hard labels, without materialised logits).

    """
    _check(hidden, weight, bias, class_weight, reduction, memory_budget)
    shape = (hidden.shape[0], len(weight), *hidden.shape[1:-1])
    logits = hidden.new_empty(()).expand(shape)  # gives the target's expected shape, dtype and device
    if not (isinstance(target, SoftTargets) or target.shape == shape):
        target = smooth_labels(logits, target, label_smoothing, prior=prior, ignore_index=ignore_index)
        ignore_index = -100  # ignored labels have weight 0 now
        label_smoothing = 0.0
    if target.shape != shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, but hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} "
            f"take labels of shape {tuple(hidden.shape[:-1])}, or SoftTargets or dense rows of shape {tuple(shape)}"
        )
    if label_smoothing and isinstance(target, SoftTargets):
        parts = smoothed_parts(logits, target, label_smoothing, prior)
        if parts is None:
            _refuse_dense(target, class_weight, ignore_index)
            parts = [(1.0, smooth_labels(logits, target, label_smoothing, prior=prior))]
        again = partial(
            linear_cross_entropy, hidden, weight, bias=bias, class_weight=class_weight, ignore_index=ignore_index,
            reduction=reduction, memory_budget=memory_budget,
        )  # fmt: skip
        return sum_of_parts(parts, again)
    if _needs_logits(hidden, weight, bias, target, class_weight, label_smoothing, prior):
        if label_smoothing:
            target = smooth_labels(logits, target, label_smoothing, prior=prior)
        output = F.linear(hidden, weight, bias).movedim(-1, 1)
        return cross_entropy(output, target, class_weight, ignore_index=ignore_index, reduction=reduction)
    x, dtype = hidden.flatten(0, -2), _layer_dtype(hidden)
    if isinstance(target, SoftTargets):
        loss = _soft_loss(x, weight, bias, target, class_weight, ignore_index, reduction, dtype, memory_budget)
    else:
        smoothing = (label_smoothing, prior) if label_smoothing else (None, None)
        loss = _dense_loss(x, weight, bias, target, class_weight, smoothing, reduction, dtype, memory_budget)
    if reduction == "none":
        loss = loss.view(hidden.shape[:-1])
    return loss if torch.is_autocast_enabled(hidden.device.type) else loss.to(hidden.dtype)


class LinearCrossEntropyLoss(nn.Module):
    """:func:`linear_cross_entropy` as a module.

    Args:
        class_weight: A factor for each class, ``(K,)``.
        ignore_index: A label that contributes no loss and no gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: Smoothing done by the loss, in [0, 1].
        prior: Where ``label_smoothing`` moves mass to. ``None``: uniform.
        memory_budget: Bytes that the logits may take.

    Example:
        >>> import torch
        >>> from composer_ls import LinearCrossEntropyLoss
        >>> head, hidden = torch.nn.Linear(8, 1000), torch.zeros(4, 16, 8)
        >>> labels = torch.zeros(4, 16, dtype=torch.long)
        >>> LinearCrossEntropyLoss(label_smoothing=0.1)(hidden, head.weight, labels, head.bias).shape
        torch.Size([])

    """

    class_weight: Tensor | None
    prior: Tensor | None

    def __init__(
        self,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        prior: Tensor | None = None,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weight", class_weight)
        self.register_buffer("prior", prior)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.memory_budget = memory_budget

    def forward(self, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        """The loss of a layer's inputs, weight and bias against a target."""
        return linear_cross_entropy(
            hidden,
            weight,
            target,
            bias,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            prior=self.prior,
            memory_budget=self.memory_budget,
        )

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    reduction: str,
    memory_budget: int | None,
) -> None:
    if not hidden.is_floating_point():
        raise TypeError(f"hidden must be floating, but its dtype is {hidden.dtype}: use hidden.float()")
    if hidden.ndim < 2 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}, but must be (N, *positions, D) and "
            f"(K, D)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, but weight {tuple(weight.shape)} takes ({len(weight)},)")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if value.device != hidden.device:
            raise ValueError(f"hidden is on {hidden.device}, but {name} on {value.device}: move one of them")
        if value.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise TypeError(
                f"hidden is {hidden.dtype}, but {name} {value.dtype}: convert one of them, or use torch.autocast"
            )
    if class_weight is not None and class_weight.shape != weight.shape[:1]:
        raise ValueError(f"class_weight has shape {tuple(class_weight.shape)}, but must be ({len(weight)},)")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', but is {reduction!r}")
    if memory_budget is not None and not memory_budget > 0:
        raise ValueError(f"memory_budget must be a positive number of bytes, but is {memory_budget!r}")


def _refuse_dense(target: SoftTargets, class_weight: Tensor | None, ignore_index: int) -> None:
    """Refuse to make a target dense whose labels are needed.

    Raises:
        ValueError: Class weights or ``ignore_index`` depend on the labels.

    """
    if class_weight is not None or 0 <= ignore_index < target.num_classes:
        raise ValueError(
            "prior has one row per class and target is smoothed already, so the result has no labels, which class_weight "
            "and an ignore_index that is a class need: smooth the labels once, with smooth_labels(logits, labels, "
            "smoothing, prior=prior), and give label_smoothing=0"
        )


def _needs_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *others: Any) -> bool:
    """Whether more than first derivatives by the layer's tensors is needed, or values cannot be read."""
    fields: tuple[Tensor | None, ...] = (target,)
    if isinstance(target, SoftTargets):
        fields = (target.classes, target.weights, target.smoothing, target.prior)
    fields = (*fields, *(other for other in others if isinstance(other, Tensor)))
    if torch.is_grad_enabled() and any(field is not None and field.requires_grad for field in fields):
        return True
    return transformed(hidden, weight, bias, *fields)


def _layer_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype in which a linear layer computes here, under autocast or not."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _plan(x: Tensor, classes: int, dtype: torch.dtype, budget: int | None, **others: Any) -> Plan:
    budget = max(BUDGET, x.nbytes) if budget is None else budget
    return Plan(chunk=max(1, budget // (classes * wide_dtype(dtype).itemsize)), dtype=dtype, **others)


def _soft_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: SoftTargets,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    dtype: torch.dtype,
    budget: int | None,
) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        rows, factor, divisor = row_targets(target, class_weight, ignore_index, wide_dtype(dtype), True)
        examples, _, *positions = target.shape

        def flattened(field: Tensor) -> Tensor:
            return field.expand(examples, -1, *positions).movedim(1, -1).flatten(0, -2)

        rows = rows.map(flattened)
        factor = None if factor is None else flattened(factor)
    counted, total = None, len(x)
    if rows.ignored is not None and x.device.type != "cpu":
        x = x.masked_fill(rows.ignored, 0)  # keeps NaN and infinity of ignored rows out of the weight's gradient
    elif rows.ignored is not None:
        counted = (~rows.ignored).flatten().nonzero().flatten()
        x, factor = x[counted], None if factor is None else factor[counted]
        rows = rows.map(lambda field: field[counted])._replace(ignored=None)
    kernel = choose(x, rows.classes.shape[1])
    few = rows.classes.shape[1] <= FEW and (rows.prior is None or rows.prior.ndim == 1)
    in_layer = few and kernel is eager.loss_rows and x.device.type == "cpu" and dtype == wide_dtype(dtype)
    plan = _plan(x, len(weight), dtype, budget, kernel=None if in_layer else kernel)
    loss = _reduced((x, weight, bias), rows, factor, divisor, reduction, plan)
    if reduction == "none" and counted is not None:
        return loss.new_zeros(total).index_copy(0, counted, loss)
    return loss


def _dense_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    smoothing: tuple[Any, Any],
    reduction: str,
    dtype: torch.dtype,
    budget: int | None,
) -> Tensor:
    rows = target.movedim(1, -1).flatten(0, -2)
    ignored = torch.linalg.vector_norm(rows.to(x.dtype), torch.inf, 1, keepdim=True) == 0
    divisor = (~ignored).sum().to(wide_dtype(dtype))
    if x.device.type != "cpu" or bool(ignored.any()):
        x = x.masked_fill(ignored, 0)
    plan = _plan(x, len(weight), dtype, budget)
    rows_of_target = DenseRows(rows, class_weight, ignored, *smoothing)
    return _reduced((x, weight, bias), rows_of_target, None, divisor, reduction, plan)


def _reduced(
    layer: tuple[Tensor, Tensor, Tensor | None],
    target: RowTargets | DenseRows,
    factor: Tensor | None,
    divisor: Tensor | float,
    reduction: str,
    plan: Plan,
) -> Tensor:
    if reduction == "none" or not torch.is_grad_enabled():
        losses = linear_losses(layer, target, plan)
        losses = losses if factor is None else losses * factor
        if reduction == "none":
            return losses.flatten()
        return losses.sum() * (inverse(divisor) if reduction == "mean" else 1.0)
    scale = inverse(divisor) if reduction == "mean" else 1.0
    return linear_total(layer, target, scale if factor is None else factor * scale, plan)
