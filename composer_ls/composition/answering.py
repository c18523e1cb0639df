"""For losses that use the labels in their own way: each cross entropy they compute is replaced by a smoothed one.

The calls are intercepted as described in `composer_ls.composition.asking`, here in every training step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from composer.core import State
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.composition.asking import BINARY, CLASSES, MADE, Call, Listening
from composer_ls.composition.batches import Path, TargetKeyError, path_of
from composer_ls.composition.plan import may_compute_losses
from composer_ls.composition.replaced_method import ReplacedMethod
from composer_ls.losses.cross_entropy import cross_entropy, soft_nll_loss

__all__ = ["Answering", "answered", "is_answerable", "is_of", "key_paths"]

Smooth = Callable[..., Tensor]
"""The signature of ``LabelSmoothing.smoothed``: logits, targets and the label to ignore."""


class Answering:
    """Smooths the targets of intercepted loss calls instead of the targets in the batch.

    While the model's ``loss()`` runs (and its ``forward()`` if the loss is computed there), every cross entropy of the
    batch's labels is computed with smoothed targets. Everything else stays the model's own: which logits and labels it
    uses, what it ignores, how it sums and divides, and what it adds.

    Args:
        smoother: The algorithm.
        model: The model.
        calls: The heard calls that are to be answered.
        in_forward: Whether some are in ``forward()``.
        in_loss: Whether some are in ``loss()``.

    """

    def __init__(
        self,
        smoother: Any,
        model: nn.Module,
        calls: list[Call],
        in_forward: bool,
        in_loss: bool,
    ) -> None:
        self.smoother, self.model = smoother, model
        self.methods = [name for name, used in (("forward", in_forward), ("loss", in_loss)) if used]
        self.names = list(dict.fromkeys(call.name for call in calls))
        self.labels = sorted({".".join(map(str, path)) for call in calls for path in call.origins - {MADE}})
        self._replaced: list[ReplacedMethod] = []
        self._answers, self._told = 0, False

    def before_forward(self, state: State) -> None:
        """Start intercepting loss calls in the forward pass, if the loss is computed there."""
        self.put_back(state)
        self._answers = 0
        if "forward" in self.methods:
            self._listen_to("forward")

    def after_forward(self, state: State) -> None:
        """Stop intercepting."""
        self.put_back(state)

    def before_loss(self, state: State) -> None:
        """Start intercepting loss calls in ``loss()``."""
        self.put_back(state)
        if "loss" in self.methods:
            self._listen_to("loss")

    def after_loss(self, state: State) -> None:
        """Stop intercepting, unless something else may compute a second loss. Warn if nothing was smoothed."""
        if not may_compute_losses(state):
            self.put_back(state)
        if not self._answers and not self._told and self.smoother.smooths:
            self._told = True
            warnings.warn(
                f"{type(self.smoother).__name__} changed nothing in a step, because {type(self.model).__name__} computed no "
                f"{' or '.join(self.names)} of {' or '.join(self.labels)} with a gradient in it, as it did when it was asked. "
                f"This is told once",
                stacklevel=2,
            )

    def put_back(self, state: State) -> None:
        """Restore the model's methods."""
        for method in self._replaced:
            method.put_back()
        self._replaced = []

    def describe(self) -> str:
        """What happens to the labels and the loss, in words."""
        names, labels = " and ".join(self.names), " and ".join(self.labels)
        methods = " and ".join(f"{method}()" for method in self.methods)
        return (
            f"{names} of {labels} smoothed where {type(self.model).__name__}.{methods} computes it, all else unchanged"
        )

    def _listen_to(self, name: str) -> None:
        self._replaced.append(ReplacedMethod(self.model, name, self._listening))

    def _listening(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        batch = args[-1]
        paths = key_paths(batch, self.smoother.target_key)
        with Listening(batch, lambda call: self._answer(call, paths)):
            return method(*args, **options)

    def _answer(self, call: Call, paths: list[Path] | None) -> Tensor:
        if not is_answerable(call, self.smoother.kind, paths):
            return call.as_it_is()
        return self._counted(answered(call, self.smoother.smoothed, self.smoother.ignore_index))

    def _counted(self, loss: Tensor) -> Tensor:
        self._answers += loss.requires_grad  # nothing is smoothed without one, as in an autograd function of the user's
        return loss


def answered(
    call: Call, smooth: Smooth, also_ignored: int | None, loss: Callable[..., Tensor] = cross_entropy
) -> Tensor:
    """The loss of a call with smoothed targets, and with every option of the call."""
    target, options = call.target, dict(call.options)
    if call.function in BINARY:
        return call.function(call.input, smooth(call.input, target), **options)
    ignored = call.ignore_index
    if not target.is_floating_point():
        target = target.long()  # in uint8, 156 would equal an ignore_index of -100
        options.pop("ignore_index", None)  # smoothing does it, before MaxSup adds its labels, which count
        if also_ignored not in (None, ignored):
            target = torch.where(target == also_ignored, ignored, target)
    smoothed = smooth(call.input, target, ignore_index=ignored)
    if call.function is F.nll_loss:
        return soft_nll_loss(call.input, smoothed, **options)  # type: ignore[arg-type]
    return loss(call.input, smoothed, **options)


def is_answerable(call: Call, kind: str, paths: list[Path] | None) -> bool:
    """Whether a call uses the labels that are to be smoothed, in a loss that fits this kind of smoothing."""
    if not call.is_of_labels or not is_of(call.origins, paths):
        return False
    if kind == "binary":
        return call.function in BINARY
    of_rows = call.target.shape == call.input.shape and call.input.ndim > 1
    return call.function in CLASSES or (call.function in BINARY and of_rows)


def is_of(origins: Iterable[Path], paths: list[Path] | None) -> bool:
    """Whether one of some origins lies at one of these paths in the batch; with None, at any."""
    return paths is None or any(origin[: len(path)] == path for origin in origins for path in paths)


def key_paths(batch: Any, key: Any) -> list[Path] | None:
    """The paths to which ``target_key`` leads in a batch; None, meaning any path, if it leads nowhere."""
    is_pair = isinstance(key, (list, tuple)) and all(map(callable, key))
    try:
        return [path_of(batch, key[0] if is_pair else key)]
    except TargetKeyError:
        return None
