"""Distillation, a Composer Algorithm: a student learns from a teacher's probabilities."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.models import ComposerModel, HuggingFaceModel
from composer.utils import batch_get, ensure_tuple
from torch import Tensor, nn

from composer_ls.batch_copy import copied
from composer_ls.composition.conflicts import loss_function_of
from composer_ls.composition.mixers import is_smoother
from composer_ls.diagnostics.teaching import check_classes, check_distillation, counted_positions, teacher_cross_entropy
from composer_ls.errors import TargetError, TeacherError
from composer_ls.targets import SoftTargets

__all__ = ["Distillation"]

log = logging.getLogger(__name__)

Key = str | int | Callable[..., Any]
OF_LOGITS = ("logits", "out")
"""Names of the logits in outputs with several entries: in transformers and in torchvision's segmentation networks."""


class Distillation(Algorithm):
    r"""Train on :math:`(1-\beta)\,H(y,p) + \beta\,H(p^{\text{teacher}}(T),\,p^{\text{student}}(T))`.

    The teacher runs in evaluation mode without gradients, also if it is a part of the student, on exactly the input of
    the student, after MixUp, CutMix and all augmentation. The first part is the usual loss, of plain or of smoothed and
    mixed labels. Positions with an ignored label, such as padding and void pixels, do not count in the teacher's part
    either. The position in the list of algorithms does not matter.

    The logits are found automatically in the outputs of both networks: the output itself if it is a tensor, an entry
    named ``logits``, or the only tensor of a tuple that can be logits. The class dimension is found from the labels'
    shape and the model's number of classes. If either is ambiguous, the first batch raises an error that names the
    argument to set.

    Args:
        teacher: A network that maps the same inputs to logits of the same classes, with its weights loaded.
        temperature: T, by which the teacher's logits are divided.
        weight: β in [0, 1], the weight of the teacher's part; the usual loss has weight 1 - β.
        student_temperature: T of the student in the teacher's part. ``None``: that of the teacher. The gradient of this
            part then shrinks as 1/T²; no factor T² is added.
        input_key: Where the inputs are in the batch: an index, a key or a getter. Not used for a teacher that is a
            ComposerModel, which gets the whole batch.
        output_key: Where the logits are in the networks' outputs if these are not tensors: an index, a key, an
            attribute's name, or a getter, which is applied to tensors too. ``None``: found automatically.
        target_key: Where the labels are in the batch: an index, a key or a getter. ``None``: ``"labels"`` of a mapping,
            or the second entry of a tuple.
        ignore_index: The label of positions that do not count, besides labels that are of no class and the
            ``ignore_index`` of the model's loss. ``None``: all positions count, and labels are not needed.
        class_dim: The class dimension of the logits, 1 or -1. ``None``: found automatically.
        shift_labels: Whether the label at each position belongs to the logits of the position before it, as in causal
            language models. ``None``: as a HuggingFaceModel says, and False for other models.

    Raises:
        TypeError: ``teacher`` is not a module. During training: the output has no logits, or several candidates.
        DiagnosticsError: A temperature is not positive, or the weight is outside [0, 1]. During training: the logits of
            teacher and student differ in shape.
        ValueError: ``class_dim`` is 0.
        TargetError: During training: the labels are not found or do not fit the logits, a row contains several labels,
            or the class dimension is ambiguous.
        TeacherError: When training starts: the teacher is the student itself, or the student has no logits
            (``logits="never"``).

    Note:
        The teacher is not part of the student: it is neither in checkpoints nor in the optimizer. Classes must be
        mutually exclusive. If every label is ignored, the teacher's part is 0.

    Example:
        >>> import torch
        >>> from composer_ls import Distillation
        >>> teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> algorithms = [Distillation(teacher, temperature=4, weight=0.9)]  # for Trainer(algorithms=...)

    References:
        Hinton, Vinyals, Dean, 2015, https://arxiv.org/abs/1503.02531; Müller et al., 2019,
        https://arxiv.org/abs/1906.02629, section 4.

    """

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float = 1.0,
        weight: float = 0.5,
        student_temperature: float | None = None,
        input_key: Key = 0,
        output_key: Key | None = None,
        target_key: Key | None = None,
        ignore_index: int | None = -100,
        class_dim: int | None = None,
        shift_labels: bool | None = None,
    ) -> None:
        check_distillation(weight, temperature, student_temperature)
        if not isinstance(teacher, nn.Module):
            raise TypeError(
                f"teacher must be a network, but is {type(teacher).__name__}: give a module with its weights loaded; "
                f"load_teacher(PATH).module is the one of a run folder or a checkpoint"
            )
        self.teacher = teacher
        self.name = type(teacher).__name__
        self.temperature = temperature
        self.weight = weight
        self.student_temperature = student_temperature
        self.input_key = input_key
        self.output_key = output_key
        self.target_key = target_key
        self.ignore_index = ignore_index
        if class_dim == 0:
            raise ValueError("class_dim must be 1 or -1, but is 0, the dimension of examples")
        self.class_dim = class_dim
        self.shift_labels = shift_labels
        self._classes_last: bool | None = None  # once a batch has shown it
        self._checked = False  # whether the first rows were
        self._taught: Tensor | None = None  # the teacher's logits of this microbatch
        self._target: Any = None  # what the loss is given for it

    def __repr__(self) -> str:
        """The constructor call, which Composer stores in checkpoints."""
        return (
            f"Distillation(teacher={self.name!r}, temperature={self.temperature!r}, weight={self.weight!r}, "
            f"student_temperature={self.student_temperature!r})"
        )

    @property
    def in_words(self) -> str:
        """A description for :func:`composer_ls.composition.describe`."""
        return f"teacher {self.name} at temperature {self.temperature:g} counts {self.weight:g}, the loss {1 - self.weight:g}"

    def match(self, event: Event, state: State) -> bool:
        """Run when the Trainer is created, when training starts, and in every step unless the weight is 0."""
        in_step = event in (Event.BEFORE_FORWARD, Event.BEFORE_LOSS, Event.BEFORE_BACKWARD)
        return event in (Event.INIT, Event.FIT_START) or (in_step and self.weight > 0)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Run the step for ``event``: set up, run the teacher, note the target, or mix the losses."""
        if event == Event.BEFORE_FORWARD:  # before the student can change its input in place
            self._taught = self._ask(state)
        elif event == Event.BEFORE_LOSS:
            self._target = self._find_target(state.batch)
        elif event == Event.BEFORE_BACKWARD:
            state.loss = self._mixed(state)
            self._taught = self._target = None
        else:
            # After mixers that interpolate losses, because their result is part of the usual loss.
            state.algorithms = [*(other for other in state.algorithms if other is not self), self]
            if event == Event.FIT_START:
                self._start(state)

    def _start(self, state: State) -> None:
        student = _unwrapped(state)
        if self.teacher is student or self.teacher is getattr(student, "module", None):
            raise TeacherError("the teacher is the student itself: give Distillation a copy, as copy.deepcopy(model)")
        never = [one for one in state.algorithms if is_smoother(one) and getattr(one, "logits", None) == "never"]
        if never and self.weight > 0:
            raise TeacherError(
                f"{type(never[0]).__name__}(logits='never') trains without the student's logits, which Distillation compares with "
                f"the teacher's: drop logits='never', or take Distillation out of algorithms"
            )
        state.device.module_to_device(self.teacher)
        self.teacher.eval()
        self._classes_last = None
        self._checked = False
        self._taught = self._target = None
        log.info("distillation: %s", self.in_words)

    def _ask(self, state: State) -> Tensor:
        """The teacher's logits for the student's input, of which it gets a copy, because it may work in place."""
        if isinstance(self.teacher, ComposerModel):
            inputs = state.batch
        else:
            try:
                inputs = batch_get(state.batch, self.input_key)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise TeacherError(
                    f"there is nothing at input_key={self.input_key!r} in the batch, {_contents(state.batch)}: give "
                    f"Distillation the input_key of the teacher's input, or a teacher that takes whole batches, such as "
                    f"HuggingFaceModel(teacher)"
                ) from error
        precision = get_precision_context(state.precision, state.precision_config)
        with _evaluated(self.teacher), torch.no_grad(), precision:
            return self._logits(self.teacher(copied(inputs)), "teacher")

    def _mixed(self, state: State) -> Any:
        assert self._taught is not None
        student = self._logits(state.outputs, "student")
        model = _unwrapped(state)
        dim = self._dim_of_classes(student, self._target, model)
        check_classes(student, dim)
        counted = None
        if self.ignore_index is not None:
            counted = self._counted(student, self._target, dim, model)
        taught = teacher_cross_entropy(
            student.movedim(dim, 1),
            self._taught.movedim(dim, 1) if self._taught.ndim == student.ndim else self._taught,
            self.temperature,
            self.student_temperature,
            counted,
        )
        loss = state.loss
        whole = isinstance(loss, dict) and "total" in loss  # the Trainer calls backward() on "total" only
        if self.weight == 1:  # leaves out the usual loss, which is NaN if every label is ignored
            return loss | {"total": taught} if whole else taught
        if whole:
            return loss | {"total": (1 - self.weight) * loss["total"] + self.weight * taught}
        parts = loss.values() if isinstance(loss, dict) else ensure_tuple(loss)
        return (1 - self.weight) * sum(part.mean() for part in parts) + self.weight * taught

    def _check_rows(self, rows: Tensor, dim: int) -> None:
        """Refuse several labels per example. On a GPU only the first rows are read, because it would wait for each reading."""
        if not self._checked or (rows.device.type == "cpu" and not isinstance(rows, SoftTargets)):
            self._checked = True
            sums = (rows.dense() if isinstance(rows, SoftTargets) else rows).sum(dim)
            if bool((sums > 1.01).any()):
                raise TargetError(
                    f"a row of the target sums to {sums.max().item():g}, but Distillation is for mutually exclusive classes, "
                    f"whose rows sum to 1: several labels per example need another distillation loss"
                )

    def _logits(self, outputs: Any, whose: str) -> Tensor:
        if self.output_key is not None and (callable(self.output_key) or not isinstance(outputs, Tensor)):
            try:
                outputs = batch_get(outputs, self.output_key)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise TypeError(
                    f"the {whose}'s output, {_contents(outputs)}, has nothing at output_key={self.output_key!r}: give an "
                    f"output_key that leads to the logits in both networks' outputs"
                ) from error
            found = [outputs] if isinstance(outputs, Tensor) else []
        else:
            found = _possible_logits(outputs)
        if len(found) != 1:
            several = (
                f"several tensors that could be logits, {[tuple(t.shape) for t in found]}" if found else "no logits"
            )
            key = "'logits'" if isinstance(outputs, Mapping) or not isinstance(outputs, Sequence) else 1
            raise TypeError(
                f"the {whose}'s output is {_contents(outputs)} with {several}, but Distillation needs one tensor of logits: "
                f"give it an output_key that leads there in both networks' outputs, such as output_key={key}"
            )
        return found[0]

    def _find_target(self, batch: Any) -> Any:
        """The labels, or the rows made from them by smoothing and mixing; ``None`` if there are none."""
        if self.target_key is not None:
            try:
                return batch_get(batch, self.target_key)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise TargetError(
                    f"there is nothing at target_key={self.target_key!r} in the batch, {_contents(batch)}: give "
                    f"Distillation another target_key, or ignore_index=None to let all positions count"
                ) from error
        if isinstance(batch, Mapping):
            return batch.get("labels")
        return batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None

    def _dim_of_classes(self, logits: Tensor, target: Any, model: nn.Module) -> int:
        """The class dimension, from all available information, including what earlier batches have shown."""
        if self.class_dim is not None:
            return self.class_dim
        if logits.ndim < 3:
            return logits.ndim - 1
        last = logits.ndim - 1
        possible = {1, last}
        if isinstance(target, Tensor) and not target.is_floating_point():
            possible &= {d for d in possible if _fits(target, logits.shape[:d] + logits.shape[d + 1 :])} or possible
        of_transformers = isinstance(model, HuggingFaceModel)
        if len(possible) == 2 or not of_transformers:  # transformers' configs contain other class numbers too
            numbers = _numbers_of_classes(model)
            possible &= {d for d in (1, last) if logits.shape[d] in numbers} or possible
        if self._classes_last is not None:
            possible &= {last if self._classes_last else 1}
        elif len(possible) == 2 and of_transformers and logits.ndim == 3:
            possible = {last}  # as in all sequence models of transformers
        if len(possible) != 1:
            shape = tuple(target.shape) if isinstance(target, Tensor) else None
            reason = (
                "either dimension 1 or the last could hold" if possible else "its parts contradict each other about"
            )
            raise TargetError(
                f"the logits have shape {tuple(logits.shape)} and the labels {shape}: {reason} the classes; give "
                f"Distillation class_dim=1 for logits (N, K, ...) or class_dim=-1 for logits (N, ..., K)"
            )
        (dim,) = possible
        self._classes_last = dim == last
        return dim

    def _counted(self, logits: Tensor, target: Any, dim: int, model: nn.Module) -> Tensor:
        """Which positions count, bool ``(N, *spatial)``."""
        assert self.ignore_index is not None
        moved = logits.movedim(dim, 1)
        positions = moved.shape[:1] + moved.shape[2:]
        if isinstance(target, Tensor) and target.is_floating_point() and target.shape == logits.shape:
            self._check_rows(target, dim)
            return counted_positions(target if moved.shape == logits.shape else target.movedim(dim, 1), moved)
        if not isinstance(target, Tensor) or target.is_floating_point() or not _fits(target, positions):
            what = f"{tuple(target.shape)} of {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
            raise TargetError(
                f"Distillation needs the labels, to know which positions are ignored: for logits {tuple(logits.shape)} they "
                f"must be integers {tuple(positions)}, but are {what}; give it the target_key of such labels, or "
                f"ignore_index=None to let all positions count"
            )
        labels = target.reshape(positions).to(logits.device, torch.long)
        shift = self.shift_labels
        if shift is None:
            shift = isinstance(model, HuggingFaceModel) and bool(model.shift_labels) and labels.ndim == 2
        if shift:
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], self.ignore_index)], 1)
        counted = counted_positions(labels, moved, self.ignore_index) & (labels >= 0) & (labels < moved.shape[1])
        of_loss = _ignored_by(loss_function_of(model))
        return counted if of_loss is None else counted & (labels != of_loss)


def _ignored_by(loss: Any) -> Any:
    """The ``ignore_index`` of a loss function, or of a ``functools.partial`` of one; ``None`` if it has none."""
    if isinstance(loss, functools.partial):
        return loss.keywords["ignore_index"] if "ignore_index" in loss.keywords else _ignored_by(loss.func)
    return getattr(loss, "ignore_index", None)


@contextlib.contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, as long as it lasts.

    The Trainer puts a teacher that is a part of the student in training mode with it, and so must it be for the student, which
    may share layers with it.
    """
    training = [module for module in network.modules() if module.training]
    if training:
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _possible_logits(outputs: Any) -> list[Tensor]:
    """The output itself if it is a tensor, the entry named logits, or else all tensors that could be logits."""
    if isinstance(outputs, Tensor):
        return [outputs]
    for name in OF_LOGITS:
        value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(value, Tensor):
            return [value]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, Sequence) else ()
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1]


def _fits(labels: Tensor, positions: Sequence[int]) -> bool:
    """Whether there is one label per position, not counting dimensions of size 1, as in labels ``(N, 1)``."""
    return [size for size in labels.shape if size != 1] == [size for size in positions if size != 1]


def _numbers_of_classes(model: nn.Module) -> set[int]:
    """The numbers of classes that the student declares."""
    config = getattr(getattr(model, "model", None), "config", None)
    told = [getattr(model, "num_classes", None), *(getattr(config, key, None) for key in ("vocab_size", "num_labels"))]
    return {number for number in told if isinstance(number, int)}


def _contents(value: Any) -> str:
    """A description of a batch or an output for error messages."""
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with the keys {', '.join(map(str, value))}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__


def _unwrapped(state: State) -> nn.Module:
    model = state.model
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
