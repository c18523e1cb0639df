"""The loss as a single operator in a compiled graph, for logits so large that the eager kernel beats a compiled formula.

On the CPU the compiled formula makes several passes over the logits and writes the gradient to new memory. The eager
kernel computes the gradient together with the loss in the forward pass. Returned from an operator, that gradient would be
copied and scaled by the graph. So the forward operator returns the loss and a ticket: a tensor of eight bytes whose
memory owns the gradient. The backward operator takes the ticket and returns the gradient.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from composer_ls.losses.soft_losses import fields_learn, soft_losses
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import class_dim, wide_dtype
from composer_ls.targets.soft_targets import make

__all__ = ["LARGE", "losses_of"]

LARGE = 1 << 20
"""The number of logits from which the operator is used. Below it the compiled formula is faster: calls cost more than arithmetic."""


def losses_of(logits: Tensor, target: SoftTargets, weight: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    """:func:`~composer_ls.losses.soft_losses.soft_losses`, as a single operator if that is faster."""
    if not _is_compiled(logits) or fields_learn(target, weight) or logits.numel() < LARGE:
        return soft_losses(logits, target, weight, ignore_index, reduction)
    fields = (target.classes, target.weights, target.smoothing, target.prior, weight)
    learns = torch.is_grad_enabled() and logits.requires_grad
    return _forward(logits, *fields, ignore_index, reduction, learns)[0]


def _is_compiled(logits: Tensor) -> bool:
    """Whether operations on these logits are being compiled into a graph for the CPU."""
    if logits.device.type != "cpu" or torch._C._are_functorch_transforms_active():
        return False
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FUNCTIONAL) is not None


class _Ticket(bytearray):
    """Memory that owns the logits and their loss, from which the gradient can be computed once."""

    parts: tuple[Tensor, Tensor] | None = None


_TICKETS: WeakValueDictionary[int, _Ticket] = WeakValueDictionary()
_NUMBERS = itertools.count(1)


_FIELDS = "Tensor classes, Tensor weights, Tensor smoothing, Tensor? prior, Tensor? class_weight, int ignore_index, str reduction"


@torch.library.custom_op(
    "composer_ls::soft_cross_entropy",
    mutates_args=(),
    schema=f"(Tensor logits, {_FIELDS}, bool learns) -> (Tensor, Tensor)",  # PyTorch 2.4 cannot read it from annotations
)
def _forward(
    logits: Tensor,
    classes: Tensor,
    weights: Tensor,
    smoothing: Tensor,
    prior: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    learns: bool,
) -> tuple[Tensor, Tensor]:
    fields = classes, weights, smoothing, prior, class_weight
    with _autograd(learns):
        x, loss = _loss(logits, fields, ignore_index, reduction)
    number = next(_NUMBERS)
    ticket = _Ticket(number.to_bytes(8, "little"))
    if learns:
        ticket.parts = x, loss
        _TICKETS[number] = ticket
    return loss.detach().clone(), torch.frombuffer(ticket, dtype=torch.int64)


@torch.library.custom_op(
    "composer_ls::soft_cross_entropy_backward",
    mutates_args=(),
    schema=f"(Tensor grad_output, Tensor ticket, Tensor logits, {_FIELDS}) -> Tensor",
)
def _backward(
    grad_output: Tensor,
    ticket: Tensor,
    logits: Tensor,
    classes: Tensor,
    weights: Tensor,
    smoothing: Tensor,
    prior: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    held = _TICKETS.pop(int(ticket), None)
    with _autograd(True):
        if held is not None and held.parts is not None:
            (x, loss), held.parts = held.parts, None
        else:  # a second backward pass, or saved tensors that were copied
            fields = classes, weights, smoothing, prior, class_weight
            x, loss = _loss(logits, fields, ignore_index, reduction)
        gradient = torch.autograd.grad(loss, x, grad_output)[0]
    promised = torch.empty_like(logits, device="meta").stride()
    return gradient if gradient.stride() == promised else torch.empty_like(logits).copy_(gradient)


@contextlib.contextmanager
def _autograd(learns: bool) -> Iterator[None]:
    """Re-enable autograd inside an operator, which runs below it."""
    keys = torch._C.DispatchKey
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (keys.AutogradFunctionality, keys.AutogradOther, keys.AutogradNestedTensor):
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.set_grad_enabled(learns):
        yield


def _loss(logits: Tensor, fields: tuple[Any, ...], ignore_index: int, reduction: str) -> tuple[Tensor, Tensor]:
    classes, weights, smoothing, prior, class_weight = fields
    x = logits.detach().requires_grad_(torch.is_grad_enabled())
    target = make(classes, logits.shape[class_dim(logits)], _simple(weights), _simple(smoothing), prior, logits.dtype)
    loss = soft_losses(x, target, class_weight, ignore_index, reduction)
    return x, loss.reshape(_label_shape(x)) if reduction == "none" else loss


def _label_shape(logits: Tensor) -> tuple[int, ...]:
    dim = class_dim(logits)
    return (*logits.shape[:dim], *logits.shape[dim + 1 :])


def _simple(field: Tensor) -> Tensor:
    """A field that is the same for all rows as a number or a single row, which a graph cannot detect."""
    if field.ndim > 1 and field.numel():
        one = field[(slice(1), slice(None), *[slice(1)] * (field.ndim - 2))]
        field = one if bool((field == one).all()) else field
    return field.view(()).double() if field.numel() == 1 else field


@_forward.register_fake
def _(logits: Tensor, classes: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    dtype, reduction = wide_dtype(logits.dtype), others[-2]
    shape = _label_shape(logits) if reduction == "none" else ()
    return logits.new_empty(shape, dtype=dtype), logits.new_empty(1, dtype=torch.int64)


@_backward.register_fake
def _(grad_output: Tensor, ticket: Tensor, logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.ignore_index, ctx.reduction, _ = inputs
    ctx.save_for_backward(output[1], *tensors)


def _differentiate(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    ticket, *tensors = ctx.saved_tensors
    gradient = _backward(grad_output, ticket, *tensors, ctx.ignore_index, ctx.reduction)
    return gradient, *[None] * 8


_forward.register_autograd(_differentiate, setup_context=_keep)
