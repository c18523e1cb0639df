"""Collects a network's predictions from all processes, in the order of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer import Trainer
from composer.core import Callback, DataSpec, Evaluator, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["EvaluatedWeights", "collect_predictions"]


def _logits_and_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return logits, labels


def collect_predictions(
    trainer: Trainer,
    loader: DataLoader[Any] | DataSpec,
    examples: int,
    kept: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = _logits_and_labels,
) -> tuple[Tensor, ...]:
    """Evaluate the network and collect one entry per example, from all processes, in the order of the data.

    Args:
        trainer: A trainer with the trained network.
        loader: A new loader: Composer refuses one with persistent workers that are already running.
        examples: The number of examples over all processes.
        kept: Maps the logits and labels of a batch to tensors with one entry per example. Default: the two themselves.

    """
    collector = _Collector(kept)
    trainer.state.callbacks.append(collector)
    trainer.eval(eval_dataloader=Evaluator(label="predictions", dataloader=loader))
    trainer.state.callbacks.remove(collector)
    return collector.gathered(examples)


class _Collector(Callback):
    def __init__(self, kept: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
        self._kept = kept
        self._batches: list[tuple[Tensor, ...]] = []

    def eval_start(self, state: State, logger: Logger) -> None:
        """Discard the batches of an earlier pass."""
        self._batches = []

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        """Store the tensors of a batch."""
        outputs, labels = state.outputs, state.batch[1]
        assert isinstance(outputs, Tensor)
        kept = self._kept(outputs.detach().float(), labels.detach())
        self._batches.append(tuple(tensor.cpu() for tensor in kept))

    def gathered(self, examples: int) -> tuple[Tensor, ...]:
        """The tensors collected by all processes, with ``examples`` entries each.

        Process r of R has examples r, r + R, r + 2R, ...; the sampler may repeat the first ones at the end.
        """
        share = [torch.cat(tensors) for tensors in zip(*self._batches, strict=True)]
        shares = dist.all_gather_object(share)
        world = len(shares)
        wholes = tuple(tensor.new_empty(examples, *tensor.shape[1:]) for tensor in share)
        for rank, part in enumerate(shares):
            count = len(range(rank, examples, world))
            for whole, tensor in zip(wholes, part, strict=True):
                whole[rank::world] = tensor[:count]
        return wholes


class EvaluatedWeights(Callback):
    """Keeps the weights with which a network is evaluated, which are not those that are trained if an average is evaluated.

    Attributes:
        weights: Those of the first evaluation of a ComposerClassifier's module, by name, on the CPU; empty before.

    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        """Copy the weights, which algorithms may exchange after the evaluation."""
        if not self.weights:
            self.weights = {
                name.removeprefix("module."): value.detach().cpu().clone()
                for name, value in state.get_model_state_dict().items()
                if name.startswith("module.")
            }
