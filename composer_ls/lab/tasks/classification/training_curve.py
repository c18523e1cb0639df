"""The training curve of a classifier: cross entropy and accuracy against the plain labels, whatever the loss."""

from __future__ import annotations

from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TrainingCurve"]


class TrainingCurve(Callback):
    """Logs cross entropy and accuracy of the training batches against their plain labels, averaged over each epoch.

    Unlike the training loss, these can be compared between runs with different smoothing. With MixUp and CutMix the
    label is that of the first image of each pair. Sums stay on the device, so no step synchronises. They are logged as
    ``metrics/train/CrossEntropy`` (nats) and ``metrics/train/MulticlassAccuracy`` (fraction), named like the metrics
    of the test set.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Reset the sums."""
        self._sums = None

    def after_forward(self, state: State, logger: Logger) -> None:
        """Add a batch. At this point its labels are neither smoothed nor mixed."""
        assert isinstance(state.outputs, Tensor)
        logits, labels = state.outputs.detach().float(), state.batch[1]
        with torch.no_grad():
            loss = F.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(1) == labels).sum()
            sums = torch.stack([loss, correct, torch.full_like(loss, len(labels))])
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Log the means over all processes."""
        if self._sums is None:
            return
        sums = state.device.tensor_to_device(self._sums)
        dist.all_reduce(sums)
        loss, correct, examples = sums.tolist()
        logger.log_metrics(
            {"metrics/train/CrossEntropy": loss / examples, "metrics/train/MulticlassAccuracy": correct / examples}
        )
        self._sums = None

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch, for a run that is resumed in the middle of it. Of several processes, those of the first."""
        return {"sums": None if self._sums is None else self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these sums. Checkpoints of earlier versions have none."""
        sums = state.get("sums")
        if sums is not None:
            self._sums = torch.tensor(sums) * (dist.get_global_rank() == 0)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Log the means of an epoch that training ended in the middle of."""
        self.epoch_end(state, logger)
