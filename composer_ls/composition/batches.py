"""Finding the targets in a batch, and replacing them without changing objects that others hold."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from composer_ls.errors import InputError
from composer_ls.kernels import NO_LABEL

__all__ = [
    "NO_LABEL",
    "Path",
    "TargetKeyError",
    "as_tensor",
    "cloned",
    "form_of",
    "get",
    "has",
    "leaves",
    "may_have_targets",
    "path_of",
    "with_leaves",
    "with_target",
]

Path = tuple[Any, ...]
"""A path in nested containers: a key, an index or an attribute's name for each level."""

DEFAULT_KEY = 1
NAMES = ("labels", "label", "targets", "target", "y")
"""Keys under which targets are found without a ``target_key``, if the batch has exactly one of them."""


class TargetKeyError(InputError):
    """The batch has no targets at the given ``target_key``."""


def get(batch: Any, key: Any) -> Any:
    """What the batch holds at ``key``: an index, a name, a path of them, a getter, or a (getter, setter) pair.

    Raises:
        TargetKeyError: There is nothing at ``key``; the message lists the keys that exist.

    """
    if _is_pair(key):
        return key[0](batch)
    if callable(key):
        return key(batch)
    value = batch
    for step in path_of(batch, key):
        value = _item(value, step)
    return value


def has(batch: Any, key: Any) -> bool:
    """Whether the batch holds something at ``key``."""
    try:
        return get(batch, key) is not None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        return False


def may_have_targets(batch: Any, key: Any) -> bool:
    """Whether the batch holds something at ``key``, or, without a key, several things of which one may be the targets."""
    some = key == DEFAULT_KEY and isinstance(batch, Mapping) and any(name in batch for name in NAMES)
    return some or has(batch, key)


def path_of(batch: Any, key: Any) -> Path:
    """The path in ``batch`` that ``key`` stands for.

    A name with dots, or a list or tuple of names and indices, leads through several levels. A getter stands for the
    path to the object that it returns.

    Raises:
        TargetKeyError: There is nothing at ``key``, or a getter returns an object that is not in the batch.

    """
    if callable(key):
        found = key(batch)
        for path, leaf in leaves(batch):
            if leaf is found:
                return path
        raise TargetKeyError(
            "target_key is a getter that returns something which the batch does not hold itself, so LabelSmoothing "
            "cannot replace it with the smoothed targets: give a pair, target_key=(getter, setter), where "
            "setter(batch, value) returns the batch with the value in it"
        )
    path = tuple(key) if isinstance(key, (list, tuple)) else (key,)
    if _has(batch, path):
        return path
    if isinstance(key, str) and "." in key and _has(batch, tuple(key.split("."))):
        return tuple(key.split("."))
    names = [name for name in NAMES if isinstance(batch, Mapping) and name in batch]
    if key == DEFAULT_KEY and len(names) == 1:
        return (names[0],)
    raise TargetKeyError(_not_found(batch, key))


def with_target(batch: Any, key: Any, value: Any) -> Any:
    """The batch with another value at ``key``. Containers along the path are copied, everything else is shared."""
    if _is_pair(key):
        return key[1](_copied(batch), value)
    return _with_item(batch, path_of(batch, key), value)


def as_tensor(target: Any, device: torch.device) -> Any:
    """A list or a NumPy array of targets as a tensor; anything else is returned as it is."""
    is_array = type(target).__module__ == "numpy" and hasattr(target, "dtype")
    if not is_array and not (isinstance(target, (list, tuple)) and _is_leaf(target)):
        return target
    try:
        return torch.as_tensor(target, device=device)
    except (TypeError, ValueError):
        return target


def leaves(batch: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values in nested containers, each with its path: tensors, arrays, lists of numbers, and anything else."""
    if len(path) > 8 or _is_leaf(batch):
        yield path, batch
    else:
        for key, value in _items(batch):
            yield from leaves(value, (*path, key))


def form_of(batch: Any) -> frozenset[tuple[Any, ...]]:
    """What batches have in common that a loss treats alike.

    This is where they hold tensors, with how many dimensions, and whether these are floating-point; but not how many things are
    in a list, such as the boxes of an image.
    """
    kept = 1 if isinstance(batch, tuple) else 0
    return frozenset(
        (
            *path[:kept],
            *("*" if isinstance(key, int) else key for key in path[kept:]),
            leaf.ndim,
            leaf.is_floating_point(),
        )
        for path, leaf in leaves(batch)
        if isinstance(leaf, Tensor)
    )


def cloned(batch: Any) -> Any:
    """A copy of nested containers and of the tensors in them."""
    return with_leaves(batch, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def with_leaves(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested containers, with each value in them changed."""
    return _copied(batch, change)


def _is_pair(key: Any) -> bool:
    return isinstance(key, (list, tuple)) and len(key) == 2 and all(map(callable, key))


def _is_leaf(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and isinstance(value[0], (numbers.Number, str))
    return not isinstance(value, Mapping) and not _has_fields(value)


def _has_fields(value: Any) -> bool:
    """Whether a value is a plain object with its parts in attributes, such as a dataclass."""
    is_known = isinstance(value, (Tensor, torch.nn.Module, type)) or callable(value)
    return not is_known and type(value).__module__ != "numpy" and bool(getattr(value, "__dict__", None))


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else list(vars(value).items())


def _copied(value: Any, copy_leaf: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    if _is_leaf(value):
        return copy_leaf(value)
    if isinstance(value, tuple):
        items = [_copied(item, copy_leaf) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    new = copy.copy(value)
    for key, item in _items(value):
        _put(new, key, _copied(item, copy_leaf))
    return new


def _with_item(container: Any, path: Path, value: Any) -> Any:
    key, *rest = path
    if rest:
        value = _with_item(_item(container, key), tuple(rest), value)
    if isinstance(container, tuple):
        if isinstance(key, str):
            return container._replace(**{key: value})  # type: ignore[attr-defined]
        items = list(container)
        items[key] = value
        return container._make(items) if hasattr(container, "_make") else type(container)(items)
    new = copy.copy(container)
    _put(new, key, value)
    return new


def _put(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, (Mapping, list)) or not isinstance(key, str) or not hasattr(container, key):
        container[key] = value
    else:
        setattr(container, key, value)


def _item(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except (KeyError, IndexError, TypeError):
        if isinstance(key, str) and hasattr(container, key):
            return getattr(container, key)
        raise


def _has(batch: Any, path: Path) -> bool:
    try:
        for key in path:
            if isinstance(batch, Tensor):
                return False  # a path does not lead into a tensor
            batch = _item(batch, key)
    except (KeyError, IndexError, TypeError, AttributeError):
        return False
    return True


def _not_found(batch: Any, key: Any) -> str:
    if isinstance(batch, Mapping):
        has = f"is {_article(type(batch).__name__)} with the keys {', '.join(map(repr, batch))}"
        example = next((name for name in NAMES if name in batch), [*batch][-1] if batch else "labels")
    elif isinstance(batch, Sequence):
        has, example = f"is {_article(type(batch).__name__)} of {len(batch)}", len(batch) - 1
    else:
        has, example = f"is {_article(type(batch).__name__)}", "labels"
    return (
        f"the batch has no targets at target_key={key!r}: it {has}. Say where they are, as in "
        f"LabelSmoothing(target_key={example!r}); use target_key=('outer', 'inner') for nested containers, or a "
        f"(getter, setter) pair for anything else"
    )


def _article(name: str) -> str:
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
