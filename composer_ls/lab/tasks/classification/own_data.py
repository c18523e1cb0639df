"""Training and test examples that a function of the user's returns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from numbers import Integral
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from composer_ls.errors import RecipeError
from composer_ls.lab.images.loaders import Splits
from composer_ls.lab.images.preprocessing import Preprocessing
from composer_ls.lab.tasks.classification.schema import ClassificationData
from composer_ls.lab.tasks.target import call_target

__all__ = ["OwnExamples", "own_splits"]

LOOKED_AT = 20
"""The number of examples whose labels are compared with the data set's ``targets``."""
KEYS = ("train", "test", "classes", "validation", "preprocessing")
EXPECTED = (
    'a mapping {"train": ..., "test": ..., "classes": [names]}, and optionally "validation" and "preprocessing", where the '
    "first two and validation are map-style data sets of (image tensor, integer label)"
)


class OwnExamples(Dataset[tuple[Tensor, int]]):
    """A data set of the user's.

    Args:
        dataset: The data set.
        collate: The function that makes batches; ``None``: PyTorch's.

    """

    def __init__(self, dataset: Any, collate: Any = None) -> None:
        self.dataset, self.collate = dataset, collate
        self._targets: list[int] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset[index]

    @property
    def changes_with_the_epoch(self) -> bool:
        """Whether the data set wants to know of a new epoch."""
        return hasattr(self.dataset, "set_epoch")

    def set_epoch(self, epoch: int) -> None:
        """Tell the data set of a new epoch, if it wants to know."""
        if self.changes_with_the_epoch:
            self.dataset.set_epoch(epoch)

    @property
    def targets(self) -> list[int]:
        """The labels: the data set's ``targets`` if these are its labels, or else its examples', which are all read once."""
        if self._targets is None:
            known = getattr(self.dataset, "targets", None)
            if known is None or not self._has_labels(known):
                known = [self.dataset[index][1] for index in range(len(self))]
            self._targets = [int(label) for label in known]
        return self._targets

    def _has_labels(self, known: Any) -> bool:
        """Whether these are the labels of some examples. They are not with a ``target_transform``, or in a subset."""
        size = len(self)
        some = range(0, size, max(1, size // LOOKED_AT))
        return len(known) == size and all(int(known[index]) == int(self.dataset[index][1]) for index in some)


def own_splits(data: ClassificationData) -> Splits:
    """The examples that the function named in ``data.target`` returns.

    Raises:
        RecipeError: The function cannot be called, or returns something else than data sets of images with labels.

    """
    assert data.target is not None
    returned = call_target("data.target", data.target, data.arguments)
    if not isinstance(returned, Mapping) or not {"train", "test"} <= returned.keys():
        what = f"the keys {', '.join(map(str, returned))}" if isinstance(returned, Mapping) else type(returned).__name__
        raise RecipeError(f"data.target={data.target} returned {what}, but must return {EXPECTED}")
    if unknown := [key for key in returned if key not in KEYS]:
        raise RecipeError(
            f"data.target={data.target} returned the keys {', '.join(map(str, unknown))} too, but must return {EXPECTED}"
        )
    parts = {
        name: _examples(data.target, name, returned[name])
        for name in ("train", "validation", "test")
        if returned.get(name) is not None
    }
    names = _class_names(data.target, returned.get("classes", getattr(parts["train"].dataset, "classes", None)))
    _require_same_classes(data.target, names, parts)
    shapes = {name: _checked(data.target, name, part, len(names)) for name, part in parts.items()}
    shape = shapes["train"]
    for name, other in shapes.items():
        if other != shape:
            raise RecipeError(
                f'data.target={data.target} returned images of shape {other} for "{name}", but of shape {shape} for "train"'
            )
    return Splits(
        parts["train"],
        parts["test"],
        len(names),
        shape,
        names,
        validation=parts.get("validation"),
        preprocessing=_preprocessing(data.target, returned.get("preprocessing"), shape),
    )


def _class_names(target: str, classes: Any) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers."""
    if isinstance(classes, (set, frozenset)):
        raise RecipeError(
            f'data.target={target} returned "classes" as a {type(classes).__name__}, which has no order: return a list, in the '
            f"order of the labels"
        )
    listed = _by_number(target, classes) if isinstance(classes, Mapping) else classes
    names = () if isinstance(listed, str) or not hasattr(listed, "__iter__") else tuple(str(name) for name in listed)
    if len(names) < 2:
        raise RecipeError(
            f'data.target={target} returned "classes": {classes!r}, but it must be the names of two classes or more'
        )
    if len(set(names)) < len(names):
        raise RecipeError(f"data.target={target} returned two classes of one name: {', '.join(names)}")
    return names


def _by_number(target: str, classes: Mapping[Any, Any]) -> list[Any]:
    """The names in a mapping of names to numbers, or of numbers to names, in the order of the numbers."""
    keys, values = list(classes), list(classes.values())
    orders = [
        [name for _, name in sorted(zip(numbers, names, strict=True), key=lambda pair: pair[0])]
        for numbers, names in ((keys, values), (values, keys))
        if all(isinstance(number, Integral) for number in numbers) and set(numbers) == set(range(len(numbers)))
    ]
    if not orders or orders[0] != orders[-1]:
        raise RecipeError(
            f'data.target={target} returned "classes": {classes!r}, but a mapping must be of names to the numbers 0 to '
            f"{len(classes) - 1}, or of these to names: return a list of names, in the order of the labels"
        )
    return orders[0]


def _require_same_classes(target: str, names: tuple[str, ...], parts: Mapping[str, OwnExamples]) -> None:
    """Refuse data sets that number their classes differently, as two ImageFolders of which one lacks a class.

    The names that were returned may be others than the data sets', but not the same in another order.
    """
    known = {name: getattr(part.dataset, "classes", None) for name, part in parts.items()}
    named = {name: list(classes) for name, classes in known.items() if isinstance(classes, (list, tuple))}
    first = named.get("train")
    for name, classes in named.items():
        if first is not None and classes != first:
            one = next((a, b) for a, b in zip_longest(first, classes) if a != b)
            raise RecipeError(
                f'data.target={target} returned data sets with other classes for "train" than for "{name}" ({one[0]} and '
                f"{one[1]} have one number): give both the same classes in the same order"
            )
        numbers = {str(one): number for number, one in enumerate(classes)}
        moved = next((one for number, one in enumerate(names) if numbers.get(one, number) != number), None)
        if moved is not None:
            raise RecipeError(
                f'data.target={target} returned "classes" in another order than the classes of "{name}": {moved} is class '
                f"{names.index(moved)} in the one and {numbers[moved]} in the other; return them in the order of the labels, "
                f"or leave them out"
            )


def _examples(target: str, name: str, given: Any) -> OwnExamples:
    collate = None
    if isinstance(given, DataLoader):
        samplers = (given.sampler, given.batch_sampler)
        own = [one for one in samplers if type(one) not in (RandomSampler, SequentialSampler, BatchSampler, type(None))]
        if own:
            raise RecipeError(
                f'data.target={target} returned a loader for "{name}" with a {type(own[0]).__name__}, but the order '
                f"of examples is composer-ls's: return the data set"
            )
        given, collate = given.dataset, given.collate_fn
    if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")) or isinstance(given, (Mapping, str)):
        raise RecipeError(
            f'data.target={target} returned {type(given).__name__} for "{name}", but must return a map-style data set, with '
            f"len() and an index"
        )
    if not len(given):
        raise RecipeError(f'data.target={target} returned no examples for "{name}"')
    return OwnExamples(given, collate)


def _checked(target: str, name: str, part: OwnExamples, num_classes: int) -> tuple[int, ...]:
    """The shape of the first image, if it and its label are what they must be."""
    with torch.random.fork_rng([]):
        first = part[0]
    begin = f'the first example of "{name}" from data.target={target}'
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        raise RecipeError(f"{begin} is {_described(first)}, but must be (image, label)")
    image, label = first
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise RecipeError(
            f"{begin} has the image {_described(image)}, but it must be a floating-point tensor: convert and normalise it in "
            f"the data set's transform"
        )
    whole = isinstance(label, int) or (isinstance(label, Tensor) and label.ndim == 0 and not label.is_floating_point())
    if not whole and not hasattr(label, "__index__"):
        raise RecipeError(f"{begin} has the label {_described(label)}, but it must be an integer")
    if not 0 <= int(label) < num_classes:
        raise RecipeError(f"{begin} has the label {int(label)}, but there are classes 0 to {num_classes - 1}")
    return tuple(image.shape)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"an image of Pillow of size {value.size}" if isinstance(value, Image.Image) else repr(value)[:80]


def _preprocessing(target: str, given: Any, shape: tuple[int, ...]) -> Preprocessing | None:
    if given is None:
        return None
    try:
        found = Preprocessing.from_dict(given)
        if (len(found.mean), *found.size) != shape:
            raise ValueError(f"it makes images of shape {(len(found.mean), *found.size)}")
        return found
    except (ValueError, TypeError, AttributeError) as error:
        raise RecipeError(
            f'data.target={target} returned "preprocessing": {given!r}, but it must be {{"size": [height, width], "mean": '
            f'[...], "std": [...]}}, for images of shape {shape} ({error})'
        ) from error
