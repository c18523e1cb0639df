"""Sentences of like length together, so that little of a batch is padding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from composer_ls.errors import RecipeError, TextError
from composer_ls.lab.tasks.translation.data import Pairs
from composer_ls.lab.tasks.translation.subwords import BEGIN, END, PAD, Subwords

__all__ = ["IGNORED", "Batch", "EncodedPairs", "TokenBatches", "encode_lines", "encode_pairs", "padded"]

IGNORED = -100

Batch = tuple[tuple[Tensor, Tensor], Tensor]
"""((source (N, S), target input (N, T)), labels (N, T)), int64: what the network is given and what it should say."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedPairs:
    """Sentences as ids, each with END behind.

    Attributes:
        source: N sentences.
        target: Their translations.

    """

    source: list[list[int]]
    target: list[list[int]]

    def __len__(self) -> int:
        return len(self.source)


def encode_pairs(pairs: Pairs, subwords: Subwords, longest: int, too_long: str) -> EncodedPairs:
    """Turn sentences into ids. Those that are too long are cut, which is told, or refused.

    Args:
        pairs: The sentences.
        subwords: Their subwords.
        longest: How many a sentence may have, END included.
        too_long: ``"cut"`` or ``"refuse"``.

    Raises:
        TextError: ``too_long="refuse"`` and one is; the message has its line.

    """
    source = encode_lines(pairs.source, subwords, longest, too_long, f"the source of {pairs.name}")
    target = encode_lines(pairs.target, subwords, longest, too_long, f"the target of {pairs.name}")
    return EncodedPairs(source, target)


def encode_lines(
    lines: Sequence[str], subwords: Subwords, longest: int, too_long: str, name: str, first: int = 1
) -> list[list[int]]:
    """The ids of lines, with END behind each; see :func:`encode_pairs`. ``first`` is the number of the first line."""
    rows = subwords.encode(lines)
    over = [index for index, row in enumerate(rows) if len(row) >= longest]
    if over:
        shown = ", ".join(str(first + index) for index in over[:5]) + (", ..." if len(over) > 5 else "")
        what = f"{name}: {len(over)} of {len(rows):,} sentences have more than {longest - 1} subwords (line {shown})"
        if too_long == "refuse":
            raise TextError(
                f"{what}, which is the most that data.longest={longest} allows: shorten or split them, or train with a "
                f"larger data.longest or with data.too_long=cut"
            )
        log.warning("%s and were cut", what)
    return [[*row[: longest - 1], END] for row in rows]


class TokenBatches(Dataset[Batch]):
    """Batches of at most so many tokens, padding counted; item i is batch i.

    Pairs are sorted by length and cut into batches. Which of the pairs of equal lengths come into which batch is drawn
    anew in each epoch, and follows from seed and epoch alone; their shapes and their number stay the same.

    Args:
        pairs: The sentences.
        batch_tokens: The most that sentences times the longest of them may be, in each language.
        seed: Of the draws. ``None``: the order of the data, always.

    Raises:
        RecipeError: A sentence has more than ``batch_tokens`` subwords.

    Example:
        >>> from composer_ls.lab.tasks.translation.batches import EncodedPairs, TokenBatches
        >>> pairs = EncodedPairs([[5, 2], [6, 7, 8, 2], [9, 2]], [[5, 2], [6, 7, 2], [9, 9, 2]])
        >>> batches = TokenBatches(pairs, batch_tokens=6, seed=None)
        >>> (source, target), labels = batches[0]
        >>> source.tolist(), target.tolist(), labels.tolist()
        ([[5, 2], [9, 2]], [[1, 5, 2], [1, 9, 9]], [[5, 2, -100], [9, 9, 2]])

    """

    def __init__(self, pairs: EncodedPairs, batch_tokens: int, seed: int | None) -> None:
        self.pairs, self.seed = pairs, seed
        self._lengths = np.array([[len(row) for row in side] for side in (pairs.target, pairs.source)])
        if self._lengths.max() > batch_tokens:
            raise RecipeError(
                f"data.batch_tokens={batch_tokens} is less than the {self._lengths.max()} subwords of one sentence: make it "
                f"larger"
            )
        self.set_epoch(0)
        self._ends = self._cut(batch_tokens)

    def set_epoch(self, epoch: int) -> None:
        """Draw which pairs of equal lengths stand together in this epoch."""
        count = len(self.pairs)
        ties = np.arange(count) if self.seed is None else np.random.default_rng([self.seed, epoch]).permutation(count)
        self._order = np.lexsort((ties, self._lengths[1], self._lengths[0]))

    def _cut(self, batch_tokens: int) -> list[int]:
        """Where each batch ends in the order."""
        ends, start, longest = [], 0, 0
        for place, lengths in enumerate(self._lengths[:, self._order].max(0)):
            longest = max(longest, int(lengths))
            if longest * (place + 1 - start) > batch_tokens:
                ends.append(place)
                start, longest = place, int(lengths)
        return [*ends, len(self.pairs)]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Batch:
        start = self._ends[index - 1] if index else 0
        chosen = self._order[start : self._ends[index]]
        source = padded([self.pairs.source[pair] for pair in chosen])
        labels = padded([self.pairs.target[pair] for pair in chosen], IGNORED)
        begin = torch.full((len(labels), 1), BEGIN)
        target = torch.cat([begin, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, PAD)], 1)
        return (source, target), labels


def padded(rows: Sequence[Sequence[int]], filler: int = PAD) -> Tensor:
    """Rows of ids as one int64 tensor, filled up behind.

    Example:
        >>> from composer_ls.lab.tasks.translation.batches import padded
        >>> padded([[5, 2], [6, 7, 2]])
        tensor([[5, 2, 0],
                [6, 7, 2]])

    """
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
