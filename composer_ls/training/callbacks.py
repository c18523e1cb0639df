"""What watches a run: the metrics file, and the collection of the test predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Callback, DataSpec, Evaluator, State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from composer_ls.training.run_folder import write_text

__all__ = ["MetricsFile", "TrainingCurve", "collect_predictions"]


class MetricsFile(LoggerDestination):
    """One JSON line an epoch: the mean training loss since the line before, and the latest of every other metric.

    A run that ends within an epoch has a line for the part of it.

    Args:
        path: The file. Lines from after the checkpoint that a run resumes from are cut off.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._latest: dict[str, float] = {}
        self._losses: list[float] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember the numbers until the next line is due."""
        for name, value in metrics.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                continue
            if name == "loss/train/total":
                self._losses.append(float(value))
            elif name.startswith(("metrics/", "diagnostics/", "lr-")):
                self._latest[name] = float(value)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Cut off what a killed run wrote after its last checkpoint."""
        if dist.get_global_rank() != 0:
            return
        batches = int(state.timestamp.batch)
        kept = [line for line in _whole_lines(self.path) if json.loads(line)["batch"] <= batches]
        write_text(self.path, "".join(kept))

    @property
    def line_an_epoch(self) -> Callback:
        """The callback that writes the lines; before the checkpoint, so that a run killed in between loses none.

        (Composer calls its loggers last.)
        """
        return _LineAnEpoch(self)

    def write_line(self, state: State) -> None:
        """Write what was logged since the line before."""
        if dist.get_global_rank() != 0:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._line(state)) + "\n")

    def finish(self, state: State) -> None:
        """Write what came after the last line. To be called after ``fit``: the last evaluation follows ``fit_end``.

        It becomes a line of its own, if the run stopped within an epoch, or else a part of the last line.
        """
        if dist.get_global_rank() != 0 or not (self._latest or self._losses):
            return
        lines, line = _whole_lines(self.path), self._line(state)
        if lines and (last := json.loads(lines[-1]))["batch"] == line["batch"]:
            lines, line = lines[:-1], last | line
        write_text(self.path, "".join([*lines, json.dumps(line) + "\n"]))

    def _line(self, state: State) -> dict[str, float]:
        """What was logged since the line before, which is then forgotten."""
        line: dict[str, float] = {"epoch": int(state.timestamp.epoch), "batch": int(state.timestamp.batch)}
        if self._losses:
            line["loss/train/total"] = sum(self._losses) / len(self._losses)
        line |= self._latest
        self._latest, self._losses = {}, []
        return line


class _LineAnEpoch(Callback):
    def __init__(self, file: MetricsFile) -> None:
        self._file = file

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Write a line: evaluation, if due in an epoch, is over."""
        self._file.write_line(state)


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


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


def _logits_and_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return logits, labels


def collect_predictions(
    trainer: Trainer,
    loader: DataLoader[Any] | DataSpec,
    examples: int,
    kept: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = _logits_and_labels,
) -> tuple[Tensor, ...]:
    """Evaluate, and keep something of each example, from every process, in the order of the data.

    Args:
        trainer: With the trained network.
        loader: A fresh one: Composer refuses one whose workers live on.
        examples: How many all processes have together.
        kept: From the logits and labels of a batch to tensors with an entry an example; these two themselves by default.

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
        """Forget the pass before."""
        self._batches = []

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        """Keep a batch."""
        outputs, labels = state.outputs, state.batch[1]
        assert isinstance(outputs, Tensor)
        kept = self._kept(outputs.detach().float(), labels.detach())
        self._batches.append(tuple(tensor.cpu() for tensor in kept))

    def gathered(self, examples: int) -> tuple[Tensor, ...]:
        """What was kept by all processes, each tensor of ``examples`` entries.

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
