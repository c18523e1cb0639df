"""Decides how smoothed targets reach a model's loss, on the first microbatch, by asking the model.

`composer_ls.composition.asking` explains what asking means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer.algorithms import CutMix
from composer.core import Precision, State, get_precision_context
from composer.models import HuggingFaceModel
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.composition import own_loss
from composer_ls.composition.answering import Answering, answered, is_answerable, is_of, key_paths
from composer_ls.composition.asking import (
    BINARY,
    CLASSES,
    HALF,
    MADE,
    Call,
    Listening,
    is_out_of_memory,
    modules_called,
    on_trial,
    total,
    with_other_containers,
)
from composer_ls.composition.batches import (
    DEFAULT_KEY,
    NO_LABEL,
    as_tensor,
    cloned,
    get,
    has,
    leaves,
    path_of,
    with_leaves,
    with_target,
)
from composer_ls.composition.conflicts import Conflict, DoubleSmoothingError, smoothing_of
from composer_ls.composition.mixers import mixers_among, refuse_mixers
from composer_ls.composition.plan import unwrapped
from composer_ls.composition.targets_in_batch import TargetsInBatch, Untouched, logits_of
from composer_ls.composition.without_logits import (
    AnsweringWithoutLogits,
    WithoutLogits,
    find_layer,
    refusal,
    refuse_metrics,
)
from composer_ls.errors import TargetError
from composer_ls.smoothing import smooth_labels
from composer_ls.targets import SoftTargets

__all__ = ["BINARY_FOR_CLASSES", "OWN_LOSS", "Way", "choose"]

Way = TargetsInBatch | Answering | own_loss.ReplacedLoss

BINARY_FOR_CLASSES = (
    "kind='binary' is for targets with a separate label for every logit, but the loss is cross entropy over mutually "
    "exclusive classes: give LabelSmoothing(kind='multiclass'), or use a loss such as "
    "torch.nn.functional.binary_cross_entropy_with_logits"
)
CLASSES_FOR_BINARY = (
    "the loss is a binary cross entropy and the targets are rows with a label for every logit, but kind='multiclass' "
    "is for mutually exclusive classes and would move the mass of each row to all K of them: give "
    "LabelSmoothing(kind='binary'); use on_conflict='warn' to continue, if the rows are mixed classes"
)
REGRESSION = (
    "the loss is a squared error of numbers in the batch: there are no classes to share mass with. Take LabelSmoothing out "
    "of algorithms"
)
OWN_LOSS = (
    "the model's output contains a loss that was computed from labels that are not smoothed, which LabelSmoothing "
    "cannot reach: keep the labels out of forward() and let the model's loss() return "
    "composer_ls.cross_entropy(outputs['logits'], batch['labels']); use on_conflict='warn' to continue, if loss() "
    "does not use it"
)
WAY_OUT = (
    "LabelSmoothing replaces the labels by distributions over the classes, (N, K), so the loss must accept those, as "
    "torch.nn.functional.cross_entropy and composer_ls.cross_entropy do. Pass the labels to one of these once, and let "
    "the rest of the loss work on its result"
)

UNUSED = (
    "is the same number when the targets are smoothed, so that smoothing would do nothing: it takes other labels than those in "
    "the batch, or turns distributions back into labels. Let it pass the targets in the batch to "
    "torch.nn.functional.cross_entropy once; use on_conflict='warn' to continue, if the loss depends on them later"
)
JUMPS = (
    "jumps when the targets are smoothed by very little, because it compares their entries with 0 or 1, counts or rounds them, "
    "as in target == 1, target > 0 or target.long(). Take such weights and masks from labels that are not smoothed, "
    "(target > 0.5) for example; use on_conflict='warn' to continue"
)
WEIGHTS = (
    "takes weights for its loss from the targets, such as their mean, and smoothing would change these. Take them from labels "
    "that are not smoothed, (target > 0.5) for example; use on_conflict='warn' to continue"
)
MADE_IN_FORWARD = (
    "takes the cross entropy of labels that forward() made of those in the batch and put into its output, where LabelSmoothing "
    "cannot follow them: make them in loss(), or use on_conflict='warn' if they are to stay hard"
)


MIXED_ROWS = (
    "{mixer} gives the loss of {model} rows of mixed labels, and of these it computes no {call}, as it does of labels, so that "
    "LabelSmoothing could not smooth it (composer.loss.soft_cross_entropy with weight= or ignore_index= is such a loss): take "
    "composer_ls.cross_entropy in its place, or {mixer}(interpolate_loss=True); use on_conflict='warn' to continue"
)


ONE_TABLE = (
    "{model} takes cross entropies of the labels at {places}, of which LabelSmoothing would learn one prior for all: give several "
    "LabelSmoothing, each with a target_key; use on_conflict='warn' if the labels are of the same classes"
)


def choose(smoother: Any, state: State, is_another_form: bool = False) -> tuple[Way, bool]:
    """Ask the model what its loss is, and decide how smoothed targets reach it.

    The model is called on the microbatch as Composer calls it, without gradient or side effects. If its loss is the
    same number for the labels and for their one-hot distributions, the targets in the batch are replaced. If not, each
    cross entropy that it computes from the labels is replaced by the smoothed one. A Hugging Face model that computes
    its loss in ``forward()`` is called without labels, and the smoothed loss is added to its output.

    Args:
        smoother: The algorithm.
        state: The state of the Trainer, with a microbatch.
        is_another_form: Whether batches of another form are smoothed. Then nothing is, if the loss of this one computes no cross
            entropy of labels, as that of regression or of two views of an image.

    Returns:
        The way, and whether it is settled; if not, because every label is ignored, the next microbatch decides.

    Raises:
        TargetError: The loss does not fit this kind of smoothing, or uses the labels in a way that cannot be smoothed.
        DoubleSmoothingError: The loss was called with ``label_smoothing`` above 0.

    """
    with get_precision_context(state.precision, state.precision_config):
        asked = _Asked(smoother, unwrapped(state), state)
        try:
            way = asked.way()
        except (TypeError, ValueError):
            if not is_another_form or not asked.hears_no_labels():
                raise
            return Untouched(smoother), True
    if smoother.logits == "never" and not isinstance(way, (WithoutLogits, AnsweringWithoutLogits)):
        raise TargetError(
            f"logits='never' is for models whose loss is one torch.nn.functional.cross_entropy of their labels, but the loss "
            f"of {type(unwrapped(state)).__name__} is computed otherwise: take logits='never' away, or compute the loss with "
            f"composer_ls.linear_cross_entropy in the model"
        )
    return way, asked.is_settled()


class _Asked:
    """Asks one model and decides from what was heard."""

    def __init__(self, smoother: Any, model: Any, state: State) -> None:
        self.smoother, self.model, self.state = smoother, model, state
        self.batch = cloned(state.batch)
        self.paths = key_paths(self.batch, smoother.target_key)
        self.conflicts: list[Conflict] = []
        self.bad_label: ValueError | None = None
        self.failure: str | None = None
        self.heard: list[Call] | None = None  # until the model was asked
        self.counts = True  # whether some target is of a class

    def hears_no_labels(self) -> bool:
        """Whether the loss computes no cross entropy of labels at all."""
        return self.heard is not None and not any(
            call.is_of_labels and call.function in (*CLASSES, *BINARY) for call in self.heard
        )

    def is_settled(self) -> bool:
        """Whether some label was of a class. If all are ignored, another loss may give the same number."""
        of_labels = [call for call in self.heard or [] if call.is_of_labels and not call.target.is_floating_point()]
        ignored = [bool((call.target.long() == call.ignore_index).all()) for call in of_labels]
        return self.counts and not (ignored and all(ignored))

    def way(self) -> Way:
        forward = Listening(self.batch, _numbering())
        try:
            with on_trial(self.model) as held, forward:
                self.outputs = self.model(self.batch)
                self.left = held.left()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return TargetsInBatch(self.smoother, _in_words(error))
        made = (leaf for _, leaf in leaves([self.outputs, [value for *_, value in self.left]]))
        self.made = [leaf for leaf in made if (origins := forward.origins_of(leaf)) and is_of(origins, self.paths)]
        hard, loss_calls = self._hard_loss()
        uses_forward = own_loss.makes_its_loss(self.model) or (
            hard is not None and (self._uses_calls(hard, forward.calls) or self._uses_scalars(hard, forward.calls))
        )
        self.heard = calls = [*(forward.calls if uses_forward else []), *loss_calls]
        if any(call.is_of_labels and call.origins == {MADE} for call in loss_calls):
            self._refuse(TargetError(f"the loss of {type(self.model).__name__} {MADE_IN_FORWARD}"))
        self._object_to_smoothing({"forward": forward.calls if uses_forward else [], "loss": loss_calls})
        if uses_forward and not loss_calls and isinstance(self.model, HuggingFaceModel):
            return self._forward_made(forward.calls)
        if uses_forward and not self._answerable(forward.calls):
            self._refuse(ValueError(OWN_LOSS))
        self._object_to_kind(calls)
        answerable = self._answerable(calls)
        self._object_to_other_labels(calls, answerable)
        if uses_forward and answerable:
            refuse_mixers(self.state.algorithms)
            return self._answering(answerable, in_forward=True, in_loss=bool(self._answerable(loss_calls)))
        return self._made_in_loss(hard, calls, answerable)

    def _forward_made(self, calls: list[Call]) -> Way:
        refuse_mixers(self.state.algorithms)
        kind, ignored = self.smoother.kind, self.smoother.ignore_index
        try:
            head = own_loss.understand(
                self.model, cloned(self.state.batch), self.outputs, calls, kind, -100 if ignored is None else ignored
            )
        except own_loss.NotReplaceableError:
            answerable = self._answerable(calls)
            if not answerable:
                raise
            return self._answering(answerable, in_forward=True)
        if self.smoother.logits == "never":
            refuse_metrics(self.state)
            if kind == "binary" or len(head.terms) != 1:
                raise refusal(head.name, "its loss is not one cross entropy over classes")
            if not head.withheld:
                raise refusal(
                    head.name, "it needs its labels to compute its logits, and then computes its own loss of them"
                )
            inputs, term = head.inputs(self.model, self.batch), head.terms[0]
            layer = self._last_layer(inputs, term.logits_of, head.num_classes, head.name)
            return WithoutLogits(self.smoother, self.model, head, layer)
        return own_loss.ReplacedLoss(self.smoother, self.model, head)

    def _last_layer(self, inputs: Any, logits_of: Callable[[Any], Tensor], num_classes: int, name: str) -> Any:
        return find_layer(self.model, inputs, logits_of, num_classes, bool(self.state.fsdp_enabled), name)

    def _without_logits(self, hard: Tensor | None, call: Call) -> Way:
        """For a loss that ``loss()`` computes from the logits in the output, by one cross entropy."""
        refuse_mixers(self.state.algorithms)
        refuse_metrics(self.state)
        name, start = type(self.model).__name__, call.input.data_ptr()
        tensors = [(path, leaf) for path, leaf in leaves(self.outputs) if isinstance(leaf, Tensor)]
        place = next((path for path, tensor in tensors if tensor.data_ptr() == start), None)
        if place is None:
            raise refusal(name, "its loss() works on the logits before it takes the cross entropy of them")
        layer = self._last_layer(self.batch, lambda outputs: dict(leaves(outputs))[place], call.input.shape[1], name)
        way = AnsweringWithoutLogits(self.smoother, self.model, [call], layer)
        try:
            found = way.trial(self.batch, self._unsmoothed)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise refusal(name, f"its loss() cannot do without them ({type(error).__name__}: {error})") from error
        if not self._same(hard, found):
            raise refusal(
                name, f"its loss is {hard:.4g}, but {found:.4g} without them, so that it uses them otherwise too"
            )
        return way

    def _made_in_loss(self, hard: Tensor | None, calls: list[Call], answerable: list[Call]) -> Way:
        if hard is None:  # loss() failed or returned no tensor: the training step will show the error
            return TargetsInBatch(self.smoother, self.failure)
        if self.smoother.logits == "never" and [call.function for call in answerable] == [F.cross_entropy]:
            return self._without_logits(hard, answerable[0])
        try:
            logits = logits_of(self.outputs, self.smoother.output_key, self.smoother.kind)
            target = as_tensor(get(self.batch, self.smoother.target_key), logits.device)
            target = self._unsmoothed(logits, target, self.smoother.ignore_index, self.smoother.kind)
            batch = with_target(self.batch, self.smoother.target_key, target)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            if answerable:
                return self._answering(answerable, in_loss=True)
            if calls and {call.function for call in calls} == {F.mse_loss}:
                raise TargetError(REGRESSION) from error
            raise  # the message says which argument lets LabelSmoothing find the targets or the logits
        others = {call.ignore_index for call in answerable} - {-100, self.smoother.ignore_index}
        if others and not mixers_among(self.state.algorithms):  # such labels may come in later batches only
            return self._answering(answerable, in_loss=True)
        of_rows = Listening(batch, Call.as_it_is)
        try:
            with of_rows:
                soft = total(self._loss(batch))
            problem = "" if self._same(hard, soft) else _differs(soft, hard)
            if any(not call.target.is_floating_point() for call in self._answerable(of_rows.calls)):
                problem = "one of its cross entropies takes labels that it makes of the distributions"
        except Exception as error:
            if is_out_of_memory(error):
                raise
            problem = f"given distributions, it raised {type(error).__name__}: {error}"
        if not problem:
            elsewhere = self.smoother.reads_logits and any(self._is_of_other_logits(one, logits) for one in answerable)
            problem = "" if elsewhere else self._misuse(target, logits)
            if not elsewhere and not problem:
                return TargetsInBatch(self.smoother)
        if answerable:
            return self._answering(answerable, in_loss=True)
        name = type(self.model).__name__
        if problem in (UNUSED, JUMPS, WEIGHTS):
            self._refuse(TargetError(f"the loss of {name} {problem}"))
            return TargetsInBatch(self.smoother)
        raise TargetError(f"the loss of {name} does not take smoothed targets: {problem}. {WAY_OUT}")

    def _misuse(self, target: Tensor, logits: Tensor) -> str:
        """What the loss does with targets that smoothing would make wrong, or an empty string.

        If it does not change when ``target`` is smoothed, it takes others, or turns rows back into labels. If it jumps when
        ``target`` is smoothed by very little, it compares their entries with 0 or 1. This may show only for other labels than
        those of this batch, so it is asked about labels of one class too.
        """
        counts = target.weights.any() if isinstance(target, SoftTargets) else target.any()  # some row has a label
        self.counts = bool(counts)
        if not counts or (self.smoother.kind == "multiclass" and logits.shape[1] == 1):
            return ""
        problem = self._problem(self.batch, target, logits)
        labels = _of_one_class(as_tensor(get(self.batch, self.smoother.target_key), logits.device), self.smoother)
        if problem or labels is None:
            return problem
        target = self._unsmoothed(logits, labels, self.smoother.ignore_index, self.smoother.kind)
        problem = self._problem(with_target(self.batch, self.smoother.target_key, labels), target, logits)
        # A loss of pairs, for example, may not depend on labels that are all the same.
        return "" if problem == UNUSED else problem

    def _problem(self, batch: Any, target: Tensor, logits: Tensor) -> str:
        """What the loss does with ``target``, the rows of the labels in ``batch``.

        Every tensor of the logits' shape in the output is filled with noise for this, because the loss of logits that are all
        equal, as those of a layer that begins with zeros, does not depend on the target.
        """
        filled: list[tuple[Tensor, Tensor]] = []
        outputs = self.outputs
        try:
            for _, leaf in leaves(self.outputs):
                if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.shape == logits.shape:
                    before = leaf.clone()
                    # between 0 and 1, since probabilities may be wanted, and another in each
                    leaf.uniform_(0.1, 0.9, generator=torch.Generator(leaf.device).manual_seed(len(filled)))
                    filled.append((leaf, before))  # not if it could not be filled
            losses, weights = self._losses_of(batch, target, logits)
            if _has_half(losses):
                self.outputs = with_leaves(outputs, _in_float32)  # they may have been rounded to the same number
                losses, weights = self._losses_of(batch, target, logits)
                if _has_half(losses):
                    return ""  # it computes in half precision itself
            of_labels, hard, little, much = map(total, losses)
            if of_labels is None or hard is None or little is None or much is None:
                return ""
            if not self._same(of_labels, hard):
                return _differs(hard, of_labels)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return ""
        finally:
            self.outputs = outputs
            for leaf, before in reversed(filled):  # the output may hold a tensor twice
                leaf.copy_(before)
        if torch.equal(hard, much):
            return UNUSED
        if not all(map(_is_same_weight, weights[0], weights[-1])):
            return WEIGHTS
        jump = (little - hard).abs()  # of a loss that is linear in its targets, 1/1500 of the other difference
        return JUMPS if jump > 0.1 * (much - hard).abs() and jump > 1e-3 * hard.abs() else ""

    def _losses_of(self, batch: Any, target: Tensor, logits: Tensor) -> tuple[list[Any], list[list[Any]]]:
        """The losses of labels, of their rows, and of these smoothed by little and by more, and the weights that the last three took."""
        losses: list[Any] = []
        weights: list[list[Any]] = []
        with Listening(batch, self._exact):
            losses.append(self._loss(batch))
        for amount in (0, 1e-4, 0.15):  # the largest entries stay so
            rows = smooth_labels(logits, target, amount, kind=self.smoother.kind, validate=False) if amount else target
            of_rows = with_target(batch, self.smoother.target_key, rows)
            with Listening(of_rows, Call.as_it_is) as heard:
                losses.append(self._loss(of_rows))
            weights.append([call.options.get(name) for call in heard.calls for name in ("weight", "pos_weight")])
        return losses, weights

    def _is_of_other_logits(self, call: Call, logits: Tensor) -> bool:
        """Whether a call does not take these logits, or ignores a class, which may be the largest of other examples."""
        ignores_class = 0 <= call.ignore_index < logits.shape[1]
        return ignores_class or _memory(call.input) != _memory(logits)

    def _answering(self, calls: list[Call], in_forward: bool = False, in_loss: bool = False) -> Answering:
        key = self.smoother.target_key
        if self.paths is None and key != DEFAULT_KEY and isinstance(key, (str, int)):
            path_of(self.batch, key)  # raises the error for a key that leads nowhere
        for call in calls:
            if call.is_checkpointed:
                raise TargetError(
                    f"{type(self.model).__name__} takes its {call.name} inside torch.utils.checkpoint"
                    f"{f' ({call.place})' if call.place else ''}, which computes it again in the backward pass, where "
                    f"LabelSmoothing cannot smooth it: move it out of the checkpoint, or give it label_smoothing= "
                    f"there and take LabelSmoothing out of algorithms"
                )
        if self.smoother.has_one_table and any(call.origins.isdisjoint(calls[0].origins) for call in calls):
            places = " and ".join(sorted({".".join(map(str, path)) for call in calls for path in call.origins}))
            self._refuse(TargetError(ONE_TABLE.format(model=type(self.model).__name__, places=places)))
        if in_loss:
            self._object_to_mixed_rows(calls)
        return Answering(self.smoother, self.model, calls, in_forward, in_loss)

    def _object_to_mixed_rows(self, calls: list[Call]) -> None:
        """Object to a mixer of labels if the loss computes the cross entropy of mixed rows where it cannot be heard."""
        key, logits = self.smoother.target_key, calls[0].input
        labels = as_tensor(get(self.batch, key), logits.device) if has(self.batch, key) else None
        if not isinstance(labels, Tensor) or labels.is_floating_point() or logits.ndim < 2:
            return
        mixing = [
            type(one).__name__
            for one, mixer in mixers_among(self.state.algorithms)
            if not mixer.interpolates(one) and not (isinstance(one, CutMix) and labels.ndim > 2)  # which pastes labels
        ]
        if not mixing:
            return
        try:
            rows = F.one_hot(labels.long().clamp(0, logits.shape[1] - 1), logits.shape[1]).movedim(-1, 1)
            batch = with_target(self.batch, key, rows.to(logits.dtype))
            with Listening(batch, Call.as_it_is) as heard:
                self._loss(batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return  # the training step will show it
        missing = calls[len(self._answerable(heard.calls)) :]
        if missing:
            self._refuse(
                TargetError(MIXED_ROWS.format(mixer=mixing[0], model=type(self.model).__name__, call=missing[0].name))
            )

    def _hard_loss(self) -> tuple[Tensor | None, list[Call]]:
        """The loss of the unsmoothed labels, and the loss calls made while computing it."""
        listening = Listening(self.batch, self._exact, self.made)
        called: list[nn.Module] = []
        hard = None
        try:
            with modules_called(called.append), listening:
                hard = total(self._loss(self.batch))
        except Exception as error:
            if self.bad_label is not None:
                raise self.bad_label from None
            if is_out_of_memory(error):
                raise
            self.failure = _in_words(error)
        for module in called:
            self.conflicts += smoothing_of("model.loss and a module that it calls", module)
        return hard, listening.calls

    def _loss(self, batch: Any) -> Any:
        """What ``loss()`` returns for the model's output, with what ``forward()`` left on the model."""
        with on_trial(self.model):
            for module, name, value in self.left:
                vars(module)[name] = with_other_containers(value)
            return self.model.loss(self.outputs, batch)

    def _exact(self, call: Call) -> Tensor:
        """The loss of a call, after checking its labels: on a GPU a wrong label would end the process."""
        is_other = call.function in BINARY or call.target.is_floating_point()
        if is_other or not is_answerable(call, "multiclass", None):
            return call.as_it_is()
        try:
            return answered(call, self._unsmoothed, self.smoother.ignore_index)
        except ValueError as error:
            self.bad_label = error
            raise

    def _unsmoothed(
        self, logits: Tensor, target: Tensor, ignore_index: int | None = None, kind: str = "multiclass"
    ) -> Tensor:
        """Labels as distributions, with a smoothing of 0."""
        ignored = NO_LABEL if ignore_index is None else ignore_index
        return smooth_labels(logits, target, 0.0, ignore_index=ignored, kind=kind, validate=True)

    def _same(self, a: Tensor | None, b: Tensor | None) -> bool:
        """Whether two losses are equal but for rounding."""
        if a is None or b is None:
            return a is b
        in_half = self.state.precision != Precision.FP32 or _has_half(self.outputs)
        return torch.allclose(a, b, rtol=1e-3 if in_half else 2e-5, atol=1e-5, equal_nan=True)

    def _uses_calls(self, hard: Tensor, calls: list[Call]) -> bool:
        """Whether the result of ``loss()`` depends on a loss of labels that ``forward()`` computed, wherever it was left.

        The model runs again with other results of these losses, and once more with the same ones, whose result would differ
        only if the model does not repeat itself. Every process runs it equally often.
        """
        if not any(self._is_of_targets(call) for call in calls):
            return False
        moved, repeated = (self._loss_with(_numbering(more, self._is_of_targets)) for more in (1, 0))
        return not self._same(hard, moved) and self._same(hard, repeated)

    def _is_of_targets(self, call: Call) -> bool:
        return call.is_of_labels and is_of(call.origins, self.paths)

    def _loss_with(self, answer: Callable[[Call], Tensor]) -> Tensor | None:
        """The loss if the losses of the forward pass are answered in this way; None if there is none."""
        outputs, left = self.outputs, self.left
        try:
            with on_trial(self.model) as held, Listening(self.batch, answer):
                self.outputs = self.model(self.batch)
                self.left = held.left()
            with Listening(self.batch, self._exact):
                return total(self._loss(self.batch))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return None
        finally:
            self.outputs, self.left = outputs, left

    def _uses_scalars(self, hard: Tensor, calls: list[Call]) -> bool:
        """Whether the result of ``loss()`` depends on a 0-dim number in the output of ``forward()`` that is of labels."""
        scalars = _scalars(self.outputs)
        if not scalars or not (any(call.is_of_labels for call in calls) or self._reads_labels()):
            return False
        before = [scalar.clone() for scalar in scalars]
        with torch.no_grad():
            try:
                for scalar in scalars:
                    scalar.add_(1)
                moved = total(self._loss(self.batch))
            finally:
                for scalar, value in zip(scalars, before, strict=True):
                    scalar.copy_(value)
        return not self._same(hard, moved)

    def _reads_labels(self) -> bool:
        """Whether numbers in the output of ``forward()`` change with the labels. If that cannot be asked, they may."""
        if self.paths is None:
            return True
        other = cloned(self.batch)
        for leaf in (leaf for path, leaf in leaves(other) if any(path[: len(one)] == one for one in self.paths)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                leaf.copy_(1 - leaf)
            elif isinstance(leaf, Tensor) and leaf.dtype != torch.bool:
                leaf.copy_(torch.where(leaf < 0, leaf, (leaf == 0).to(leaf.dtype)))  # 0 and 1 are always classes
        try:
            with on_trial(self.model):
                outputs = self.model(other)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return True
        pairs = zip(_scalars(self.outputs), _scalars(outputs), strict=False)
        return any(not torch.equal(one, two) for one, two in pairs)

    def _answerable(self, calls: list[Call]) -> list[Call]:
        return [call for call in calls if is_answerable(call, self.smoother.kind, self.paths)]

    def _object_to_smoothing(self, calls: dict[str, list[Call]]) -> None:
        for method, heard in calls.items():
            for call in heard:
                elsewhere = call.origins and not is_of(call.origins, self.paths)
                if call.label_smoothing and not elsewhere:
                    amount = f"label_smoothing={call.label_smoothing:g}"
                    where = f" ({call.place})" if call.place else ""
                    place = f"model.{method}, which passes {amount} to {call.name}{where}"
                    self.conflicts.append(Conflict(place, f"drop {amount} from {call.place or 'that call'}"))
        if self.conflicts:
            self._refuse(DoubleSmoothingError(self.conflicts[0].message(self.smoother)))

    def _object_to_kind(self, calls: list[Call]) -> None:
        of_batch = [call for call in calls if call.origins or call.function not in CLASSES]
        functions = {call.function for call in of_batch}
        kind = self.smoother.kind
        if kind == "binary" and functions & set(CLASSES) and not functions & set(BINARY):
            self._refuse(TargetError(BINARY_FOR_CLASSES))
        rows = [call for call in of_batch if call.function in BINARY and self._is_of_rows(call)]
        if kind == "multiclass" and rows and not functions & set(CLASSES):
            self._refuse(TargetError(CLASSES_FOR_BINARY))

    def _object_to_other_labels(self, calls: list[Call], answerable: list[Call]) -> None:
        """Object to a second cross entropy of the same logits whose labels are elsewhere in the batch, as in MixUp by a dataloader."""
        if self.smoother.target_key != DEFAULT_KEY or self.paths is None:
            return
        smoothed = {_memory(call.input) for call in answerable}
        for call in calls:
            elsewhere = call.function in CLASSES and call.is_of_labels and not is_of(call.origins, self.paths)
            if elsewhere and _memory(call.input) in smoothed:
                mine, others = (
                    " and ".join(".".join(map(str, path)) for path in paths) for paths in (self.paths, call.origins)
                )
                self._refuse(
                    TargetError(
                        f"{type(self.model).__name__} takes the cross entropy of the same logits with the labels at {mine} of the "
                        f"batch and with those at {others}, and LabelSmoothing would smooth only the first: mix with Composer's "
                        f"MixUp or CutMix, let the batch hold one target of mixed rows, or use on_conflict='warn' if the others "
                        f"are to stay as they are"
                    )
                )

    def _is_of_rows(self, call: Call) -> bool:
        """Whether a call's target comes from rows in the batch, rather than from labels that the loss expanded."""
        origins = [leaf for path, leaf in leaves(self.batch) if path in call.origins and isinstance(leaf, Tensor)]
        return any(leaf.shape == call.input.shape for leaf in origins)

    def _refuse(self, error: ValueError) -> None:
        self.smoother.object_to(error)


def _of_one_class(labels: Any, smoother: Any) -> Tensor | None:
    """Labels that are all of the first one's class, but for ignored ones; of several per example, one that is positive alone.

    None for rows over classes.
    """
    if not isinstance(labels, Tensor) or not labels.numel():
        return None
    if smoother.kind == "binary":
        alone = labels.new_zeros(labels.shape)
        alone.view(-1)[0] = 1
        return alone
    if labels.is_floating_point() or labels.dtype == torch.bool:
        return None
    counted = (labels >= 0) & (labels != (NO_LABEL if smoother.ignore_index is None else smoother.ignore_index))
    return torch.where(counted, labels[counted][0], labels) if counted.any() else None


def _is_half(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype in HALF


def _has_half(things: Any) -> bool:
    return any(_is_half(leaf) for _, leaf in leaves(things))


def _in_float32(leaf: Any) -> Any:
    return leaf.float() if _is_half(leaf) else leaf


def _scalars(outputs: Any) -> list[Tensor]:
    """The 0-dim numbers in the output of a model."""
    found = [leaf for _, leaf in leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf for leaf in found if leaf.ndim == 0 and leaf.is_floating_point()]


def _numbering(more: float = 0.0, of: Callable[[Call], bool] = bool) -> Callable[[Call], Tensor]:
    """Answers the calls of a forward pass by `own_loss.numbered`, some of them with ``more``."""
    calls: list[Call] = []

    def answer(call: Call) -> Tensor:
        calls.append(call)
        return own_loss.numbered(calls) + more * of(call)

    return answer


def _is_same_weight(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, equal_nan=True)
    return one is other


def _differs(soft: Tensor | None, hard: Tensor | None) -> str:
    return f"it is {soft:.4g} for distributions but {hard:.4g} for their labels"


def _memory(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """What two tensors that are the same, or the same view of the same, have in common."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _in_words(error: Exception) -> str:  # kept in place of the error, which would keep the memory of its frames
    return f"{type(error).__name__}: {error}"
