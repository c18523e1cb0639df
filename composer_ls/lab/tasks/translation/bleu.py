"""How good translations are: BLEU, as sacrebleu computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from composer_ls.errors import MissingPackageError, TextError

__all__ = ["Bleu", "bleu", "require_sacrebleu"]


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
        >>> from composer_ls.lab.tasks.translation.bleu import bleu
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
