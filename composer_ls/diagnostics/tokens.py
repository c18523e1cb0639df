"""Quality of a sequence model's probabilities: a few scores per token, and metrics computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from composer_ls.diagnostics.calibration import ReliabilityBins, binned_calibration_error, bins_of_confidence
from composer_ls.diagnostics.checks import check_maps
from composer_ls.errors import DiagnosticsError

__all__ = [
    "TokenScores",
    "perplexity",
    "token_accuracy",
    "token_bins",
    "token_calibration_error",
    "token_nll",
    "token_scores",
]


class TokenScores(NamedTuple):
    """The scores kept for each token instead of its logits. Ignored tokens have no entry.

    Attributes:
        log_probability: The log probability of the correct token, in nats, float32 ``(M,)``.
        confidence: The probability of the most likely token, float32 ``(M,)``.
        correct: Whether the most likely token is the correct one, bool ``(M,)``.

    """

    log_probability: Tensor
    confidence: Tensor
    correct: Tensor


def token_scores(
    batches: Iterable[tuple[Tensor, Tensor]], temperatures: Sequence[float] = (1.0,), ignore_index: int = -100
) -> list[TokenScores]:
    """The scores at each temperature, with the logits of one batch in memory at a time.

    Args:
        batches: Logits ``(N, K, T)`` and integer labels ``(N, T)``.
        temperatures: The temperatures by which the logits are divided.
        ignore_index: The label of tokens that do not count, such as padding.

    Raises:
        DiagnosticsError: Shapes do not match, a label is out of range, a temperature is not positive, or every token is
            ignored.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.tokens import token_accuracy, token_calibration_error, token_nll, token_scores
        >>> logits, labels = torch.zeros(1, 4, 3), torch.tensor([[2, 0, -100]])
        >>> (scores,) = token_scores([(logits, labels)])
        >>> round(token_nll(scores), 4), token_accuracy(scores)  # log 4, and 0 is right half the time
        (1.3863, 0.5)
        >>> token_calibration_error(scores)
        0.25

    """
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise DiagnosticsError(f"temperatures must be positive numbers, but are {tuple(temperatures)}")
    parts = []
    for logits, labels in batches:
        logits, labels = check_maps(logits, labels)
        counted = labels != ignore_index
        rows, right = logits.movedim(1, -1)[counted].float(), labels[counted]
        if len(right) and not (int(right.min()) >= 0 and int(right.max()) < rows.shape[1]):
            raise DiagnosticsError(
                f"labels must be in [0, {rows.shape[1]}), but go from {int(right.min())} to {int(right.max())}: if one of "
                f"them marks padding, pass it as ignore_index, which is {ignore_index}"
            )
        best, predicted = rows.max(1)
        # Allocated before the loop, so that these small long-lived tensors do not fragment the memory of large ones.
        normalisers = rows.new_empty(len(temperatures), len(rows))
        for normaliser, temperature in zip(normalisers, temperatures, strict=True):
            torch.logsumexp(rows / temperature, 1, out=normaliser)
        by = torch.tensor(temperatures, device=rows.device)[:, None]
        log_probability = rows.gather(1, right[:, None])[:, 0] / by - normalisers
        confidence = (best / by - normalisers).exp()
        parts.append((log_probability.cpu(), confidence.cpu(), (predicted == right).cpu()))
    if not sum(len(correct) for _, _, correct in parts):
        raise DiagnosticsError(f"there are no tokens to score: give at least one whose label is not {ignore_index}")
    log_probability, confidence, correct = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    return [TokenScores(*scores, correct) for scores in zip(log_probability, confidence, strict=True)]


def token_nll(scores: TokenScores) -> float:
    """Mean negative log probability of the tokens, in nats."""
    return -scores.log_probability.double().mean().item()


def perplexity(scores: TokenScores) -> float:
    """``exp`` of :func:`token_nll`; infinite if it overflows."""
    nll = token_nll(scores)
    return math.exp(nll) if nll < 700 else math.inf if nll == nll else math.nan


def token_accuracy(scores: TokenScores) -> float:
    """The fraction of tokens for which the most likely one is correct; NaN if any logit was NaN."""
    if scores.log_probability.isnan().any():
        return math.nan
    return scores.correct.double().mean().item()


def token_bins(scores: TokenScores, bins: int = 15) -> ReliabilityBins:
    """Reliability bins of the tokens; see :func:`~composer_ls.diagnostics.calibration.reliability_bins`."""
    return bins_of_confidence(scores.confidence.double(), scores.correct, bins)


def token_calibration_error(scores: TokenScores, bins: int = 15) -> float:
    """Expected calibration error of the tokens, in [0, 1]; NaN if a confidence is NaN."""
    if not scores.confidence.isfinite().all():
        return math.nan
    return binned_calibration_error(token_bins(scores, bins))
