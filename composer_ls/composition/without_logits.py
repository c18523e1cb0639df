"""For models with a plain linear head: the smoothed loss is computed from the head's inputs, without logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import State
from composer.models import HuggingFaceModel
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.composition.answering import Answering, answered, is_answerable
from composer_ls.composition.asking import Call, Listening, on_trial, total
from composer_ls.composition.batches import Path
from composer_ls.composition.own_loss import Head, ReplacedLoss, Term
from composer_ls.errors import TargetError
from composer_ls.losses import linear_cross_entropy

__all__ = ["AnsweringWithoutLogits", "WithoutLogits", "find_layer", "refuse_metrics"]

LastLayer = nn.Linear | nn.Embedding
"""An embedding is one if it is called with hidden states too, as LLM-Foundry's tied one is."""


@dataclass(frozen=True)
class _Inputs:
    """What the layer was given, and the autocast state that it was called in."""

    hidden: Tensor
    autocast: bool
    dtype: torch.dtype


class _Layer:
    """A last layer that keeps its input instead of multiplying it."""

    def __init__(self, layer: LastLayer) -> None:
        self.layer = layer
        self.given: list[_Inputs] = []
        self._placeholder: int | None = None  # its address
        self._before: Any = None
        self._active = False

    def start(self) -> None:
        self.given.clear()
        self._before = vars(self.layer).get("forward")
        self._forward = self.layer.forward
        vars(self.layer)["forward"] = self._keep
        self._active = True

    def stop(self) -> None:
        if not self._active:
            return
        self._active = False
        if self._before is None:
            vars(self.layer).pop("forward", None)
        else:
            vars(self.layer)["forward"] = self._before

    def loss(self, target: Tensor, **options: Any) -> Tensor:
        """The cross entropy of the logits that the layer would have returned."""
        (given,) = self.given
        hidden = given.hidden
        if target.ndim == 2:  # of logits that the loss flattened to (N·T, K), as most do
            hidden = hidden.flatten(0, -2)
        with torch.autocast(hidden.device.type, given.dtype, enabled=given.autocast):
            return linear_cross_entropy(hidden, self.layer.weight, target, getattr(self.layer, "bias", None), **options)

    def _keep(self, input: Tensor, *others: Any, **options: Any) -> Tensor:
        if not input.is_floating_point():  # an embedding of tokens
            return self._forward(input, *others, **options)
        device = input.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device)
        self.given.append(_Inputs(input, autocast, dtype))
        # NaN in the shape of the logits, in the memory of one number: a use that nobody thought of does not go unnoticed.
        placeholder = input.new_full((), torch.nan, dtype=dtype if autocast else input.dtype)
        self._placeholder = placeholder.data_ptr()
        return placeholder.expand(*input.shape[:-1], len(self.layer.weight))

    def made(self, logits: Tensor) -> bool:
        """Whether these stand for the logits of the layer."""
        return logits.data_ptr() == self._placeholder


class WithoutLogits(ReplacedLoss):
    """Calls the model without its labels and its last layer, and puts the loss of that layer into the output."""

    def __init__(self, smoother: Any, model: HuggingFaceModel, head: Head, layer: LastLayer) -> None:
        super().__init__(smoother, model, head)
        self._layer = _Layer(layer)

    def before_forward(self, state: State) -> None:
        """Remove the labels from the batch, and let the head keep its input."""
        super().before_forward(state)
        refuse_metrics(state)
        self._layer.start()

    def put_back(self, state: State) -> None:
        """Restore the batch and the head."""
        super().put_back(state)
        self._layer.stop()

    def describe(self) -> str:
        """What happens to the labels and the loss, in words."""
        return super().describe().replace("cross_entropy, fused,", "linear_cross_entropy, without logits,")

    def _loss(self, term: Term, state: State) -> Tensor:
        placeholder = term.logits_of(state.outputs)
        ignored = -100 if self.smoother.ignore_index is None else self.smoother.ignore_index
        labels, ignored = term.labels_of(state.batch, placeholder, ignored)
        target = self.smoother.smoothed(placeholder, labels, ignore_index=ignored)
        loss = self._layer.loss(target, label_smoothing=term.label_smoothing)
        self._layer.given = []
        return loss


class AnsweringWithoutLogits(Answering):
    """Calls the model without its last layer. The cross entropy in its ``loss()`` is computed from that layer's input."""

    def __init__(self, smoother: Any, model: nn.Module, calls: list[Call], layer: LastLayer) -> None:
        super().__init__(smoother, model, calls, in_forward=False, in_loss=True)
        self._layer = _Layer(layer)

    def before_forward(self, state: State) -> None:
        """Let the last layer keep its input."""
        super().before_forward(state)
        refuse_metrics(state)
        self._layer.start()

    def after_loss(self, state: State) -> None:
        """Free the layer's input."""
        super().after_loss(state)
        self._layer.given = []

    def put_back(self, state: State) -> None:
        """Restore the model's methods and the last layer."""
        super().put_back(state)
        self._layer.stop()

    def describe(self) -> str:
        """What happens to the labels and the loss, in words."""
        return super().describe().replace("cross_entropy of", "linear_cross_entropy, without logits, of", 1)

    def trial(self, batch: Any, smooth: Callable[..., Tensor]) -> Tensor | None:
        """The loss of a batch, with labels smoothed by ``smooth``."""
        with on_trial(self.model):
            self._layer.start()
            try:
                outputs = self.model(batch)
            finally:
                self._layer.stop()
            with Listening(batch, lambda call: self._answered(call, smooth)):
                loss = total(self.model.loss(outputs, batch))  # type: ignore[operator]
            self._layer.given = []
        return loss

    def _answer(self, call: Call, paths: list[Path] | None) -> Tensor:
        if not is_answerable(call, self.smoother.kind, paths):
            return call.as_it_is()
        if not self._layer.made(call.input):
            return self._counted(answered(call, self.smoother.smoothed, self.smoother.ignore_index))
        return self._counted(self._answered(call, self.smoother.smoothed))

    def _answered(self, call: Call, smooth: Callable[..., Tensor]) -> Tensor:
        def loss(_: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
            averages = [options.pop(name, None) for name in ("size_average", "reduce")]
            if averages != [None, None]:
                options["reduction"] = torch.nn._reduction.legacy_get_string(*averages)
            return self._layer.loss(target, class_weight=weight, **options)

        return answered(call, smooth, self.smoother.ignore_index, loss)


def refuse_metrics(state: State) -> None:
    """Refuse training metrics, which Composer computes from the logits.

    Raises:
        TargetError: There are some.

    """
    if state.train_metrics:
        raise TargetError(
            f"logits='never' makes no logits in training, but the model's training metrics "
            f"({', '.join(map(str, state.train_metrics))}) are computed from them: give HuggingFaceModel use_logits=False "
            f"and metrics=None (LLM-Foundry: use_train_metrics: false), keep the metrics as eval_metrics, or take "
            f"logits='never' away"
        )


def find_layer(
    model: nn.Module, inputs: Any, logits_of: Callable[[Any], Tensor], num_classes: int, sharded: bool, name: str
) -> LastLayer:
    """The last layer, whose output is the logits that the loss is of.

    The model is called twice, without gradient or side effects: once to see which layer returns the logits, and once with
    that layer returning a placeholder, to see that nothing else is done with them.

    Args:
        model: The model.
        inputs: What to call it with.
        logits_of: Finds the logits in its output.
        num_classes: K.
        sharded: Whether its weights are sharded.
        name: What to call it in an error.

    Raises:
        TargetError: There is no such layer, or its logits are needed.

    """
    if sharded:
        raise refusal(
            name, "its weights are sharded (FSDP), so the head's weight is only there while the head is called"
        )
    calls: list[tuple[LastLayer, Tensor, Tensor]] = []

    def listen(layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        hidden = given[0] if given else options["input"]
        if hidden.is_floating_point():  # else it is an embedding of tokens
            calls.append((layer, hidden, output))  # type: ignore[arg-type]

    layers = [
        one
        for one in model.modules()
        if (type(one) is nn.Linear or isinstance(one, nn.Embedding)) and len(one.weight) == num_classes
    ]
    handles = [layer.register_forward_hook(listen, with_kwargs=True) for layer in layers]
    try:
        with on_trial(model):
            logits = logits_of(model(inputs))
            found = [(layer, hidden) for layer, hidden, output in calls if output.data_ptr() == logits.data_ptr()]
            is_called_once = len(found) == 1 and [layer for layer, *_ in calls].count(found[0][0]) == 1
            if not is_called_once or not _multiplies(*found[0], logits):
                raise refusal(
                    name,
                    "its logits are not what a linear layer (torch.nn.Linear) returns, but are changed or chosen from",
                )
    finally:
        for handle in handles:
            handle.remove()
    _require_untouched(model, inputs, logits_of, found[0][0], name)
    return found[0][0]


def refusal(name: str, why: str) -> TargetError:
    """The error that says why a model cannot be trained without logits."""
    return TargetError(f"logits='never' cannot be used with {name}: {why}. Take logits='never' away")


def _multiplies(layer: LastLayer, given: Tensor, logits: Tensor) -> bool:
    """Whether the first row of logits is the linear function of the layer's input. An embedding may do anything."""
    if type(layer) is nn.Linear:
        return True
    row = F.linear(given.flatten(0, -2)[:1], layer.weight)
    return torch.allclose(row.float().flatten(), logits.flatten()[: row.numel()].float(), rtol=1e-3, atol=1e-4)


def _require_untouched(
    model: nn.Module, inputs: Any, logits_of: Callable[[Any], Tensor], layer: LastLayer, name: str
) -> None:
    keeping = _Layer(layer)
    try:
        with on_trial(model):
            keeping.start()
            placeholder = logits_of(model(inputs))
    except RuntimeError as error:
        raise refusal(name, f"it changes its logits in place ({error})") from error
    finally:
        keeping.stop()
    if placeholder.stride() != (0,) * placeholder.ndim:
        raise refusal(name, "it works on its logits before it returns them")
