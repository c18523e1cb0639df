"""For Hugging Face models, which compute their loss in ``forward()``: finds its logits and labels, and replaces it."""

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
"""Keys of the batch under which models of transformers expect labels."""


def makes_its_loss(model: Any) -> bool:
    """Whether a model is Composer's HuggingFaceModel and uses the loss that ``forward()`` computes."""
    return isinstance(model, HuggingFaceModel) and type(model).loss is HuggingFaceModel.loss


class NotReplaceableError(TargetError):
    """A loss is not just the mean of cross entropies of outputs and labels."""


@dataclass(frozen=True)
class Term:
    """One cross entropy in the loss of a model, a mean over labels.

    Attributes:
        labels: The key of the labels in the batch.
        logits: The key of the logits in the output, or their index if the output is a tuple.
        order: How the loss uses the labels: ``"plain"``; ``"shifted"``, the logits at each position against the label
            at the next; ``"clamped"`` to at most the number of classes, which is then the label to ignore.
        classes_last: Whether the logits are ``(N, *spatial, K)`` rather than ``(N, K, *spatial)``.
        binary: Whether the loss is binary cross entropy, with a label for every logit.
        label_smoothing: The ``label_smoothing`` of the model's own loss.

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
        """The labels in the shape that fits these logits, and the label to ignore.

        For a shift the labels are moved rather than the logits, which are large.
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
    """The terms of a model's loss, and how to call the model so that it does not compute that loss.

    Attributes:
        name: The name of the model's class.
        terms: The cross entropies whose mean is the loss.
        withheld: The keys that are not passed to ``forward()``.
        shifts_decoder: Whether the decoder's inputs, which the model would derive from the labels, must be passed.
        num_classes: K of the first term.

    """

    name: str
    terms: tuple[Term, ...]
    withheld: frozenset[str]
    shifts_decoder: bool
    num_classes: int

    def inputs(self, model: HuggingFaceModel, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the batch without the labels, plus the inputs that ``forward()`` would derive from them."""
        inputs = {key: value for key, value in batch.items() if key not in self.withheld}
        if self.shifts_decoder:
            inputs["decoder_input_ids"] = model.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return inputs

    def describe(self) -> str:
        """What happens to the labels and the loss, in words."""
        words = {"plain": "{}", "shifted": "{} shifted by one", "clamped": "{} (positions outside the text ignored)"}
        read = " and ".join(words[term.order].format(term.labels) for term in self.terms)
        loss = "binary_cross_entropy_with_logits" if self.terms[0].binary else "cross_entropy, fused,"
        if self.withheld:
            return f"{loss} with {read}, which are not passed to {self.name}, in place of its own loss"
        return f"{loss} with {read} in place of the loss that {self.name} also computes"


class ReplacedLoss:
    """Calls the model without its labels, and puts the smoothed loss where ``loss()`` looks for the model's own."""

    def __init__(self, smoother: Any, model: HuggingFaceModel, head: Head) -> None:
        self.smoother, self.model, self.head = smoother, model, head
        self._held: tuple[Any, Any] | None = None

    @property
    def num_classes(self) -> int:
        """K of the logits."""
        return self.head.num_classes

    def before_forward(self, state: State) -> None:
        """Remove the labels from the batch, so that the model computes no loss."""
        self.put_back(state)  # in case an earlier step was interrupted
        inputs = self.head.inputs(self.model, state.batch)
        self._held = (state.batch, inputs)
        state.batch = inputs

    def after_forward(self, state: State) -> None:
        """Restore the labels."""
        self.put_back(state)

    def before_loss(self, state: State) -> None:
        """Put the smoothed loss into the output."""
        with get_precision_context(state.precision, state.precision_config):
            losses = [self._loss(term, state) for term in self.head.terms]
        state.outputs = with_loss(state.outputs, torch.stack(losses).mean())

    def after_loss(self, state: State) -> None:
        """Do nothing."""

    def put_back(self, state: State) -> None:
        """Restore the batch if it still lacks the labels."""
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
    return f"of {type(model.model).__name__} to be replaced, once the first batch has shown what it is"


def understand(
    model: HuggingFaceModel, batch: Mapping[str, Any], outputs: Any, calls: Sequence[Call], kind: str, ignore_index: int
) -> Head:
    """The terms of the loss that a model computed in ``forward()``.

    The recorded loss calls are compared with the batch and the output to find the logits and the order of the labels,
    and to check that the model adds and scales nothing. One more forward pass shows whether the logits are the same
    without the labels.

    Args:
        model: The model, in training mode.
        batch: A microbatch.
        outputs: The output of its forward pass, in which `numbered` gave the results of the loss calls.
        calls: The loss calls of that pass.
        kind: The kind of smoothing, ``"multiclass"`` or ``"binary"``.
        ignore_index: The label to ignore.

    Raises:
        TargetError: The loss contains no cross entropy of outputs and labels, or does not fit this kind; the message
            says what it is instead.
        NotReplaceableError: The loss contains a cross entropy, but is not just the mean of such terms.

    """
    head, rows = _head(model, batch, outputs, calls, kind, ignore_index)
    if _can_do_without(model, batch, head, rows):
        return head
    return replace(head, withheld=frozenset(), shifts_decoder=False)


def numbered(calls: Sequence[Call]) -> Tensor:
    """A stand-in result for the last of some loss calls: 1 for the first call, 3 for the second, and so on.

    The loss that the model makes of them shows how it combines its terms.
    """
    call = calls[-1]
    rows = call.input.shape[:1] + call.input.shape[2:] if call.function in CLASSES else call.input.shape
    shape = rows if call.options.get("reduction") == "none" else ()
    return call.input.new_full(shape, _answer(len(calls) - 1), dtype=torch.float32)


def with_loss(outputs: Any, loss: Tensor) -> Any:
    """The outputs with ``loss`` where `HuggingFaceModel.loss` looks for it."""
    if isinstance(outputs, tuple):
        return (loss, *(value for _, value in _entries(outputs)))
    outputs["loss"] = loss
    return outputs


# ---------------------------------------------------------------------------------------------------------------------
# Comparing the recorded calls with the batch and the output.


def _answer(position: int) -> float:
    return 1.0 + 2.0 * position


def _head(
    model: HuggingFaceModel, batch: Mapping[str, Any], outputs: Any, calls: Sequence[Call], kind: str, ignore_index: int
) -> tuple[Head, Tensor]:
    """The terms of the model's loss, assuming that it can run without labels, and some rows of its logits."""
    name = type(model.model).__name__
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if not isinstance(loss, Tensor) or loss.ndim:
        raise TargetError(
            f"{name} returned no loss for a batch with the keys {', '.join(map(str, batch))}: give it labels, under "
            f"'labels' or, for question answering, 'start_positions' and 'end_positions'"
        )
    _require_kind(name, calls, kind)
    terms: list[Term] = []
    for call in calls:
        terms.append(_term(model, call, batch, outputs, terms, ignore_index))
    expected = sum(map(_answer, range(len(terms)))) / max(1, len(terms))
    if not terms:
        raise TargetError(_not_replaceable(name, "is not a cross entropy of its logits and labels"))
    if abs(loss.item() - expected) > 1e-6:
        raise NotReplaceableError(_not_replaceable(name, "is not just the mean cross entropy"))
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
    """The logits at about a hundred positions, to compare without keeping all logits."""
    rows = logits.movedim(1, -1).flatten(0, -2)
    return rows[:: max(1, len(rows) // 100)].float()


# ---------------------------------------------------------------------------------------------------------------------
# Turning recorded calls into terms.


def _require_kind(name: str, calls: Sequence[Call], kind: str) -> None:
    functions = {call.function for call in calls}
    if F.mse_loss in functions:
        raise TargetError(
            f"{name} is a regression head (num_labels=1 or problem_type='regression'), whose loss is the squared error "
            f"of a number: there are no classes to share mass with. Take LabelSmoothing out of algorithms, or, if the "
            f"labels are classes, set num_labels and problem_type='single_label_classification' in the model's config"
        )
    if kind != "binary" and F.binary_cross_entropy_with_logits in functions:
        raise TargetError(
            f"{name} has a binary cross entropy for every label (problem_type='multi_label_classification'), but "
            f"kind='multiclass' is for mutually exclusive classes: give LabelSmoothing(kind='binary')"
        )
    if kind == "binary" and F.cross_entropy in functions:
        raise TargetError(
            f"{name} has a cross entropy over mutually exclusive classes, but kind='binary' is for targets with a "
            f"separate label for every logit: give LabelSmoothing(kind='multiclass')"
        )


def _not_replaceable(name: str, what: str) -> str:
    return (
        f"the loss that {name} computes in forward() {what}, so LabelSmoothing cannot replace it by the smoothed one. "
        f"Write a subclass of HuggingFaceModel whose loss() returns composer_ls.cross_entropy(logits, labels) plus "
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
    if call.function is F.nll_loss:
        raise NotReplaceableError(
            _not_replaceable(name, "is the nll_loss of scores that need not be log-probabilities")
        )
    for option in ("weight", "pos_weight"):
        if call.options.get(option) is not None:
            raise NotReplaceableError(_not_replaceable(name, f"has {option}="))
    if call.options.get("reduction", "mean") != "mean":
        raise NotReplaceableError(_not_replaceable(name, f"has reduction={call.options['reduction']!r}"))
    outputs_left = {key: logits for key, logits in _tensors(outputs) if key not in {term.logits for term in others}}
    key = next((key for key, logits in outputs_left.items() if _is_same(call.input, logits)), None)
    if key is None:
        raise NotReplaceableError(_not_replaceable(name, "uses logits that are not in its output"))
    if len(call.origins) > 1:
        raise NotReplaceableError(_not_replaceable(name, "changes its labels by what else is in the batch"))
    ignored = call.options.get("ignore_index", -100)
    clamped = call.function is F.cross_entropy and ignored == call.input.shape[-1]
    changes = call.changes - ({"clamp", "clamp_"} if clamped else set())
    if changes:  # though the labels of this batch may still be the same
        raise NotReplaceableError(_not_replaceable(name, f"changes its labels by {', '.join(sorted(changes))}"))
    if call.function is F.cross_entropy and not clamped and ignored != ignore_index:
        what = f"ignores the label {ignored}, but LabelSmoothing {ignore_index}"
        raise NotReplaceableError(_not_replaceable(name, what))
    taken = {term.labels for term in others}
    found = {key: orders for key in LABELS if (orders := _orders(call.target, batch.get(key), ignored, clamped))}
    labels = next((key for key in found if key not in taken), None)
    if labels is None:
        what = "does not use the labels in the batch, neither as they are nor shifted by one"
        raise NotReplaceableError(_not_replaceable(name, what))
    orders = found[labels]
    return Term(
        labels,
        key,
        # Both orders fit only if every label is ignored.
        order=orders[0] if len(orders) == 1 else "shifted" if model.shift_labels else "plain",
        classes_last=call.input.shape != outputs_left[key].shape,
        binary=call.function is F.binary_cross_entropy_with_logits,
        label_smoothing=call.options.get("label_smoothing", 0.0),
    )


def _is_same(input: Tensor, output: Tensor) -> bool:
    """Whether a loss was given these logits, as they are or flattened to rows. Only the first example is compared."""
    if input.shape == output.shape:
        a, b = input[0], output[0]
    elif input.ndim == 2 and output.ndim > 2 and output.shape[-1] == input.shape[1]:
        a, b = input[0], output.flatten(0, -2)[0]
    else:
        return False
    return torch.allclose(a.float(), b.float(), equal_nan=True)


def _orders(target: Tensor, labels: Any, ignored: int, clamped: bool) -> list[str]:
    """The orders in which these labels equal the target that a loss was given."""
    if not isinstance(labels, Tensor):
        return []
    versions = [("clamped", labels.clamp(0, ignored))] if clamped else [("plain", labels)]
    if labels.ndim > 1 and not clamped:
        # The last logits are left out, or are kept with an ignored label.
        versions += [("shifted", labels[..., 1:]), ("shifted", _shifted(labels, ignored))]
    return [order for order, version in versions if torch.equal(target.flatten(), version.flatten().to(target))]


def _shifted(labels: Tensor, ignore_index: int) -> Tensor:
    return F.pad(labels[..., 1:], (0, 1), value=ignore_index)


def _entries(outputs: Any) -> Iterator[tuple[str | int, Any]]:
    """A model's outputs except the loss, each with its key, or with an index that does not count the loss."""
    if isinstance(outputs, Mapping):
        yield from ((key, value) for key, value in outputs.items() if key != "loss")
    else:
        has_loss = isinstance(outputs[0], Tensor) and outputs[0].ndim == 0
        yield from enumerate(outputs[1:] if has_loss else outputs)


def _tensors(outputs: Any) -> Iterator[tuple[str | int, Tensor]]:
    yield from ((key, value) for key, value in _entries(outputs) if isinstance(value, Tensor) and value.ndim > 1)
