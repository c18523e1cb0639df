"""Input conversion (tensors, NumPy arrays, lists) and argument checks of the diagnostics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from composer_ls.errors import DiagnosticsError

__all__ = [
    "IGNORED",
    "as_tensor",
    "check_finite",
    "check_logits",
    "check_maps",
    "check_pairs",
    "counted_logits",
    "require_classes",
    "whole",
]

IGNORED = -100
"""The default ``ignore_index`` of PyTorch's losses."""


def as_tensor(name: str, values: Any) -> Tensor:
    """A tensor, a NumPy array or nested lists as a detached tensor. A sharded tensor is gathered."""
    if isinstance(values, Tensor):
        return whole(values.detach())
    try:
        array = np.ascontiguousarray(values) if np.ndim(values) else np.asarray(values)
        if not array.flags.writeable or not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise DiagnosticsError(
            f"{name} must be a tensor, a NumPy array or a list of numbers, but is {type(values).__name__}: {error}"
        ) from error


def whole(tensor: Tensor) -> Tensor:
    """The full tensor: a sharded one (a DTensor, as in FSDP 2) is gathered from all ranks, any other is returned as is.

    Raises:
        DiagnosticsError: It cannot be gathered.

    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    try:
        return tensor.full_tensor()
    except (RuntimeError, NotImplementedError) as error:
        raise DiagnosticsError(f"a sharded tensor could not be gathered from all ranks: {error}") from error


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinities."""
    odd = int((~torch.isfinite(values)).sum())
    if odd:
        raise DiagnosticsError(
            f"{odd} of the {values.numel()} {name} are NaN or infinite: the network has diverged, its weights were "
            f"not loaded, or some are masked; leave out masked values, or train again with a lower learning rate"
        )


def check_pairs(name: str, rows: Any, labels: Any, ignore_index: int = IGNORED) -> tuple[Tensor, Tensor]:
    """The rows ``(M, width)`` and int64 labels ``(M,)`` that are not ignored, on the rows' device.

    Raises:
        DiagnosticsError: Shapes or dtypes do not match, everything is ignored, a label is negative, or rows are not finite.

    """
    rows, labels = _counted(name, rows, labels, ignore_index)
    if int(labels.min()) < 0:
        raise DiagnosticsError(
            f"labels must be classes, from 0 on, but the smallest is {int(labels.min())}: give labels that should be ignored the "
            f"value {ignore_index}, or pass theirs as ignore_index"
        )
    check_finite(name, rows)
    return rows, labels


def counted_logits(logits: Any, labels: Any, ignore_index: int = IGNORED) -> tuple[Tensor, Tensor]:
    """The logits ``(M, K)`` and int64 labels ``(M,)`` that are not ignored. The values of the logits are not checked.

    Raises:
        DiagnosticsError: Shapes or dtypes do not match, everything is ignored, or a label is out of range.

    """
    logits, labels = _counted("logits", logits, labels, ignore_index)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise DiagnosticsError(
            f"labels must be in [0, {logits.shape[1]}) for logits of shape {tuple(logits.shape)}, but go from {low} to "
            f"{high}: give labels that should be ignored the value {ignore_index}"
        )
    return logits, labels


def check_logits(logits: Any, labels: Any, ignore_index: int = IGNORED) -> tuple[Tensor, Tensor]:
    """Like :func:`counted_logits`, but every row must also define probabilities. A class may be masked by -inf.

    Raises:
        DiagnosticsError: As :func:`counted_logits`, or a row has NaN or +inf, or only -inf.

    """
    logits, labels = counted_logits(logits, labels, ignore_index)
    bad = int((~logits.amax(1).isfinite()).sum())  # the largest of a row is NaN if any is
    if bad:
        raise DiagnosticsError(
            f"logits of {bad} of {len(logits)} examples are not finite: the run diverged, its weights were not "
            f"loaded, or all classes are masked (masking some classes by -inf is fine); train again with a lower "
            f"learning rate"
        )
    return logits, labels


def check_maps(logits: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Logits ``(N, K, *spatial)`` and int64 labels ``(N, *spatial)``, on the logits' device, including ignored ones.

    Raises:
        DiagnosticsError: Shapes or dtypes do not match.

    """
    logits, labels = as_tensor("logits", logits), _integers(labels)
    if logits.ndim < 2 or labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise DiagnosticsError(
            f"logits must be (N, K, *spatial) and labels (N, *spatial), but are {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}: give logits.movedim(-1, 1) if the classes are last, and labels.squeeze(1) if "
            f"the labels have a dimension of one channel"
        )
    return logits, labels.to(logits.device)


def require_classes(labels: Tensor, least: int, what: str) -> Tensor:
    """The classes that occur in the labels.

    Raises:
        DiagnosticsError: There are fewer than ``least``.

    """
    classes = labels.unique()
    if len(classes) < least:
        raise DiagnosticsError(
            f"{what} needs examples of at least {least} classes, but the labels contain {len(classes)}: "
            f"{classes.tolist()}; give examples of more classes"
        )
    return classes


def _counted(name: str, rows: Any, labels: Any, ignore_index: int) -> tuple[Tensor, Tensor]:
    rows, labels = as_tensor(name, rows), _integers(labels)
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise DiagnosticsError(
            f"{name} must be (N, width) and labels (N,), but are {tuple(rows.shape)} and {tuple(labels.shape)}"
            f"{_way_out(name, rows, labels)}"
        )
    if not len(labels):
        raise DiagnosticsError(f"there are no {name}: give N of at least 1 example")
    labels = labels.to(rows.device)
    counts = labels != ignore_index
    if counts.all():
        return rows, labels
    if not counts.any():
        raise DiagnosticsError(f"all {len(labels)} labels are {ignore_index}, which is ignored: give at least one more")
    return rows[counts], labels[counts]


def _way_out(name: str, rows: Tensor, labels: Tensor) -> str:
    if rows.ndim == 2 and labels.shape == (len(rows), 1):
        return ": give labels.squeeze(1)"
    if rows.ndim > 2 and labels.shape == rows.shape[:1] + rows.shape[2:]:
        return f": give {name}.movedim(1, -1).flatten(0, -2) and labels.flatten()"
    if rows.ndim > 2 and labels.shape == rows.shape[:-1]:
        return f": give {name}.flatten(0, -2) and labels.flatten()"
    return ""


def _integers(labels: Any) -> Tensor:
    labels = as_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DiagnosticsError(
            f"labels must be integers, but their dtype is {labels.dtype}: give the classes, such as labels.long(), or "
            f"labels.argmax(1) of one-hot rows"
        )
    return labels.long()
