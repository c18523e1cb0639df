"""What the diagnostics refuse, in words: arrays whose shapes, values or classes leave nothing to compute."""

from __future__ import annotations

import torch
from torch import Tensor

from composer_ls.errors import DiagnosticsError

__all__ = ["check_finite", "check_logits", "check_pairs", "require_classes"]


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinities."""
    odd = int((~torch.isfinite(values)).sum())
    if odd:
        raise DiagnosticsError(
            f"{odd} of the {values.numel()} {name} are NaN or infinite: the network has diverged, or its weights were "
            f"not loaded; train it again with a lower learning rate"
        )


def check_pairs(name: str, rows: Tensor, labels: Tensor) -> None:
    """Refuse rows ``(N, anything)`` and labels ``(N,)`` that do not fit each other."""
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise DiagnosticsError(
            f"{name} have shape {tuple(rows.shape)} and labels {tuple(labels.shape)}, but must be (N, width) and (N,)"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DiagnosticsError(f"labels must be integers, but their dtype is {labels.dtype}")
    if not len(labels):
        raise DiagnosticsError(f"there are no {name}: give at least one example")
    check_finite(name, rows)


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Refuse logits ``(N, K)`` and labels ``(N,)`` that do not fit each other."""
    check_pairs("logits", logits, labels)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise DiagnosticsError(
            f"labels lie from {low} to {high}, but logits of shape {tuple(logits.shape)} have the classes 0 to "
            f"{logits.shape[1] - 1}"
        )


def require_classes(labels: Tensor, least: int, what: str) -> Tensor:
    """The classes that stand among the labels, if there are enough of them."""
    classes = labels.unique()
    if len(classes) < least:
        raise DiagnosticsError(
            f"{what} needs examples of at least {least} classes, but the labels hold {len(classes)}: "
            f"{classes.tolist()}; give examples of more classes"
        )
    return classes
