"""The Dice loss, against labels, dense rows or SoftTargets."""

from __future__ import annotations

import torch
from torch import Tensor

from composer_ls.losses.row_targets import masked_rows
from composer_ls.smoothing import smooth_labels
from composer_ls.targets import SoftTargets
from composer_ls.targets.fields import class_dim, wide_dtype

__all__ = ["dice_loss"]


def dice_loss(input: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    r"""One minus the Dice coefficient of probabilities and target, averaged over classes, in [0, 1].

    With the probabilities :math:`p_k` and the target :math:`y_k` of class k, and the inner sums over all pixels of the
    batch that are not ignored,

    .. math:: 1 - \frac{1}{K}\sum_k \frac{2\sum\min(p_k, y_k)}{\sum p_k + \sum y_k}.

    For hard labels :math:`\min(p, y) = p\,y`, which gives the usual soft Dice loss. With smoothed and mixed targets the
    minimum is still at p = y, whereas the usual loss, with :math:`p\,y`, keeps falling as p gets harder than y.

    Args:
        input: Logits ``(N, K, *spatial)``, or ``(K,)`` for one row, any floating dtype.
        target: Labels, integer ``(N, *spatial)``; dense rows or SoftTargets of the logits' shape. SoftTargets are
            converted to dense rows.
        ignore_index: A label that contributes no loss and no gradient, whatever the logits there. Rows of dense targets
            and SoftTargets without mass are ignored too. If everything is ignored, loss and gradient are 0.

    Returns:
        A 0-dim tensor in the dtype of the logits, or float32 if they are in half precision.

    Raises:
        ValueError: Shapes that do not fit, or a label out of range (on the CPU).

    Example:
        >>> import torch
        >>> from composer_ls import dice_loss, smooth_labels
        >>> labels = torch.tensor([[0, 1, -100]])
        >>> logits = torch.tensor([[[2.0, 0.0, 9.0], [0.0, 2.0, -9.0]]])
        >>> dice_loss(logits, labels)
        tensor(0.1192)
        >>> dice_loss(logits, smooth_labels(logits, labels, smoothing=0.2))
        tensor(0.0192)

    References:
        Milletari et al., 2016, https://arxiv.org/abs/1606.04797; Wang et al., 2023, "Dice Semimetric Losses",
        https://arxiv.org/abs/2303.16296 (soft targets).

    """
    dim = class_dim(input)
    wide = wide_dtype(input.dtype)
    rows = smooth_labels(input, target, 0.0, ignore_index=ignore_index)
    rows = (rows.dense() if isinstance(rows, SoftTargets) else rows).to(wide)
    if input.ndim == 1:
        input, rows, dim = input.unsqueeze(0), rows.unsqueeze(0), 1
    mass = rows.sum(dim, keepdim=True)
    # Masked before the softmax: if masked after it, non-finite logits would give a gradient of 0 * NaN.
    masked = masked_rows(mass == 0, mass, input, dim)
    probabilities = input.to(wide).masked_fill(masked, 0.0).softmax(dim) * mass
    others = [axis for axis in range(input.ndim) if axis != dim]
    size = probabilities.sum(others) + rows.sum(others)
    overlap = torch.minimum(probabilities, rows).sum(others)
    return ((size - 2 * overlap) / size.clamp_min(torch.finfo(wide).tiny)).mean()
