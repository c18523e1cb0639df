"""Label smoothing for Composer that stays correct alongside every other method that changes the targets."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composer_ls.algorithm import LabelSmoothing
    from composer_ls.distillation import Distillation
    from composer_ls.lab.inference.loaded_run import load_run
    from composer_ls.losses import (
        CrossEntropyLoss,
        LinearCrossEntropyLoss,
        cross_entropy,
        dice_loss,
        linear_cross_entropy,
    )
    from composer_ls.max_sup import MaxSup
    from composer_ls.online_label_smoothing import OnlineLabelSmoothing
    from composer_ls.smoothing import smooth_labels
    from composer_ls.smoothing_diagnostics import SmoothingDiagnostics
    from composer_ls.targets import SoftTargets

__all__ = [
    "CrossEntropyLoss",
    "Distillation",
    "LabelSmoothing",
    "LinearCrossEntropyLoss",
    "MaxSup",
    "OnlineLabelSmoothing",
    "SmoothingDiagnostics",
    "SoftTargets",
    "cross_entropy",
    "dice_loss",
    "linear_cross_entropy",
    "load_run",
    "smooth_labels",
]

try:
    __version__ = version("composer_ls")
except PackageNotFoundError:  # a checkout on PYTHONPATH
    __version__ = "0+unknown"

_HOMES = {
    "CrossEntropyLoss": "losses",
    "Distillation": "distillation",
    "LabelSmoothing": "algorithm",
    "LinearCrossEntropyLoss": "losses",
    "MaxSup": "max_sup",
    "OnlineLabelSmoothing": "online_label_smoothing",
    "SmoothingDiagnostics": "smoothing_diagnostics",
    "SoftTargets": "targets",
    "cross_entropy": "losses",
    "dice_loss": "losses",
    "linear_cross_entropy": "losses",
    "load_run": "lab.inference.loaded_run",
    "smooth_labels": "smoothing",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package imports neither torch nor Composer."""
    if name not in _HOMES:
        raise AttributeError(f"module 'composer_ls' has no attribute {name!r}")
    value = getattr(import_module(f"composer_ls.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names alone, for completion."""
    return sorted(__all__)
