"""How good probabilities are: negative log likelihood, Brier score, expected calibration error."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

__all__ = ["accuracy", "brier_score", "expected_calibration_error", "negative_log_likelihood"]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction of rows whose largest logit is the label's.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import accuracy
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5

    """
    return (logits.argmax(1) == labels).double().mean().item()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log probability of the labels, in nats.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import negative_log_likelihood
        >>> round(negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2])), 4)  # log 4
        1.3863

    """
    return F.cross_entropy(logits.double(), labels).item()


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean squared distance between the probabilities and the one-hot labels, from 0 (best) to 2.

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import brier_score
        >>> brier_score(torch.zeros(1, 4), torch.tensor([2]))
        0.75

    References:
        Brier, 1950, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78.

    """
    probabilities = logits.double().softmax(1)
    return (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(1).mean().item()


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of confidence, weighted by count, in [0, 1].

    Args:
        logits: ``(N, K)``.
        labels: Integer ``(N,)``.
        bins: How many bins divide [0, 1].

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.calibration import expected_calibration_error
        >>> logits = torch.tensor([[4.0, 0.0]]).log_softmax(1).repeat(2, 1)
        >>> round(expected_calibration_error(logits, torch.tensor([0, 1])), 4)  # confident 0.982, right half the time
        0.482

    References:
        Guo et al., 2017, https://arxiv.org/abs/1706.04599.

    """
    probabilities = logits.double().softmax(1)
    return multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=bins, norm="l1").item()
