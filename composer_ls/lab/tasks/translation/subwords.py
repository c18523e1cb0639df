"""A subword tokenizer learnt from text, and the conversion of sentences to ids and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from composer_ls.errors import TextError
from composer_ls.lab.tasks.translation.data import line_numbers
from composer_ls.lab.tasks.translation.packages import tokenizers, transformers

__all__ = ["decode", "encode", "learn_tokenizer"]

PAD, END = "<pad>", "</s>"

log = logging.getLogger(__name__)


def learn_tokenizer(texts: Iterable[str], vocabulary: int = 8000, lowercase: bool = False, longest: int = 128) -> Any:
    """A ``PreTrainedTokenizerFast`` of byte pairs learnt from sentences of both languages.

    The same sentences give the same subwords. Every byte is a subword, so no text is unknown. Id 0 is padding, and 1 ends a sentence.

    Args:
        texts: The sentences.
        vocabulary: The maximum number of subwords; little text gives fewer.
        lowercase: Make all text lower case first.
        longest: The maximum number of subwords in a sentence, including its end token.

    Example:
        >>> from composer_ls.lab.tasks.translation.subwords import decode, encode, learn_tokenizer
        >>> tokenizer = learn_tokenizer(["a dog and a dog", "ein Hund und ein Hund"], vocabulary=280)
        >>> decode(tokenizer, encode(tokenizer, ["a dog, ein Hund"], longest=128))
        ['a dog, ein Hund']

    References:
        Sennrich et al., 2016, https://arxiv.org/abs/1508.07909 (byte pair encoding of words).

    """
    small = [tokenizers.normalizers.Lowercase()] if lowercase else []
    learnt = tokenizers.Tokenizer(tokenizers.models.BPE())
    learnt.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFC(), *small])
    learnt.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    learnt.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteLevel(), tokenizers.decoders.Strip(" ", 1, 0)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learnt.train_from_iterator(texts, trainer)
    learnt.post_processor = tokenizers.processors.TemplateProcessing(f"$A {END}", special_tokens=[(END, 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=learnt,
        pad_token=PAD,
        eos_token=END,
        model_max_length=longest,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # text may contain the word </s>
        clean_up_tokenization_spaces=False,
    )


def encode(
    tokenizer: Any,
    lines: Sequence[str],
    longest: int,
    too_long: str = "cut",
    name: str = "the input",
    first: int = 1,
    target: bool = False,
    warn: Callable[[str], object] = log.warning,
) -> list[list[int]]:
    """The ids of each line, with its end token. Lines that are too long are cut, with a warning, or refused.

    Args:
        tokenizer: Of transformers.
        lines: The sentences.
        longest: The maximum number of subwords in one, including its end token.
        too_long: ``"cut"`` or ``"refuse"``.
        name: Where the lines come from, for messages.
        first: The number of the first line, for messages.
        target: Whether they are in the target language.
        warn: Receives the warning.

    Raises:
        TextError: A line is too long, with ``too_long="refuse"``; the message has its number.

    """
    if not lines:
        return []
    key, options = "text_target" if target else "text", {"return_attention_mask": False, "verbose": False}
    rows: list[list[int]] = tokenizer(**{key: list(lines)}, **options)["input_ids"]
    over = [index for index, row in enumerate(rows) if len(row) > longest]
    if over:
        what = (
            f"{name}: {len(over)} of {len(rows):,} sentences have more than {longest} subwords, including the end "
            f"({line_numbers(over, first)})"
        )
        if too_long == "refuse":
            raise TextError(
                f"{what}, which is the most that data.longest={longest} allows: shorten or split them, or train with a "
                f"larger data.longest or with data.too_long=cut"
            )
        warn(f"{what} and were cut")
    for index in over:
        rows[index] = tokenizer(**{key: lines[index]}, truncation=True, max_length=longest, **options)["input_ids"]
    return rows


def decode(tokenizer: Any, rows: Any) -> list[str]:
    """The sentence of each row of ids, on one line, with single spaces; special tokens are left out."""
    return [" ".join(text.split()) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
