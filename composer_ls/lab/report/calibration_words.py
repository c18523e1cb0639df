"""Whether a network is over- or under-confident, in words."""

from __future__ import annotations

from composer_ls.diagnostics.calibration import ReliabilityBins

__all__ = ["calibration_in_words", "confidence_and_accuracy"]

CALIBRATED = 0.02
"""A smaller distance between mean confidence and accuracy is not called over- or under-confident."""


def confidence_and_accuracy(bins: ReliabilityBins) -> tuple[float, float]:
    """The mean confidence and the accuracy over all bins, as fractions."""
    counts = bins.counts.double()
    means = [
        float((part.double().nan_to_num() * counts).sum() / counts.sum()) for part in (bins.confidence, bins.accuracy)
    ]
    return means[0], means[1]


def calibration_in_words(bins: ReliabilityBins, counted: str) -> str:
    """One sentence.

    Args:
        bins: Of the predictions.
        counted: What they are of, such as ``test examples``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import reliability_bins
        >>> from composer_ls.lab.report.calibration_words import calibration_in_words
        >>> bins = reliability_bins(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> calibration_in_words(bins, "test examples")
        'This network is under-confident: on average it says 73.1 %, and it is right in 100.0 % of the test examples.'

    """
    confidence, accuracy = confidence_and_accuracy(bins)
    if abs(confidence - accuracy) < CALIBRATED:
        kind = "close to calibrated on average"
    else:
        kind = "over-confident" if confidence > accuracy else "under-confident"
    return f"This network is {kind}: on average it says {confidence:.1%}, and it is right in {accuracy:.1%} of the {counted}.".replace(
        "%", " %"
    )
