"""The training curve of a classifier: cross entropy and accuracy against plain labels, whatever the loss is."""

from __future__ import annotations

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TrainingCurve"]


class TrainingCurve(Callback):
    """Once an epoch, the mean cross entropy and the accuracy of the training batches against their plain labels.

    Unlike the loss that is trained on, they can be compared across smoothing. Under MixUp and CutMix the label is that
    of the image which was mixed into. Sums stay on the device: no step waits for them. Logged as
    ``metrics/train/CrossEntropy`` (nats) and ``metrics/train/MulticlassAccuracy`` (fraction), which are the names of
    the test set's.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Forget the epoch before."""
        self._sums = None

    def after_forward(self, state: State, logger: Logger) -> None:
        """Add a batch, whose labels nobody has smoothed or mixed yet."""
        assert isinstance(state.outputs, Tensor)
        logits, labels = state.outputs.detach().float(), state.batch[1]
        with torch.no_grad():
            loss = F.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(1) == labels).sum()
            sums = torch.stack([loss, correct, torch.full_like(loss, len(labels))])
        self._sums = sums if self._sums is None else self._sums + sums

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Log the means over all processes."""
        if self._sums is None:
            return
        dist.all_reduce(self._sums)
        loss, correct, examples = self._sums.tolist()
        logger.log_metrics(
            {"metrics/train/CrossEntropy": loss / examples, "metrics/train/MulticlassAccuracy": correct / examples}
        )
        self._sums = None

    def fit_end(self, state: State, logger: Logger) -> None:
        """Log the means of an epoch that the run stopped in."""
        self.epoch_end(state, logger)
