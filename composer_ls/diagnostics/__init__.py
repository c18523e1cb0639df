"""Pure functions of logits, labels and features that show what a network has learnt.

They need torch and NumPy only. The ``torchmetrics.Metric`` classes for some of them are imported on first use.

Example:
    >>> import torch
    >>> from composer_ls.diagnostics import expected_calibration_error, fit_temperature
    >>> logits, labels = torch.tensor([[3.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1])
    >>> round(expected_calibration_error(logits, labels), 3)  # 0.953 confident, right in 0.75 of the cases
    0.203
    >>> round(expected_calibration_error(logits / fit_temperature(logits, labels), labels), 3)
    0.0

"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from composer_ls.diagnostics.calibration import (
    CrossFitted,
    ReliabilityBins,
    accuracy,
    binned_calibration_error,
    bins_of_confidence,
    brier_score,
    cross_fit_temperature,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)
from composer_ls.diagnostics.classwise import BrierDecomposition, brier_decomposition, classwise_calibration_error
from composer_ls.diagnostics.geometry import (
    TemplateDistances,
    TemplatePlane,
    class_means,
    neural_collapse,
    project,
    relative_spread,
    simplex_deviation,
    template_distances,
    template_plane,
)
from composer_ls.diagnostics.information import draw_logit_differences, logit_mutual_information
from composer_ls.diagnostics.inspection import Penultimate, last_linear, penultimate_features
from composer_ls.diagnostics.normalisation import normalise_logits, normalised_confidence
from composer_ls.diagnostics.pixels import (
    PixelCounts,
    count_pixels,
    mean_iou,
    pixel_accuracy,
    pixel_bins,
    pixel_calibration_error,
    pixel_nll,
)
from composer_ls.diagnostics.selective import RiskCoverage, aurc, log_odds, risk_coverage
from composer_ls.diagnostics.summary import summarise
from composer_ls.diagnostics.teaching import distillation_loss, equivalent_smoothing
from composer_ls.diagnostics.tokens import (
    TokenScores,
    perplexity,
    token_accuracy,
    token_bins,
    token_calibration_error,
    token_nll,
    token_scores,
)

if TYPE_CHECKING:
    from composer_ls.diagnostics.metrics import AURC, BrierScore, ExpectedCalibrationError

METRICS = ("AURC", "BrierScore", "ExpectedCalibrationError")

__all__ = [
    "AURC",
    "BrierDecomposition",
    "BrierScore",
    "CrossFitted",
    "ExpectedCalibrationError",
    "Penultimate",
    "PixelCounts",
    "ReliabilityBins",
    "RiskCoverage",
    "TemplateDistances",
    "TemplatePlane",
    "TokenScores",
    "accuracy",
    "aurc",
    "binned_calibration_error",
    "bins_of_confidence",
    "brier_decomposition",
    "brier_score",
    "class_means",
    "classwise_calibration_error",
    "count_pixels",
    "cross_fit_temperature",
    "distillation_loss",
    "draw_logit_differences",
    "equivalent_smoothing",
    "expected_calibration_error",
    "fit_temperature",
    "last_linear",
    "log_odds",
    "logit_mutual_information",
    "mean_iou",
    "negative_log_likelihood",
    "neural_collapse",
    "normalise_logits",
    "normalised_confidence",
    "penultimate_features",
    "perplexity",
    "pixel_accuracy",
    "pixel_bins",
    "pixel_calibration_error",
    "pixel_nll",
    "project",
    "relative_spread",
    "reliability_bins",
    "risk_coverage",
    "simplex_deviation",
    "summarise",
    "template_distances",
    "template_plane",
    "token_accuracy",
    "token_bins",
    "token_calibration_error",
    "token_nll",
    "token_scores",
]


def __getattr__(name: str) -> Any:
    """Load the metric classes on first use: they need torchmetrics."""
    if name not in METRICS:
        raise AttributeError(f"module 'composer_ls.diagnostics' has no attribute {name!r}")
    value = getattr(import_module("composer_ls.diagnostics.metrics"), name)
    globals()[name] = value
    return value
