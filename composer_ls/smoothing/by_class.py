"""Label smoothing with a factor of its own for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composer_ls.smoothing.labels import check_kind, check_smoothing, smooth_labels
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import class_dim, host_number, transformed, wide_dtype
from composer_ls.targets.soft_targets import replace

__all__ = ["as_factors", "smooth_by_class"]


def as_factors(factors: Tensor | Sequence[float], num_classes: int | None = None) -> Tensor:
    """Checked smoothing factors, one per class, as a float tensor ``(K,)``.

    Args:
        factors: ``(K,)``, each in [0, 1].
        num_classes: K, if it is already known.

    Raises:
        ValueError: Another shape or number of classes, or a factor outside [0, 1].

    """
    found = torch.as_tensor(factors)
    found = found if found.is_floating_point() else found.float()
    if found.ndim != 1 or (num_classes is not None and len(found) != num_classes):
        expected = (
            "(K,), one factor per class" if num_classes is None else f"({num_classes},) for {num_classes} classes"
        )
        raise ValueError(
            f"smoothing has shape {tuple(found.shape)}, but must be a number or have shape {expected}; for one smoothing "
            f"per example, use composer_ls.smooth_labels"
        )
    outside = ~((found >= 0) & (found <= 1))  # true of NaN too
    if not transformed(found) and bool(outside.any()):
        where = int(outside.nonzero()[0])
        raise ValueError(f"smoothing[{where}] must be in [0, 1], but is {found[where].item():g}")
    return found


def smooth_by_class(
    logits: Tensor,
    target: Tensor,
    factors: Tensor | Sequence[float],
    *,
    prior: Tensor | Sequence[Any] | None = None,
    ignore_index: int | None = -100,
    spread: str = "all",
    kind: str = "multiclass",
    validate: bool | None = None,
) -> Tensor:
    r"""Label smoothing with one factor per class: :math:`y' = \sum_c y_c\,[(1-\alpha_c)\,\mathrm{onehot}(c) + \alpha_c\,q(c)]`.

    It is affine in y, so it commutes with mixing as :func:`~composer_ls.smooth_labels` does.

    Args:
        logits: Predictions ``(N, K, *spatial)``; only shape, dtype and device are read.
        target: Labels, dense rows or SoftTargets, as in :func:`~composer_ls.smooth_labels`.
        factors: α, ``(K,)``, each in [0, 1]. It may require a gradient.
        prior: q, as in :func:`~composer_ls.smooth_labels`.
        ignore_index: Positions with this label get a row of zeros; ``None`` to ignore no label.
        spread: ``"all"``, or ``"others"`` to share the mass among the incorrect classes only.
        kind: ``"multiclass"``, or ``"binary"``: entry k moves to 1/2 by the factor of class k.
        validate: Whether to check the values of targets and prior; ``None``: on the CPU only.

    Returns:
        SoftTargets for labels and SoftTargets, a dense tensor for dense rows.

    Raises:
        ValueError: ``factors`` has another number of classes or leaves [0, 1], or as in
            :func:`~composer_ls.smooth_labels`.

    Example:
        >>> import torch
        >>> from composer_ls.smoothing import smooth_by_class
        >>> smooth_by_class(torch.zeros(2, 4), torch.tensor([0, 2]), [0.4, 0.0, 0.2, 0.0]).dense()
        tensor([[0.7000, 0.1000, 0.1000, 0.1000],
                [0.0500, 0.0500, 0.8500, 0.0500]])

    """
    dim = class_dim(logits)
    amounts = as_factors(factors, logits.shape[dim]).to(logits.device, wide_dtype(logits.dtype))
    options: dict[str, Any] = {"ignore_index": ignore_index, "validate": validate}
    if kind == "binary":
        check_kind(kind, spread, prior is not None)
        each = _along(amounts, logits).expand(logits.shape)
        return smooth_labels(logits, target, each, kind=kind, **options)
    unsmoothed = smooth_labels(logits, target, 0.0, prior=prior, spread=spread, kind=kind, **options)
    amounts = check_smoothing(amounts, len(amounts), spread, prior is not None)  # type: ignore[assignment]
    if isinstance(unsmoothed, SoftTargets):
        if not isinstance(target, SoftTargets) or host_number(target.smoothing) == 0:
            return replace(unsmoothed, unsmoothed.classes, unsmoothed.weights, amounts[unsmoothed.classes])
        unsmoothed = unsmoothed.dense()
    moved = unsmoothed * _along(amounts, logits)
    given = smooth_labels(logits, moved, 1.0, prior=prior, validate=False)
    return unsmoothed - moved + given


def _along(amounts: Tensor, logits: Tensor) -> Tensor:
    """One number per class in the shape that broadcasts along the class dimension."""
    shape = [1] * logits.ndim
    shape[class_dim(logits)] = len(amounts)
    return amounts.view(shape)
