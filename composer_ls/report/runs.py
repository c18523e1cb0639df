"""Reading run folders into measurements, which are computed again from the predictions that a run left; but for BLEU."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from composer_ls.diagnostics.calibration import ReliabilityBins
from composer_ls.errors import RunFolderError
from composer_ls.report.metrics import STEP_TIME
from composer_ls.report.tasks import TASK_REPORTS
from composer_ls.training.claim import claimant
from composer_ls.training.recipe import Recipe
from composer_ls.training.run_folder import RunFolder, read_recipe

__all__ = ["LeftOut", "Run", "find_runs", "read_run", "read_runs"]


@dataclass(frozen=True)
class Run:
    """What a finished run left, measured.

    Attributes:
        folder: Where it is.
        recipe: How it was trained.
        result: Its ``result.json``.
        values: Each metric's value by key, unscaled.
        bins: Its reliability diagram.
        temperature: The one that suits its test examples best; ``None`` where logits are not kept.
        lines: Its ``metrics.jsonl``.

    """

    folder: Path
    recipe: Recipe
    result: Mapping[str, Any]
    values: Mapping[str, float]
    bins: ReliabilityBins
    temperature: float | None
    lines: Sequence[Mapping[str, float]]


class LeftOut(Exception):  # noqa: N818  (it is no error to have a run that is not finished)
    """A run folder that a report cannot use, and why."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.folder, self.reason = folder, reason


def find_runs(root: Path) -> Iterator[tuple[Path, Recipe | LeftOut]]:
    """Every folder in ``root``, at any depth, in which a run of ours has begun, with its recipe if that can be read."""
    for place, folders, files in os.walk(root):
        folders.sort()
        if "recipe.yaml" not in files:
            continue
        try:
            recipe = read_recipe(Path(place))
        except RunFolderError as error:
            yield Path(place), LeftOut(Path(place), str(error))
            continue
        if recipe is not None:
            folders.clear()  # nothing else is in a run folder
            yield Path(place), recipe


def read_runs(root: Path) -> tuple[list[Run], list[LeftOut]]:
    """The finished runs in a folder, and what had to be left out."""
    runs, left_out = [], []
    for folder, recipe in find_runs(root):
        try:
            if isinstance(recipe, LeftOut):
                raise recipe
            runs.append(read_run(folder, recipe))
        except LeftOut as reason:
            left_out.append(reason)
    return runs, left_out


def read_run(folder: Path, recipe: Recipe) -> Run:
    """Read and measure one finished run.

    Raises:
        LeftOut: It is not finished, it diverged, or what it left is damaged.

    """
    task = TASK_REPORTS[recipe.task]
    files = RunFolder(folder, recipe)
    try:
        result = files.result()
    except RunFolderError as error:
        raise LeftOut(folder, f"its result.json is damaged ({error.__cause__})") from error
    if result is None:
        by = claimant(folder)
        log = " (see its log.txt)" if (folder / "log.txt").is_file() else ""
        raise LeftOut(folder, f"it is being run by {by}" if by else f"it has begun, but not finished{log}")
    try:
        predictions = load_file(files.predictions_file)
        values = {
            metric.key: float(result["metrics"][metric.key]) if metric.compute is None else metric.compute(predictions)
            for metric in task.metrics
        }
        diverged = [metric.name for metric in task.metrics if not math.isfinite(values[metric.key])]
        if diverged:
            raise LeftOut(folder, f"its {diverged[0]} is not finite: the run diverged")
        values[STEP_TIME.key] = float(result["train_seconds"]) / int(result["steps"])
        return Run(
            folder,
            recipe,
            result,
            values,
            task.bins(predictions),
            task.temperature(predictions) if task.temperature else None,
            _lines(files.metrics_file),
        )
    except FileNotFoundError as error:
        raise LeftOut(folder, "its predictions.safetensors is missing") from error
    except KeyError as error:
        raise LeftOut(folder, f"{error} is missing from what it left") from error
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError) as error:
        raise LeftOut(folder, f"what it left cannot be used: {' '.join(str(error).split())}") from error


def _lines(file: Path) -> list[dict[str, float]]:
    """The whole lines of ``metrics.jsonl``; one that is cut off says nothing."""
    lines = []
    try:
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if isinstance(line, dict) and "batch" in line:
                lines.append(line)
    except (OSError, ValueError):
        pass
    return lines
