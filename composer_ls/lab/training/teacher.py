"""A finished run's network, to learn from."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.core import Algorithm
from torch import Tensor, nn

from composer_ls.distillation import Distillation
from composer_ls.errors import TeacherError
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.tasks.registry import task_class

__all__ = ["DistillationFromRun", "Teacher", "check_teachers", "load_teacher"]


@dataclass(frozen=True)
class Teacher:
    """A network with the weights that training left.

    Attributes:
        module: From images to logits, in evaluation mode.
        smoothing: What it was trained with; ``None`` if nobody knows.
        classes: The names of its classes; ``None`` if nobody knows.
        image_shape: (C, H, W) of its images; ``None`` if nobody knows.

    """

    module: nn.Module
    smoothing: float | None = None
    classes: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] | None = None


def load_teacher(source: str | Path, architecture: nn.Module | None = None) -> Teacher:
    """The network of a run folder or of a Composer checkpoint.

    A checkpoint is a pickle, which can run code when it is read: use your own, or those of people you trust.

    Args:
        source: A run folder, or a checkpoint's file.
        architecture: A network into which a checkpoint's weights fit. A run folder's recipe tells its own, and so does
            one around a checkpoint.

    Raises:
        TeacherError: There is no such folder or file; the run is not finished or did not keep its checkpoint; the
            weights do not fit the network. The message says what to do.

    """
    path = Path(source).expanduser()
    if not path.exists():
        raise TeacherError(f"there is no teacher at {path.absolute()}: give a run folder or a checkpoint's file")
    run, checkpoint = path, path / "checkpoints" / "latest-rank0.pt"
    if path.is_file():
        run, checkpoint = path.parent.parent, path
        if architecture is not None or not (run / "result.json").is_file():
            return Teacher(_with_weights(_given(architecture, path), checkpoint))
    result = _result(run)
    recipe = load_recipe(run / "recipe.yaml")
    with torch.random.fork_rng([]):  # the student's first weights are those that it would have without a teacher
        module = task_class(recipe.task).teacher(recipe, result)
    if module is None:
        raise TeacherError(f"the run in {run} is for {recipe.task}, but a teacher is a classifier: give another run")
    if not checkpoint.is_file():
        raise TeacherError(
            f"the run in {run} did not keep its checkpoint, so that there are no weights to teach with: train it again, "
            f"with composer-ls train {run / 'recipe.yaml'} checkpoints.keep=true --out {run} --overwrite"
        )
    image_shape, classes = tuple(result["image_shape"]), tuple(result["classes"])
    return Teacher(_with_weights(module, checkpoint), float(result["smoothing"]), classes, image_shape)


class DistillationFromRun(Distillation):
    """The :class:`~composer_ls.Distillation` that a recipe names: its teacher is a finished run.

    Args:
        teacher: A run folder that ``composer-ls train`` left with ``checkpoints.keep=true``, or a checkpoint's file in
            one. Files are pickles: use trusted ones.
        temperature: As for Distillation.
        weight: As for Distillation.
        student_temperature: As for Distillation.

    Raises:
        DiagnosticsError: As Distillation.
        TeacherError: As :func:`load_teacher`.

    Warns:
        UserWarning: The teacher was trained with label smoothing, which erases what it could teach.

    """

    def __init__(
        self,
        teacher: str | Path,
        temperature: float = 1.0,
        weight: float = 0.5,
        student_temperature: float | None = None,
    ) -> None:
        if not isinstance(teacher, (str, Path)):
            raise TypeError(
                f"teacher must be the path of a run folder or a checkpoint, but is {type(teacher).__name__}"
            )
        self.run = load_teacher(teacher)
        super().__init__(self.run.module, temperature, weight, student_temperature)
        self.name = str(teacher)
        if self.run.smoothing and weight:
            warnings.warn(_smoothed_teacher(self.name, self.run.smoothing), stacklevel=2)

    def check_data(self, classes: Sequence[str], image_shape: Sequence[int]) -> None:
        """Refuse a student's data that the teacher was not trained for.

        Raises:
            TeacherError: Other classes, or images of another shape.

        """
        own = self.run
        if own.classes is not None and own.classes != tuple(classes):
            raise TeacherError(
                f"the teacher in {self.name} tells {_listed(own.classes)} apart, but the student's classes are "
                f"{_listed(classes)}: give a teacher that was trained on the student's classes"
            )
        if own.image_shape is not None and own.image_shape != tuple(image_shape):
            raise TeacherError(
                f"the teacher in {self.name} takes images of shape {own.image_shape}, but the student's are "
                f"{tuple(image_shape)}: give a teacher that was trained on images of that shape"
            )


def check_teachers(algorithms: Sequence[Algorithm], facts: Mapping[str, Any]) -> None:
    """Refuse a teacher that was not trained for a task's classes and images.

    Args:
        algorithms: Of the student's run.
        facts: Of its task; see :class:`~composer_ls.lab.tasks.task.Task`.

    Raises:
        TeacherError: Other classes, or images of another shape.

    """
    for algorithm in algorithms:
        if isinstance(algorithm, DistillationFromRun) and "classes" in facts and "image_shape" in facts:
            algorithm.check_data(facts["classes"], facts["image_shape"])


def _smoothed_teacher(name: str, smoothing: float) -> str:
    return (
        f"the teacher in {name} was trained with smoothing {smoothing:g}, which erases the likeness of classes that a "
        f"student learns from: Müller et al. (2019, section 4) found that a teacher on MNIST got better with smoothing, "
        f"from 0.67 to 0.59 % errors, and its student worse, from 0.74 to 0.91 %, and that on CIFAR-10 no student of a smoothed "
        f"teacher was better than a student trained without one; train the teacher with "
        f"algorithms.label_smoothing.smoothing=0"
    )


def _listed(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''} ({len(classes)})"


def _given(architecture: nn.Module | None, path: Path) -> nn.Module:
    if architecture is None:
        raise TeacherError(
            f"{path} lies in no run folder, so that nobody knows which network its weights belong to: give "
            f"architecture=MODULE, or a run folder as the teacher"
        )
    return architecture


def _result(run: Path) -> dict[str, Any]:
    file = run / "result.json"
    if not file.is_file():
        raise TeacherError(
            f"{run} holds no finished run (there is no result.json): finish it with composer-ls train "
            f"{run / 'recipe.yaml'} --out {run}, or give another run folder"
        )
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return {key: result[key] for key in ("smoothing", "classes", "image_shape")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TeacherError(
            f"{file} does not tell what the teacher is ({error!r}): it is damaged, or an older version wrote it; train "
            f"the teacher again"
        ) from error


def _with_weights(module: nn.Module, checkpoint: Path) -> nn.Module:
    try:
        weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["state"]["model"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, IndexError) as error:
        raise TeacherError(
            f"{checkpoint} is not a checkpoint of Composer's Trainer ({error!r}): give another"
        ) from error
    try:
        module.load_state_dict(_matching(weights, module))
    except RuntimeError as error:
        raise TeacherError(
            f"the weights in {checkpoint} do not fit the network {type(module).__name__} "
            f"({' '.join(str(error).split())[:300]}): algorithms that rebuild a network, such as blurpool, must not be in "
            f"a teacher's recipe; give Distillation the network itself instead"
        ) from error
    return module.eval()


def _matching(weights: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights by the module's own names: a ComposerClassifier puts ``module.`` before those of its network."""
    own = module.state_dict().keys()
    stripped = {name.removeprefix("module."): value for name, value in weights.items()}
    return stripped if stripped.keys() == own else weights
