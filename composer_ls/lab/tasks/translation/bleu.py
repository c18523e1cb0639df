"""BLEU of translations, as sacrebleu computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from composer_ls.errors import TextError
from composer_ls.lab.tasks.translation.packages import sacrebleu

__all__ = ["Bleu", "bleu"]


class Bleu(NamedTuple):
    """A score from 0 to 100, and sacrebleu's signature, which says how it was computed."""

    score: float
    signature: str


def bleu(translations: Sequence[str], references: Sequence[str], lowercase: bool = False) -> Bleu:
    """BLEU of translations that are not tokenized, with one reference each.

    Args:
        translations: N sentences.
        references: N sentences.
        lowercase: Whether to ignore case.

    Raises:
        TextError: There are none, or their numbers differ.

    Example:
        >>> from composer_ls.lab.tasks.translation.bleu import bleu
        >>> round(bleu(["a man rides a horse ."], ["a man rides a horse."]).score, 1)
        100.0

    References:
        Post, 2018, https://arxiv.org/abs/1804.08771.

    """
    if len(translations) != len(references) or not references:
        raise TextError(
            f"there are {len(translations):,} translations and {len(references):,} references: give one reference for each "
            f"translation, and at least one"
        )
    metric = sacrebleu.BLEU(lowercase=lowercase)
    score = metric.corpus_score(list(translations), [list(references)]).score
    return Bleu(score, str(metric.get_signature()))
