"""Selective prediction: the error rate when only confident predictions are accepted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from composer_ls.diagnostics.checks import as_tensor
from composer_ls.errors import DiagnosticsError

__all__ = ["RiskCoverage", "aurc", "log_odds", "risk_coverage"]


class RiskCoverage(NamedTuple):
    """A risk-coverage curve with one point per distinct score, float64.

    Attributes:
        coverage: The fraction of examples that are accepted, in ascending order; the last is 1.
        risk: The fraction of the accepted examples that are wrong.

    """

    coverage: Tensor
    risk: Tensor


def log_odds(logits: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of the largest probability p of each row, ``(N,)`` float64.

    The ranking is that of p, but it also separates rows whose p rounds to 1.

    Args:
        logits: ``(N, K)``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.selective import log_odds
        >>> log_odds(torch.tensor([[50.0, 0.0], [60.0, 0.0]]))
        tensor([50., 60.], dtype=torch.float64)

    """
    logits = as_tensor("logits", logits)
    if logits.ndim != 2:
        raise DiagnosticsError(f"logits must be (N, K), but are {tuple(logits.shape)}: give one row per example")
    top, place = logits.double().max(1, keepdim=True)
    others = (logits.double() - top).scatter(1, place, -torch.inf)
    return -others.logsumexp(1)


def risk_coverage(scores: Tensor, right: Tensor) -> RiskCoverage:
    """The risk at each coverage if the examples with the highest scores are accepted first.

    Examples with equal scores are accepted together.

    Args:
        scores: ``(N,)``, higher for more confidence, such as :func:`log_odds`.
        right: ``(N,)``, whether the prediction is right.

    Raises:
        DiagnosticsError: Shapes differ, there are no examples, or scores are NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.selective import risk_coverage
        >>> curve = risk_coverage(torch.tensor([0.9, 0.8, 0.8, 0.6]), torch.tensor([True, True, False, False]))
        >>> curve.coverage.tolist(), [round(risk, 4) for risk in curve.risk.tolist()]
        ([0.25, 0.75, 1.0], [0.0, 0.3333, 0.5])

    References:
        El-Yaniv and Wiener, 2010, "On the foundations of noise-free selective classification", JMLR 11.

    """
    accepted, wrong = _cumulated(scores, right)
    return RiskCoverage(accepted / accepted[-1], wrong / accepted)


def aurc(scores: Tensor, right: Tensor) -> float:
    """The area under the risk-coverage curve: the mean risk over the coverages 1/N, 2/N, ..., 1. Lower is better.

    Examples with equal scores are averaged over all their orders, so the order of the data does not matter.

    Args:
        scores: ``(N,)``, higher for more confidence, such as :func:`log_odds`.
        right: ``(N,)``, whether the prediction is right.

    Raises:
        DiagnosticsError: Shapes differ, there are no examples, or scores are NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.selective import aurc
        >>> round(aurc(torch.tensor([0.9, 0.8]), torch.tensor([True, False])), 4)  # risks 0 and 1/2
        0.25
        >>> aurc(torch.tensor([0.5, 0.5]), torch.tensor([True, False]))  # an uninformative score gives the error rate
        0.5

    References:
        Geifman, Uziel and El-Yaniv, 2019, https://arxiv.org/abs/1805.08206.

    """
    accepted, wrong = _cumulated(scores, right)
    before = torch.cat([accepted.new_zeros(1), accepted[:-1]])
    wrong_before = torch.cat([wrong.new_zeros(1), wrong[:-1]])
    group = torch.repeat_interleave(torch.arange(len(accepted), device=accepted.device), (accepted - before).long())
    count = torch.arange(1, len(group) + 1, dtype=torch.float64, device=accepted.device)
    rate = (wrong - wrong_before) / (accepted - before)  # of errors within a group of equal scores
    return ((wrong_before[group] + (count - before[group]) * rate[group]) / count).mean().item()


def _cumulated(scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of examples and of wrong ones with at least each distinct score, from the highest score down."""
    scores, right = as_tensor("scores", scores), as_tensor("right", right)
    if scores.ndim != 1 or scores.shape != right.shape or not len(scores):
        raise DiagnosticsError(
            f"scores and right must both be (N,) with N of at least 1, but are {tuple(scores.shape)} and {tuple(right.shape)}"
        )
    if scores.isnan().any():
        raise DiagnosticsError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN: the run diverged")
    right = right.to(scores.device)
    order = scores.argsort(descending=True)
    _, counts = torch.unique_consecutive(scores[order], return_counts=True)
    last = counts.cumsum(0) - 1
    wrong = (~right.bool()[order]).double().cumsum(0)[last]
    return (last + 1).double(), wrong
