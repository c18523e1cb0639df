"""Kernels for cross entropy against a target made of a few weighted labels plus a multiple of a prior.

Every kernel computes, for each row ``n`` of the logits ``x``,

    loss_n = mass_n · logsumexp(x_n) - Σ_j hard_nj · x_n[c_nj] - Σ_j soft_nj · <q(c_nj), x_n>
    dloss_n/dx_n = mass_n · softmax(x_n) - Σ_j hard_nj · onehot(c_nj) - Σ_j soft_nj · q(c_nj)

where ``mass_n`` is the row's total target mass. An ignored row has a loss of 0 and gets no gradient, whatever its
logits. Argument checks, reductions and class weights are in `composer_ls.losses`.

| kernel | where | how |
| --- | --- | --- |
| `eager` | any device | plain PyTorch, with the gradient as the only large buffer |
| `triton` | CUDA | one Triton kernel that reads the logits and writes the gradient |
| `composite` | any device | ordinary differentiable operations, for higher derivatives and ``torch.compile`` |

:func:`choose` picks the fastest kernel for the device. The choice depends on the logits and the number of components
only, never on timing, so the same seed gives the same result. The environment variable ``COMPOSER_LS_KERNEL`` forces a
kernel. Anything that needs more than the first derivative with respect to the logits (forward mode, ``torch.func``,
gradients of a prior) uses `composite` automatically. On the CPU, small logits with one smoothing for all rows do not
come to a kernel: `composer_ls.kernels.small` is faster.
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

__all__ = [
    "KERNELS",
    "NO_LABEL",
    "VARIABLE",
    "Kernel",
    "RowTargets",
    "choose",
    "compute_dtype",
    "forced",
    "has_triton",
    "sum_components",
]

KERNELS = ("eager", "triton", "composite")
VARIABLE = "COMPOSER_LS_KERNEL"
NO_LABEL = -(2**63)
"""An ``ignore_index`` that no label has."""
FEW = 16
"""The largest number of components for which a kernel that loops over them for every row is worthwhile."""

Kernel = Callable[[Tensor, "RowTargets", "Tensor | None", "Tensor | float | None"], Tensor]
"""``loss_rows(logits, target, grad, scale)`` returns the loss of every row, ``(N, 1)`` or ``(N, 1, S)``, in the compute
dtype. If ``grad`` is given, the gradient times ``scale`` is written into it. ``logits`` and ``grad`` are ``(N, K)`` or
``(N, K, S)``, of the same floating dtype, with any strides; ``scale`` is a number or broadcasts to the losses."""


class RowTargets(NamedTuple):
    """The target in the form that kernels take. A field that is the same for all rows is a plain number.

    The shapes are for logits ``(N, K, S)``; for ``(N, K)`` the last dimension is missing. Tensors of weights are in
    the compute dtype (float32, or float64 for float64 logits), and any of their dimensions may be 1.

    Attributes:
        classes: c, int64 ``(N, J, S)``.
        hard: The weight of each label, ``(N, J, S)``.
        soft: The weight of the prior, ``(N, 1, S)``, or ``(N, J, S)`` when the prior has a row per class. ``None`` when
            nothing is smoothed.
        prior: ``None`` for the uniform ``1/K``, ``(K,)``, or ``(K, K)``. It does not have to sum to one.
        mass: The sum of each row of the target, ``(N, 1, S)``.
        ignored: True for ignored rows, bool ``(N, 1, S)``. ``None`` when every row counts.

    """

    classes: Tensor
    hard: Tensor | float
    soft: Tensor | float | None
    prior: Tensor | None
    mass: Tensor | float
    ignored: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> RowTargets:
        """The same target with ``change`` applied to every per-row tensor (all fields but the prior)."""

        def changed(field: Any) -> Any:
            return change(field) if isinstance(field, Tensor) else field

        classes, hard, soft, mass = (changed(field) for field in (self.classes, self.hard, self.soft, self.mass))
        return RowTargets(classes, hard, soft, self.prior, mass, changed(self.ignored))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and weights: float64 for float64 logits, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sum_components(field: Tensor | float, components: int, dim: int = 1) -> Tensor | float:
    """The sum over J of a field that is a number, the same for all components, or one for each; keeps the dimension."""
    if components == 1:
        return field
    if not isinstance(field, Tensor) or field.shape[dim] == 1:
        return field * components
    return field.sum(dim, keepdim=True)


def forced() -> str | None:
    """The kernel that ``COMPOSER_LS_KERNEL`` names, if it is set."""
    return os.environ.get(VARIABLE) or None


def choose(logits: Tensor, components: int = 1, kernel: str | None = None) -> Kernel:
    """The ``loss_rows`` to use for these logits.

    Args:
        logits: ``(N, K)`` or ``(N, K, S)``.
        components: J. With many components the target is practically dense, which only `eager` and `composite` handle
            efficiently.
        kernel: One of :data:`KERNELS`. ``None`` uses ``COMPOSER_LS_KERNEL`` if it is set, else the fastest available.

    Raises:
        ValueError: There is no kernel of that name.
        RuntimeError: The requested kernel cannot run here; the message says why.

    """
    kernel = kernel or forced()
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
