"""Hugging Face models, which make their loss in ``forward()``: of which logits and labels, learnt by asking them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from composer.models import HuggingFaceModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from composer_ls.composition.conflicts import Conflict
from composer_ls.errors import TargetError

__all__ = ["Head", "Term", "ask", "before_asking", "makes_its_loss", "with_loss"]

LABELS = ("labels", "start_positions", "end_positions")
"""Keys of a batch under which transformers' models expect their labels."""


def makes_its_loss(model: Any) -> bool:
    """Whether a model is Composer's wrapper of a Hugging Face model and its loss is the one that ``forward()`` made."""
    return isinstance(model, HuggingFaceModel) and type(model).loss is HuggingFaceModel.loss


@dataclass(frozen=True)
class Term:
    """One mean over labels in the loss of a model.

    Attributes:
        labels: The key of the labels in the batch.
        logits: The key of the logits in the output, or their index if the output is a tuple.
        order: How the loss reads the labels: ``"plain"``; ``"shifted"``, the logits at each place against the label at
            the next; ``"clamped"`` to the number of classes, which is then the label to ignore.
        classes_last: Whether the logits are ``(N, *spatial, K)`` rather than ``(N, K, *spatial)``.
        binary: Whether the loss is binary cross entropy, with a label for every logit.
        label_smoothing: What the model itself smooths.

    """

    labels: str
    logits: str | int
    order: str
    classes_last: bool
    binary: bool
    label_smoothing: float

    def logits_of(self, outputs: Any) -> Tensor:
        """The logits as ``(N, K, *spatial)``, a view."""
        logits = dict(_tensors(outputs))[self.logits]
        return logits.movedim(-1, 1) if self.classes_last else logits

    def labels_of(self, batch: Any, logits: Tensor, ignore_index: int) -> tuple[Tensor, int]:
        """The labels for these logits, in the shape that they take, and which of them is to be ignored.

        For a shift the labels move, and not the logits, which are large.
        """
        labels = batch[self.labels]
        if self.order == "shifted":
            labels = _shifted(labels, ignore_index)
        elif self.order == "clamped":
            ignore_index = logits.shape[1]
            labels = labels.clamp(0, ignore_index)
        shape = logits.shape[:1] + logits.shape[2:]
        fits = not self.binary and labels.numel() == shape.numel()
        return (labels.reshape(shape) if fits else labels).to(logits.device), ignore_index


@dataclass(frozen=True)
class Head:
    """What a model's loss is made of, and how to call the model so that it does not make that loss.

    Attributes:
        name: Of the model's class.
        terms: The loss is their mean.
        withheld: The keys that the model does without in ``forward()``.
        shifts_decoder: Whether the inputs of its decoder, which it would make from the labels, must be made for it.
        num_classes: K of the first term.

    """

    name: str
    terms: tuple[Term, ...]
    withheld: frozenset[str]
    shifts_decoder: bool
    num_classes: int

    def inputs(self, model: HuggingFaceModel, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the batch without the labels and with what ``forward()`` would have made from them."""
        inputs = {key: value for key, value in batch.items() if key not in self.withheld}
        if self.shifts_decoder:
            inputs["decoder_input_ids"] = model.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return inputs

    def conflicts(self) -> list[Conflict]:
        """What the model itself smooths."""
        return [
            Conflict(
                f"{self.name}.forward, whose cross entropy has label_smoothing={term.label_smoothing}",
                "set label_smoothing=0.0 there",
            )
            for term in self.terms
            if term.label_smoothing
        ]

    def describe(self) -> str:
        """What happens to the labels and the loss, in words."""
        words = {"plain": "{}", "shifted": "{} shifted by one", "clamped": "{}, of which those outside are ignored"}
        read = " and ".join(words[term.order].format(term.labels) for term in self.terms)
        loss = "binary_cross_entropy_with_logits" if self.terms[0].binary else "cross_entropy, fused,"
        if self.withheld:
            return f"loss {loss} with {read}, kept from {self.name}, which makes no loss of its own"
        return f"loss {loss} with {read} in place of the one that {self.name} makes too"


def before_asking(model: HuggingFaceModel) -> str:
    """What will happen to the labels and the loss, as far as it is known before the first batch."""
    return f"loss of {type(model.model).__name__} replaced, after its first batch has told what it is"


def ask(model: HuggingFaceModel, batch: Mapping[str, Any], kind: str, ignore_index: int) -> Head:
    """Call a model with its labels, without gradient, and listen to what loss it would compute.

    The loss functions of PyTorch are answered with a number instead of being computed, so that this needs no more
    memory than the logits. What the model says is compared with the batch and its output: the logits, the order of the
    labels, and that the model adds and scales nothing. A second call shows whether the logits are the same without the
    labels. Random numbers and buffers are afterwards as they were before.

    Args:
        model: In training mode.
        batch: A microbatch.
        kind: Of smoothing, ``"multiclass"`` or ``"binary"``.
        ignore_index: The label that is to be ignored.

    Raises:
        TargetError: The loss is not a mean of cross entropies of outputs and labels, or not of this kind; the message
            says what it is instead.

    """
    head, rows = _hear(model, batch, kind, ignore_index)
    if _can_do_without(model, batch, head, rows):
        return head
    return replace(head, withheld=frozenset(), shifts_decoder=False)


def with_loss(outputs: Any, loss: Tensor) -> Any:
    """The outputs with this loss where `HuggingFaceModel.loss` looks for it."""
    if isinstance(outputs, tuple):
        return (loss, *(value for _, value in _entries(outputs)))
    outputs["loss"] = loss
    return outputs


# ---------------------------------------------------------------------------------------------------------------------
# Listening.


@dataclass(frozen=True)
class _Call:
    """A loss that a model asked for."""

    function: Any
    input: Tensor
    target: Tensor
    options: dict[str, Any]


class _Listening(TorchFunctionMode):
    """Answers losses instead of computing them: 1 for the first, 3 for the second, and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss):
            return func(*args, **(kwargs or {}))
        options = signature(func).bind(*args, **(kwargs or {})).arguments
        call = _Call(func, options.pop("input"), options.pop("target"), options)
        self.calls.append(call)
        return call.input.new_full((), _answer(len(self.calls) - 1), dtype=torch.float32)


def _answer(position: int) -> float:
    return 1.0 + 2.0 * position


@contextlib.contextmanager
def _on_trial(model: nn.Module) -> Iterator[None]:
    """Nothing that is called here is compiled, has a gradient, draws random numbers or changes a buffer."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _hear(model: HuggingFaceModel, batch: Mapping[str, Any], kind: str, ignore_index: int) -> tuple[Head, Tensor]:
    """What the model's loss is made of, if it could do without its labels, and some rows of its logits."""
    name = type(model.model).__name__
    with _on_trial(model), _Listening() as listening:
        outputs = type(model).forward(model, batch)
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if not isinstance(loss, Tensor) or loss.ndim:
        raise TargetError(
            f"{name} made no loss of a batch with the keys {', '.join(map(str, batch))}: give it its labels, under "
            f"'labels' or, for answers in a text, 'start_positions' and 'end_positions'"
        )
    _require_kind(name, listening.calls, kind)
    terms: list[Term] = []
    for call in listening.calls:
        terms.append(_term(model, call, batch, outputs, terms, ignore_index))
    expected = sum(map(_answer, range(len(terms)))) / max(1, len(terms))
    if not terms or abs(loss.item() - expected) > 1e-6:
        more = "something besides the mean cross entropy" if terms else "something else than cross entropy"
        raise _not_replaceable(name, f"is {more} of its logits and labels")
    logits = terms[0].logits_of(outputs)
    given = {"decoder_input_ids", "decoder_inputs_embeds"} & set(batch)
    shifts_decoder = hasattr(model.model, "prepare_decoder_input_ids_from_labels") and not given
    withheld = frozenset(term.labels for term in terms)
    return Head(name, tuple(terms), withheld, shifts_decoder, logits.shape[1]), _some_rows(logits)


def _can_do_without(model: HuggingFaceModel, batch: Mapping[str, Any], head: Head, rows: Tensor) -> bool:
    """Whether the model gives the same logits without its labels."""
    try:
        with _on_trial(model):
            outputs = type(model).forward(model, head.inputs(model, batch))
        without = _some_rows(head.terms[0].logits_of(outputs))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        return False
    return without.shape == rows.shape and torch.allclose(without, rows, rtol=1e-3, atol=1e-4, equal_nan=True)


def _some_rows(logits: Tensor) -> Tensor:
    """The classes at about a hundred places, far fewer numbers than all logits."""
    rows = logits.movedim(1, -1).flatten(0, -2)
    return rows[:: max(1, len(rows) // 100)].float()


# ---------------------------------------------------------------------------------------------------------------------
# Understanding what was said.


def _require_kind(name: str, calls: Sequence[_Call], kind: str) -> None:
    functions = {call.function for call in calls}
    if F.mse_loss in functions:
        raise TargetError(
            f"{name} is a regression head (num_labels=1 or problem_type='regression'), whose loss is the squared error "
            f"of a number: there are no classes to share mass with. Take LabelSmoothing out of algorithms, or, if the "
            f"labels are classes, give the model's configuration num_labels and problem_type='single_label_classification'"
        )
    if kind != "binary" and F.binary_cross_entropy_with_logits in functions:
        raise TargetError(
            f"{name} has a binary cross entropy for every label (problem_type='multi_label_classification'), but "
            f"kind='multiclass' is for classes that exclude each other: give LabelSmoothing(kind='binary')"
        )
    if kind == "binary" and F.cross_entropy in functions:
        raise TargetError(
            f"{name} has a cross entropy over classes that exclude each other, but kind='binary' is for a label of its "
            f"own for every logit: give LabelSmoothing(kind='multiclass')"
        )


def _not_replaceable(name: str, what: str) -> TargetError:
    return TargetError(
        f"the loss that {name} makes in forward() {what}, so that LabelSmoothing cannot replace it by the smoothed one. "
        f"Write a subclass of HuggingFaceModel whose loss() returns composer_ls.cross_entropy(logits, labels) and "
        f"whatever else belongs to it, and give LabelSmoothing target_key='labels' and output_key='logits'"
    )


def _term(
    model: HuggingFaceModel,
    call: _Call,
    batch: Mapping[str, Any],
    outputs: Any,
    others: Sequence[Term],
    ignore_index: int,
) -> Term:
    name = type(model.model).__name__
    for option in ("weight", "pos_weight"):
        if call.options.get(option) is not None:
            raise _not_replaceable(name, f"has a {option}=")
    if call.options.get("reduction", "mean") != "mean":
        raise _not_replaceable(name, f"has reduction={call.options['reduction']!r}")
    outputs_left = {key: logits for key, logits in _tensors(outputs) if key not in {term.logits for term in others}}
    key = next((key for key, logits in outputs_left.items() if _is_same(call.input, logits)), None)
    if key is None:
        raise _not_replaceable(name, "is of logits that are not in its output")
    ignored = call.options.get("ignore_index", -100)
    clamped = call.function is F.cross_entropy and ignored == call.input.shape[-1]
    if call.function is F.cross_entropy and not clamped and ignored != ignore_index:
        raise TargetError(
            f"{name} ignores the label {ignored}, but LabelSmoothing {ignore_index}: put {ignored} where a label is to "
            f"be ignored, and give LabelSmoothing ignore_index={ignored}"
        )
    taken = {term.labels for term in others}
    found = {key: orders for key in LABELS if (orders := _orders(call.target, batch.get(key), ignored, clamped))}
    labels = next((key for key in found if key not in taken), None)
    if labels is None:
        raise _not_replaceable(name, "is not of the labels in the batch, neither as they are nor shifted by one")
    orders = found[labels]
    return Term(
        labels,
        key,
        # Both are possible only where every label is ignored.
        order=orders[0] if len(orders) == 1 else "shifted" if model.shift_labels else "plain",
        classes_last=call.input.shape != outputs_left[key].shape,
        binary=call.function is F.binary_cross_entropy_with_logits,
        label_smoothing=call.options.get("label_smoothing", 0.0),
    )


def _is_same(input: Tensor, output: Tensor) -> bool:
    """Whether a loss was given these logits, as they are or as rows of classes: judged by the first of them."""
    if input.shape == output.shape:
        a, b = input[0], output[0]
    elif input.ndim == 2 and output.ndim > 2 and output.shape[-1] == input.shape[1]:
        a, b = input[0], output.flatten(0, -2)[0]
    else:
        return False
    return torch.allclose(a.float(), b.float(), equal_nan=True)


def _orders(target: Tensor, labels: Any, ignored: int, clamped: bool) -> list[str]:
    """In which orders these labels are the target that a loss was given."""
    if not isinstance(labels, Tensor):
        return []
    versions = [("clamped", labels.clamp(0, ignored))] if clamped else [("plain", labels)]
    if labels.ndim > 1 and not clamped:
        # With the last logits left out, or with nothing for them to predict.
        versions += [("shifted", labels[..., 1:]), ("shifted", _shifted(labels, ignored))]
    return [order for order, version in versions if torch.equal(target.flatten(), version.flatten().to(target))]


def _shifted(labels: Tensor, ignore_index: int) -> Tensor:
    return F.pad(labels[..., 1:], (0, 1), value=ignore_index)


def _entries(outputs: Any) -> Iterator[tuple[str | int, Any]]:
    """What a model put out besides its loss, with the keys, or with indices that do not count the loss."""
    if isinstance(outputs, Mapping):
        yield from ((key, value) for key, value in outputs.items() if key != "loss")
    else:
        has_loss = isinstance(outputs[0], Tensor) and outputs[0].ndim == 0
        yield from enumerate(outputs[1:] if has_loss else outputs)


def _tensors(outputs: Any) -> Iterator[tuple[str | int, Tensor]]:
    yield from ((key, value) for key, value in _entries(outputs) if isinstance(value, Tensor) and value.ndim > 1)
