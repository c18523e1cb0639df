"""Finds what would smooth the targets a second time, as far as it can be known without running the model."""

from __future__ import annotations

import functools
import numbers
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from composer.core import Algorithm
from composer.loss import soft_cross_entropy
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.composition.mixers import is_smoother
from composer_ls.composition.reach import fields_of, reachable
from composer_ls.errors import InputError
from composer_ls.losses import CrossEntropyLoss, cross_entropy
from composer_ls.targets import SoftTargets

__all__ = [
    "Conflict",
    "DoubleSmoothingError",
    "conflicts_in_data",
    "conflicts_in_model",
    "conflicts_with_algorithms",
    "kind_of_loss",
    "looks_smoothed",
    "loss_function_of",
    "smoothing_of",
    "warn_if_smoothed",
]


class DoubleSmoothingError(InputError):
    """Two places would smooth the same targets."""


@dataclass(frozen=True)
class Conflict:
    """Something that smooths besides an Algorithm of ours.

    Attributes:
        place: What it is and where, in words.
        remedy: The change that turns it off.

    """

    place: str
    remedy: str

    def message(self, smoother: Algorithm) -> str:
        """An error message that names both places and the ways to resolve the conflict."""
        name, argument = type(smoother).__name__, getattr(smoother, "ARGUMENT", "smoothing")
        return (
            f"the targets would be smoothed twice: by {name}({argument}={getattr(smoother, argument, '?')}) in "
            f"algorithms, and by {self.place}. Keep one: {self.remedy}, or take {name} out of algorithms; "
            f"{name}(..., on_conflict='warn') continues with both"
        )


def conflicts_with_algorithms(algorithms: Sequence[Algorithm], smoother: Any) -> list[Conflict]:
    """Other algorithms of the list that smooth the same targets, Composer's or ours."""
    return [
        Conflict(f"another {type(other).__module__.split('.')[0]} {type(other).__name__}", "remove it from algorithms")
        for other in algorithms
        if other is not smoother
        and is_smoother(other)
        and getattr(other, "smooths", _is_positive(vars(other).get("smoothing")))
        and vars(other).get("target_key") == smoother.target_key
    ]


def conflicts_in_model(model: Any) -> list[Conflict]:
    """What smooths in a model's ``_loss_fn``, the attribute in which a ``ComposerClassifier`` keeps its loss function.

    Recognised are cross entropies and a ``functools.partial`` with ``label_smoothing``, and timm's smoothing losses.
    Other losses are examined on the first microbatch (see `composer_ls.composition.choosing`).
    """
    found: list[Conflict] = []
    thing, path = loss_function_of(model), "model._loss_fn"
    while thing is not None:
        found += smoothing_of(path, thing)
        thing, path = (thing.func, f"{path}.func") if isinstance(thing, functools.partial) else (None, path)
    return found


def conflicts_in_data(dataloader: Any) -> list[Conflict]:
    """What smooths in a dataloader's collate function or its data set's transforms, as far as it can be seen."""
    loader = dataloader
    found: list[Conflict] = []
    seen: list[Any] = []
    while loader is not None and not any(loader is other for other in seen):  # timm wraps a loader in a loader
        seen.append(loader)
        held = fields_of(loader)
        roots = [("the dataloader's collate_fn", held.get("collate_fn"))]
        data_set = held.get("dataset")
        while data_set is not None and not any(data_set is other for other in seen):  # a Subset wraps a data set
            seen.append(data_set)
            fields = fields_of(data_set)
            names = ("transform", "target_transform", "transforms", "collate_fn")
            roots += [(f"the data set's {name}", fields.get(name)) for name in names]
            data_set = fields.get("dataset")
        found += [c for name, root in roots for path, thing in reachable(root, name) for c in smoothing_of(path, thing)]
        loader = held.get("loader")
    return list(dict.fromkeys(found))


def loss_function_of(model: Any) -> Any:
    """A model's ``_loss_fn``, or None."""
    return fields_of(model).get("_loss_fn")


def kind_of_loss(model: Any) -> str | None:
    """The kind of targets that a model's ``_loss_fn`` takes, ``"multiclass"`` or ``"binary"``; None if not known."""
    loss = loss_function_of(model)
    while isinstance(loss, functools.partial):
        loss = loss.func
    classes = (nn.CrossEntropyLoss, nn.NLLLoss, CrossEntropyLoss)
    if isinstance(loss, classes) or any(
        loss is f for f in (F.cross_entropy, F.nll_loss, cross_entropy, soft_cross_entropy)
    ):
        return "multiclass"
    binary = isinstance(loss, (nn.BCEWithLogitsLoss, nn.BCELoss)) or loss is F.binary_cross_entropy_with_logits
    return "binary" if binary else None


def looks_smoothed(target: Any, num_classes: int, kind: str = "multiclass") -> str | None:
    """Why a target looks as if it was smoothed before, or None if it does not. Reads its values."""
    if kind == "binary":
        inside = isinstance(target, Tensor) and target.numel() > 0 and bool(((target > 0) & (target < 1)).all())
        return "none of its labels is 0 or 1, as in smoothed targets" if inside else None
    if isinstance(target, SoftTargets):
        already = bool((target.smoothing != 0).any())
        return f"it arrives as {target!r}" if already else None
    dense = isinstance(target, Tensor) and target.is_floating_point() and target.ndim > 1 and target.numel() > 0
    if not dense or num_classes < 3 or target.shape[1] != num_classes:
        return None
    if bool((target.amin(1) > 0).all()):
        return "its rows are dense and even their smallest entries are positive, as in smoothed targets"
    return None


def smoothing_of(path: str, thing: Any) -> Iterator[Conflict]:
    """The conflict that an object causes, if its class is known to smooth."""
    if isinstance(thing, functools.partial):
        amount = thing.keywords.get("label_smoothing")
        if _is_positive(amount):
            name = getattr(thing.func, "__name__", type(thing.func).__name__)
            yield Conflict(
                f"{path}, which is functools.partial({name}, label_smoothing={amount})",
                f"drop label_smoothing={amount} from the partial",
            )
        return
    name, held = type(thing).__name__, fields_of(thing)
    is_loss = re.search("labelsmooth|crossentropy", name.lower())  # timm's losses call the attribute smoothing
    for attribute in ("label_smoothing", "smoothing") if is_loss else ("label_smoothing",):
        if _is_positive(amount := held.get(attribute)):
            yield Conflict(f"{path}, which is {name}({attribute}={amount})", f"set {attribute}=0.0 in that {name}")
            return


def warn_if_smoothed(target: Any, logits: Tensor, kind: str, name: str = "LabelSmoothing") -> None:
    """Warn if a target looks smoothed before the Algorithm of this name has smoothed it. Reads its values."""
    reason = looks_smoothed(target, logits.shape[1] if logits.ndim > 1 else logits.shape[0], kind)
    if reason:
        warnings.warn(
            f"the first batch's target looks smoothed before {name} smooths it: {reason}. If a transform in "
            f"the dataloader smooths (timm's Mixup does by default), set its label_smoothing=0.0, or take "
            f"{name} out of algorithms",
            stacklevel=3,
        )


def _is_positive(amount: Any) -> bool:
    return isinstance(amount, numbers.Real) and not isinstance(amount, bool) and float(amount) > 0
