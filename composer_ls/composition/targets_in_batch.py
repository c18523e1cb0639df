"""The usual way: targets in the batch are smoothed before the loss and restored after it."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Algorithm, State
from composer.utils import batch_get
from torch import Tensor

from composer_ls.composition.asking import storage_of
from composer_ls.composition.batches import as_tensor, get, has, with_target
from composer_ls.composition.mixers import Mixer, mixers_among
from composer_ls.composition.plan import has_unknown, unwrapped
from composer_ls.composition.replaced_method import ReplacedMethod
from composer_ls.targets import SoftTargets

__all__ = ["TargetsInBatch", "Untouched", "holds_loss", "logits_of"]


@dataclass(frozen=True)
class _SecondLabels:
    """The second labels of a mixer, and the smoothed ones that replace them for the time being."""

    algorithm: Algorithm
    mixer: Mixer
    labels: Any
    smoothed: Tensor

    def put_back(self) -> None:
        if getattr(self.algorithm, self.mixer.second_labels) is self.smoothed:
            setattr(self.algorithm, self.mixer.second_labels, self.labels)


class TargetsInBatch:
    """Replaces the labels by smoothed targets, in the batch and in every mixer, and restores them afterwards.

    Args:
        smoother: The algorithm.
        unasked: The error, in words, for which the model could not be asked what its loss is.

    """

    def __init__(self, smoother: Any, unasked: str | None = None) -> None:
        self.smoother, self.unasked = smoother, unasked
        self._target: tuple[Any, Tensor] | None = None
        self._second_labels: list[_SecondLabels] = []
        self._later: ReplacedMethod | None = None

    def before_forward(self, state: State) -> None:
        """Do nothing: the labels stay in the batch."""

    def after_forward(self, state: State) -> None:
        """Do nothing."""

    def before_loss(self, state: State) -> None:
        """Replace the labels by smoothed targets."""
        self.put_back(state)  # in case an earlier step was interrupted
        smoother = self.smoother
        logits = logits_of(state.outputs, smoother.output_key, smoother.kind)
        target = get(state.batch, smoother.target_key)
        smoothed = smoother.smoothed(logits, target)
        seconds = []
        for algorithm, mixer in mixers_among(state.algorithms):
            labels = mixer.second_labels_of(algorithm)
            try:
                seconds.append(_SecondLabels(algorithm, mixer, labels, smoother.smoothed(logits, labels)))
            except (TypeError, ValueError) as error:
                where = f"{type(algorithm).__name__}.{mixer.second_labels}"
                raise type(error)(f"the second labels in {where} do not fit the batch: {error}") from error
        state.batch = with_target(state.batch, smoother.target_key, smoothed)
        for second in seconds:
            setattr(second.algorithm, second.mixer.second_labels, second.smoothed)
        self._second_labels = seconds
        self._target = (target, smoothed)

    def after_loss(self, state: State) -> None:
        """Restore the labels, except the second labels of mixers that interpolate losses and still need them.

        An unknown algorithm or callback may call the model's ``loss()`` again, as adversarial training does; that loss is smoothed
        too.
        """
        if self.unasked is not None and self.smoother.smooths:
            warnings.warn(
                f"{type(self.smoother).__name__} could not ask the model what its loss is "
                f"({self.unasked}), so it replaces the labels in the batch and cannot know "
                f"whether the loss takes these",
                stacklevel=2,
            )
        self.unasked = None
        if self._target is not None:
            state.batch = with_target(state.batch, self.smoother.target_key, self._target[0])
            self._target = None
        for second in self._second_labels:
            if not second.mixer.interpolates(second.algorithm):
                second.put_back()
        self._second_labels = [second for second in self._second_labels if second.mixer.interpolates(second.algorithm)]
        if has_unknown(state) and has(state.batch, self.smoother.target_key):
            labels = get(state.batch, self.smoother.target_key)
            self._later = ReplacedMethod(unwrapped(state), "loss", functools.partial(self._smoothed_loss, labels))

    def _smoothed_loss(self, labels: Any, loss: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The model's loss with smoothed targets, if it is to be learnt from and its labels are those of the step.

        Others may be of another training, if this step was interrupted before its end.
        """
        if len(args) > 1 and torch.is_grad_enabled():
            outputs, batch, *others = args
            key = self.smoother.target_key
            with contextlib.suppress(TypeError, ValueError, KeyError, IndexError, AttributeError):  # of another form
                target = get(batch, key)
                if _are_same(target, labels):
                    logits = logits_of(outputs, self.smoother.output_key, self.smoother.kind)
                    args = (outputs, with_target(batch, key, self.smoother.smoothed(logits, target)), *others)
        return loss(*args, **options)

    def seen(self, state: State) -> tuple[Tensor, list[Any]] | None:
        """After the loss: the logits, and the targets that say which labels each example has, mixed ones included."""
        if self._target is None:
            return None
        smoother = self.smoother
        logits = logits_of(state.outputs, smoother.output_key, smoother.kind)
        mixed = get(state.batch, smoother.target_key)
        compact = isinstance(mixed, SoftTargets)  # dense rows are smoothed, so they have every label
        seconds = [s.labels for s in self._second_labels if not compact or s.mixer.interpolates(s.algorithm)]
        return logits, [as_tensor(one, logits.device) for one in (mixed if compact else self._target[0], *seconds)]

    def put_back(self, state: State) -> None:
        """Restore what is still smoothed. What others have replaced since stays as it is."""
        if self._target is not None:
            target, smoothed = self._target
            with contextlib.suppress(Exception):  # this may be another batch, perhaps of another form
                if get(state.batch, self.smoother.target_key) is smoothed:
                    state.batch = with_target(state.batch, self.smoother.target_key, target)
            self._target = None
        for second in self._second_labels:
            second.put_back()
        self._second_labels = []
        if self._later is not None:
            self._later.put_back()
            self._later = None

    def describe(self) -> None:
        """Nothing to add to the plan."""


def _are_same(target: Any, labels: Any) -> bool:
    """Whether targets are the labels themselves, or a view of them."""
    if isinstance(target, SoftTargets):
        return False
    return target is labels or storage_of(target) == storage_of(labels) != 0


class Untouched(TargetsInBatch):
    """For batches without targets: nothing is smoothed."""

    def before_loss(self, state: State) -> None:
        """Do nothing."""


def logits_of(outputs: Any, output_key: Any, kind: str) -> Tensor:
    """The tensor of logits in a model's output.

    Raises:
        TypeError: There is none.
        ValueError: It has one class.

    """
    found = outputs if output_key is None else batch_get(outputs, output_key)
    if not isinstance(found, Tensor):
        way = "output_key" if output_key is None else f"another output_key than {output_key!r}"
        raise TypeError(
            f"the model's output is {type(found).__name__}, but LabelSmoothing needs the tensor of logits: give "
            f"it {way}, such as output_key='logits', output_key=0 or output_key=lambda outputs: outputs.logits"
        )
    if kind == "multiclass" and (found.ndim < 2 or found.shape[1] == 1):
        raise ValueError(
            f"the model gives one logit per example, of shape {tuple(found.shape)}, so there is no other "
            f"class to move mass to: use a head with two logits and cross entropy, or, for a binary loss on one "
            f"logit, give LabelSmoothing(kind='binary')"
        )
    return found


def holds_loss(outputs: Any) -> bool:
    """Whether a model's output contains a loss."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return isinstance(loss, Tensor)
