"""BLEU of translations, as sacrebleu computes it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from composer_ls.errors import MissingPackageError, TextError
from composer_ls.lab.tasks.translation.packages import sacrebleu

__all__ = ["Bleu", "bleu", "bleu_metric"]

TOKENIZED = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "cn"), "zh"),
    **dict.fromkeys(("ja", "jpn", "jp"), "ja"),
    **dict.fromkeys(("ko", "kor", "kr"), "ko"),
}
"""The languages for which sacrebleu has a tokenizer, by their codes and by usual file extensions."""


class Bleu(NamedTuple):
    """A score from 0 to 100, and sacrebleu's signature, which says how it was computed."""

    score: float
    signature: str


def bleu(translations: Sequence[str], references: Sequence[str], lowercase: bool = False, language: str = "") -> Bleu:
    """BLEU of translations that are not tokenized, with one reference each. Both are normalized to Unicode's NFC.

    Args:
        translations: N sentences.
        references: N sentences.
        lowercase: Whether to ignore case.
        language: Their code, which matters for Chinese, Japanese and Korean; see :func:`bleu_metric`.

    Raises:
        MissingPackageError: The language's tokenizer is not installed.
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
    metric = bleu_metric(lowercase, language)
    found, wanted = ([unicodedata.normalize("NFC", line) for line in lines] for lines in (translations, references))
    score = metric.corpus_score(found, [wanted]).score
    return Bleu(score, str(metric.get_signature()))


def bleu_metric(lowercase: bool, language: str) -> Any:
    """BLEU of sacrebleu with its tokenizer for a language, such as ``de``, ``zh``, ``zh-CN`` or ``zho_Hans``.

    Raises:
        MissingPackageError: The tokenizer is not installed.

    """
    code = TOKENIZED.get(re.split("[-_]", language.lower())[0], "")  # sacrebleu knows these, exactly so
    try:
        return sacrebleu.BLEU(lowercase=lowercase, trg_lang=code)
    except RuntimeError as error:
        raise MissingPackageError(
            f"BLEU of {language} needs a tokenizer that is not installed: pip install 'sacrebleu[{code}]'"
        ) from error
