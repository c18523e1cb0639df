"""Warnings about a finished run, as sentences for its result, the terminal and the reports."""

from __future__ import annotations

import math
from collections.abc import Mapping

from composer.core import DataSpec
from torch.utils.data import DataLoader

__all__ = ["dropped_share", "not_finite", "training_cautions"]

FEW_STEPS = 100
"""With fewer steps than this, a network trained from scratch has learnt little."""


def dropped_share(loader: object) -> float:
    """The fraction of training examples that an epoch drops because they do not fill the last batch, in [0, 1)."""
    if isinstance(loader, DataSpec):
        loader = loader.dataloader
    if not isinstance(loader, DataLoader) or not loader.drop_last or not loader.batch_size:
        return 0.0
    return 1 - len(loader) * loader.batch_size / len(loader.sampler)  # type: ignore[arg-type]


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """The metrics that are not finite, which means that the run diverged."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


def training_cautions(steps: int, metrics: Mapping[str, float], divergence: str = "") -> list[str]:
    """Warnings about a run.

    Args:
        steps: Its number of steps.
        metrics: Its final metrics.
        divergence: When and how its training diverged, in words; "" if it did not.

    Example:
        >>> from composer_ls.lab.training.cautions import training_cautions
        >>> training_cautions(10, {"nll": 0.5})
        ['It trained for only 10 steps, in which most networks learn little: use a longer duration or a smaller data.batch_size.']
        >>> training_cautions(1000, {"accuracy": 0.1, "nll": float("nan")})
        ['It diverged: its nll is not a finite number. Use a smaller optimizer.learning_rate, or precision=fp32 if it is another.']

    """
    names = not_finite(metrics)
    if names and not divergence:
        are = "is not a finite number" if len(names) == 1 else "are not finite numbers"
        divergence = f"its {' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))} {are}"
    if divergence:
        return [
            f"It diverged: {divergence}. Use a smaller optimizer.learning_rate, or precision=fp32 if it is another."
        ]
    if steps < FEW_STEPS:
        return [
            f"It trained for only {steps} step{'' if steps == 1 else 's'}, in which most networks learn little: use a longer "
            f"duration or a smaller data.batch_size."
        ]
    return []
