"""Calibration error, Brier score and AURC as torchmetrics classes, based on the functions of the same names.

They take logits and labels, as Composer passes them, and can be used in ``ComposerClassifier(val_metrics=...)``.
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
    """The common base class, which turns batches of any shape into rows of logits.

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
        if bool((labels != self.ignore_index).any()):  # a fully ignored batch adds nothing
            self.add(*counted_logits(logits, labels, self.ignore_index))

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add rows ``(M, K)`` and labels ``(M,)``, none of them ignored."""
        raise NotImplementedError


class ExpectedCalibrationError(_OfRows):
    """:func:`~composer_ls.diagnostics.expected_calibration_error` over all batches, exactly.

    Args:
        bins: How many bins divide [0, 1].
        ignore_index: The label of positions that do not count.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        DiagnosticsError: Shapes do not match, a label is out of range, or ``bins`` is less than 1.

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
    """:func:`~composer_ls.diagnostics.brier_score` over all batches.

    Args:
        ignore_index: The label of positions that do not count.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        DiagnosticsError: Shapes do not match, or a label is out of range.

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
    """:func:`~composer_ls.diagnostics.aurc` over all batches, with :func:`~composer_ls.diagnostics.log_odds` as score.

    It stores nine bytes per example.

    Args:
        ignore_index: The label of positions that do not count.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        DiagnosticsError: Shapes do not match, or a label is out of range.

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
        """Store the score of each row and whether it is right."""
        self.scores.append(log_odds(logits))
        self.right.append(logits.argmax(1) == labels)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes, which must have the same dtype also where a process has no examples."""
        if not self.scores:
            self.scores.append(torch.empty(0, dtype=torch.float64, device=self.device))
            self.right.append(torch.empty(0, dtype=torch.bool, device=self.device))
        super().sync(*args, **kwargs)

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
