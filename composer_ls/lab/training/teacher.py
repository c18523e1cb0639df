"""Teachers for distillation: the networks of finished runs."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import Algorithm
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from composer_ls.distillation import Distillation
from composer_ls.errors import TeacherError
from composer_ls.lab.images.preprocessing import Preprocessing
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.tasks.registry import task_class

__all__ = ["DistillationFromRun", "Teacher", "check_teachers", "load_teacher"]


@dataclass(frozen=True)
class Teacher:
    """A trained network.

    Attributes:
        module: Maps images to logits; in evaluation mode.
        smoothing: The smoothing with which it was trained; ``None`` if unknown.
        classes: The names of its classes; ``None`` if unknown.
        image_shape: (C, H, W) of its images; ``None`` if unknown.
        preprocessing: How image files become such images; ``None`` if unknown.

    """

    module: nn.Module
    smoothing: float | None = None
    classes: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None


def load_teacher(source: str | Path, architecture: nn.Module | None = None) -> Teacher:
    """The network of a run folder or of a Composer checkpoint.

    A checkpoint is a pickle, which can run code when it is read: use your own, or those of people you trust.

    Args:
        source: A run folder, or a checkpoint file.
        architecture: A network that the checkpoint's weights fit. Not needed for a run folder or a checkpoint inside
            one, whose recipe names the network.

    Raises:
        TeacherError: There is no such folder or file, the run is not finished, diverged or did not keep its checkpoint, or
            the weights do not fit the network. The message says what to do.

    """
    path = Path(source).expanduser()
    if not path.exists():
        raise TeacherError(f"there is no teacher at {path.absolute()}: give a run folder or a checkpoint file")
    run, checkpoint = path, path / "checkpoints" / "latest-rank0.pt"
    if path.is_file():
        run, checkpoint = path.parent.parent, path
        if architecture is not None or not (run / "result.json").is_file():
            return Teacher(_with_weights(_given(architecture, path), checkpoint))
    result = _result(run)
    if result["diverged"]:
        raise TeacherError(f"the run in {run} diverged, so its network cannot teach: give another run")
    recipe = load_recipe(run / "recipe.yaml")
    with torch.random.fork_rng([]):  # keeps the student's initial weights the same as without a teacher
        module = task_class(recipe.task).teacher(recipe, result)
    if module is None:
        raise TeacherError(f"the run in {run} is for {recipe.task}, but a teacher is a classifier: give another run")
    if not checkpoint.is_file():
        raise TeacherError(
            f"the run in {run} did not keep its checkpoint, so there are no weights to teach with: train it again, "
            f"with composer-ls train {run / 'recipe.yaml'} checkpoints.keep=true --out {run} --overwrite"
        )
    image_shape, classes = tuple(result["image_shape"]), tuple(result["classes"])
    known = result["preprocessing"]
    preprocessing = None if known is None else Preprocessing.from_dict(known)
    return Teacher(_with_weights(module, checkpoint), float(result["smoothing"]), classes, image_shape, preprocessing)


class DistillationFromRun(Distillation):
    """The :class:`~composer_ls.Distillation` of recipes, whose teacher is a finished run.

    Args:
        teacher: A run folder written by ``composer-ls train`` with ``checkpoints.keep=true``, or a checkpoint file in
            one. Checkpoints are pickles: use trusted ones only.
        temperature: As for Distillation.
        weight: As for Distillation.
        student_temperature: As for Distillation.

    Raises:
        DiagnosticsError: As Distillation.
        TeacherError: As :func:`load_teacher`.

    Warns:
        UserWarning: The teacher was trained with label smoothing, which removes information that students learn from.

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
        """Check that the teacher was trained for the student's classes and images.

        Raises:
            TeacherError: The classes or the shape of images differ.

        """
        own = self.run
        if own.classes is not None and own.classes != tuple(classes):
            raise TeacherError(
                f"the classes of the teacher in {self.name} are {_listed(own.classes)}, but the student's are "
                f"{_listed(classes)}: give a teacher that was trained on the student's classes"
            )
        if own.image_shape is not None and own.image_shape != tuple(image_shape):
            raise TeacherError(
                f"the teacher in {self.name} takes images of shape {own.image_shape}, but the student's are "
                f"{tuple(image_shape)}: give a teacher that was trained on images of that shape"
            )

    def adapt_to(self, given: Preprocessing) -> None:
        """Let the teacher take images in the student's normalisation, which is another if only one had pretrained weights."""
        own = self.run.preprocessing
        if own is not None and (own.mean, own.std) != (given.mean, given.std):
            self.teacher = _Renormalised(self.run.module, own, given).eval()


def check_teachers(algorithms: Sequence[Algorithm], facts: Mapping[str, Any]) -> list[str]:
    """Check that teachers were trained for a task's classes and images, and adapt them to the images' normalisation.

    Args:
        algorithms: The algorithms of the student's run.
        facts: The facts of its task; see :class:`~composer_ls.lab.tasks.task.Task`.

    Returns:
        Cautions about teachers that could not be adapted, because the normalisation is known of only one: teacher or student.

    Raises:
        TeacherError: The classes or the shape of images differ.

    """
    cautions = []
    for algorithm in algorithms:
        if isinstance(algorithm, DistillationFromRun) and "classes" in facts and "image_shape" in facts:
            algorithm.check_data(facts["classes"], facts["image_shape"])
            given, known = facts.get("preprocessing"), algorithm.run.preprocessing is not None
            if given is not None:
                algorithm.adapt_to(Preprocessing.from_dict(given))
            if known != (given is not None):
                cautions.append(
                    f"It is not known whether the teacher in {algorithm.name} expects images that are normalised like these: let "
                    f'the function of the {"student" if known else "teacher"}\'s data return "preprocessing" too.'
                )
    return cautions


class _Renormalised(nn.Module):
    """A network whose images are normalised in another way than those that it is given."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, own: Preprocessing, given: Preprocessing) -> None:
        super().__init__()
        self.network = network
        own_mean, own_std, mean, std = (
            torch.tensor(numbers).view(-1, 1, 1) for numbers in (own.mean, own.std, given.mean, given.std)
        )
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in the given normalisation."""
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


def _smoothed_teacher(name: str, smoothing: float) -> str:
    return (
        f"the teacher in {name} was trained with smoothing {smoothing:g}, which removes the information about similar "
        f"classes that a student learns from: Müller et al. (2019, section 4) found that smoothing improved a teacher "
        f"on MNIST from 0.67 to 0.59 % errors but made its student worse, from 0.74 to 0.91 %, and that on CIFAR-10 no "
        f"student of a smoothed teacher was better than a student trained without one; train the teacher with "
        f"algorithms.label_smoothing.smoothing=0"
    )


def _listed(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''} ({len(classes)})"


def _given(architecture: nn.Module | None, path: Path) -> nn.Module:
    if architecture is None:
        raise TeacherError(
            f"{path} is not in a run folder, so it is unknown to which network its weights belong: give "
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
        needed = {key: result[key] for key in ("smoothing", "classes", "image_shape")}
        return needed | {"diverged": result.get("diverged", False), "preprocessing": result.get("preprocessing")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TeacherError(
            f"{file} does not describe the teacher ({error!r}): it is damaged, or was written by an older version; "
            f"train the teacher again"
        ) from error


_IN_CHECKPOINTS: list[Any] = [
    TorchVersion,
    timedelta,
    np.empty(0).__reduce__()[0],
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
]
"""What a checkpoint of Composer's Trainer holds besides tensors. Nothing else is made, so a file cannot run code."""


def _with_weights(module: nn.Module, checkpoint: Path) -> nn.Module:
    try:
        with torch.serialization.safe_globals(_IN_CHECKPOINTS):
            weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state"]["model"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, IndexError) as error:
        raise TeacherError(
            f"{checkpoint} is not a checkpoint of Composer's Trainer ({error!r}): give another"
        ) from error
    try:
        module.load_state_dict(_matching(weights, module))
    except RuntimeError as error:
        raise TeacherError(
            f"the weights in {checkpoint} do not fit the network {type(module).__name__} "
            f"({' '.join(str(error).split())[:300]}): algorithms that rebuild a network, such as blurpool, cannot be in "
            f"a teacher's recipe; give Distillation the network itself instead"
        ) from error
    return module.eval()


def _matching(weights: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The weights under the module's own names, without the prefix ``module.`` that a ComposerClassifier adds."""
    own = module.state_dict().keys()
    stripped = {name.removeprefix("module."): value for name, value in weights.items()}
    return stripped if stripped.keys() == own else weights
