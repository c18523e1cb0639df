"""Says in words whether a network is over- or under-confident."""

from __future__ import annotations

from composer_ls.diagnostics.calibration import ReliabilityBins

__all__ = ["calibration_in_words", "confidence_and_accuracy"]

CALIBRATED = 0.02
"""Networks whose mean confidence and accuracy differ by less than this are called calibrated."""


def confidence_and_accuracy(bins: ReliabilityBins) -> tuple[float, float]:
    """The mean confidence and the accuracy over all bins, as fractions."""
    counts = bins.counts.double()
    means = [
        float((part.double().nan_to_num() * counts).sum() / counts.sum()) for part in (bins.confidence, bins.accuracy)
    ]
    return means[0], means[1]


def calibration_in_words(bins: ReliabilityBins, counted: str, whose: str = "This network") -> str:
    """A sentence that compares mean confidence with accuracy.

    Args:
        bins: The reliability bins of the predictions.
        counted: What the predictions are for, such as ``test examples``.
        whose: The subject of the sentence.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import reliability_bins
        >>> from composer_ls.lab.report.calibration_words import calibration_in_words
        >>> bins = reliability_bins(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> calibration_in_words(bins, "test examples")
        'This network is under-confident: its mean confidence is 73.1 %, and it is right for 100.0 % of the test examples.'

    """
    confidence, accuracy = confidence_and_accuracy(bins)
    if abs(confidence - accuracy) < CALIBRATED:
        kind = "close to calibrated"
    else:
        kind = "over-confident" if confidence > accuracy else "under-confident"
    return f"{whose} is {kind}: its mean confidence is {confidence:.1%}, and it is right for {accuracy:.1%} of the {counted}.".replace(
        "%", " %"
    )
