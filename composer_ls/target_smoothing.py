"""What Algorithms that smooth targets share: composition, restoring and conflicts. A subclass says how a target is smoothed."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.loss import soft_cross_entropy
from composer.utils import dist
from torch import Tensor

from composer_ls.composition.batches import DEFAULT_KEY, NO_LABEL, as_tensor, form_of, may_have_targets
from composer_ls.composition.choosing import BINARY_FOR_CLASSES, OWN_LOSS, Way, choose
from composer_ls.composition.conflicts import (
    Conflict,
    DoubleSmoothingError,
    conflicts_in_data,
    conflicts_in_model,
    conflicts_with_algorithms,
    kind_of_loss,
    loss_function_of,
    warn_if_smoothed,
)
from composer_ls.composition.mixers import check_mixers, is_smoother, refuse_mixers
from composer_ls.composition.own_loss import makes_its_loss
from composer_ls.composition.plan import describe, place, unwrapped
from composer_ls.composition.targets_in_batch import TargetsInBatch, Untouched, holds_loss
from composer_ls.errors import TargetError
from composer_ls.losses import cross_entropy

__all__ = ["Factor", "TargetSmoothing", "check_choice", "log"]

Factor = float | Tensor
"""A smoothing factor or strength as it is used in a step: one number, or one per class ``(K,)``."""

log = logging.getLogger("composer.composer_ls")  # shown when Trainer(python_log_level=...) shows Composer's own lines


MOST_FORMS = 8
"""For how many forms of batches a model is asked what its loss is."""
OTHER_FORM = (
    "a batch has another form than those for which {name} asked the model what its loss is, and is treated as the first one. It "
    f"asks about at most {MOST_FORMS} forms, and with several processes about one, since all of them would have to ask: give every "
    "batch the same keys, dimensions and dtypes. This is told once"
)
UNTOUCHED = (
    "{name} changes nothing in batches that have no targets at target_key={key!r}, or whose loss computes no cross entropy of "
    "labels, where earlier ones do. This is told once"
)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise a ValueError unless an argument has one of its values."""
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, but is {value!r}")


def _in_all_processes(true: bool, state: State) -> bool:
    """Whether something is true in all of them, which must then do the same: asking runs a model that may be spread over them."""
    if dist.get_world_size() == 1:
        return true
    everywhere = state.device.tensor_to_device(torch.tensor([int(true)]))
    dist.all_reduce(everywhere, reduce_operation="MIN")
    return bool(everywhere.item())


class TargetSmoothing(Algorithm):
    """Replaces the targets just before the loss and restores them right after it, alongside other algorithms.

    A subclass implements :meth:`_smooth`, :meth:`_factor_at` and :meth:`in_words_over`, and calls this ``__init__``.

    Args:
        target_key: As for :class:`~composer_ls.LabelSmoothing`.
        ignore_index: As for :class:`~composer_ls.LabelSmoothing`.
        on_conflict: As for :class:`~composer_ls.LabelSmoothing`.
        output_key: As for :class:`~composer_ls.LabelSmoothing`.

    """

    kind: str = "multiclass"
    logits: str = "kept"
    reads_logits: bool = False
    """Whether what is done to the targets depends on the logits' values."""
    has_one_table: bool = False
    """Whether there is a table over the classes, which is of the labels at one place in the batch."""
    smooths: bool = True
    """Whether this has any effect. If not, nothing conflicts with it."""
    ARGUMENT: ClassVar[str] = "smoothing"
    """The argument that says how much is smoothed."""
    METRIC: ClassVar[str] = "label_smoothing/smoothing"
    """The name under which the factor in use is logged."""

    def __init__(
        self,
        target_key: Any = DEFAULT_KEY,
        ignore_index: int | None = -100,
        on_conflict: str = "raise",
        output_key: str | int | Callable[..., Any] | None = None,
    ) -> None:
        check_choice("on_conflict", on_conflict, ("raise", "warn"))
        if type(ignore_index) not in (int, type(None)):
            raise TypeError(f"ignore_index must be an integer, or None to ignore no label, but is {ignore_index!r}")
        self.target_key = target_key
        self.ignore_index = ignore_index
        self.on_conflict = on_conflict
        self.output_key = output_key
        self.factor: Factor | None = None
        self._replaced_loss: tuple[Any, Any] | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget what was found out about a model and its batches."""
        self.way: Way = TargetsInBatch(self)
        self._ways: dict[Any, Way] = {}  # by the form of the batch, for those about which the model was asked
        self._asked = self._announced = self._had_targets = self._validated = False
        self._told: set[str] = set()

    @abstractmethod
    def _smooth(self, logits: Tensor, target: Tensor, ignore_index: int, validate: bool | None) -> Tensor:
        """The smoothed target, by ``self.factor``."""

    @abstractmethod
    def _factor_at(self, state: State) -> Factor:
        """The factor of this step."""

    @abstractmethod
    def in_words_over(self, classes: int | None, of: str) -> str:
        """What is done to the targets, for :func:`composer_ls.composition.describe`.

        Args:
            classes: K, if it is known.
            of: Words that say which targets, if there are several; else empty.

        """

    def match(self, event: Event, state: State) -> bool:
        """Whether ``event`` is in the table of steps."""
        return event in self._STEPS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Run the step for ``event``."""
        try:
            self._STEPS[event](self, state, logger)
        except (TypeError, ValueError) as error:
            if type(error) is not DoubleSmoothingError and error.args and isinstance(error.args[0], str):
                error.args = (self._own_words(error.args[0]), *error.args[1:])
            raise

    def _own_words(self, message: str) -> str:
        """An error message of `composer_ls.composition` with the name of this class."""
        return message.replace("LabelSmoothing", type(self).__name__)

    def _settle(self, state: State, logger: Logger) -> None:
        model = unwrapped(state)
        if makes_its_loss(model):
            refuse_mixers(state.algorithms)
        else:
            check_mixers(state.algorithms, self.target_key)
        if self.kind == "binary" and kind_of_loss(model) == "multiclass":
            self.object_to(TargetError(BINARY_FOR_CLASSES))
        state.algorithms = place(state.algorithms, self)
        self._refuse([*conflicts_with_algorithms(state.algorithms, self), *conflicts_in_model(model)])

    def _start(self, state: State, logger: Logger) -> None:
        self._finish(state, logger)  # in case an earlier training was interrupted
        state.algorithms = place(state.algorithms, self)
        self._refuse(conflicts_in_data(state.dataloader))
        model = unwrapped(state)
        if loss_function_of(model) is soft_cross_entropy:
            self._replaced_loss = (model, model._loss_fn)
            model._loss_fn = cross_entropy  # without the dense target, and ignored rows do not count in its mean
        self._begin()
        if self is next(algorithm for algorithm in state.algorithms if is_smoother(algorithm, "composer_ls")):
            self._announce(state, logger)  # once, for all of them

    def _before_step(self, state: State, logger: Logger) -> None:
        self.factor = self._factor_at(state)
        factor = self.factor
        logger.log_metrics({self.METRIC: factor.mean().item() if isinstance(factor, Tensor) else factor})

    def _before_forward(self, state: State, logger: Logger) -> None:
        self.way.put_back(state)  # in case an earlier step was interrupted
        form = form_of(state.batch)
        self.way = self._ways.get(form) or self._way_for(form, state)
        if isinstance(self.way, Untouched):
            self._tell(UNTOUCHED)
        elif self.way.describe() and not self._announced:
            self._announced = True
            self._announce(state, logger)
        self.way.before_forward(state)

    def _way_for(self, form: Any, state: State) -> Way:
        """How smoothed targets reach the loss in batches of a form that is new."""
        has_targets = may_have_targets(state.batch, self.target_key)
        if self._had_targets and not has_targets:
            return Untouched(self)
        if len(self._ways) < (1 if dist.get_world_size() > 1 else MOST_FORMS):
            way, settled = choose(self, state, bool(self._ways))
            if _in_all_processes(settled, state):
                self._ways[form] = way
            self._asked, self._validated = True, False
            self._had_targets |= has_targets
            return way
        first = next(iter(self._ways.values()))
        if not has_targets or type(first) is not TargetsInBatch:  # which suits any form
            self._tell(OTHER_FORM)
        return first

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            warnings.warn(text.format(name=type(self).__name__, key=self.target_key), stacklevel=2)

    def _before_loss(self, state: State, logger: Logger) -> None:
        if not self._asked and holds_loss(state.outputs):
            self.object_to(ValueError(OWN_LOSS))
        if self.factor is None:
            self.factor = self._factor_at(state)
        self.way.before_loss(state)

    def _after_loss(self, state: State, logger: Logger) -> None:
        self.way.after_loss(state)
        self._validated = True

    def _after_backward(self, state: State, logger: Logger) -> None:
        self.way.put_back(state)

    def _finish(self, state: State, logger: Logger) -> None:
        self.way.put_back(state)
        if self._replaced_loss is not None:
            model, loss = self._replaced_loss
            if model._loss_fn is cross_entropy:
                model._loss_fn = loss
            self._replaced_loss = None

    def _end_epoch(self, state: State, logger: Logger) -> None:
        """For subclasses."""

    _STEPS: ClassVar[dict[Event, Callable[[Any, State, Logger], None]]] = {
        Event.INIT: lambda self, *event: self._settle(*event),
        Event.FIT_START: lambda self, *event: self._start(*event),
        Event.BATCH_START: lambda self, *event: self._before_step(*event),
        Event.BEFORE_FORWARD: lambda self, *event: self._before_forward(*event),
        Event.AFTER_FORWARD: lambda self, state, _: self.way.after_forward(state),
        Event.BEFORE_LOSS: lambda self, *event: self._before_loss(*event),
        Event.AFTER_LOSS: lambda self, *event: self._after_loss(*event),
        Event.AFTER_BACKWARD: lambda self, *event: self._after_backward(*event),
        Event.EPOCH_END: lambda self, *event: self._end_epoch(*event),
        Event.FIT_END: lambda self, *event: self._finish(*event),
        Event.EVAL_START: lambda self, state, _: self.way.put_back(state),  # in case a step was interrupted
        Event.EVAL_STANDALONE_START: lambda self, state, _: self.way.put_back(state),
        Event.PREDICT_START: lambda self, state, _: self.way.put_back(state),
    }

    def _announce(self, state: State, logger: Logger) -> None:
        plan = describe(state)
        log.info("label smoothing: %s", plan)
        logger.log_hyperparameters({"label_smoothing_plan": plan})

    def _refuse(self, conflicts: Sequence[Conflict]) -> None:
        if conflicts:
            self.object_to(DoubleSmoothingError(conflicts[0].message(self)))

    def object_to(self, error: ValueError) -> None:
        """Raise the error or issue it as a warning, depending on ``on_conflict``. Does nothing without an effect."""
        if self.smooths and self.on_conflict == "raise":
            raise error
        if self.smooths:
            words = str(error) if isinstance(error, DoubleSmoothingError) else self._own_words(str(error))
            warnings.warn(words, stacklevel=2)

    def smoothed(self, logits: Tensor, target: Any, ignore_index: int | None = None) -> Tensor:
        """The smoothed targets. The values of the first batch's targets are checked."""
        target = as_tensor(target, logits.device)
        if not isinstance(target, Tensor):
            raise TypeError(
                f"the targets at target_key={self.target_key!r} are {type(target).__name__}, but must be one tensor: "
                f"give LabelSmoothing a target_key, or a (getter, setter) pair, that leads to the tensor of targets"
            )
        if not self._validated and self.smooths:
            warn_if_smoothed(target, logits, self.kind, type(self).__name__)
        ignored = self.ignore_index if ignore_index is None else ignore_index
        validate = None if self._validated else True  # None checks values on the CPU only
        return self._smooth(logits, target, NO_LABEL if ignored is None else ignored, validate)
