"""How good translations and the probabilities behind them are: BLEU, and what is measured on every subword."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_ls.diagnostics.calibration import reliability_bins
from composer_ls.errors import MissingPackageError, TextError
from composer_ls.translation.batches import IGNORED

__all__ = ["Bleu", "TokenMetrics", "bleu", "require_sacrebleu", "token_metrics", "token_scores"]


class Bleu(NamedTuple):
    """A score from 0 to 100, and sacrebleu's signature, which says how it was computed."""

    score: float
    signature: str


def bleu(translations: Sequence[str], references: Sequence[str], lowercase: bool = True) -> Bleu:
    """BLEU of translations against one reference each, by sacrebleu.

    Args:
        translations: N sentences, not tokenised.
        references: N sentences, likewise.
        lowercase: Whether capitals do not count.

    Raises:
        TextError: There are none, or not as many of one as of the other.
        MissingPackageError: The package sacrebleu is not installed.

    Example:
        >>> from composer_ls.translation.metrics import bleu
        >>> round(bleu(["a man rides a horse ."], ["A man rides a horse."]).score, 1)
        100.0

    References:
        Post, 2018, https://arxiv.org/abs/1804.08771.

    """
    metric = require_sacrebleu()(lowercase=lowercase)
    if len(translations) != len(references) or not references:
        raise TextError(
            f"there are {len(translations):,} translations and {len(references):,} references: give one reference for each "
            f"translation, and at least one"
        )
    score = metric.corpus_score(list(translations), [list(references)]).score
    return Bleu(score, str(metric.get_signature()))


def require_sacrebleu() -> Any:
    """BLEU as sacrebleu computes it.

    Raises:
        MissingPackageError: The package sacrebleu is not installed.

    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise MissingPackageError(
            "BLEU needs the package sacrebleu, which is not installed: pip install 'composer_ls[nlp]'"
        ) from error
    return BLEU


class TokenMetrics(NamedTuple):
    """Means over the subwords of references, each predicted from the source and the reference's subwords before it.

    Attributes:
        nll: Negative log-likelihood a subword, nats.
        perplexity: ``exp(nll)``.
        ece: Expected calibration error with 15 bins, fraction.
        accuracy: How often the most likely subword is the right one, fraction.
        tokens: How many subwords, ends included.

    """

    nll: float
    perplexity: float
    ece: float
    accuracy: float
    tokens: int


def token_metrics(
    batches: Iterable[tuple[Tensor, Tensor]], temperatures: Sequence[float] = (1.0,), bins: int = 15
) -> list[TokenMetrics]:
    """Likelihood and calibration of subwords at each temperature, with one batch in memory at a time.

    Args:
        batches: Logits ``(N, K, T)`` and labels ``(N, T)``, where -100 is padding.
        temperatures: By which the logits are divided.
        bins: Of confidence.

    Raises:
        TextError: There is no subword to look at.

    Example:
        >>> import torch
        >>> from composer_ls.translation.metrics import token_metrics
        >>> logits, labels = torch.zeros(1, 4, 3), torch.tensor([[2, 0, -100]])
        >>> found = token_metrics([(logits, labels)])[0]
        >>> round(found.nll, 4), found.ece, found.accuracy, found.tokens  # log 4, and 0 is right half the time
        (1.3863, 0.25, 0.5, 2)

    """
    count, right = 0, 0
    loss = torch.zeros(len(temperatures), dtype=torch.float64)
    gaps = torch.zeros(len(temperatures), bins, dtype=torch.float64)  # summed confidence less correctness
    for some_logits, some_labels in batches:
        rows, labels = some_logits.movedim(1, -1), some_labels
        counted = labels != IGNORED
        logits, labels = rows[counted].float(), labels[counted]
        if not len(labels):
            continue
        count += len(labels)
        right += int((logits.argmax(1) == labels).sum())
        for index, temperature in enumerate(temperatures):
            scaled = logits / temperature
            loss[index] += F.cross_entropy(scaled, labels, reduction="sum").double().item()
            found = reliability_bins(scaled, labels, bins)
            gaps[index] += (found.counts * (found.confidence - found.accuracy)).nan_to_num().cpu()
    if not count:
        raise TextError("there are no subwords to look at: every label is padding")
    errors = gaps.abs().sum(1) / count
    return [
        TokenMetrics(nll, math.exp(min(nll, 700)), ece, right / count, count)
        for nll, ece in zip((loss / count).tolist(), errors.tolist(), strict=True)
    ]


def token_scores(batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """What the metrics of subwords can be computed from again, in the order of the batches.

    Args:
        batches: Logits ``(N, K, T)`` and labels ``(N, T)``, where -100 is padding.

    Returns:
        ``log_probability`` of each subword in nats ``(M,)``, ``confidence`` in the most likely one ``(M,)``, and whether
        that is right, ``correct``, bool ``(M,)``.

    """
    parts = []
    for logits, labels in batches:
        counted = labels != IGNORED
        scores = logits.movedim(1, -1)[counted].float().log_softmax(1)
        best, predicted = scores.max(1)
        right = labels[counted]
        parts.append((scores.gather(1, right[:, None])[:, 0], best.exp(), predicted == right))
    names = ("log_probability", "confidence", "correct")
    return {name: torch.cat(part).cpu() for name, part in zip(names, zip(*parts, strict=True), strict=True)}
