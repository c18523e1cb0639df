"""The cross entropy of a linear layer as autograd functions that compute the logits a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_ls.kernels import Kernel, RowTargets, composite, compute_dtype
from composer_ls.kernels.gradient import empty_gradient, scale_gradient
from composer_ls.losses.fused import is_batched, kept, save, saved
from composer_ls.smoothing import smooth_labels

__all__ = ["DenseRows", "Plan", "linear_losses", "linear_total"]

LOST = 1e-30
"""Below this, probabilities are close to float32's underflow, so their logarithms are computed from the logits."""


class DenseRows(NamedTuple):
    """A dense target with the smoothing and class weights to apply to it, in this order.

    Attributes:
        rows: ``(N, K)``, any floating dtype.
        weight: A factor for each class, ``(K,)``, or ``None``.
        ignored: True for ignored rows, bool ``(N, 1)``, or ``None`` when every row counts.
        smoothing: The smoothing, or ``None``.
        prior: Where it moves mass to, as in :func:`~composer_ls.smooth_labels`.

    """

    rows: Tensor
    weight: Tensor | None
    ignored: Tensor | None
    smoothing: float | Tensor | None
    prior: Tensor | Sequence[Any] | None


class Plan(NamedTuple):
    """How to compute the loss.

    Attributes:
        chunk: The number of rows per chunk of logits.
        dtype: The dtype in which the layer computes: that of its arguments, or autocast's.
        kernel: The kernel for SoftTargets; ``None`` to use :func:`_by_layer`, which makes fewer passes over the logits.

    """

    chunk: int
    dtype: torch.dtype
    kernel: Kernel | None = None


class _Layer(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class _Gradients(NamedTuple):
    """Accumulated gradients in the compute dtype, or None where no gradient is needed.

    The bias gradient is in float64 if the device supports it: it is a sum of one number per row that nearly cancel.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def linear_total(layer: tuple[Any, ...], target: Any, scale: Tensor | float, plan: Plan) -> Tensor:
    """``Σ_n scale_n · loss_n`` for hidden ``(N, D)``, weight ``(K, D)`` and bias ``(K,)``: 0-dim, in the compute dtype."""
    return _Total.apply(*layer, scale, plan, type(target), *target)


def linear_losses(layer: tuple[Any, ...], target: Any, plan: Plan) -> Tensor:
    """The loss of every row, ``(N, 1)``, in the compute dtype."""
    return _Losses.apply(*layer, plan, type(target), *target)


class _Total(torch.autograd.Function):
    """Computes the gradients in the forward pass, while each chunk's logits are in memory."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: Any, plan: Plan, kind: Any, *fields: Any
    ) -> Tensor:
        ctx.plan, ctx.kind = plan, kind
        losses, ctx.gradients = _run(_Layer(hidden, weight, bias), kind(*fields), scale, plan, ctx.needs_input_grad)
        save(ctx, hidden, weight, bias, scale, *fields)
        return (losses * scale).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # drop our reference: the receiver may change them in place
        hidden, weight, bias, scale, *fields = saved(ctx)
        layer, target, needs = _Layer(hidden, weight, bias), ctx.kind(*fields), ctx.needs_input_grad
        if torch.is_grad_enabled() or is_batched(grad_output):
            result = _with_graph(layer, target, grad_output * scale, ctx.plan, needs)
        else:
            if gradients is None:  # a second backward() through a retained graph
                gradients = _run(layer, target, scale, ctx.plan, needs)[1]
            for gradient in gradients:
                if gradient is not None:
                    scale_gradient(gradient, grad_output, None)
            result = _as_arguments(gradients, layer)
        return *result, None, None, None, *[None] * len(fields)


class _Losses(torch.autograd.Function):
    """Computes the gradients in the backward pass, where each row's factor is known, from logits computed again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, kind: Any, *fields: Any
    ) -> Tensor:
        ctx.plan, ctx.kind = plan, kind
        save(ctx, hidden, weight, bias, *fields)
        return _run(_Layer(hidden, weight, bias), kind(*fields), 1.0, plan, (False,) * 3)[0]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *fields = saved(ctx)
        layer, target, needs = _Layer(hidden, weight, bias), ctx.kind(*fields), ctx.needs_input_grad
        if torch.is_grad_enabled() or is_batched(grad_output):
            result = _with_graph(layer, target, grad_output, ctx.plan, needs)
        else:
            gradients = _run(layer, target, kept(grad_output, target), ctx.plan, needs)[1]
            result = _as_arguments(gradients, layer)
        return *result, None, None, *[None] * len(fields)


def _as_arguments(gradients: _Gradients, layer: _Layer) -> list[Tensor | None]:
    return [
        None if gradient is None or argument is None else gradient.to(argument.dtype)
        for gradient, argument in zip(gradients, layer, strict=True)
    ]


def _with_graph(layer: _Layer, target: Any, upstream: Tensor, plan: Plan, needs: Any) -> list[Tensor | None]:
    """The gradients by operations that can be differentiated again. Computes all logits at once."""
    with torch.enable_grad():
        hidden, weight, bias = (None if value is None else value.to(plan.dtype) for value in layer)
        logits = F.linear(hidden, weight, bias)  # type: ignore[arg-type]
        losses = _dense_losses(logits, target) if isinstance(target, DenseRows) else None
        losses = composite.differentiable_rows(logits, target) if losses is None else losses
        wanted = [value for value, needed in zip(layer, needs, strict=False) if needed and value is not None]
        found = iter(
            torch.autograd.grad(
                losses, wanted, kept(upstream, target).expand_as(losses), create_graph=torch.is_grad_enabled()
            )
        )
    return [next(found) if needed else None for needed in needs[:3]]


# ---------------------------------------------------------------------------------------------------------------------
# Chunks.


def _run(layer: _Layer, target: Any, scale: Tensor | float, plan: Plan, needs: Any) -> tuple[Tensor, _Gradients]:
    """The loss of every row, ``(N, 1)``, and the requested gradients of ``Σ_n scale_n · loss_n``."""
    with torch.autocast(layer.hidden.device.type, enabled=False):
        hidden, weight, bias = (None if value is None else value.detach().to(plan.dtype) for value in layer)
        casted = _Layer(hidden, weight, bias)  # type: ignore[arg-type]
        sums = compute_dtype(plan.dtype)
        scale = torch.as_tensor(scale, dtype=sums, device=layer.hidden.device).expand(len(layer.hidden), 1)
        largest = None
        if sums != plan.dtype:  # keeps float16 in range whatever the mean's divisor or the GradScaler's factor
            largest = scale.abs().amax().clamp_min(torch.finfo(sums).tiny) if len(scale) else None
            scale = scale if largest is None else scale / largest
        gradients = _zeros(casted, sums, needs)
        if isinstance(target, DenseRows):
            losses = _by_rows(casted, target, scale, plan, gradients)
        elif plan.kernel is None:
            losses = _by_layer(casted, target, scale, plan, gradients)
        else:
            losses = _by_kernel(casted, target, scale, plan, gradients)
        if largest is not None:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(largest)
    return losses, gradients


def _zeros(layer: _Layer, dtype: torch.dtype, needs: Any) -> _Gradients:
    def like(value: Tensor | None, needed: bool, dtype: torch.dtype) -> Tensor | None:
        return empty_gradient(value, dtype).zero_() if needed and value is not None else None

    precise = dtype if layer.hidden.device.type == "mps" else torch.float64
    return _Gradients(*map(like, layer, needs[:3], (dtype, dtype, precise)))


def _chunks(layer: _Layer, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Chunks of rows: their slice, hidden states and logits. All chunks share one buffer for the logits."""
    rows, classes = len(layer.hidden), len(layer.weight)
    memory = empty_gradient(layer.hidden.new_empty(()).expand(min(chunk, rows), classes))
    for first in range(0, rows, chunk):
        part = slice(first, min(first + chunk, rows))
        hidden = layer.hidden[part]
        yield part, hidden, _logits(hidden, layer, memory[: len(hidden)])


def _logits(hidden: Tensor, layer: _Layer, out: Tensor | None = None) -> Tensor:
    if layer.bias is None:
        return torch.mm(hidden, layer.weight.t(), out=out)
    return torch.addmm(layer.bias, hidden, layer.weight.t(), out=out)


def _part(field: Any, part: slice, rows: int) -> Any:
    return field[part] if isinstance(field, Tensor) and field.ndim and field.shape[0] == rows else field


def _by_kernel(layer: _Layer, target: RowTargets, scale: Tensor, plan: Plan, gradients: _Gradients) -> Tensor:
    """Use a kernel, which writes the gradient of each chunk over its logits."""
    losses = scale.new_empty(scale.shape)
    wanted = any(gradient is not None for gradient in gradients)
    for part, hidden, x in _chunks(layer, plan.chunk):
        some = target.map(lambda field, part=part: _part(field, part, len(scale)))  # type: ignore[misc]
        losses[part] = plan.kernel(x, some, x if wanted else None, scale[part] if wanted else None)  # type: ignore[misc]
        _accumulate(gradients, layer, part, hidden, x)
    return losses


def _by_rows(layer: _Layer, target: DenseRows, scale: Tensor, plan: Plan, gradients: _Gradients) -> Tensor:
    losses = scale.new_empty(scale.shape)
    for part, hidden, x in _chunks(layer, plan.chunk):
        rows = _weighted(target.rows[part].to(scale.dtype), target)
        mass = rows.sum(1, keepdim=True)
        work = x.to(scale.dtype)
        work.sub_(work.amax(1, keepdim=True))
        taken = torch.bmm(rows.unsqueeze(1), work.unsqueeze(2)).squeeze(2)
        torch.softmax(work, 1, out=work)
        losses[part] = mass * work.amax(1, keepdim=True).log_().neg_() - taken
        work.mul_(mass).sub_(rows).mul_(scale[part])
        _accumulate(gradients, layer, part, hidden, work.to(x.dtype))
    return losses


def _weighted(rows: Tensor, target: DenseRows) -> Tensor:
    """Some rows of the target, smoothed and times the class weights."""
    if target.smoothing is not None:
        rows = smooth_labels(rows, rows, target.smoothing, prior=target.prior, validate=False)
    return rows if target.weight is None else rows * target.weight.to(rows.dtype)


def _dense_losses(logits: Tensor, target: DenseRows) -> Tensor:
    logs = logits.to(compute_dtype(logits.dtype)).log_softmax(1)
    return -(_weighted(target.rows.to(logs.dtype), target) * logs).sum(1, keepdim=True)


def _accumulate(gradients: _Gradients, layer: _Layer, part: slice, hidden: Tensor, slope: Tensor) -> None:
    """Add the contribution of some rows, whose gradient by the logits is ``slope``, to the layer's gradients."""
    if gradients.hidden is not None:
        if gradients.hidden.dtype == slope.dtype:
            torch.mm(slope, layer.weight, out=gradients.hidden[part])
        else:
            gradients.hidden[part] = torch.mm(slope, layer.weight)
    if gradients.weight is not None:
        if gradients.weight.dtype == slope.dtype:
            gradients.weight.addmm_(slope.t(), hidden)
        elif slope.dtype == torch.float16:
            gradients.weight.add_(_product_in_range(slope.t(), hidden))
        else:
            gradients.weight.add_(torch.mm(slope.t(), hidden))
    if gradients.bias is not None:
        gradients.bias.add_(slope.sum(0, dtype=gradients.bias.dtype))


def _product_in_range(a: Tensor, b: Tensor) -> Tensor:
    """The product of float16 matrices in float32, where float16, which ends at 65,504, cannot hold it."""
    largest = [torch.linalg.vector_norm(matrix, torch.inf).float() for matrix in (a, b)]
    bound = largest[0] * largest[1] * len(b)
    divisor = (bound / 2**15).log2().ceil().clamp_min(0).exp2()  # a power of two, so that only underflow costs digits
    return torch.mm(a, b / divisor).float() * divisor


def _by_layer(layer: _Layer, target: RowTargets, scale: Tensor, plan: Plan, gradients: _Gradients) -> Tensor:
    r"""Like :func:`_by_kernel`, with the softmax as the only pass over the logits.

    The gradient by the logits :math:`x = Wz + b` is
    :math:`m\,\mathrm{softmax}(x) - \sum_j h_j\,\mathrm{onehot}(c_j) - s\,q`. Only its first term needs work
    proportional to the logits. The second needs J rows of W, and the third only the row :math:`q^\top W`; likewise
    :math:`\langle q, x\rangle = \langle q^\top W, z\rangle + \langle q, b\rangle`.
    """
    rows, components = target.classes.shape
    classes = target.classes
    hard, mass, soft = (
        torch.as_tensor(0.0 if field is None else field, dtype=scale.dtype)
        for field in (target.hard, target.mass, target.soft)
    )
    hard, mass, soft = hard.expand(rows, components), mass.expand(rows, 1), soft.expand(rows, 1)
    prior = None if target.soft is None else _Prior.of(layer, target.prior)
    by_label, by_mass, by_prior = hard * scale, mass * scale, soft * scale
    if gradients.weight is not None:
        if prior is not None:
            prior.subtract(gradients.weight, (by_prior * layer.hidden).sum(0, keepdim=True))
        for j in range(components):
            gradients.weight.index_add_(0, classes[:, j], layer.hidden * by_label[:, j : j + 1], alpha=-1)
    if gradients.bias is not None:
        if prior is not None:
            prior.subtract(gradients.bias.unsqueeze(1), by_prior.sum(0, keepdim=True, dtype=gradients.bias.dtype))
        gradients.bias.index_add_(0, classes.flatten(), by_label.flatten().to(gradients.bias.dtype), alpha=-1)
    losses = scale.new_empty(scale.shape)
    for part, hidden, x in _chunks(layer, plan.chunk):
        labels = classes[part]
        first = x.gather(1, labels[:, :1])
        torch.softmax(x, 1, out=x)
        surprise = _surprise(x, labels, hidden, layer)
        losses[part] = _times(hard[part], surprise).sum(1, keepdim=True)
        if prior is not None:
            total = prior.total * (surprise[:, :1] + first)
            losses[part] += _times(soft[part], total - (hidden @ prior.layer.unsqueeze(1) + prior.bias))
        if gradients.hidden is not None:
            slope = torch.mm(x, layer.weight, out=gradients.hidden[part]).mul_(by_mass[part])
            if prior is not None:
                slope.addmm_(by_prior[part], prior.layer.unsqueeze(0), alpha=-1)
            for j in range(components):
                slope.addcmul_(by_label[part, j : j + 1], layer.weight[labels[:, j]], value=-1)
        if gradients.weight is not None:
            gradients.weight.addmm_(x.t(), hidden * by_mass[part])
        if gradients.bias is not None:
            gradients.bias.add_(torch.mv(x.t(), by_mass[part].squeeze(1)))
    return losses


class _Prior(NamedTuple):
    """The prior q, ``None`` or ``(K,)``, with its products with the layer, ``q^T W`` and ``<q, b>``, and its sum."""

    row: Tensor | None
    layer: Tensor
    bias: Tensor | float
    total: Tensor | float

    @classmethod
    def of(cls, layer: _Layer, row: Tensor | None) -> _Prior:
        if row is None:
            return cls(None, layer.weight.mean(0), 0.0 if layer.bias is None else layer.bias.mean(), 1.0)
        return cls(row, row @ layer.weight, 0.0 if layer.bias is None else _times(row, layer.bias).sum(), row.sum())

    def subtract(self, gradient: Tensor, amount: Tensor) -> None:
        """``gradient - q ⊗ amount``, in place."""
        if self.row is None:
            gradient.sub_(amount / len(gradient))
        else:
            gradient.addmm_(self.row.unsqueeze(1).to(gradient.dtype), amount, alpha=-1)


def _surprise(probabilities: Tensor, labels: Tensor, hidden: Tensor, layer: _Layer) -> Tensor:
    """``-log p`` of some labels. Where p is too small to be precise, it is computed again from the logits."""
    p = probabilities.gather(1, labels)
    result = p.log().neg_()
    lost = (p < LOST).any(1).nonzero().squeeze(1)
    step = max(1, len(p) // 8)
    for some in lost.split(step) if len(lost) else ():
        result[some] = _logits(hidden[some], layer).log_softmax(1).gather(1, labels[some]).neg_()
    return result


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """``weight · value``, where 0 · inf counts as 0."""
    return torch.where(weight == 0, 0, weight * value)
