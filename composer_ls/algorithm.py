"""LabelSmoothing, a Composer Algorithm: a thin layer over `smooth_labels` and `composer_ls.composition`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.loss import soft_cross_entropy
from torch import Tensor

from composer_ls.composition.batches import DEFAULT_KEY, NO_LABEL, as_tensor
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
from composer_ls.composition.targets_in_batch import TargetsInBatch, holds_loss
from composer_ls.errors import TargetError
from composer_ls.losses import cross_entropy
from composer_ls.smoothing import as_number, as_prior, check_kind, check_smoothing, smooth_labels

__all__ = ["LabelSmoothing"]

ON_CONFLICT = ("raise", "warn")
LOGITS = ("kept", "never")

log = logging.getLogger("composer.composer_ls")  # shown when Trainer(python_log_level=...) shows Composer's own lines


class LabelSmoothing(Algorithm):
    """Label smoothing for training targets, correct alongside other algorithms that change the targets.

    A drop-in replacement for :class:`composer.algorithms.LabelSmoothing` with the same first arguments. Targets are
    smoothed just before the loss and restored right after it; evaluation is never changed. With MixUp and CutMix, both
    labels of every pair are smoothed, in both of their modes and at any position in the list of algorithms.

    On the first microbatch the model is run once without side effects, to see which PyTorch loss functions it calls and
    with which labels. If the loss uses the labels in a way that distributions do not support (a mask, a shift, a loss
    computed in ``forward()``), the labels stay as they are, and each cross entropy that the model computes from them is
    replaced by the smoothed one. No ``target_key`` is needed then.

    Args:
        smoothing: α in [0, 1], the mass that moves to the prior.
        target_key: Where the targets are in the batch: an index, a key, a path such as ``("outer", "inner")``, a
            getter, or a (getter, setter) pair. In a mapping, ``labels`` or ``targets`` is found without it.
        prior: Where the mass goes: ``None`` for the uniform ``1/K``, a row ``(K,)`` such as
            :func:`~composer_ls.smoothing.unigram_prior` makes, or one row per class ``(K, K)``.
        ignore_index: A label that gets no mass and no gradient; ``None`` to ignore no label.
        spread: ``"all"``, or ``"others"`` to share α among the K - 1 incorrect classes only.
        on_conflict: What to do if something else smooths the targets too: ``"raise"`` or ``"warn"``.
        output_key: Where the logits are in the model's output, as an index, a key, an attribute's name or a getter.
            ``None`` if the output is the logits, or if the loss extracts them itself.
        kind: ``"multiclass"``, or ``"binary"`` if every logit has its own label (multi-label targets) and the loss is
            binary cross entropy; the mass then moves to 1/2.
        logits: ``"kept"``, or ``"never"`` to train a Hugging Face model whose logits come from a plain linear layer
            without computing them, which saves most of the memory of a step at a large vocabulary. Evaluation is not
            changed. The ``logits`` in the output are NaN in training, so training metrics are refused.

    Raises:
        TypeError: ``smoothing`` is not a number. During training: the output or the targets are not a tensor.
        ValueError: An argument is wrong. During training: there are no targets at ``target_key``, they do not fit the
            logits, the logits have one class, or a mixer has another target key.
        TargetError: On the first microbatch: the loss does not fit this ``kind``, or it neither accepts distributions
            nor computes a cross entropy of the labels (a regression, for example).
        DoubleSmoothingError: When training starts, if the loss, another algorithm or the dataloader smooths too.

    Note:
        Under cross entropy without class weights or ignored labels, both modes of MixUp and CutMix give the same loss
        and gradient. With either, PyTorch's mean divides each of the two interpolated losses by the weight of its own
        labels.

        As without smoothing, the mean is over the counted labels of one microbatch, and Composer weights microbatches
        by their number of examples, or of tokens with ``accumulate_train_batch_on_tokens=True``.

    Example:
        >>> from composer.algorithms import MixUp
        >>> from composer_ls import LabelSmoothing
        >>> algorithms = [LabelSmoothing(smoothing=0.1), MixUp(alpha=0.2)]  # for Trainer(algorithms=...)

    References:
        Szegedy et al., 2016, https://arxiv.org/abs/1512.00567; Müller et al., 2019, https://arxiv.org/abs/1906.02629.

    """

    def __init__(
        self,
        smoothing: float = 0.1,
        target_key: Any = DEFAULT_KEY,
        prior: Tensor | Sequence[Any] | None = None,
        ignore_index: int | None = -100,
        spread: str = "all",
        on_conflict: str = "raise",
        output_key: str | int | Callable[..., Any] | None = None,
        kind: str = "multiclass",
        logits: str = "kept",
    ) -> None:
        self.smoothing = as_number(smoothing)
        check_smoothing(self.smoothing, None, spread, prior is not None)
        check_kind(kind, spread, prior is not None)
        for name, value, allowed in (("on_conflict", on_conflict, ON_CONFLICT), ("logits", logits, LOGITS)):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, but is {value!r}")
        if type(ignore_index) not in (int, type(None)):
            raise TypeError(f"ignore_index must be an integer, or None to ignore no label, but is {ignore_index!r}")
        self.target_key = target_key
        self.prior = as_prior(prior)
        self.ignore_index = ignore_index
        self.spread = spread
        self.on_conflict = on_conflict
        self.output_key = output_key
        self.kind = kind
        self.logits = logits
        self.way: Way = TargetsInBatch(self)
        self._asked = self._validated = False
        self._replaced_loss: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        """The constructor call, which Composer stores in checkpoints."""
        prior = None if self.prior is None else f"<{tuple(self.prior.shape)}>"
        return (
            f"LabelSmoothing(smoothing={self.smoothing!r}, target_key={self.target_key!r}, prior={prior}, "
            f"ignore_index={self.ignore_index!r}, spread={self.spread!r}, on_conflict={self.on_conflict!r}, "
            f"output_key={self.output_key!r}, kind={self.kind!r}, logits={self.logits!r})"
        )

    def match(self, event: Event, state: State) -> bool:
        """Whether ``event`` is in the table of steps."""
        return event in self._STEPS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Run the step for ``event``."""
        self._STEPS[event](self, state, logger)

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
            model._loss_fn = cross_entropy  # the same loss, without the dense target
        self.way, self._asked, self._validated = TargetsInBatch(self), False, False
        if self is next(algorithm for algorithm in state.algorithms if is_smoother(algorithm, "composer_ls")):
            self._announce(state, logger)  # once, for all of them

    def _before_forward(self, state: State, logger: Logger) -> None:
        self.way.put_back(state)  # in case an earlier step was interrupted
        if not self._asked:
            self.way = choose(self, state)
            self._asked = True
            if self.way.describe():
                self._announce(state, logger)
        self.way.before_forward(state)

    def _before_loss(self, state: State, logger: Logger) -> None:
        if not self._asked and holds_loss(state.outputs):
            self.object_to(ValueError(OWN_LOSS))
        self.way.before_loss(state)

    def _after_loss(self, state: State, logger: Logger) -> None:
        self.way.after_loss(state)
        self._validated = True

    def _finish(self, state: State, logger: Logger) -> None:
        self.way.put_back(state)
        if self._replaced_loss is not None:
            model, loss = self._replaced_loss
            if model._loss_fn is cross_entropy:
                model._loss_fn = loss
            self._replaced_loss = None

    _STEPS: dict[Event, Callable[[LabelSmoothing, State, Logger], None]] = {
        Event.INIT: _settle,
        Event.FIT_START: _start,
        Event.BEFORE_FORWARD: _before_forward,
        Event.AFTER_FORWARD: lambda self, state, _: self.way.after_forward(state),
        Event.BEFORE_LOSS: _before_loss,
        Event.AFTER_LOSS: _after_loss,
        Event.AFTER_BACKWARD: lambda self, state, _: self.way.put_back(state),
        Event.FIT_END: _finish,
    }

    def _announce(self, state: State, logger: Logger) -> None:
        plan = describe(state)
        log.info("label smoothing: %s", plan)
        logger.log_hyperparameters({"label_smoothing_plan": plan})

    def _refuse(self, conflicts: Sequence[Conflict]) -> None:
        if conflicts:
            self.object_to(DoubleSmoothingError(conflicts[0].message(self)))

    def object_to(self, error: ValueError) -> None:
        """Raise the error or issue it as a warning, depending on ``on_conflict``. Does nothing if smoothing is 0."""
        if self.smoothing and self.on_conflict == "raise":
            raise error
        if self.smoothing:
            warnings.warn(str(error), stacklevel=2)

    def smoothed(self, logits: Tensor, target: Any, ignore_index: int | None = None) -> Tensor:
        """The smoothed targets. The values of the first batch's targets are checked."""
        target = as_tensor(target, logits.device)
        if not isinstance(target, Tensor):
            raise TypeError(
                f"the targets at target_key={self.target_key!r} are {type(target).__name__}, but must be one tensor: "
                f"give LabelSmoothing a target_key, or a (getter, setter) pair, that leads to the tensor of targets"
            )
        if not self._validated and self.smoothing:
            warn_if_smoothed(target, logits, self.kind)
        if self.prior is not None:
            self.prior = self.prior.to(logits.device)
        ignored = self.ignore_index if ignore_index is None else ignore_index
        return smooth_labels(
            logits,
            target,
            self.smoothing,
            prior=self.prior,
            ignore_index=NO_LABEL if ignored is None else ignored,
            spread=self.spread,
            kind=self.kind,
            validate=None if self._validated else True,  # None checks values on the CPU only
        )
