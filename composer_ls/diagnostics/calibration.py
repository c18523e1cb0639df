"""Quality of predicted probabilities: negative log likelihood, Brier score, calibration error, temperature scaling.

Every function takes tensors, NumPy arrays or lists. Labels may have any integer dtype; those equal to ``ignore_index``
are ignored. A class may be masked by a logit of -inf.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_ls.diagnostics.checks import IGNORED, as_tensor, check_logits, counted_logits
from composer_ls.errors import DiagnosticsError

__all__ = [
    "CrossFitted",
    "ReliabilityBins",
    "accuracy",
    "bin_of",
    "bin_sums",
    "binned_calibration_error",
    "bins_from_sums",
    "bins_of_confidence",
    "brier_score",
    "cross_fit_temperature",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability_bins",
]


def accuracy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> float:
    """The fraction of rows whose largest logit is the label's; NaN if a row gives no prediction.

    A row gives none if it holds NaN, as in a diverged network, or if all its classes are masked by -inf.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: Shapes do not match, every example is ignored, or a label is out of range.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import accuracy
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5

    """
    logits, labels = counted_logits(logits, labels, ignore_index)
    if logits.isnan().any() or (logits.amax(1) == -math.inf).any():
        return math.nan
    return (logits.argmax(1) == labels).double().mean().item()


def negative_log_likelihood(logits: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> float:
    """Mean negative log probability of the labels, in nats; infinite if a label's own class is masked by -inf.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: As :func:`accuracy`.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import negative_log_likelihood
        >>> round(negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2])), 4)  # log 4
        1.3863

    """
    logits, labels = counted_logits(logits, labels, ignore_index)
    return F.cross_entropy(logits.double(), labels).item()


def brier_score(logits: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> float:
    """Mean squared distance between the probabilities and the one-hot labels, from 0 (best) to 2.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: As :func:`accuracy`.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import brier_score
        >>> brier_score(torch.zeros(1, 4), torch.tensor([2]))
        0.75

    References:
        Brier, 1950, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78.

    """
    logits, labels = counted_logits(logits, labels, ignore_index)
    probabilities = logits.double().softmax(1)
    return (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(1).mean().item()


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15, ignore_index: int = IGNORED) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of confidence, weighted by count, in [0, 1].

    Equals torchmetrics' calibration error, except that a confidence of exactly 1 belongs to the last bin rather than to
    a bin of its own. Logits that define no probabilities, as in a diverged network, give NaN.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins divide [0, 1].
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: As :func:`accuracy`, or ``bins`` is less than 1.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import expected_calibration_error
        >>> logits = torch.tensor([[4.0, 0.0]]).log_softmax(1).repeat(2, 1)
        >>> round(expected_calibration_error(logits, torch.tensor([0, 1])), 4)  # confident 0.982, right half the time
        0.482

    References:
        Guo et al., 2017, https://arxiv.org/abs/1706.04599.

    """
    logits, labels = counted_logits(logits, labels, ignore_index)
    confidence, predicted = logits.double().softmax(1).max(1)
    return binned_calibration_error(bins_of_confidence(confidence, predicted == labels, bins))


class ReliabilityBins(NamedTuple):
    """The numbers of a reliability diagram, one per bin, float64.

    Attributes:
        counts: The number of examples whose confidence is in the bin.
        confidence: Their mean confidence, NaN if there are none.
        accuracy: The fraction of them that are right, NaN if there are none.

    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability_bins(logits: Tensor, labels: Tensor, bins: int = 15, ignore_index: int = IGNORED) -> ReliabilityBins:
    """Confidence and accuracy in equal-width bins of confidence, from which the calibration error is computed.

    A bin includes its lower edge but not its upper one, except the last bin, which includes 1.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins divide [0, 1].
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: As :func:`accuracy`, or ``bins`` is less than 1, or logits define no probabilities.

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
    logits, labels = check_logits(logits, labels, ignore_index)
    confidence, predicted = logits.double().softmax(1).max(1)
    return bins_of_confidence(confidence, predicted == labels, bins)


def bins_of_confidence(confidence: Tensor, correct: Tensor, bins: int = 15) -> ReliabilityBins:
    """Like :func:`reliability_bins`, from confidences and whether each prediction is right.

    Args:
        confidence: ``(N,)`` in [0, 1].
        correct: bool ``(N,)``.
        bins: How many bins divide [0, 1].

    Raises:
        DiagnosticsError: Shapes differ, a confidence is outside of [0, 1], or ``bins`` is less than 1.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import binned_calibration_error, bins_of_confidence
        >>> found = bins_of_confidence(torch.tensor([0.9, 0.7]).double(), torch.tensor([True, False]), bins=2)
        >>> found.counts.tolist(), round(binned_calibration_error(found), 4)  # 0.8 confident, half of it right
        ([0.0, 2.0], 0.3)

    """
    confidence = as_tensor("confidence", confidence)
    outside = (confidence < 0) | (confidence > 1 + 1e-6)  # 1 and a rounding error is a probability
    if outside.any():
        raise DiagnosticsError(
            f"confidence must be probabilities in [0, 1], but one is {confidence[outside][0].item():g}: divide per cents by 100"
        )
    return bins_from_sums(bin_sums(confidence, correct, bins))


def bin_sums(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    """For each bin of confidence: the number of examples, the sum of their confidence, and the number that are right.

    The result is float64 ``(bins, 3)``. Results of several batches can be added. A NaN confidence makes the sum of the
    last bin NaN.
    """
    confidence, correct = as_tensor("confidence", confidence).double(), as_tensor("correct", correct)
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise DiagnosticsError(
            f"confidence and correct must both be (N,), but are {tuple(confidence.shape)} and {tuple(correct.shape)}"
        )
    columns = torch.stack([torch.ones_like(confidence), confidence, correct.double()], 1)
    return columns.new_zeros(bins, 3).index_add_(0, bin_of(confidence, bins), columns)


def bin_of(probabilities: Tensor, bins: int) -> Tensor:
    """The index of each probability's bin. Equal-width bins include their lower edge, and the last one also 1."""
    if bins < 1:
        raise DiagnosticsError(f"bins must be at least 1, but is {bins}; 15 is usual")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=probabilities.device)
    return (torch.bucketize(probabilities, edges, right=True) - 1).clamp(0, bins - 1)


def bins_from_sums(sums: Tensor) -> ReliabilityBins:
    """The reliability bins for sums from :func:`bin_sums`."""
    counts, confidence, right = sums.unbind(1)
    return ReliabilityBins(counts, confidence / counts, right / counts)


def binned_calibration_error(bins: ReliabilityBins) -> float:
    """The calibration error for given reliability bins; see :func:`expected_calibration_error`."""
    gaps = bins.counts * (bins.confidence - bins.accuracy).abs()
    # Only the NaN of empty bins is masked. In a bin with examples, NaN means that logits were NaN.
    return (gaps.masked_fill(bins.counts == 0, 0).sum() / bins.counts.sum()).item()


def fit_temperature(
    logits: Tensor,
    labels: Tensor,
    bounds: tuple[float, float] = (0.01, 100.0),
    ignore_index: int = IGNORED,
) -> float:
    """The temperature T for which ``logits / T`` have the lowest negative log likelihood, to a relative 1e-6.

    The negative log likelihood is convex in 1/T, so it has a single minimum, found as the root of its derivative. If
    every example is right, the minimum is at T = 0; if the logits carry no information about the labels, it is at
    infinity. In these cases the nearer bound is returned.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bounds: The lowest and highest T to consider.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: As :func:`reliability_bins`, or the bounds are invalid, or a label's own class is masked by
            -inf.

    Warns:
        UserWarning: The best temperature is outside the bounds, so one of them is returned.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import fit_temperature
        >>> sure = torch.tensor([[3.0, 0.0]]).repeat(4, 1)  # of the first class: 0.953
        >>> round(fit_temperature(sure, torch.tensor([0, 0, 0, 1])), 4)  # it is right in 0.75 of the cases
        2.7307

    References:
        Guo et al., 2017, https://arxiv.org/abs/1706.04599, section 4.2.

    """
    logits, labels = check_logits(logits, labels, ignore_index)
    low, high = bounds
    if not 0 < low < high < math.inf:
        raise DiagnosticsError(
            f"bounds must be two temperatures, the lower first, but are {bounds}: such as (0.01, 100)"
        )
    own = logits.double().gather(1, labels[:, None])
    if not own.isfinite().all():
        raise DiagnosticsError(
            f"{int((~own.isfinite()).sum())} of {len(labels)} labels are of a class that is masked by -inf, so the "
            f"likelihood is 0 at every temperature: leave out these examples, or the mask"
        )
    relative = logits.double() - own
    finite = relative.masked_fill(relative == -math.inf, 0)  # a masked class has probability 0

    def slope(inverse: float) -> tuple[float, float]:
        """The first and second derivative of the mean negative log likelihood in 1/T."""
        weighted = (relative * inverse).softmax(1).mul_(finite)
        mean = weighted.sum(1)
        square = weighted.mul_(finite).sum(1)
        return mean.mean().item(), (square - mean.square()).mean().item()

    if not finite.any():
        return 1.0  # every temperature is equally good
    for bound, beyond, meaning in (
        (low, slope(1 / low)[0] <= 0, "every example, or nearly, is right by the largest logit"),
        (high, slope(1 / high)[0] >= 0, "the logits say nothing about the labels, or the opposite"),
    ):
        if beyond:
            warnings.warn(
                f"the best temperature is beyond the bound {bound:g}, which is returned instead: {meaning}; "
                f"bounds= changes it",
                stacklevel=2,
            )
            return bound
    return 1 / _root(slope, 1 / high, 1 / low)


def _root(slope: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """The root of an increasing function between two bounds, by Newton's method on a logarithmic scale."""
    x = min(max(1.0, low), high)
    for _ in range(200):
        value, derivative = slope(x)
        if value < 0:
            low = x
        else:
            high = x
        step = value / (derivative * x) if derivative > 0 else math.inf
        following = x * math.exp(-step) if abs(step) < 50 else 0.0
        if not low <= following <= high:
            following = math.sqrt(low * high)
        if abs(following - x) <= 1e-12 * x:
            return following
        x = following
    return x


class CrossFitted(NamedTuple):
    """Logits scaled by temperatures that were fitted without their own labels.

    Attributes:
        logits: ``(N, K)``, float64, including ignored examples.
        temperatures: The temperatures fitted on the odd and on the even examples.

    """

    logits: Tensor
    temperatures: tuple[float, float]


def cross_fit_temperature(logits: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> CrossFitted:
    """Temperature scaling without another held-out set: each half of the examples gets the temperature of the other.

    The halves are alternate examples, so that data sorted by class is split evenly.

    Args:
        logits: ``(N, K)``, with N of at least 2.
        labels: Integer ``(N,)``.
        ignore_index: The label of examples that do not count.

    Raises:
        DiagnosticsError: As :func:`fit_temperature`, or every example of a half is ignored.

    Warns:
        UserWarning: As :func:`fit_temperature`.

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
    check_logits(logits, labels, ignore_index)
    logits, labels = as_tensor("logits", logits), as_tensor("labels", labels)
    if len(labels) < 2:
        raise DiagnosticsError(
            "cross-fitting needs at least two examples, but got 1: one half is scaled by the other's temperature"
        )
    odd, even = (fit_temperature(logits[half::2], labels[half::2], ignore_index=ignore_index) for half in (1, 0))
    scaled = logits.double().clone()
    scaled[0::2] /= odd
    scaled[1::2] /= even
    return CrossFitted(scaled, (odd, even))
