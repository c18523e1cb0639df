"""Reads run folders and measures them. All metrics except BLEU are computed again from the saved predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from composer_ls.diagnostics.calibration import ReliabilityBins
from composer_ls.errors import RunFolderError
from composer_ls.lab.compare.log import last_words
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.run_folder.claim import claimant
from composer_ls.lab.run_folder.files import read_tensors, walked
from composer_ls.lab.run_folder.folder import OF_A_RUN, RunFolder, read_recipe
from composer_ls.lab.tasks.metric import STEP_TIME, Predictions
from composer_ls.lab.tasks.registry import task_report
from composer_ls.lab.tasks.task_report import TaskReport

__all__ = ["LeftOut", "Run", "Scores", "find_runs", "read_run", "read_runs"]

HELD_OUT = "validation."


@dataclass(frozen=True)
class Scores:
    """The scores of a run on one part of the data.

    Attributes:
        values: Each metric's value by key, unscaled.
        bins: The bins of the reliability diagram.
        temperature: The temperature that fits these examples best; ``None`` if logits are not kept.
        labels: What is known about the labels of each example; ``None`` if nothing.
        has_learnt: Whether the network is better than one that always answers with the largest class, as far as is known.

    """

    values: Mapping[str, float]
    bins: ReliabilityBins
    temperature: float | None
    labels: Tensor | None = None
    has_learnt: bool = True


@dataclass(frozen=True)
class Run:
    """A finished run and its scores.

    Attributes:
        folder: The run folder.
        recipe: The run's recipe.
        result: Its ``result.json``.
        lines: The lines of its ``metrics.jsonl``.
        parts: Its scores on ``test``, and on ``validation`` if some training examples were held out.
        part: The part on which it is judged, to which the properties below refer.

    """

    folder: Path
    recipe: Recipe
    result: Mapping[str, Any]
    lines: Sequence[Mapping[str, float]]
    parts: Mapping[str, Scores]
    part: str = "test"

    @property
    def values(self) -> Mapping[str, float]:
        """Each metric's value by key, unscaled."""
        return self.parts[self.part].values

    @property
    def bins(self) -> ReliabilityBins:
        """The bins of the reliability diagram."""
        return self.parts[self.part].bins

    @property
    def temperature(self) -> float | None:
        """The temperature that fits the examples best; ``None`` if logits are not kept."""
        return self.parts[self.part].temperature


class LeftOut(Exception):  # noqa: N818  (an unfinished run is not an error)
    """A run folder that a report cannot use, and the reason."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.folder, self.reason = folder, reason


def find_runs(root: Path) -> Iterator[tuple[Path, Recipe | LeftOut]]:
    """Every run folder below ``root``, at any depth, with its recipe, or the reason why it cannot be read."""
    closed: list[OSError] = []
    for place, folders, files in walked(root, onerror=closed.append):
        folders.sort()
        if "recipe.yaml" not in files:
            if last_words(Path(place)) is not None and claimant(Path(place)) is None:
                yield Path(place), LeftOut(Path(place), f"it failed before it trained{_log_ends(Path(place))}")
            continue
        try:
            recipe = read_recipe(Path(place))
        except RunFolderError as error:
            yield Path(place), LeftOut(Path(place), str(error))
            continue
        if recipe is not None:
            folders[:] = [name for name in folders if name not in OF_A_RUN]  # another run may be inside it
            yield Path(place), recipe
    for refusal in closed:
        folder = Path(refusal.filename)
        yield folder, LeftOut(folder, f"it cannot be read ({refusal.strerror})")


def read_runs(root: Path) -> tuple[list[Run], list[LeftOut]]:
    """The finished runs below a folder, and the run folders that cannot be used."""
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
        LeftOut: The run is not finished, it diverged, or its files are damaged.

    """
    task = task_report(recipe.task)
    files = RunFolder(folder, recipe)
    try:
        result = files.result()
    except RunFolderError as error:
        raise LeftOut(folder, f"its result.json is damaged ({error.__cause__})") from error
    if result is None:
        by = claimant(folder)
        raise LeftOut(
            folder, f"it is being run by {by}" if by else f"it has begun, but not finished{_log_ends(folder)}"
        )
    if result.get("diverged") or not all(_is_finite(value) for value in result["metrics"].values()):
        raise LeftOut(folder, f"it diverged: {result.get('divergence') or 'its numbers are not finite'}")
    try:
        predictions = read_tensors(files.predictions_file)
        held_out = {name.removeprefix(HELD_OUT): one for name, one in predictions.items() if name.startswith(HELD_OUT)}
        test = {name: one for name, one in predictions.items() if not name.startswith(HELD_OUT)}
        parts = {"test": _scores(task, test, result["metrics"], result)}
        if held_out:
            parts["validation"] = _scores(task, held_out, result["validation"], result)
        diverged = [
            metric.name
            for metric in task.metrics
            if not all(math.isfinite(scores.values[metric.key]) for scores in parts.values())
        ]
        if diverged:
            raise LeftOut(folder, f"its {diverged[0]} is not finite: the run diverged")
        return Run(folder, recipe, result, _lines(files.metrics_file), parts, "validation" if held_out else "test")
    except FileNotFoundError as error:
        raise LeftOut(folder, "its predictions.safetensors is missing") from error
    except KeyError as error:
        raise LeftOut(folder, f"{error} is missing from its files") from error
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError) as error:
        raise LeftOut(folder, f"its files cannot be used: {' '.join(str(error).split())}") from error


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)  # in strict JSON, non-finite numbers are null


def _log_ends(folder: Path) -> str:
    words = last_words(folder)
    return f"; its log.txt ends with: {words}" if words else ""


def _scores(
    task: TaskReport, predictions: Predictions, metrics: Mapping[str, float], result: Mapping[str, Any]
) -> Scores:
    values = {
        metric.key: float(metrics[metric.key]) if metric.compute is None else metric.compute(predictions)
        for metric in task.metrics
    }
    values[STEP_TIME.key] = float(result["train_seconds"]) / int(result["steps"])
    return Scores(
        values,
        task.bins(predictions),
        task.temperature(predictions) if task.temperature else None,
        task.labels(predictions) if task.labels else None,
        task.has_learnt(predictions) if task.has_learnt else True,
    )


def _lines(file: Path) -> list[dict[str, float]]:
    """The complete lines of ``metrics.jsonl``. A truncated line is ignored."""
    lines = []
    try:
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if isinstance(line, dict) and "batch" in line:
                lines.append({key: value for key, value in line.items() if value is not None})
    except (OSError, ValueError):
        pass
    return lines
