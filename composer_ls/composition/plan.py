"""Where smoothing runs among the other algorithms, and a description in words of what happens to the targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer.core import Algorithm, State
from composer.loss import soft_cross_entropy
from torch import nn
from torch.nn import functional as F

from composer_ls.composition.conflicts import loss_function_of
from composer_ls.composition.mixers import data_mixers, is_smoother, mixer_of, mixers_among
from composer_ls.composition.own_loss import before_asking, makes_its_loss
from composer_ls.composition.reach import fields_of, reachable
from composer_ls.losses import CrossEntropyLoss, cross_entropy

__all__ = ["describe", "has_unknown", "may_compute_losses", "place", "unwrapped"]


def place(algorithms: Sequence[Algorithm], smoother: Algorithm) -> list[Algorithm]:
    """``algorithms`` with ``smoother`` moved to its proper position; the others keep their order.

    Smoothing runs after every algorithm that is not known to us, because it may rewrite targets, and before the first
    mixer after that, so that the mixer's own arithmetic works on compact SoftTargets. A mixer that runs earlier mixes
    hard rows, which are smoothed afterwards; the result is the same.
    """
    others = [algorithm for algorithm in algorithms if algorithm is not smoother]
    position = max((i for i, algorithm in enumerate(others, 1) if _is_unknown(algorithm)), default=0)
    while position < len(others) and mixer_of(others[position]) is None:
        position += 1
    return [*others[:position], smoother, *others[position:]]


def _is_unknown(algorithm: Any) -> bool:
    """Whether an algorithm may rewrite targets: neither a registered mixer nor from Composer or this package."""
    known = mixer_of(algorithm) is not None or is_smoother(algorithm)
    return not known and type(algorithm).__module__.partition(".")[0] not in {"composer", "composer_ls"}


def may_compute_losses(state: State) -> bool:
    """Whether something may compute a loss between the training loss and the backward pass: a mixer of losses, or what is unknown."""
    return has_unknown(state) or any(mixer.interpolates(one) for one, mixer in mixers_among(state.algorithms))


def has_unknown(state: State) -> bool:
    """Whether there is an algorithm or a callback that is neither a registered mixer nor from Composer or this package."""
    return any(map(_is_unknown, [*state.algorithms, *state.callbacks]))


def describe(trainer_or_state: Any) -> str:
    r"""What happens to the targets between the dataloader and the loss, in one sentence.

    Args:
        trainer_or_state: A Composer ``Trainer`` or ``State``. The dataloader is described if the Trainer was given it,
            or once training has started.

    Example:
        >>> import torch
        >>> from composer import Trainer
        >>> from composer.algorithms import CutMix
        >>> from composer.models import ComposerClassifier
        >>> from composer_ls import LabelSmoothing
        >>> from composer_ls.composition import describe
        >>> model = ComposerClassifier(torch.nn.Linear(4, 10), num_classes=10)
        >>> trainer = Trainer(model=model, algorithms=[CutMix(), LabelSmoothing(0.1)], progress_bar=False)
        >>> print(describe(trainer).replace("; ", ";\n"))
        smoothing 0.1, uniform over 10 classes;
        CutMix mixes first labels with second labels, both smoothed;
        loss cross_entropy, fused;
        targets restored after the loss

    """
    state: State = getattr(trainer_or_state, "state", trainer_or_state)
    smoothers = [a for a in state.algorithms if is_smoother(a, "composer_ls")]
    model, data = unwrapped(state), _data_part(state)
    mixers = _mixer_parts(state.algorithms, smoothers)
    parts = [_smoothing_part(smoother, state, len(smoothers) > 1) for smoother in smoothers]
    parts = parts or [_without_ours(state)]
    parts += [*data, *mixers]
    replaced = [words for smoother in smoothers if (words := smoother.way.describe())]
    if not replaced and smoothers and makes_its_loss(model):
        replaced = [before_asking(model)]
    if replaced:
        parts += dict.fromkeys(f"loss {words}" for words in replaced)
    else:
        dense = any("dense rows" in part for part in parts)
        parts.append(_loss_part(model, bool(smoothers) and not dense, bool(smoothers)))
        parts += ["targets restored after the loss"] if smoothers else []
    return "; ".join([*parts, *(a.in_words for a in state.algorithms if hasattr(a, "in_words"))])


def _without_ours(state: State) -> str:
    theirs: Any = next((algorithm for algorithm in state.algorithms if is_smoother(algorithm)), None)
    return f"smoothing {theirs.smoothing:g} by Composer's own LabelSmoothing" if theirs else "no smoothing"


def _smoothing_part(smoother: Any, state: State, is_one_of_several: bool) -> str:
    of = f" of the targets at {smoother.target_key!r}" if is_one_of_several else ""
    classes = getattr(smoother.way, "num_classes", None) or fields_of(unwrapped(state)).get("num_classes")
    return str(smoother.in_words_over(None if is_one_of_several else classes, of))


def _data_part(state: State) -> list[str]:
    loader = state.dataloader if state.train_dataloader is None else state.train_dataloader
    collate = fields_of(loader).get("collate_fn")
    mixers = data_mixers([thing for _, thing in reachable(collate, "collate_fn")])
    names = " and ".join(dict.fromkeys(type(mixer).__name__ for mixer in mixers))
    return [f"{names} in the dataloader, whose dense rows are smoothed"] if names else []


def _mixer_parts(algorithms: Sequence[Algorithm], smoothers: Sequence[Algorithm]) -> list[str]:
    smoother = next(iter(smoothers), None)
    parts = []
    both = ", both smoothed" if smoother is not None else ""
    before = True
    for algorithm in algorithms:
        if algorithm in smoothers:
            before = False
        elif _is_unknown(algorithm) and smoother is not None:
            parts.append(f"{type(algorithm).__name__} may rewrite targets, smoothed after it")
        elif (mixer := mixer_of(algorithm)) is not None:
            name = type(algorithm).__name__
            if mixer.interpolates(algorithm):
                parts.append(f"{name} mixes the losses of first and second labels{both}")
            elif before and smoother is not None:
                parts.append(f"{name} mixes first labels with second labels, whose dense rows are smoothed")
            else:
                parts.append(f"{name} mixes first labels with second labels{both}")
    return parts


def _loss_part(model: Any, compact: bool, smooths: bool) -> str:
    loss = loss_function_of(model)
    if loss is None:
        return f"loss {type(model).__name__}.loss"
    if smooths and loss is soft_cross_entropy:
        loss = cross_entropy  # while it trains
    name = getattr(loss, "__name__", type(loss).__name__)
    fused = loss in (cross_entropy, F.cross_entropy) or isinstance(loss, (nn.CrossEntropyLoss, CrossEntropyLoss))
    return f"loss {name}, fused" if fused and compact else f"loss {name}"


def unwrapped(state: State) -> Any:
    """The model without its DistributedDataParallel wrapper."""
    model = state.model
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
