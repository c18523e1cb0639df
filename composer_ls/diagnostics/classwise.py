"""How good each class's probability is, whether it is the largest or not: calibration, and the parts of the Brier score."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from composer_ls.diagnostics.checks import check_logits

__all__ = ["BrierDecomposition", "brier_decomposition", "classwise_calibration_error"]


def classwise_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The calibration error of each class's probability, whether it is the largest or not, averaged over classes.

    For class k, the probabilities of k are compared with how often k is the label. In [0, 1]; with many classes most
    probabilities are small, and so is this.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins of equal width divide [0, 1].

    Raises:
        DiagnosticsError: Shapes that do not fit, labels outside of the classes, or NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.classwise import classwise_calibration_error
        >>> classwise_calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))  # 0.5 for what is 0.75 and 0.25
        0.25

    References:
        Kull et al., 2019, https://arxiv.org/abs/1910.12656; Nixon et al., 2019, https://arxiv.org/abs/1904.01685.

    """
    check_logits(logits, labels)
    probabilities = logits.double().softmax(1)
    inside = probabilities.clamp_max(math.nextafter(1, 0))  # torchmetrics puts 1 itself in a bin of its own
    errors = [
        binary_calibration_error(inside[:, k].contiguous(), (labels == k).long(), n_bins=bins, norm="l1")
        for k in range(logits.shape[1])
    ]
    return torch.stack(errors).mean().item()


class BrierDecomposition(NamedTuple):
    """The Brier score's parts: ``score = reliability - resolution + uncertainty``, exactly.

    Attributes:
        reliability: How far probabilities are from the frequencies of what they foretell: 0 is calibrated.
        resolution: How much those frequencies differ from the overall ones: larger is better. It includes what the
            probabilities tell within a bin.
        uncertainty: The score of always foretelling the overall frequencies, which no classifier changes.

    """

    reliability: float
    resolution: float
    uncertainty: float


def brier_decomposition(logits: Tensor, labels: Tensor, bins: int = 15) -> BrierDecomposition:
    """The Brier score as reliability - resolution + uncertainty, summed over classes.

    Each class's probabilities are grouped in bins of equal width. What varies within a bin is counted to the
    resolution, so that the three parts give the score exactly, for any number of bins.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins of equal width divide [0, 1].

    Raises:
        DiagnosticsError: Shapes that do not fit, labels outside of the classes, or NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.classwise import brier_decomposition
        >>> brier_decomposition(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        BrierDecomposition(reliability=0.125, resolution=0.0, uncertainty=0.375)

    References:
        Murphy, 1973, "A new vector partition of the probability score", Journal of Applied Meteorology 12; Stephenson,
        Coelho, Jolliffe, 2008, "Two extra components in the Brier score decomposition", Weather and Forecasting 23.

    """
    check_logits(logits, labels)
    probabilities = logits.double().softmax(1)
    examples, classes = probabilities.shape
    happened = F.one_hot(labels, classes).double()
    # One row of bins a class: a probability p of class k is in bin k·bins + floor(p·bins), and 1 in the last one.
    index = (probabilities * bins).long().clamp_max(bins - 1) + bins * torch.arange(classes, device=labels.device)
    counts, foretold, seen = (
        probabilities.new_zeros(classes * bins).index_add_(0, index.flatten(), values.flatten())
        for values in (torch.ones_like(probabilities), probabilities, happened)
    )
    filled = counts.clamp_min(1)
    foretold, seen = foretold / filled, seen / filled
    overall = happened.mean(0)
    reliability = (counts * (foretold - seen).square()).sum() / examples
    between = (counts * (seen - overall.repeat_interleave(bins)).square()).sum() / examples
    # Within bins: the variance of what is foretold costs, its covariance with what happens pays.
    deviation = probabilities - foretold[index]
    within = (2 * deviation * (happened - seen[index]) - deviation.square()).sum() / examples
    uncertainty = (overall * (1 - overall)).sum()
    return BrierDecomposition(reliability.item(), (between + within).item(), uncertainty.item())
