"""The fused cross entropy as autograd functions. The gradient is computed in the buffer that backward() returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer_ls.kernels import Kernel, RowTargets, composite
from composer_ls.kernels.gradient import empty_gradient, scale_gradient

__all__ = ["is_batched", "kept", "row_losses", "save", "saved", "total_loss"]


def total_loss(x: Tensor, target: RowTargets, factor: Tensor | None, scale: Tensor | float, kernel: Kernel) -> Tensor:
    """``scale · Σ_n factor_n · loss_n`` of logits ``(N, K)`` or ``(N, K, S)``, 0-dim, in the compute dtype."""
    return _TotalLoss.apply(x, factor, scale, kernel, *target)


def row_losses(x: Tensor, target: RowTargets, kernel: Kernel) -> Tensor:
    """The loss of every row, ``(N, 1)`` or ``(N, 1, S)``, in the compute dtype."""
    return _RowLosses.apply(x, kernel, *target)


class _TotalLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass, where the exponentials are available."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, factor: Tensor | None, scale: Tensor | float, kernel: Kernel, *fields: Any
    ) -> Tensor:
        target = RowTargets(*fields)
        ctx.kernel = kernel
        by_row = scale if factor is None else factor * scale
        # A float16 gradient would underflow if it were rounded before the GradScaler's factor is applied.
        ctx.gradient = empty_gradient(x) if x.dtype != torch.float16 else None
        losses = kernel(x, target, ctx.gradient, by_row)
        save(ctx, x, by_row, *fields)
        return (losses if factor is None else losses * factor).sum() * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None  # drop our reference: the receiver may change it in place
        x, by_row, *fields = saved(ctx)
        target = RowTargets(*fields)
        if torch.is_grad_enabled():  # create_graph=True needs operations that can be differentiated again
            gradient = _gradient_with_graph(x, target, grad_output, by_row)
        elif is_batched(grad_output):  # is_grads_batched=True
            gradient = _unit_gradient(ctx.kernel, x, target, by_row) if gradient is None else gradient
            gradient = kept(gradient * grad_output, target)
        elif gradient is None:  # a second backward() through a retained graph, or float16
            gradient = empty_gradient(x)
            ctx.kernel(x, target, gradient, kept(grad_output * by_row, target))
        else:
            scale_gradient(gradient, grad_output, target.ignored)
        return gradient, None, None, None, *[None] * len(fields)


class _RowLosses(torch.autograd.Function):
    """Computes the gradient in the backward pass, where each row's factor is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Kernel, *fields: Any) -> Tensor:
        ctx.kernel = kernel
        save(ctx, x, *fields)
        return kernel(x, RowTargets(*fields), None, None)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, *fields = saved(ctx)
        target = RowTargets(*fields)
        if torch.is_grad_enabled():
            gradient = _gradient_with_graph(x, target, grad_output, 1.0)
        elif is_batched(grad_output):
            gradient = kept(_unit_gradient(ctx.kernel, x, target, 1.0) * grad_output, target)
        else:
            gradient = empty_gradient(x)
            ctx.kernel(x, target, gradient, kept(grad_output, target))
        return gradient, None, *[None] * len(fields)


def save(ctx: Any, *values: Any) -> None:
    """Save values for the backward pass; PyTorch detects later changes to the tensors and frees them after use."""
    ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in values))
    ctx.numbers = [None if isinstance(value, Tensor) else value for value in values]


def saved(ctx: Any) -> list[Any]:
    """The values given to :func:`save`. Raises a RuntimeError if one of the tensors was changed since."""
    return [number if tensor is None else tensor for tensor, number in zip(ctx.saved_tensors, ctx.numbers, strict=True)]


def is_batched(grad_output: Tensor) -> bool:
    """Whether ``grad_output`` is a batch of gradients, as with ``is_grads_batched=True``."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(grad_output) or functorch.is_legacy_batchedtensor(grad_output)


def kept(factor: Tensor, target: Any) -> Tensor:
    """``factor`` with 0 for ignored rows, even where the incoming gradient is NaN or infinite."""
    return factor if target.ignored is None else torch.where(target.ignored, 0, factor)


def _unit_gradient(kernel: Kernel, x: Tensor, target: RowTargets, by_row: Tensor | float) -> Tensor:
    gradient = empty_gradient(x)
    kernel(x, target, gradient, by_row)
    return gradient


def _gradient_with_graph(x: Tensor, target: RowTargets, grad_output: Tensor, by_row: Tensor | float) -> Tensor:
    with torch.enable_grad():
        losses = composite.differentiable_rows(x, target)
        (gradient,) = torch.autograd.grad(
            losses, x, kept(grad_output * by_row, target).expand_as(losses), create_graph=True
        )
    return gradient
