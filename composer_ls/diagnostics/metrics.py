"""Calibration, Brier score and selective prediction as torchmetrics, over the functions of the same names.

They take what Composer gives its metrics, logits and labels, and go into ``ComposerClassifier(val_metrics=...)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from composer_ls.diagnostics.calibration import (
    bin_sums,
    binned_calibration_error,
    bins_from_sums,
    brier_score,
)
from composer_ls.diagnostics.checks import IGNORED, check_maps, counted_logits
from composer_ls.diagnostics.selective import aurc, log_odds
from composer_ls.errors import DiagnosticsError

__all__ = ["AURC", "BrierScore", "ExpectedCalibrationError"]


class _OfRows(Metric):
    """What the metrics share: rows of logits out of batches of any shape.

    Logits are ``(N, K, *spatial)`` and labels ``(N, *spatial)``, integer, as for ``torch.nn.CrossEntropyLoss``.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, ignore_index: int = IGNORED, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch of logits and labels."""
        logits, labels = check_maps(preds, target)
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
        if bool((labels != self.ignore_index).any()):  # of a batch without any, nothing is added
            self.add(*counted_logits(logits, labels, self.ignore_index))

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add rows ``(M, K)`` and their labels ``(M,)``, all of which count."""
        raise NotImplementedError


class ExpectedCalibrationError(_OfRows):
    """:func:`~composer_ls.diagnostics.expected_calibration_error` of all batches, exactly, as their bins add up.

    Args:
        bins: How many bins divide [0, 1].
        ignore_index: The label of positions that do not count.
        **kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        DiagnosticsError: Shapes that do not fit or labels outside of the classes; no bins.

    Example:
        >>> import torch
        >>> from composer.models import ComposerClassifier
        >>> from torchmetrics import MetricCollection
        >>> from composer_ls.diagnostics import AURC, BrierScore, ExpectedCalibrationError
        >>> metrics = MetricCollection([ExpectedCalibrationError(), BrierScore(), AURC()])
        >>> model = ComposerClassifier(torch.nn.Linear(8, 4), num_classes=4, val_metrics=metrics)

    References:
        Guo et al., 2017, https://arxiv.org/abs/1706.04599.

    """

    higher_is_better = False
    sums: Tensor

    def __init__(self, bins: int = 15, ignore_index: int = IGNORED, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        if bins < 1:
            raise DiagnosticsError(f"bins must be at least 1, but is {bins}; 15 is usual")
        self.bins = bins
        self.add_state("sums", torch.zeros(bins, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add rows to the bins."""
        confidence, predicted = logits.double().softmax(1).max(1)
        self.sums += bin_sums(confidence, predicted == labels, self.bins)

    def compute(self) -> Tensor:
        """The error so far, in [0, 1]; NaN without examples."""
        return torch.tensor(binned_calibration_error(bins_from_sums(self.sums)), device=self.sums.device)


class BrierScore(_OfRows):
    """:func:`~composer_ls.diagnostics.brier_score` of all batches.

    Args:
        ignore_index: The label of positions that do not count.
        **kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        DiagnosticsError: Shapes that do not fit or labels outside of the classes.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics import BrierScore
        >>> metric = BrierScore()
        >>> metric.update(torch.zeros(1, 4), torch.tensor([2]))
        >>> metric.compute()
        tensor(0.7500)

    """

    higher_is_better = False
    total: Tensor
    examples: Tensor

    def __init__(self, ignore_index: int = IGNORED, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("examples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add the scores of rows."""
        self.total += len(labels) * brier_score(logits, labels, self.ignore_index)
        self.examples += len(labels)

    def compute(self) -> Tensor:
        """The mean so far, from 0 to 2; NaN without examples."""
        return (self.total / self.examples).float()


class AURC(_OfRows):
    """:func:`~composer_ls.diagnostics.aurc` of all batches, with :func:`~composer_ls.diagnostics.log_odds` as the score.

    It keeps nine bytes of every example.

    Args:
        ignore_index: The label of positions that do not count.
        **kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        DiagnosticsError: Shapes that do not fit or labels outside of the classes.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics import AURC
        >>> metric = AURC()
        >>> metric.update(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))  # the less confident is wrong
        >>> metric.compute()
        tensor(0.2500)

    """

    higher_is_better = False
    scores: list[Tensor]
    right: list[Tensor]

    def __init__(self, ignore_index: int = IGNORED, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("right", [], dist_reduce_fx="cat")

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Keep how confident rows are, and whether they are right."""
        self.scores.append(log_odds(logits))
        self.right.append(logits.argmax(1) == labels)

    def compute(self) -> Tensor:
        """The area so far; NaN without examples, or if logits were NaN."""
        scores, right = (
            dim_zero_cat(state) if len(state) else torch.empty(0, device=self.device)
            for state in (self.scores, self.right)
        )
        if not len(scores):
            return torch.tensor(torch.nan, device=self.device)
        area = torch.nan if scores.isnan().any() else aurc(scores, right)
        return torch.tensor(area, device=scores.device)
