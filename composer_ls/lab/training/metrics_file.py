"""``metrics.jsonl``: one line per epoch of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from torch import Tensor

from composer_ls.lab.recipe.methods import METHODS
from composer_ls.lab.run_folder.files import finite, write_text

__all__ = ["MetricsFile"]

FACTORS = frozenset(f"{method}/{argument}" for method, (argument, _) in METHODS.items())
"""The names under which the Algorithms that smooth log the factor in use."""


class MetricsFile(LoggerDestination):
    """Writes one JSON line per epoch: the mean training loss since the last line, and the latest other metrics.

    A run that ends in the middle of an epoch has a line for the partial epoch. A number that is not finite is ``null``.

    Args:
        path: The file. When a run resumes, lines from after its checkpoint are removed.
        each_line: Called with each line of a complete epoch when it is written.

    """

    def __init__(self, path: Path, each_line: Callable[[Mapping[str, float]], None] | None = None) -> None:
        self.path = path
        self._each_line = each_line
        self._latest: dict[str, float] = {}
        self._loss, self._steps = 0.0, 0  # the sum, and of how many
        self._kept: int | None = None  # the step of the last line that a killed run has left

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember the numbers until the next line is due."""
        for name, value in metrics.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                continue
            if name == "loss/train/total":
                self._loss, self._steps = self._loss + float(value), self._steps + 1
            elif name.startswith(("metrics/", "diagnostics/", "lr-")) or name in FACTORS:
                self._latest[name] = float(value)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Remove the lines that a killed run wrote after its last checkpoint."""
        if dist.get_global_rank() != 0:
            return
        batches = int(state.timestamp.batch)
        kept = [line for line in _whole_lines(self.path) if json.loads(line)["batch"] <= batches]
        write_text(self.path, "".join(kept))
        self._kept = int(json.loads(kept[-1])["batch"]) if kept else None

    @property
    def line_an_epoch(self) -> Callback:
        """The callback that writes the lines.

        It writes before the checkpoint is saved, so that a run killed in between loses no line. The logger itself could
        not, because Composer calls loggers last.
        """
        return _LineAnEpoch(self)

    def write_line(self, state: State) -> None:
        """Write a line with what was logged since the last one."""
        if dist.get_global_rank() != 0:
            return
        line = self._line(state)
        if line["batch"] == self._kept:  # it was killed between the last checkpoint of an epoch and the epoch's end
            self._extend(line)
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(line)) + "\n")
        if self._each_line is not None:
            self._each_line(line)

    def finish(self, state: State) -> None:
        """Write what was logged after the last line. Call it after ``fit``: the last evaluation follows ``fit_end``.

        This adds a line if the run stopped in the middle of an epoch, and extends the last line otherwise.
        """
        if dist.get_global_rank() != 0 or not (self._latest or self._steps):
            return
        self._extend(self._line(state))

    def progress(self) -> dict[str, Any]:
        """What was logged since the last line, for a checkpoint."""
        return {"latest": dict(self._latest), "loss": self._loss, "steps": self._steps}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        self._latest = dict(progress["latest"])
        self._loss, self._steps = progress["loss"], progress["steps"]

    def _extend(self, line: dict[str, float]) -> None:
        """Add to the last line if it is of the same step, else add a line."""
        lines = _whole_lines(self.path)
        if lines and (last := json.loads(lines[-1]))["batch"] == line["batch"]:
            lines, line = lines[:-1], last | line
        write_text(self.path, "".join([*lines, json.dumps(finite(line)) + "\n"]))

    def _line(self, state: State) -> dict[str, float]:
        """What was logged since the last line. Resets it."""
        line: dict[str, float] = {"epoch": int(state.timestamp.epoch), "batch": int(state.timestamp.batch)}
        if self._steps:
            line["loss/train/total"] = self._loss / self._steps
        line |= self._latest
        self._latest, self._loss, self._steps = {}, 0.0, 0
        return line


class _LineAnEpoch(Callback):
    def __init__(self, file: MetricsFile) -> None:
        self._file = file

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Write a line. If an evaluation was due in this epoch, it is done by now."""
        self._file.write_line(state)

    def state_dict(self) -> dict[str, Any]:
        """What the next line is made of, so that a run that is resumed in the middle of an epoch loses none of it."""
        return self._file.progress()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Checkpoints of earlier versions have nothing of it."""
        if state:
            self._file.resume(state)


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]
