"""The subwords of two languages: byte pairs learnt from text, by the package tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from composer_ls.errors import MissingPackageError, RunFolderError

__all__ = ["BEGIN", "END", "PAD", "Subwords"]

PAD, BEGIN, END = 0, 1, 2
SPECIAL = ["<pad>", "<s>", "</s>"]


class Subwords:
    """From sentences to ids and back, with one vocabulary for both languages.

    Every byte is a subword, so that no text is unknown. Ids 0, 1 and 2 are padding, begin and end.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``; see :meth:`learn` and :meth:`load`.

    Example:
        >>> from composer_ls.lab.tasks.translation.subwords import Subwords
        >>> subwords = Subwords.learn(["a dog and a dog", "ein Hund und ein Hund"], vocabulary=280)
        >>> subwords.decode(subwords.encode(["A dog, ein Hund"]))
        ['a dog, ein hund']

    References:
        Sennrich et al., 2016, https://arxiv.org/abs/1508.07909 (byte pair encoding of words).

    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def learn(cls, texts: Iterable[str], vocabulary: int = 8000, lowercase: bool = True) -> Subwords:
        """Learn subwords from sentences of both languages. The same sentences give the same subwords.

        Args:
            texts: The sentences.
            vocabulary: How many subwords at most; little text gives fewer.
            lowercase: Make capitals small first.

        Raises:
            MissingPackageError: The package tokenizers is not installed.

        """
        tokenizers = _tokenizers()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        normalizers = [tokenizers.normalizers.NFC(), *([tokenizers.normalizers.Lowercase()] if lowercase else [])]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(normalizers)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.encode_special_tokens = True  # a text may hold the word </s>
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> Subwords:
        """Read what :meth:`to_json` gave.

        Raises:
            MissingPackageError: The package tokenizers is not installed.
            RunFolderError: The file cannot be read.

        """
        tokenizers = _tokenizers()
        try:
            tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises nothing more specific
            raise RunFolderError(f"the subwords in {path} cannot be read ({error}): train the run again") from error
        tokenizer.encode_special_tokens = True
        return cls(tokenizer)

    def to_json(self) -> str:
        """All there is to know, for a file."""
        return self._tokenizer.to_str(pretty=True) + "\n"

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each sentence, without begin and end."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The sentence of each row of ids, on one line, with single spaces; special ids are left out."""
        return [" ".join(text.split()) for text in self._tokenizer.decode_batch([list(row) for row in rows])]


def _tokenizers() -> Any:
    try:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "translation needs the package tokenizers, which is not installed: pip install 'composer_ls[nlp]'"
        ) from error
    return tokenizers
