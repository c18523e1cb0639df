"""What would smooth the targets a second time: found by looking, before the first step."""

from __future__ import annotations

import contextlib
import functools
import inspect
import numbers
import re
import tokenize
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from composer.core import Algorithm
from torch import Tensor

from composer_ls.composition.mixers import is_smoother
from composer_ls.composition.reach import names_of, reachable
from composer_ls.errors import InputError
from composer_ls.targets import SoftTargets

__all__ = [
    "Conflict",
    "DoubleSmoothingError",
    "conflicts_in_data",
    "conflicts_in_model",
    "conflicts_with_algorithms",
    "kind_of_loss",
    "looks_smoothed",
]


class DoubleSmoothingError(InputError):
    """Two places would smooth the same targets."""


@dataclass(frozen=True)
class Conflict:
    """Something beside LabelSmoothing that smooths.

    Attributes:
        place: Where it is and what it is, in words.
        remedy: What to change there so that it does not.

    """

    place: str
    remedy: str

    def message(self, smoother: Algorithm) -> str:
        """Both places, and the two ways out."""
        return (
            f"the targets would be smoothed twice: by LabelSmoothing(smoothing={getattr(smoother, 'smoothing', '?')}) in "
            f"algorithms, and by {self.place}. Keep one: {self.remedy}, or take LabelSmoothing out of algorithms; "
            f"LabelSmoothing(..., on_conflict='warn') goes on with both"
        )


def conflicts_with_algorithms(algorithms: Sequence[Algorithm], smoother: Any) -> list[Conflict]:
    """Other algorithms of the list that smooth the same targets, Composer's or ours."""
    return [
        Conflict(f"another {type(other).__module__.split('.')[0]} {type(other).__name__}", "remove it from algorithms")
        for other in algorithms
        if other is not smoother
        and is_smoother(other)
        and _is_positive(vars(other).get("smoothing"))
        and vars(other).get("target_key") == smoother.target_key
    ]


def conflicts_in_model(model: Any) -> list[Conflict]:
    """What smooths in a model's ``loss`` method and in all that it uses, as far as that can be seen without running it.

    Seen are modules and ``functools.partial`` with ``label_smoothing``, timm's smoothing losses, and calls with the
    keyword ``label_smoothing=`` whose value is a number, a variable outside the function or an attribute of ``self``.
    Not seen are a positional argument and a value that is computed.
    """
    return _conflicts_behind([("model.loss", getattr(model, "loss", None))])


def conflicts_in_data(dataloader: Any) -> list[Conflict]:
    """What smooths in a dataloader: its collate function and its data set's transforms, as far as they can be seen."""
    roots = [("the dataloader's collate_fn", getattr(dataloader, "collate_fn", None))]
    data_set = getattr(dataloader, "dataset", None)
    while data_set is not None:  # a Subset holds another data set
        names = ("transform", "target_transform", "transforms", "collate_fn")
        roots += [(f"the data set's {name}", getattr(data_set, name, None)) for name in names]
        data_set = getattr(data_set, "dataset", None)
    if hasattr(dataloader, "loader"):  # a loader around a loader, as timm has
        roots.append(("the dataloader", dataloader))
    return _conflicts_behind(roots)


def _conflicts_behind(roots: Sequence[tuple[str, Any]]) -> list[Conflict]:
    found = [c for name, root in roots for path, thing in reachable(root, name) for c in _smoothing_of(path, thing)]
    return list(dict.fromkeys(found))


def kind_of_loss(model: Any) -> str | None:
    """Which kind of targets the loss behind ``model.loss`` takes: ``"multiclass"``, ``"binary"``; ``None`` if unseen."""
    names = {name for _, thing in reachable(getattr(model, "loss", None), "model.loss") for name in names_of(thing)}
    kinds = {kind for kind, pattern in _KINDS.items() if any(re.search(pattern, name) for name in names)}
    return kinds.pop() if len(kinds) == 1 else None


_KINDS = {
    "multiclass": "(?<!binary_)cross_entropy|(?<!Binary)CrossEntropy|NLLLoss|nll_loss",
    "binary": "binary_cross_entropy|BinaryCrossEntropy|^BCE|^MultiLabel",
}


def looks_smoothed(target: Any, num_classes: int, kind: str = "multiclass") -> str | None:
    """Why a target that arrives at the loss looks smoothed already, if it does. Reads its values."""
    if kind == "binary":
        inside = isinstance(target, Tensor) and target.numel() > 0 and bool(((target > 0) & (target < 1)).all())
        return "none of its labels is 0 or 1, as smoothing makes them" if inside else None
    if isinstance(target, SoftTargets):
        already = bool((target.smoothing != 0).any())
        return f"it arrives as {target!r}" if already else None
    dense = isinstance(target, Tensor) and target.is_floating_point() and target.ndim > 1 and target.numel() > 0
    if not dense or num_classes < 3 or target.shape[1] != num_classes:
        return None
    if bool((target.amin(1) > 0).all()):
        return "its rows are dense and even their smallest entries are positive, as smoothing makes them"
    return None


def _smoothing_of(path: str, thing: Any) -> Iterator[Conflict]:
    if isinstance(thing, functools.partial):
        amount = thing.keywords.get("label_smoothing")
        if _is_positive(amount):
            name = getattr(thing.func, "__name__", type(thing.func).__name__)
            yield Conflict(
                f"{path}, which is functools.partial({name}, label_smoothing={amount})",
                f"drop label_smoothing={amount} from the partial",
            )
    elif isinstance(thing, (types.FunctionType, types.MethodType)):
        yield from _smoothing_in_source(path, thing)
    elif not isinstance(thing, type):
        name = type(thing).__name__
        is_loss = re.search("labelsmooth|crossentropy", name.lower())  # timm's losses call it smoothing
        for attribute in ("label_smoothing", "smoothing") if is_loss else ("label_smoothing",):
            amount = getattr(thing, attribute, None)
            if _is_positive(amount):
                yield Conflict(f"{path}, which is {name}({attribute}={amount})", f"set {attribute}=0.0 in that {name}")
                return


def _smoothing_in_source(path: str, function: Any) -> Iterator[Conflict]:
    """``label_smoothing=`` in the text of a function or method, with a value that can be known without running it."""
    constants = function.__code__.co_consts
    if not any(isinstance(names, tuple) and "label_smoothing" in names for names in constants):
        return  # no call in it has such a keyword
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        return
    for number, words in enumerate(_words_by_line(lines), first):
        for match in _PASSED.finditer(words):
            amount = _value(match[1].replace(" ", ""), function)
            if _is_positive(amount):
                place = f"{function.__code__.co_filename}:{number}"
                yield Conflict(
                    f"{path}, which passes label_smoothing={amount} ({place})", f"drop label_smoothing= from {place}"
                )


_PASSED = re.compile(r"\blabel_smoothing = ([\w.+-]+(?: \. \w+)*)")


def _value(text: str, function: Any) -> Any:
    """The number that a word stands for in a function: a literal, a variable outside it, or something of ``self``."""
    with contextlib.suppress(ValueError):
        return float(text)
    name, *attributes = text.split(".")
    variables = inspect.getclosurevars(function)
    outside = {**variables.globals, **variables.nonlocals}
    if isinstance(function, types.MethodType):
        outside[function.__code__.co_varnames[0]] = function.__self__
    value = outside.get(name)
    for attribute in attributes:
        value = getattr(value, attribute, None)
    return value


def _words_by_line(lines: list[str]) -> list[str]:
    """The code of each line, its tokens a space apart, without comments and strings: docstrings show examples."""
    words = [""] * (len(lines) + 1)
    with contextlib.suppress(tokenize.TokenError, IndentationError, SyntaxError):  # a lambda's lines are a fragment
        for token in tokenize.generate_tokens(iter(lines).__next__):
            if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP):
                words[token.start[0] - 1] += f" {token.string}"
    return words[:-1]


def _is_positive(amount: Any) -> bool:
    return isinstance(amount, numbers.Real) and not isinstance(amount, bool) and float(amount) > 0
