"""For Hugging Face models with a plain linear head: the smoothed loss is computed from the head's inputs, without logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import State
from composer.models import HuggingFaceModel
from torch import Tensor, nn

from composer_ls.composition.asking import on_trial
from composer_ls.composition.own_loss import Head, ReplacedLoss, Term
from composer_ls.errors import TargetError
from composer_ls.losses import linear_cross_entropy

__all__ = ["WithoutLogits", "find_layer", "refuse_metrics"]


@dataclass(frozen=True)
class _Inputs:
    """What the layer was given, and the autocast state that it was called in."""

    hidden: Tensor
    autocast: bool
    dtype: torch.dtype


class _Layer:
    """A linear layer that keeps its input instead of multiplying it."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.given: list[_Inputs] = []
        self._before: Any = None
        self._active = False

    def start(self) -> None:
        self.given.clear()
        self._before = vars(self.layer).get("forward")
        vars(self.layer)["forward"] = self._keep
        self._active = True

    def stop(self) -> None:
        if not self._active:
            return
        self._active = False
        if self._before is None:
            del vars(self.layer)["forward"]
        else:
            vars(self.layer)["forward"] = self._before

    def _keep(self, input: Tensor) -> Tensor:
        device = input.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device)
        self.given.append(_Inputs(input, autocast, dtype))
        # NaN in the shape of the logits, in the memory of one number: a use that nobody thought of does not go unnoticed.
        placeholder = input.new_full((), torch.nan, dtype=dtype if autocast else input.dtype)
        return placeholder.expand(*input.shape[:-1], self.layer.out_features)


class WithoutLogits(ReplacedLoss):
    """Calls the model without its labels and its last layer, and puts the loss of that layer into the output."""

    def __init__(self, smoother: Any, model: HuggingFaceModel, head: Head, layer: nn.Linear) -> None:
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
        (given,), layer = self._layer.given, self._layer.layer
        self._layer.given = []
        with torch.autocast(given.hidden.device.type, given.dtype, enabled=given.autocast):
            return linear_cross_entropy(
                given.hidden, layer.weight, target, layer.bias, label_smoothing=term.label_smoothing
            )


def refuse_metrics(state: State) -> None:
    """Refuse training metrics, which Composer computes from the logits.

    Raises:
        TargetError: There are some.

    """
    if state.train_metrics:
        raise TargetError(
            f"logits='never' makes no logits in training, but the model's training metrics "
            f"({', '.join(map(str, state.train_metrics))}) are computed from them: give HuggingFaceModel use_logits=False "
            f"and metrics=None, keep the metrics as eval_metrics, or take logits='never' away"
        )


def find_layer(model: HuggingFaceModel, batch: Mapping[str, Any], head: Head, kind: str, sharded: bool) -> nn.Linear:
    """The linear layer whose output is the logits that the loss is of.

    The model is called twice, without gradient or side effects: once to see which layer returns the logits, and once with
    that layer returning a placeholder, to see that nothing else is done with them.

    Raises:
        TargetError: There is no such layer, or its logits are needed.

    """
    name = head.name

    def refusal(why: str) -> TargetError:
        return TargetError(f"logits='never' cannot be used with {name}: {why}. Take logits='never' away")

    if kind == "binary" or len(head.terms) != 1:
        raise refusal("its loss is not one cross entropy over classes")
    if not head.withheld:
        raise refusal("it needs its labels to compute its logits, and then computes its own loss of them")
    if sharded:
        raise refusal("its weights are sharded (FSDP), so the head's weight is only there while the head is called")
    term, inputs = head.terms[0], head.inputs(model, batch)
    outputs_of: list[tuple[nn.Linear, Tensor]] = []

    def listen(layer: nn.Module, _: Any, output: Any) -> None:
        outputs_of.append((layer, output))  # type: ignore[arg-type]

    linear = [one for one in model.modules() if type(one) is nn.Linear and one.out_features == head.num_classes]
    handles = [layer.register_forward_hook(listen) for layer in linear]
    try:
        with on_trial(model):
            logits = term.logits_of(model(inputs))
    finally:
        for handle in handles:
            handle.remove()
    found = [layer for layer, output in outputs_of if output.data_ptr() == logits.data_ptr()]
    if len(found) != 1 or sum(layer is found[0] for layer, _ in outputs_of) != 1:
        raise refusal(
            "its logits are not what a linear layer (torch.nn.Linear) returns, but are changed or chosen from"
        )
    _require_untouched(model, inputs, term, found[0], refusal)
    return found[0]


def _require_untouched(
    model: HuggingFaceModel, inputs: dict[str, Any], term: Term, layer: nn.Linear, refusal: Callable[[str], TargetError]
) -> None:
    keeping = _Layer(layer)
    try:
        with on_trial(model):
            keeping.start()
            placeholder = term.logits_of(model(inputs))
    except RuntimeError as error:
        raise refusal(f"it changes its logits in place ({error})") from error
    finally:
        keeping.stop()
    if placeholder.stride() != (0,) * placeholder.ndim:
        raise refusal("it works on its logits before it returns them")
