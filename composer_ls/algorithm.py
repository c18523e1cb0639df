"""LabelSmoothing: the method as a Composer Algorithm, thin over `smooth_labels` and `composer_ls.composition`."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.loss import soft_cross_entropy
from composer.models import ComposerClassifier
from composer.utils import batch_get
from torch import Tensor
from torch.nn import functional as F

from composer_ls.composition.conflicts import (
    Conflict,
    DoubleSmoothingError,
    conflicts_in_data,
    conflicts_in_model,
    conflicts_with_algorithms,
    kind_of_loss,
    looks_smoothed,
)
from composer_ls.composition.huggingface import Head, Term, ask, makes_its_loss, with_loss
from composer_ls.composition.mixers import Mixer, check_mixers, mixers_among, refuse_mixers
from composer_ls.composition.plan import describe, place, unwrapped
from composer_ls.errors import InputError, TargetError
from composer_ls.losses import cross_entropy
from composer_ls.priors import as_prior
from composer_ls.smoothing import check_kind, check_smoothing, smooth_labels

__all__ = ["LabelSmoothing"]

ON_CONFLICT = ("raise", "warn")
BINARY_FOR_CLASSES = (
    "kind='binary' is for a label of its own for every logit, but the loss is cross entropy over classes that exclude each "
    "other: give LabelSmoothing(kind='multiclass'), or a loss such as torch.nn.functional.binary_cross_entropy_with_logits"
)
CLASSES_FOR_BINARY = (
    "the loss is a binary cross entropy and the targets are rows with a label for every logit, but kind='multiclass' is for "
    "classes that exclude each other and would move the mass of each row to all K of them: give "
    "LabelSmoothing(kind='binary'); on_conflict='warn' goes on, for rows that are mixed classes"
)

log = logging.getLogger(__name__)


class LabelSmoothing(Algorithm):
    """Move a part of each training target's mass to a prior, whatever else changes the targets.

    A drop-in for :class:`composer.algorithms.LabelSmoothing` with the same first arguments. Targets are smoothed just
    before the loss and put back right after it; evaluation is never touched. Beside MixUp and CutMix both labels of
    every pair are smoothed, in both of their modes and wherever this stands in the list of algorithms.

    A :class:`composer.models.HuggingFaceModel`, which makes its loss in ``forward()``, is asked on the first batch which
    logits and labels that loss is of. From then on it is called without them, and the smoothed loss takes that place.

    Args:
        smoothing: α in [0, 1], the mass that moves to the prior.
        target_key: Where the targets are in the batch: an index, a key, or a (getter, setter) pair. A HuggingFaceModel
            knows its own.
        prior: Where the mass goes: ``None`` for the uniform ``1/K``, a row ``(K,)`` such as
            :func:`~composer_ls.priors.unigram_prior` makes, or one row per class ``(K, K)``.
        ignore_index: A label that gets no mass and no gradient.
        spread: ``"all"``, or ``"others"`` to share α among the K - 1 incorrect classes only.
        on_conflict: What to do if something else smooths the targets too: ``"raise"`` or ``"warn"``.
        output_key: Where the logits are in the model's output, as an index, a key, an attribute's name or a getter.
            ``None``: the output is the logits. A HuggingFaceModel knows its own.
        kind: ``"multiclass"``, or ``"binary"`` where every logit has a label of its own (multi-label targets) and the loss
            is binary cross entropy: there the mass moves to 1/2.

    Raises:
        TypeError: ``smoothing`` is not a number. During training: the output or the targets are not a tensor.
        ValueError: ``smoothing`` is outside [0, 1], or ``prior``, ``spread``, ``kind`` or ``on_conflict`` is wrong. During
            training: the targets do not fit the logits, the logits have one class, or a mixer has another target key.
        TargetError: The loss is not one for this ``kind``, or a HuggingFaceModel's is not a cross entropy, as that of a
            regression head.
        DoubleSmoothingError: When training starts, if the loss, another algorithm or the dataloader smooths too.

    Note:
        Under cross entropy without class weights and ignored labels, ``interpolate_loss=True`` and ``False`` of MixUp and
        CutMix give the same loss and gradient. With them, PyTorch's mean divides each of the two losses by the weight
        of its own labels, and the two modes differ by that.

        The mean is over the labels that count of one microbatch, and Composer weighs microbatches by their examples, or by
        their tokens with ``accumulate_train_batch_on_tokens=True``, just as without smoothing. (Composer does not give
        Hugging Face models ``num_items_in_batch``, by which transformers' own Trainer divides.)

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
        target_key: str | int | tuple[Callable[..., Any], Callable[..., Any]] | Any = 1,
        prior: Tensor | Sequence[Any] | None = None,
        ignore_index: int = -100,
        spread: str = "all",
        on_conflict: str = "raise",
        output_key: str | int | Callable[..., Any] | None = None,
        kind: str = "multiclass",
    ) -> None:
        if isinstance(smoothing, Tensor):
            if smoothing.numel() != 1:
                raise TypeError(
                    f"smoothing must be a number, but is a tensor of shape {tuple(smoothing.shape)}: one smoothing for "
                    f"each example is what composer_ls.smooth_labels takes"
                )
            smoothing = smoothing.item()
        check_smoothing(smoothing, None, spread, prior is not None)
        check_kind(kind, spread, prior is not None)
        if on_conflict not in ON_CONFLICT:
            raise ValueError(f"on_conflict must be 'raise' or 'warn', but is {on_conflict!r}")
        self.smoothing = smoothing
        self.target_key = target_key
        self.prior = as_prior(prior)
        self.ignore_index = ignore_index
        self.spread = spread
        self.on_conflict = on_conflict
        self.output_key = output_key
        self.kind = kind
        self.head: Head | None = None  # of a HuggingFaceModel, once it was asked
        self._kind_of_loss: str | None = None
        self._validated = False
        self._held_target: tuple[Any, Tensor] | None = None
        self._held_second_labels: list[_SecondLabels] = []
        self._held_batch: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        """The call that makes it, which Composer stores in checkpoints."""
        prior = None if self.prior is None else f"<{tuple(self.prior.shape)}>"
        return (
            f"LabelSmoothing(smoothing={self.smoothing!r}, target_key={self.target_key!r}, prior={prior}, "
            f"ignore_index={self.ignore_index!r}, spread={self.spread!r}, on_conflict={self.on_conflict!r}, "
            f"output_key={self.output_key!r}, kind={self.kind!r})"
        )

    def match(self, event: Event, state: State) -> bool:
        """Whether ``event`` is one of those in :meth:`apply`'s table."""
        return event in self._STEPS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Take the step that belongs to ``event``."""
        self._STEPS[event](self, state, logger)

    def _settle(self, state: State, logger: Logger) -> None:
        model = unwrapped(state)
        if makes_its_loss(model):
            refuse_mixers(state.algorithms)
        else:
            check_mixers(state.algorithms, self.target_key)
            self._kind_of_loss = kind_of_loss(model)
            if (self.kind, self._kind_of_loss) == ("binary", "multiclass"):
                self._object(TargetError(BINARY_FOR_CLASSES))
        state.algorithms = place(state.algorithms, self)
        self._refuse([*conflicts_with_algorithms(state.algorithms, self), *conflicts_in_model(model)])
        if isinstance(model, ComposerClassifier) and model._loss_fn is soft_cross_entropy:
            model._loss_fn = cross_entropy  # the same loss, without the dense target

    def _start(self, state: State, logger: Logger) -> None:
        self._restore_all(state, logger)
        state.algorithms = place(state.algorithms, self)
        self._refuse(conflicts_in_data(state.dataloader))
        self._validated = False
        self.head = None
        self._announce(state, logger)

    def _announce(self, state: State, logger: Logger) -> None:
        plan = describe(state)
        log.info("label smoothing: %s", plan)
        logger.log_hyperparameters({"label_smoothing_plan": plan})

    def _withhold(self, state: State, logger: Logger) -> None:
        """Take the labels from a model that would make its loss of them."""
        model = unwrapped(state)
        if not makes_its_loss(model):
            return
        self._give_back(state, logger)  # of a step that did not come to its end
        if self.head is None:
            with get_precision_context(state.precision, state.precision_config):
                self.head = ask(model, state.batch, self.kind, self.ignore_index)
            self._refuse(self.head.conflicts())
            self._announce(state, logger)
        inputs = self.head.inputs(model, state.batch)
        self._held_batch = (state.batch, inputs)
        state.batch = inputs

    def _give_back(self, state: State, logger: Logger) -> None:
        if self._held_batch is not None:
            batch, inputs = self._held_batch
            if state.batch is inputs:
                state.batch = batch
            self._held_batch = None

    def _smooth(self, state: State, logger: Logger) -> None:
        self._restore_all(state, logger)  # of a step that did not come to its end
        if self.head is not None:
            with get_precision_context(state.precision, state.precision_config):
                losses = [self._smoothed_loss(term, state) for term in self.head.terms]
            state.outputs = with_loss(state.outputs, torch.stack(losses).mean())
            self._validated = True
            return
        logits = self._logits(state)
        target = state.batch_get_item(self.target_key)
        if not self._validated:
            self._warn_if_smoothed(target, logits)
            rows = isinstance(target, Tensor) and target.shape == logits.shape
            if rows and (self.kind, self._kind_of_loss) == ("multiclass", "binary"):
                self._object(TargetError(CLASSES_FOR_BINARY))
        smoothed = self._smoothed(logits, target)
        seconds = []
        for algorithm, mixer in mixers_among(state.algorithms):
            labels = mixer.second_labels_of(algorithm)
            try:
                seconds.append(_SecondLabels(algorithm, mixer, labels, self._smoothed(logits, labels)))
            except (TypeError, ValueError) as error:
                where = f"{type(algorithm).__name__}.{mixer.second_labels}"
                raise type(error)(f"the second labels in {where} do not fit the batch: {error}") from error
        for second in seconds:
            setattr(second.algorithm, second.mixer.second_labels, second.smoothed)
        self._held_second_labels = seconds
        self._held_target = (target, smoothed)
        self._validated = True
        # A copy of the containers takes the smoothed target, so that the batch that others hold is never changed.
        state.batch = _copy_containers(state.batch)
        state.batch_set_item(self.target_key, smoothed)

    def _smoothed_loss(self, term: Term, state: State) -> Tensor:
        logits = term.logits_of(state.outputs)
        labels, ignore_index = term.labels_of(state.batch, logits, self.ignore_index)
        if not self._validated:
            self._warn_if_smoothed(labels, logits)
        target = self._smoothed(logits, labels, ignore_index)
        if term.binary:
            return F.binary_cross_entropy_with_logits(logits, target)
        return cross_entropy(logits, target, label_smoothing=term.label_smoothing)

    def _restore(self, state: State, logger: Logger) -> None:
        if self._held_target is not None:
            state.batch_set_item(self.target_key, self._held_target[0])
            self._held_target = None
        # A mixer that interpolates losses still has to use its second labels, at BEFORE_BACKWARD.
        for second in self._held_second_labels:
            if not second.mixer.interpolates(second.algorithm):
                second.restore()
        self._held_second_labels = [
            second for second in self._held_second_labels if second.mixer.interpolates(second.algorithm)
        ]

    def _restore_all(self, state: State, logger: Logger) -> None:
        """Put back what is still smoothed or withheld; what others have replaced since is theirs."""
        self._give_back(state, logger)
        if self._held_target is not None:
            target, smoothed = self._held_target
            with contextlib.suppress(Exception):  # another batch, perhaps of another form
                if state.batch_get_item(self.target_key) is smoothed:
                    state.batch_set_item(self.target_key, target)
            self._held_target = None
        for second in self._held_second_labels:
            second.restore()
        self._held_second_labels = []

    _STEPS: dict[Event, Callable[[LabelSmoothing, State, Logger], None]] = {
        Event.INIT: _settle,
        Event.FIT_START: _start,
        Event.BEFORE_FORWARD: _withhold,
        Event.AFTER_FORWARD: _give_back,
        Event.BEFORE_LOSS: _smooth,
        Event.AFTER_LOSS: _restore,
        Event.AFTER_BACKWARD: _restore_all,
    }

    def _refuse(self, conflicts: Sequence[Conflict]) -> None:
        if conflicts:
            self._object(DoubleSmoothingError(conflicts[0].message(self)))

    def _object(self, error: InputError) -> None:
        if self.smoothing and self.on_conflict == "raise":
            raise error
        if self.smoothing:
            warnings.warn(str(error), stacklevel=2)

    def _warn_if_smoothed(self, target: Any, logits: Tensor) -> None:
        num_classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
        reason = looks_smoothed(target, num_classes, self.kind)
        if reason and self.smoothing:
            warnings.warn(
                f"the first batch's target looks smoothed before LabelSmoothing smooths it: {reason}. If a transform of "
                f"the dataloader smooths (timm's Mixup does by default), set its label_smoothing=0.0, or take "
                f"LabelSmoothing out of algorithms",
                stacklevel=2,
            )

    def _smoothed(self, logits: Tensor, target: Any, ignore_index: int | None = None) -> Tensor:
        if not isinstance(target, Tensor):
            raise TypeError(
                f"the targets at target_key={self.target_key!r} are {type(target).__name__}, but must be one tensor: "
                f"give LabelSmoothing a target_key, or a (getter, setter) pair, that leads to the tensor of targets"
            )
        if self.prior is not None:
            self.prior = self.prior.to(logits.device)
        return smooth_labels(
            logits,
            target,
            self.smoothing,
            prior=self.prior,
            ignore_index=self.ignore_index if ignore_index is None else ignore_index,
            spread=self.spread,
            kind=self.kind,
            validate=None if self._validated else True,  # later on where looking costs no wait
        )

    def _logits(self, state: State) -> Tensor:
        if not self._validated and _holds_loss(state.outputs):
            message = (
                "the model's output holds a loss of its own, made from labels that are not smoothed, which LabelSmoothing "
                "cannot reach: keep the labels out of forward() and let the model's loss() return "
                "composer_ls.cross_entropy(outputs['logits'], batch['labels']); on_conflict='warn' goes on, for a loss() "
                "that does not use it"
            )
            if self.on_conflict == "raise":
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)
        outputs = state.outputs if self.output_key is None else batch_get(state.outputs, self.output_key)
        if not isinstance(outputs, Tensor):
            way = "output_key" if self.output_key is None else f"another output_key than {self.output_key!r}"
            raise TypeError(
                f"the model's output is {type(outputs).__name__}, but LabelSmoothing needs the tensor of logits: give "
                f"it {way}, such as output_key='logits', output_key=0 or output_key=lambda outputs: outputs.logits"
            )
        if self.kind == "multiclass" and (outputs.ndim < 2 or outputs.shape[1] == 1):
            raise ValueError(
                f"the model gives one logit an example, of shape {tuple(outputs.shape)}, so that there is no other "
                f"class to move mass to: use a head with two logits and cross entropy, or, for a binary loss on one "
                f"logit, give LabelSmoothing(kind='binary')"
            )
        return outputs


def _holds_loss(outputs: Any) -> bool:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return isinstance(loss, Tensor)


@dataclass(frozen=True)
class _SecondLabels:
    """What a mixer held, and what it holds while its labels are smoothed."""

    algorithm: Algorithm
    mixer: Mixer
    labels: Any
    smoothed: Tensor

    def restore(self) -> None:
        if getattr(self.algorithm, self.mixer.second_labels) is self.smoothed:
            setattr(self.algorithm, self.mixer.second_labels, self.labels)


def _copy_containers(batch: Any) -> Any:
    """A copy of a nested batch that shares what its containers hold."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            new = copy.copy(value)
            for key, item in value.items():
                new[key] = copied(item)
            return new
        return type(value)(map(copied, value)) if type(value) in (list, tuple) else value

    is_container = isinstance(batch, (dict, Tensor)) or type(batch) in (list, tuple)
    return copied(batch) if is_container else copy.copy(batch)
