"""Distillation: a student that learns from a teacher's probabilities, as a Composer Algorithm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.utils import batch_get, ensure_tuple
from torch import Tensor, nn

from composer_ls.diagnostics.teaching import check_distillation, teacher_cross_entropy
from composer_ls.errors import TeacherError

__all__ = ["Distillation"]

log = logging.getLogger(__name__)


class Distillation(Algorithm):
    r"""Train on :math:`(1-\beta)\,H(y,p) + \beta\,H(p^{\text{teacher}}(T),\,p^{\text{student}}(T))`.

    The teacher is in evaluation mode, gets no gradient and sees the very input that the student saw, after MixUp,
    CutMix and every augmentation. The first part is whatever the loss is without this: of labels, or of smoothed and
    mixed ones. Where this stands in the list of algorithms does not matter.

    Args:
        teacher: A network from the same inputs to logits of the same classes, with its weights loaded.
        temperature: T, by which the teacher's logits are divided.
        weight: β in [0, 1], how much the teacher counts; the loss counts 1 - β.
        student_temperature: T of the student in the teacher's part. ``None``: as the teacher's. The gradient of that
            part shrinks as 1/T² then, and no factor T² is added.
        input_key: Where the inputs are in the batch: an index, a key or a getter. For a teacher that is a ComposerModel, which
            gets the whole batch, it is not used.
        output_key: Where the logits are in both networks' outputs. ``None``: the outputs are the logits.

    Raises:
        DiagnosticsError: A temperature that is not positive, or a weight outside [0, 1]. During training: the teacher's
            logits have another shape than the student's.
        TypeError: ``teacher`` is not a module.
        TeacherError: When training starts: the teacher is the student itself.

    Note:
        The teacher is no part of the student: neither its checkpoints nor its optimizer know of it. Labels that the
        loss ignores count in the teacher's part.

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
        input_key: str | int | Callable[..., Any] = 0,
        output_key: str | int | Callable[..., Any] | None = None,
    ) -> None:
        check_distillation(weight, temperature, student_temperature)
        if not isinstance(teacher, nn.Module):
            raise TypeError(
                f"teacher must be a network, but is {type(teacher).__name__}: give a module with its weights loaded; "
                f"load_teacher(PATH).module is that of a run folder or a checkpoint"
            )
        self.teacher = teacher
        self.name = type(teacher).__name__
        self.temperature = temperature
        self.weight = weight
        self.student_temperature = student_temperature
        self.input_key = input_key
        self.output_key = output_key

    def __repr__(self) -> str:
        """The call that makes it, which Composer stores in checkpoints."""
        return (
            f"Distillation(teacher={self.name!r}, temperature={self.temperature!r}, weight={self.weight!r}, "
            f"student_temperature={self.student_temperature!r})"
        )

    @property
    def in_words(self) -> str:
        """What it does, for :func:`composer_ls.composition.describe`."""
        return f"teacher {self.name} at temperature {self.temperature:g} counts {self.weight:g}, the loss {1 - self.weight:g}"

    def match(self, event: Event, state: State) -> bool:
        """Run when the Trainer is made, when training starts, and on every loss."""
        return event in (Event.INIT, Event.FIT_START, Event.BEFORE_BACKWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Take the last place, get ready, or mix the teacher into the loss."""
        if event == Event.BEFORE_BACKWARD:
            state.loss = self._mixed(state)
            return
        # After mixers that interpolate losses: these count as part of the loss.
        state.algorithms = [*(other for other in state.algorithms if other is not self), self]
        if event == Event.FIT_START:
            self._start(state)

    def _start(self, state: State) -> None:
        module = self.teacher
        student = getattr(state.model, "module", None)
        if module is state.model or module is student:
            raise TeacherError("the teacher is the student itself: give Distillation a copy, as copy.deepcopy(model)")
        state.device.module_to_device(module)
        module.eval()
        log.info("distillation: %s", self.in_words)

    def _mixed(self, state: State) -> Any:
        with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
            module = self.teacher
            whole = isinstance(module, ComposerModel)
            outputs = module(state.batch if whole else batch_get(state.batch, self.input_key))
        taught = teacher_cross_entropy(
            self._logits(state.outputs, "student"),
            self._logits(outputs, "teacher"),
            self.temperature,
            self.student_temperature,
        )
        loss = state.loss
        if isinstance(loss, dict) and "total" in loss:  # the Trainer goes backward from it alone
            return loss | {"total": (1 - self.weight) * loss["total"] + self.weight * taught}
        parts = loss.values() if isinstance(loss, dict) else ensure_tuple(loss)
        return (1 - self.weight) * sum(part.mean() for part in parts) + self.weight * taught

    def _logits(self, outputs: Any, whose: str) -> Tensor:
        logits = outputs if self.output_key is None else batch_get(outputs, self.output_key)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the {whose}'s output is {type(logits).__name__}, but Distillation needs the tensor of logits: give it "
                f"an output_key that leads there in both networks' outputs, such as output_key='logits'"
            )
        return logits
