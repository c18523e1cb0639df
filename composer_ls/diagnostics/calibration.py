"""How good probabilities are: negative log likelihood, Brier score, expected calibration error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from composer_ls.diagnostics.checks import check_logits

__all__ = [
    "BrierDecomposition",
    "accuracy",
    "brier_decomposition",
    "brier_score",
    "classwise_calibration_error",
    "expected_calibration_error",
    "negative_log_likelihood",
]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction of rows whose largest logit is the label's.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import accuracy
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5

    """
    return (logits.argmax(1) == labels).double().mean().item()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log probability of the labels, in nats.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import negative_log_likelihood
        >>> round(negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2])), 4)  # log 4
        1.3863

    """
    return F.cross_entropy(logits.double(), labels).item()


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean squared distance between the probabilities and the one-hot labels, from 0 (best) to 2.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import brier_score
        >>> brier_score(torch.zeros(1, 4), torch.tensor([2]))
        0.75

    References:
        Brier, 1950, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78.

    """
    probabilities = logits.double().softmax(1)
    return (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(1).mean().item()


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of confidence, weighted by count, in [0, 1].

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins divide [0, 1]; a confidence of exactly 1 is in the last one.

    Returns:
        The error, NaN if a logit is NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import expected_calibration_error
        >>> logits = torch.tensor([[4.0, 0.0]]).log_softmax(1).repeat(2, 1)
        >>> round(expected_calibration_error(logits, torch.tensor([0, 1])), 4)  # confident 0.982, right half the time
        0.482

    References:
        Guo et al., 2017, https://arxiv.org/abs/1706.04599.

    """
    confidence, predicted = logits.double().softmax(1).max(1)
    return _binned_error(confidence, predicted == labels, bins)


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
        >>> from composer_ls.diagnostics.calibration import classwise_calibration_error
        >>> classwise_calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))  # 0.5 for what is 0.75 and 0.25
        0.25

    References:
        Kull et al., 2019, https://arxiv.org/abs/1910.12656; Nixon et al., 2019, https://arxiv.org/abs/1904.01685.

    """
    check_logits(logits, labels)
    probabilities = logits.double().softmax(1)
    errors = [_binned_error(probabilities[:, k].contiguous(), labels == k, bins) for k in range(logits.shape[1])]
    return sum(errors) / len(errors)


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
    """The :func:`brier_score` as reliability - resolution + uncertainty, summed over classes.

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
        >>> from composer_ls.diagnostics.calibration import brier_decomposition
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


def _binned_error(probabilities: Tensor, happened: Tensor, bins: int) -> float:
    if bool(probabilities.isnan().any()):
        return math.nan  # torchmetrics would count them as 0
    inside = probabilities.clamp_max(math.nextafter(1, 0))  # torchmetrics puts 1 itself in a bin of its own
    return binary_calibration_error(inside, happened.long(), n_bins=bins, norm="l1").item()
