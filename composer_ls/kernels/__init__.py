"""Cross entropy against a target that is a few weighted labels plus a multiple of a prior, one implementation a device.

Every kernel computes, for the rows ``n`` of logits ``x``,

    loss_n = mass_n · logsumexp(x_n) - Σ_j hard_nj · x_n[c_nj] - Σ_j soft_nj · <q(c_nj), x_n>
    dloss_n/dx_n = mass_n · softmax(x_n) - Σ_j hard_nj · onehot(c_nj) - Σ_j soft_nj · q(c_nj)

where ``mass_n`` is the sum of what is subtracted. An ignored row costs nothing and gets no gradient, whatever its
logits. Checking, reductions and class weights happen in `composer_ls.losses`.

| kernel | where | how |
| --- | --- | --- |
| `eager` | any device | plain PyTorch, in the memory of the gradient |
| `triton` | CUDA | Triton: logits read, gradient written |
| `composite` | any device | the formula, in operations that PyTorch differentiates any number of times and compiles |

:func:`choose` takes the fastest for the device. The choice follows from the logits alone, so that one seed gives one result.
The environment variable ``COMPOSER_LS_KERNEL`` forces a kernel. What asks for more than a first derivative by the logits
(forward mode, ``torch.func``, gradients of a prior) goes to `composite` by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["KERNELS", "VARIABLE", "Kernel", "RowTargets", "choose", "compute_dtype", "has_triton"]

KERNELS = ("eager", "triton", "composite")
VARIABLE = "COMPOSER_LS_KERNEL"
FEW = 16
"""Components up to which kernels that go through all of them for every row are worth it."""

Kernel = Callable[[Tensor, "RowTargets", "Tensor | None", "Tensor | float | None"], Tensor]
"""``loss_rows(logits, target, grad, scale)``: the loss of every row, ``(N, 1)`` or ``(N, 1, S)``, in the compute dtype;
and, where ``grad`` is given, the gradient times ``scale`` written into it. ``logits`` and ``grad`` are ``(N, K)`` or
``(N, K, S)``, of one floating dtype, with any strides; ``scale`` is a number or broadcasts to the losses."""


class RowTargets(NamedTuple):
    """The target of a kernel. What is the same everywhere is a number, so that a plain smoothed label costs nothing.

    Shapes are those for logits ``(N, K, S)``; for ``(N, K)`` the last dimension is missing. Tensors of weights are in
    the compute dtype (float32, or float64 for float64 logits), and any of their dimensions may be 1.

    Attributes:
        classes: c, int64 ``(N, J, S)``.
        hard: The weight of each label, ``(N, J, S)``.
        soft: The weight of the prior, ``(N, 1, S)``, or ``(N, J, S)`` when the prior has a row per class. ``None`` when
            nothing is smoothed.
        prior: ``None`` for the uniform ``1/K``, ``(K,)``, or ``(K, K)``. It need not sum to one.
        mass: The sum of each row of the target, ``(N, 1, S)``.
        ignored: Where a row counts for nothing, bool ``(N, 1, S)``. ``None`` when every row counts.

    """

    classes: Tensor
    hard: Tensor | float
    soft: Tensor | float | None
    prior: Tensor | None
    mass: Tensor | float
    ignored: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> RowTargets:
        """The same target with ``change`` done to every tensor that has a row for each row of the logits."""

        def changed(field: Any) -> Any:
            return change(field) if isinstance(field, Tensor) else field

        classes, hard, soft, mass = (changed(field) for field in (self.classes, self.hard, self.soft, self.mass))
        return RowTargets(classes, hard, soft, self.prior, mass, changed(self.ignored))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums and weights are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def choose(logits: Tensor, components: int = 1, kernel: str | None = None) -> Kernel:
    """The ``loss_rows`` to use for these logits.

    Args:
        logits: ``(N, K)`` or ``(N, K, S)``.
        components: J. Many mean a dense target in disguise, which only `eager` and `composite` handle in time.
        kernel: One of :data:`KERNELS`. ``None``: what ``COMPOSER_LS_KERNEL`` says, else the fastest at hand.

    Raises:
        ValueError: There is no kernel of that name.
        RuntimeError: The kernel that is asked for cannot run here; the message says why.

    """
    kernel = kernel or os.environ.get(VARIABLE) or None
    if kernel is None:
        kernel = _fastest(logits) if components <= FEW else "eager"
    elif kernel not in KERNELS:
        raise ValueError(f"there is no kernel {kernel!r}: {VARIABLE} is one of {', '.join(KERNELS)}, or not set")
    elif kernel == "triton":
        _require_triton(logits)
    return _module(kernel).loss_rows


def _fastest(logits: Tensor) -> str:
    if logits.device.type == "cuda":
        return "triton" if has_triton() else "eager"
    return "eager"


def _require_triton(logits: Tensor) -> None:
    if not has_triton():
        raise RuntimeError("the triton kernel needs the package triton; take another kernel")
    if logits.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"the triton kernel needs logits on a CUDA device, but these are on {logits.device}")


@lru_cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


@lru_cache
def _module(name: str) -> Any:
    return import_module(f"composer_ls.kernels.{name}")
