"""Batches of sentences of similar length, so that little of each batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from composer_ls.errors import RecipeError
from composer_ls.lab.tasks.translation.packages import transformers

__all__ = ["IGNORED", "Batch", "Row", "TokenBatches", "collator", "filled_up"]

IGNORED = -100

Row = dict[str, list[int]]
"""Token ids of a sentence (``input_ids``) and of its translation (``labels``), each with its end token."""

Batch = dict[str, Tensor]
"""``input_ids`` and ``attention_mask`` (N, S), ``labels`` and ``decoder_input_ids`` (N, T), int64."""


def collator(tokenizer: Any, network: Any) -> Callable[[Sequence[Row]], Batch]:
    """A function that makes a padded batch for the network from rows with or without labels."""
    pad = transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    shift = getattr(network, "prepare_decoder_input_ids_from_labels", None)

    def shifted(labels: Tensor) -> Tensor:  # as most types of networks do it
        begin = labels.new_full((len(labels), 1), network.config.decoder_start_token_id)
        before = torch.cat([begin, labels[:, :-1]], 1)
        return before.masked_fill(before == IGNORED, network.config.pad_token_id)

    def collate(rows: Sequence[Row]) -> Batch:
        batch = {key: tensor for key, tensor in pad(list(rows)).items() if tensor is not None}
        if "labels" in batch:
            batch["decoder_input_ids"] = shift(labels=batch["labels"]) if shift else shifted(batch["labels"])
        return batch

    return collate


class TokenBatches(Dataset[Batch]):
    """Batches with a limited number of tokens, including padding; item i is batch i.

    Rows are sorted by length and cut into batches. Rows of equal length are shuffled in each epoch, depending only on seed and
    epoch; the number of batches and their shapes stay the same.

    Args:
        rows: The sentences.
        batch_tokens: The maximum of the number of sentences times the longest of them, in each language.
        seed: For shuffling; ``None`` to keep the order of the data.
        collate: Makes a batch from rows; see :func:`collator`.

    Raises:
        RecipeError: A sentence has more than ``batch_tokens`` subwords.

    Example:
        >>> from composer_ls.lab.tasks.translation.batches import TokenBatches
        >>> rows = [{"input_ids": [5] * n, "labels": [6] * n} for n in (2, 4, 3)]
        >>> batches = TokenBatches(rows, batch_tokens=6, seed=None, collate=lambda rows: rows)
        >>> [[len(row["labels"]) for row in batch] for batch in batches]
        [[2, 3], [4]]

    """

    def __init__(
        self, rows: Sequence[Row], batch_tokens: int, seed: int | None, collate: Callable[[list[Row]], Any]
    ) -> None:
        self.rows, self.seed, self._collate = rows, seed, collate
        self._lengths = np.array([[len(row[side]) for row in rows] for side in ("labels", "input_ids")])
        if self._lengths.max() > batch_tokens:
            raise RecipeError(
                f"data.batch_tokens={batch_tokens} is less than the {self._lengths.max()} subwords of one sentence: make it "
                f"larger"
            )
        self.set_epoch(0)
        self._ends = self._cut(batch_tokens)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle the rows of equal length for this epoch."""
        count = len(self.rows)
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
        return [*ends, len(self.rows)]

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Batch:
        start = self._ends[index - 1] if index else 0
        return self._collate([self.rows[row] for row in self._order[start : self._ends[index]]])


def filled_up(batches: TokenBatches, processes: int) -> Dataset[Batch]:
    """The batches, and behind them as many whose labels are all ignored as give every process the same number.

    A sampler would repeat batches instead, which then count twice.
    """
    ignored = batches[0] | {"labels": torch.full_like(batches[0]["labels"], IGNORED)}
    return ConcatDataset([batches, [ignored] * (-len(batches) % processes)])  # type: ignore[list-item]
