"""Quality of all class probabilities, not only the largest: classwise calibration and the Brier decomposition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_ls.diagnostics.calibration import bin_of
from composer_ls.diagnostics.checks import IGNORED, check_logits

__all__ = ["BrierDecomposition", "brier_decomposition", "classwise_calibration_error"]


def classwise_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15, ignore_index: int = IGNORED) -> float:
    """The calibration error of each class's probability, whether it is the largest or not, averaged over classes.

    For class k, the probabilities of k are compared with how often k is the label. The result is in [0, 1]. With many
    classes most probabilities are small, and so is the result.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins of equal width divide [0, 1].
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: Shapes do not match, a label is out of range, every example is ignored, or logits define no
            probabilities.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.classwise import classwise_calibration_error
        >>> classwise_calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))  # 0.5 for what is 0.75 and 0.25
        0.25

    References:
        Kull et al., 2019, https://arxiv.org/abs/1910.12656; Nixon et al., 2019, https://arxiv.org/abs/1904.01685.

    """
    logits, labels = check_logits(logits, labels, ignore_index)
    groups = _grouped(logits, labels, bins)
    gaps = groups.counts * (groups.foretold - groups.seen).abs()
    return (gaps.sum() / (len(labels) * logits.shape[1])).item()


class BrierDecomposition(NamedTuple):
    """The parts of the Brier score: ``score = reliability - resolution + uncertainty``, exactly.

    Attributes:
        reliability: How far the probabilities are from the observed frequencies; 0 is perfectly calibrated.
        resolution: How much the observed frequencies differ from the overall ones; larger is better. It includes the
            information that probabilities carry within a bin.
        uncertainty: The score of always predicting the overall frequencies, which depends on the labels only.

    """

    reliability: float
    resolution: float
    uncertainty: float


def brier_decomposition(
    logits: Tensor, labels: Tensor, bins: int = 15, ignore_index: int = IGNORED
) -> BrierDecomposition:
    """The Brier score as reliability - resolution + uncertainty, summed over classes.

    Each class's probabilities are grouped in bins of equal width. Variation within a bin is part of the resolution, so
    the three parts add up to the score exactly for any number of bins.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins of equal width divide [0, 1].
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: Shapes do not match, a label is out of range, every example is ignored, or logits define no
            probabilities.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.classwise import brier_decomposition
        >>> brier_decomposition(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        BrierDecomposition(reliability=0.125, resolution=0.0, uncertainty=0.375)

    References:
        Murphy, 1973, "A new vector partition of the probability score", Journal of Applied Meteorology 12; Stephenson,
        Coelho, Jolliffe, 2008, "Two extra components in the Brier score decomposition", Weather and Forecasting 23.

    """
    logits, labels = check_logits(logits, labels, ignore_index)
    probabilities, happened, index, counts, foretold, seen = _grouped(logits, labels, bins)
    examples = len(labels)
    overall = happened.mean(0)
    reliability = (counts * (foretold - seen).square()).sum() / examples
    between = (counts * (seen - overall.repeat_interleave(bins)).square()).sum() / examples
    # Within bins, the variance of the predictions lowers the resolution and their covariance with the labels raises it.
    deviation = probabilities - foretold[index]
    within = (2 * deviation * (happened - seen[index]) - deviation.square()).sum() / examples
    uncertainty = (overall * (1 - overall)).sum()
    return BrierDecomposition(reliability.item(), (between + within).item(), uncertainty.item())


class _Grouped(NamedTuple):
    """Each class's probabilities in bins. The bins of all classes are concatenated; means are 0 in empty bins."""

    probabilities: Tensor  # (N, K)
    happened: Tensor  # one-hot labels (N, K)
    place: Tensor  # index of each probability's bin (N, K)
    counts: Tensor  # (K * bins,), like the two means below
    foretold: Tensor  # mean probability
    seen: Tensor  # observed frequency


def _grouped(logits: Tensor, labels: Tensor, bins: int) -> _Grouped:
    probabilities = logits.double().softmax(1)
    classes = probabilities.shape[1]
    happened = F.one_hot(labels, classes).double()
    index = bin_of(probabilities, bins) + bins * torch.arange(classes, device=labels.device)
    counts, foretold, seen = (
        probabilities.new_zeros(classes * bins).index_add_(0, index.flatten(), values.flatten())
        for values in (torch.ones_like(probabilities), probabilities, happened)
    )
    filled = counts.clamp_min(1)
    return _Grouped(probabilities, happened, index, counts, foretold / filled, seen / filled)
