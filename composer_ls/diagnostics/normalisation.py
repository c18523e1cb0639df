"""Logit normalisation, which restores a useful confidence for selective prediction after label smoothing."""

from __future__ import annotations

from torch import Tensor

from composer_ls.diagnostics.checks import as_tensor, check_finite
from composer_ls.errors import DiagnosticsError

__all__ = ["normalise_logits", "normalised_confidence"]


def normalise_logits(logits: Tensor, p: float = 4.0) -> Tensor:
    r"""Logits normalised to a common scale, :math:`(z - \bar z) / \|z - \bar z\|_p`, in each row.

    The order of the classes in a row does not change.

    Args:
        logits: ``(N, K)``, K at least 3.
        p: The order of the norm, at least 1. Values from 3 to 6 differ little; it can be chosen on held-out data.

    Returns:
        Float64 ``(N, K)``. A row of equal logits becomes zeros.

    Raises:
        DiagnosticsError: There are fewer than three classes, for which all rows become equal up to their sign; p is
            less than 1; or logits are NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.normalisation import normalise_logits
        >>> normalise_logits(torch.tensor([[4.0, 1.0, 1.0], [8.0, 2.0, 2.0]]), p=2)
        tensor([[ 0.8165, -0.4082, -0.4082],
                [ 0.8165, -0.4082, -0.4082]], dtype=torch.float64)

    References:
        Cattelan, Silva, 2024, https://arxiv.org/abs/2305.15508 (MaxLogit-pNorm); Xia et al., 2024,
        https://arxiv.org/abs/2403.14715, which explains why it undoes what smoothing does to rejection.

    """
    logits = as_tensor("logits", logits)
    if logits.ndim != 2 or logits.shape[1] < 3:
        raise DiagnosticsError(
            f"logits have shape {tuple(logits.shape)}, but must be (N, K) with at least 3 classes: with two, all "
            f"normalised logits are equal up to their sign"
        )
    if not p >= 1:
        raise DiagnosticsError(f"p must be at least 1, but is {p}; 4 is the default")
    check_finite("logits", logits)
    equal = logits.amax(1, keepdim=True) == logits.amin(1, keepdim=True)  # their mean may be rounded to another number
    centred = (logits.double() - logits.double().mean(1, keepdim=True)).masked_fill(equal, 0)
    centred = centred / centred.abs().amax(1, keepdim=True).masked_fill(equal, 1)  # its p-th power can be represented
    return centred / centred.norm(p, dim=1, keepdim=True).masked_fill(equal, 1)


def normalised_confidence(logits: Tensor, p: float = 4.0) -> Tensor:
    """The largest normalised logit of each row: float64 ``(N,)``, a confidence for ranking, not a probability.

    Args:
        logits: ``(N, K)``, K at least 3.
        p: As for :func:`normalise_logits`.

    Raises:
        DiagnosticsError: As :func:`normalise_logits`.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.normalisation import normalised_confidence
        >>> normalised_confidence(torch.tensor([[4.0, 1.0, 1.0], [4.0, 3.9, 0.0]])).diff() < 0
        tensor([True])

    """
    return normalise_logits(logits, p).amax(1)
