"""How good probabilities are: negative log likelihood, Brier score, expected calibration error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "CrossFitted",
    "ReliabilityBins",
    "accuracy",
    "binned_calibration_error",
    "bins_of_confidence",
    "brier_score",
    "cross_fit_temperature",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability_bins",
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

    It is torchmetrics' but for a confidence of exactly 1, which belongs to the last bin and not into one of its own. Logits that
    are not finite give NaN.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins divide [0, 1].

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import expected_calibration_error
        >>> logits = torch.tensor([[4.0, 0.0]]).log_softmax(1).repeat(2, 1)
        >>> round(expected_calibration_error(logits, torch.tensor([0, 1])), 4)  # confident 0.982, right half the time
        0.482

    References:
        Guo et al., 2017, https://arxiv.org/abs/1706.04599.

    """
    if not logits.isfinite().all():
        return math.nan
    return binned_calibration_error(reliability_bins(logits, labels, bins))


class ReliabilityBins(NamedTuple):
    """What a reliability diagram shows, a number a bin, float64.

    Attributes:
        counts: How many examples have their confidence in the bin.
        confidence: Their mean confidence, NaN if there are none.
        accuracy: The fraction of them that is right, NaN if there are none.

    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability_bins(logits: Tensor, labels: Tensor, bins: int = 15) -> ReliabilityBins:
    """Confidence and accuracy in equal-width bins of confidence, over which the calibration error sums.

    A bin holds its lower edge and not its upper one, but for the last, which holds 1 too.

    Args:
        logits: ``(N, K)``, finite.
        labels: Integer ``(N,)``.
        bins: How many bins divide [0, 1].

    Raises:
        ValueError: Shapes that do not fit, labels that are no classes, or logits that are not finite.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import reliability_bins
        >>> logits = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.0, 1.0]]).log().clamp(min=-99)
        >>> found = reliability_bins(logits, torch.tensor([0, 1, 1]), bins=2)
        >>> found.counts.tolist(), round(found.confidence[1].item(), 4), round(found.accuracy[1].item(), 4)
        ([0.0, 3.0], 0.8333, 0.6667)

    References:
        DeGroot and Fienberg, 1983, "The comparison and evaluation of forecasters", The Statistician 32.

    """
    _check(logits, labels)
    confidence, predicted = logits.double().softmax(1).max(1)
    return bins_of_confidence(confidence, predicted == labels, bins)


def bins_of_confidence(confidence: Tensor, correct: Tensor, bins: int = 15) -> ReliabilityBins:
    """As :func:`reliability_bins`, where only the confidence is known and which predictions are right.

    Args:
        confidence: float64 ``(N,)`` in [0, 1].
        correct: bool ``(N,)``.
        bins: How many bins divide [0, 1].

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import binned_calibration_error, bins_of_confidence
        >>> found = bins_of_confidence(torch.tensor([0.9, 0.7]).double(), torch.tensor([True, False]), bins=2)
        >>> found.counts.tolist(), round(binned_calibration_error(found), 4)  # 0.8 confident, half of it right
        ([0.0, 2.0], 0.3)

    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    bin_of = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, bins - 1)
    counts, confidences, rights = (
        torch.zeros(bins, dtype=torch.float64, device=confidence.device).index_add_(0, bin_of, values)
        for values in (torch.ones_like(confidence), confidence, correct.double())
    )
    return ReliabilityBins(counts, confidences / counts, rights / counts)


def binned_calibration_error(bins: ReliabilityBins) -> float:
    """The calibration error that a reliability diagram shows; see :func:`expected_calibration_error`."""
    return ((bins.counts * (bins.confidence - bins.accuracy).abs()).nansum() / bins.counts.sum()).item()


def fit_temperature(logits: Tensor, labels: Tensor, bounds: tuple[float, float] = (0.01, 100.0)) -> float:
    """The temperature T for which ``logits / T`` have the least negative log likelihood, exact to 1e-6 of itself.

    The likelihood is convex in 1/T, so there is one minimum, found as the root of the derivative. If every example is right, it
    is at T = 0, and if the logits say nothing or worse, at infinity: then it is the nearer of the bounds.

    Args:
        logits: ``(N, K)``, finite.
        labels: Integer ``(N,)``.
        bounds: Between which T is looked for.

    Raises:
        ValueError: Shapes that do not fit, labels that are no classes, logits that are not finite, or wrong bounds.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import fit_temperature
        >>> sure = torch.tensor([[3.0, 0.0]]).repeat(4, 1)  # of the first class: 0.953
        >>> round(fit_temperature(sure, torch.tensor([0, 0, 0, 1])), 4)  # it is right in 0.75 of the cases
        2.7307

    References:
        Guo et al., 2017, https://arxiv.org/abs/1706.04599, section 4.2.

    """
    _check(logits, labels)
    low, high = bounds
    if not 0 < low < high < math.inf:
        raise ValueError(f"bounds must be two temperatures, the lower first, but are {bounds}: such as (0.01, 100)")
    relative = logits.double() - logits.double().gather(1, labels[:, None])

    def slope(log_temperature: float) -> float:
        """The derivative of the mean negative log likelihood in 1/T."""
        scaled = (relative * math.exp(-log_temperature)).softmax(1)
        return (scaled * relative).sum(1).mean().item()

    if not relative.any():
        return 1.0  # every temperature is as good
    if slope(math.log(low)) <= 0:
        return low
    if slope(math.log(high)) >= 0:
        return high
    return math.exp(brentq(slope, math.log(low), math.log(high), xtol=1e-9, rtol=1e-12))


class CrossFitted(NamedTuple):
    """Logits after temperature scaling that never saw their own labels.

    Attributes:
        logits: ``(N, K)``, float64.
        temperatures: Those fitted on the odd and on the even examples.

    """

    logits: Tensor
    temperatures: tuple[float, float]


def cross_fit_temperature(logits: Tensor, labels: Tensor) -> CrossFitted:
    """Temperature scaling without a further held-out set: each half of the examples gets the temperature of the other.

    The halves are every other example, so that data in the order of its classes is shared out fairly.

    Args:
        logits: ``(N, K)``, finite, with N of at least 2.
        labels: Integer ``(N,)``.

    Raises:
        ValueError: As :func:`fit_temperature`, or fewer than two examples.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import cross_fit_temperature
        >>> sure = torch.tensor([[3.0, 0.0]]).repeat(8, 1)
        >>> fitted = cross_fit_temperature(sure, torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]))
        >>> fitted.logits[0].softmax(0)  # both halves are right in 3 of 4 cases
        tensor([0.7500, 0.2500], dtype=torch.float64)

    References:
        Chernozhukov et al., 2018, https://arxiv.org/abs/1608.00060, for cross-fitting.

    """
    _check(logits, labels)
    if len(labels) < 2:
        raise ValueError(
            "cross-fitting needs at least two examples, but got 1: one half is scaled by the other's temperature"
        )
    odd, even = (fit_temperature(logits[half::2], labels[half::2]) for half in (1, 0))
    scaled = logits.double().clone()
    scaled[0::2] /= odd
    scaled[1::2] /= even
    return CrossFitted(scaled, (odd, even))


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits must be (N, K) and labels (N,) with N of at least 1, but are {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not logits.isfinite().all():
        bad = int((~logits.isfinite().all(1)).sum())
        raise ValueError(
            f"logits of {bad} of {len(logits)} examples are not finite: the run diverged, or they are masked"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels must be in [0, {logits.shape[1]}), but go from {int(labels.min())} to {int(labels.max())}: "
            f"leave out what is ignored"
        )
