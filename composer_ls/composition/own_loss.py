"""Hugging Face models, which make their loss in ``forward()``: which logits and labels it uses, and its replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from composer.core import State, get_precision_context
from composer.models import HuggingFaceModel
from torch import Tensor
from torch.nn import functional as F

from composer_ls.composition.asking import CLASSES, Call, on_trial
from composer_ls.errors import TargetError
from composer_ls.losses import cross_entropy

__all__ = [
    "Head",
    "NotReplaceableError",
    "ReplacedLoss",
    "Term",
    "before_asking",
    "makes_its_loss",
    "numbered",
    "understand",
    "with_loss",
]

LABELS = ("labels", "start_positions", "end_positions")
"""Keys of a batch under which transformers' models expect their labels."""


def makes_its_loss(model: Any) -> bool:
    """Whether a model is Composer's wrapper of a Hugging Face model and its loss is the one that ``forward()`` made."""
    return isinstance(model, HuggingFaceModel) and type(model).loss is HuggingFaceModel.loss


class NotReplaceableError(TargetError):
    """A loss is more, or something else, than a mean of cross entropies of outputs and labels."""


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

    def describe(self) -> str:
        """What happens to the labels and the loss, in words."""
        words = {"plain": "{}", "shifted": "{} shifted by one", "clamped": "{}, of which those outside are ignored"}
        read = " and ".join(words[term.order].format(term.labels) for term in self.terms)
        loss = "binary_cross_entropy_with_logits" if self.terms[0].binary else "cross_entropy, fused,"
        if self.withheld:
            return f"{loss} with {read}, kept from {self.name}, which makes no loss of its own"
        return f"{loss} with {read} in place of the one that {self.name} makes too"


class ReplacedLoss:
    """Keeps the labels from the forward pass, and puts the smoothed loss where ``loss()`` looks for the model's own."""

    def __init__(self, smoother: Any, model: HuggingFaceModel, head: Head) -> None:
        self.smoother, self.model, self.head = smoother, model, head
        self._held: tuple[Any, Any] | None = None

    @property
    def num_classes(self) -> int:
        """K of the logits."""
        return self.head.num_classes

    def before_forward(self, state: State) -> None:
        """Take the labels from a model that would make its loss of them."""
        self.put_back(state)  # of a step that did not come to its end
        inputs = self.head.inputs(self.model, state.batch)
        self._held = (state.batch, inputs)
        state.batch = inputs

    def after_forward(self, state: State) -> None:
        """Give the labels back."""
        self.put_back(state)

    def before_loss(self, state: State) -> None:
        """Put the smoothed loss into the output."""
        with get_precision_context(state.precision, state.precision_config):
            losses = [self._loss(term, state) for term in self.head.terms]
        state.outputs = with_loss(state.outputs, torch.stack(losses).mean())

    def after_loss(self, state: State) -> None:
        """Nothing."""

    def put_back(self, state: State) -> None:
        """Give back what is still withheld."""
        if self._held is not None:
            batch, inputs = self._held
            if state.batch is inputs:
                state.batch = batch
            self._held = None

    def describe(self) -> str:
        """What happens to the labels and the loss, in words."""
        return self.head.describe()

    def _loss(self, term: Term, state: State) -> Tensor:
        logits = term.logits_of(state.outputs)
        ignored = -100 if self.smoother.ignore_index is None else self.smoother.ignore_index
        labels, ignored = term.labels_of(state.batch, logits, ignored)
        target = self.smoother.smoothed(logits, labels, ignore_index=ignored)
        if term.binary:
            return F.binary_cross_entropy_with_logits(logits, target)
        return cross_entropy(logits, target, label_smoothing=term.label_smoothing)


def before_asking(model: HuggingFaceModel) -> str:
    """What will happen to the labels and the loss, as far as it is known before the first batch."""
    return f"of {type(model.model).__name__} replaced, after its first batch has told what it is"


def understand(
    model: HuggingFaceModel, batch: Mapping[str, Any], outputs: Any, calls: Sequence[Call], kind: str, ignore_index: int
) -> Head:
    """What the loss that a model made in ``forward()`` is made of.

    What was heard is compared with the batch and the output: the logits, the order of the labels, and that the model
    adds and scales nothing. One more call shows whether the logits are the same without the labels.

    Args:
        model: In training mode.
        batch: A microbatch.
        outputs: Of its forward pass, with the loss that it made of the answers of `numbered`.
        calls: What was heard in it.
        kind: Of smoothing, ``"multiclass"`` or ``"binary"``.
        ignore_index: The label that is to be ignored.

    Raises:
        TargetError: The loss is not a mean of cross entropies of outputs and labels, or not of this kind; the message
            says what it is instead.
        NotReplaceableError: It is something with a cross entropy in it.

    """
    head, rows = _head(model, batch, outputs, calls, kind, ignore_index)
    if _can_do_without(model, batch, head, rows):
        return head
    return replace(head, withheld=frozenset(), shifts_decoder=False)


def numbered(calls: Sequence[Call]) -> Tensor:
    """An answer to the last of some losses without computing it: 1 for the first, 3 for the second, and so on."""
    call = calls[-1]
    rows = call.input.shape[:1] + call.input.shape[2:] if call.function in CLASSES else call.input.shape
    shape = rows if call.options.get("reduction") == "none" else ()
    return call.input.new_full(shape, _answer(len(calls) - 1), dtype=torch.float32)


def with_loss(outputs: Any, loss: Tensor) -> Any:
    """The outputs with this loss where `HuggingFaceModel.loss` looks for it."""
    if isinstance(outputs, tuple):
        return (loss, *(value for _, value in _entries(outputs)))
    outputs["loss"] = loss
    return outputs


# ---------------------------------------------------------------------------------------------------------------------
# Holding what was heard against the batch and the output.


def _answer(position: int) -> float:
    return 1.0 + 2.0 * position


def _head(
    model: HuggingFaceModel, batch: Mapping[str, Any], outputs: Any, calls: Sequence[Call], kind: str, ignore_index: int
) -> tuple[Head, Tensor]:
    """What the model's loss is made of, if it could do without its labels, and some rows of its logits."""
    name = type(model.model).__name__
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if not isinstance(loss, Tensor) or loss.ndim:
        raise TargetError(
            f"{name} made no loss of a batch with the keys {', '.join(map(str, batch))}: give it its labels, under "
            f"'labels' or, for answers in a text, 'start_positions' and 'end_positions'"
        )
    _require_kind(name, calls, kind)
    terms: list[Term] = []
    for call in calls:
        terms.append(_term(model, call, batch, outputs, terms, ignore_index))
    expected = sum(map(_answer, range(len(terms)))) / max(1, len(terms))
    if not terms:
        raise TargetError(_not_replaceable(name, "is something else than cross entropy of its logits and labels"))
    if abs(loss.item() - expected) > 1e-6:
        raise NotReplaceableError(_not_replaceable(name, "is something besides the mean cross entropy"))
    logits = terms[0].logits_of(outputs)
    given = {"decoder_input_ids", "decoder_inputs_embeds"} & set(batch)
    shifts_decoder = hasattr(model.model, "prepare_decoder_input_ids_from_labels") and not given
    withheld = frozenset(term.labels for term in terms)
    return Head(name, tuple(terms), withheld, shifts_decoder, logits.shape[1]), _some_rows(logits)


def _can_do_without(model: HuggingFaceModel, batch: Mapping[str, Any], head: Head, rows: Tensor) -> bool:
    """Whether the model gives the same logits without its labels."""
    try:
        with on_trial(model):
            outputs = model(head.inputs(model, batch))
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


def _require_kind(name: str, calls: Sequence[Call], kind: str) -> None:
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


def _not_replaceable(name: str, what: str) -> str:
    return (
        f"the loss that {name} makes in forward() {what}, so that LabelSmoothing cannot replace it by the smoothed one. "
        f"Write a subclass of HuggingFaceModel whose loss() returns composer_ls.cross_entropy(logits, labels) and "
        f"whatever else belongs to it, and give LabelSmoothing target_key='labels' and output_key='logits'"
    )


def _term(
    model: HuggingFaceModel,
    call: Call,
    batch: Mapping[str, Any],
    outputs: Any,
    others: Sequence[Term],
    ignore_index: int,
) -> Term:
    name = type(model.model).__name__
    for option in ("weight", "pos_weight"):
        if call.options.get(option) is not None:
            raise NotReplaceableError(_not_replaceable(name, f"has {option}="))
    if call.options.get("reduction", "mean") != "mean":
        raise NotReplaceableError(_not_replaceable(name, f"has reduction={call.options['reduction']!r}"))
    outputs_left = {key: logits for key, logits in _tensors(outputs) if key not in {term.logits for term in others}}
    key = next((key for key, logits in outputs_left.items() if _is_same(call.input, logits)), None)
    if key is None:
        raise NotReplaceableError(_not_replaceable(name, "is of logits that are not in its output"))
    ignored = call.options.get("ignore_index", -100)
    clamped = call.function is F.cross_entropy and ignored == call.input.shape[-1]
    if call.function is F.cross_entropy and not clamped and ignored != ignore_index:
        what = f"ignores the label {ignored}, but LabelSmoothing {ignore_index}"
        raise NotReplaceableError(_not_replaceable(name, what))
    taken = {term.labels for term in others}
    found = {key: orders for key in LABELS if (orders := _orders(call.target, batch.get(key), ignored, clamped))}
    labels = next((key for key in found if key not in taken), None)
    if labels is None:
        what = "is not of the labels in the batch, neither as they are nor shifted by one"
        raise NotReplaceableError(_not_replaceable(name, what))
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
