"""Metrics of predicted label maps, computed from counts that are kept for each image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from composer_ls.diagnostics.calibration import ReliabilityBins, bin_of, binned_calibration_error, bins_from_sums
from composer_ls.diagnostics.checks import check_maps
from composer_ls.errors import DiagnosticsError

__all__ = [
    "PixelCounts",
    "count_pixels",
    "mean_iou",
    "pixel_accuracy",
    "pixel_bins",
    "pixel_calibration_error",
    "pixel_nll",
]


class PixelCounts(NamedTuple):
    """The counts kept for each image instead of its logits, without ignored pixels.

    Attributes:
        confusion: The number of pixels of each class (row) predicted as each class (column), int64 ``(N, K, K)``.
        nll: Sum of the negative log probabilities of the labels, in nats, float64 ``(N,)``.
        bins: For equal-width bins of confidence: the number of pixels, the sum of their confidence, and the number of
            pixels that are right, float64 ``(N, bins, 3)``.

    """

    confusion: Tensor
    nll: Tensor
    bins: Tensor


def count_pixels(logits: Tensor, labels: Tensor, ignore_index: int = -100, bins: int = 15) -> PixelCounts:
    """The counts of each image from which the metrics are computed.

    Args:
        logits: ``(N, K, *spatial)``.
        labels: Integer ``(N, *spatial)``.
        ignore_index: The label of pixels that do not count.
        bins: How many bins divide [0, 1]. A bin includes its lower edge but not its upper one; the last includes 1.

    Raises:
        DiagnosticsError: Shapes do not match, or a label is out of range.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.pixels import count_pixels, mean_iou
        >>> logits = torch.tensor([[[2.0, 2.0, 0.0], [0.0, 0.0, 2.0]]])
        >>> counts = count_pixels(logits, torch.tensor([[0, 1, -100]]))
        >>> counts.confusion.tolist()
        [[[1, 0], [1, 0]]]
        >>> mean_iou(counts)
        0.25

    """
    logits, labels = check_maps(logits, labels)
    examples, classes = logits.shape[:2]
    counted = labels != ignore_index
    low, high = (int(end) for end in labels[counted].aminmax()) if counted.any() else (0, 0)
    if low < 0 or high >= classes:
        raise DiagnosticsError(
            f"labels must be in [0, {classes}), but go from {low} to {high}: if one of them marks pixels to ignore, "
            f"pass it as ignore_index, which is {ignore_index}"
        )
    log_probabilities = logits.float().log_softmax(1)
    predicted = logits.argmax(1)  # probabilities of logits that differ by very little are equal
    best = log_probabilities.gather(1, predicted.unsqueeze(1)).squeeze(1)
    image = torch.arange(examples, device=labels.device).view(-1, *[1] * (labels.ndim - 1)).expand_as(labels)[counted]
    losses = -log_probabilities.gather(1, labels.where(counted, 0).unsqueeze(1)).squeeze(1)[counted].double()
    confidence = best[counted].exp().double()
    labels, predicted = labels[counted], predicted[counted]
    place = image * bins + bin_of(confidence.nan_to_num(), bins)

    def summed(weights: Tensor) -> Tensor:
        return (
            place.bincount(weights, examples * bins).double().view(examples, bins)
        )  # of nothing, it would be integers

    pair = (image * classes + labels) * classes + predicted
    return PixelCounts(
        confusion=pair.bincount(minlength=examples * classes**2).view(examples, classes, classes),
        nll=image.bincount(losses, examples).double(),
        bins=torch.stack([summed(torch.ones_like(confidence)), summed(confidence), summed((labels == predicted).double())], -1),
    )  # fmt: skip


def mean_iou(counts: PixelCounts) -> float:
    """Intersection over union per class over all images, averaged over the classes in the labels or predictions.

    NaN if any logit was NaN, as in a diverged network.
    """
    if counts.nll.isnan().any():
        return math.nan
    confusion = counts.confusion.sum(0).double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return (confusion.diagonal() / union)[union > 0].mean().item()


def pixel_accuracy(counts: PixelCounts) -> float:
    """The fraction of pixels whose predicted class is right; NaN if any logit was NaN."""
    if counts.nll.isnan().any():
        return math.nan
    confusion = counts.confusion.sum(0).double()
    return (confusion.trace() / confusion.sum()).item()


def pixel_nll(counts: PixelCounts) -> float:
    """Mean negative log probability of the pixels' labels, in nats."""
    return (counts.nll.sum() / counts.confusion.sum()).item()


def pixel_bins(counts: PixelCounts) -> ReliabilityBins:
    """Reliability bins over all images; see :func:`~composer_ls.diagnostics.calibration.reliability_bins`."""
    return bins_from_sums(counts.bins.sum(0))


def pixel_calibration_error(counts: PixelCounts) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by pixels, in [0, 1].

    This is :func:`~composer_ls.diagnostics.calibration.expected_calibration_error` of pixels; NaN where that is NaN.
    """
    return binned_calibration_error(pixel_bins(counts))
